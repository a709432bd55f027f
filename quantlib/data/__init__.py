"""Tasks and their rows, token ids, metrics."""
