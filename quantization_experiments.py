"""The main job from a clone: `python quantization_experiments.py --help`."""

from __future__ import annotations

import sys

from quantlib.cli.run import app, cli

__all__ = ["app", "cli"]

if __name__ == "__main__":
    sys.exit(cli())
