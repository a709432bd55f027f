"""The command line of quantlib, a module for each command."""

from __future__ import annotations

from collections.abc import Sequence

from quantlib.cli import run
from quantlib.cli.app import new_app, run_app

app = new_app()
app.command()(run.command())


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see `run_app`."""
    return run_app(app, arguments)
