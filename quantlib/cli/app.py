"""What commands have in common: how an application is made, and how a command ends."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from quantlib.support.errors import InputError
from quantlib.support.exhaustion import reason_for, removal
from quantlib.support.presence import forget_used

if TYPE_CHECKING:
    from rich.console import Console

# As wide as the table of results with quantized students: a log needs no lines of 80 columns.
_LOG_COLUMNS = 100


def new_app() -> typer.Typer:
    """An application without commands yet."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None, name: str | None = None) -> int:
    """Run a command; what the user got wrong, or the machine lacks, is one line on stderr and exit code 2.

    Args:
        app: of one command or several.
        arguments: the words behind the command's name; None for those of this process.
        name: of the command, as its help shows it; None for the file's.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a place that knows no ✓ must not end a run
    forget_used()
    try:
        code = app(arguments, standalone_mode=False, prog_name=name)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        print("error:", reason, file=sys.stderr)
        return 2
    return int(code or 0)


def _reason(error: Exception) -> str | None:
    """What to say of an error, in one line; None for a bug."""
    if isinstance(error, typer.TyperException):
        return " ".join(error.format_message().splitlines())
    if isinstance(error, InputError):  # what was there, and was found missing, is nothing that the user gave
        return removal(error) or str(error)
    return reason_for(error)


def wide_console() -> Console:
    """Where a command prints; progress too, since what is on stderr is what went wrong."""
    from rich.console import Console

    out = Console()
    if not out.is_terminal:
        out.width = max(out.width, _LOG_COLUMNS)
    return out


def print_json(value: Any) -> None:
    """Print a value for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
