"""What commands have in common: how an application is made, and how a command ends."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import typer

from quantlib.support.errors import InputError


def new_app() -> typer.Typer:
    """An application without commands yet."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line on stderr and exit code 2.

    Args:
        app: of one command or several.
        arguments: the words behind the command's name; None for those of this process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a place that knows no ✓ must not end a run
    try:
        code = app(arguments, standalone_mode=False)
    except (InputError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        print("error:", " ".join(message.splitlines()), file=sys.stderr)
        return 2
    return int(code or 0)
