"""`python -m quantlib`, and the console script."""

from __future__ import annotations

import sys

from quantlib.support.interruption import main_process


def main() -> int:
    """Run the command line; its exit code."""
    return main_process(_command)


def _command() -> int:
    from quantlib.cli.main import quantlib  # late, so that Ctrl-C while it loads is one line too

    return quantlib()


if __name__ == "__main__":
    sys.exit(main())
