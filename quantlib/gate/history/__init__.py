"""Each variant over the commits of a repository: speedup, drop, size, and where they changed."""
