"""Many runs as one: tasks x checkpoints x students x recipes, on the cores of this machine or on a cluster.

`configuration` reads sweep.toml into blocks, `graph` makes jobs of them, `driving` runs these through a pool
(`local`, `cluster`) and keeps what each gave (`state`), `table` puts it all into one table.
"""
