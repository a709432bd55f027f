"""The command and its subcommands; the only place that imports typer."""
