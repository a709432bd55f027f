"""The main job from a clone: `python quantization_experiments.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from quantlib.support.interruption import main_process


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the main job and return its exit code; see `quantlib.cli.app.run_app`."""
    from quantlib.cli import run  # late, so that Ctrl-C while it loads is one line too

    return run.cli(arguments)


if __name__ == "__main__":
    sys.exit(main_process(cli))
