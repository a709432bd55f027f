"""What a variant is: accurate, fast, and why."""
