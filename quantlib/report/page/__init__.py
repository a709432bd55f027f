"""Pages for a browser: one file each, which fetches nothing and runs nothing but its own few lines."""
