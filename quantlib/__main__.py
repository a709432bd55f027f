"""`python -m quantlib`, and the console script."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; its exit code."""
    from quantlib.cli.main import quantlib

    return quantlib()


if __name__ == "__main__":
    sys.exit(main())
