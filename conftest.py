"""Marks the root of the repository for pytest; quantlib's plugin is loaded by its entry point."""
