"""What every room stands on: errors, files, the cache, progress."""
