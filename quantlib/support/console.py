"""What commands have in common: how they end, and how their tables look."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import typer
    from rich.table import Table


def run_app(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line on stderr and exit code 2.

    Args:
        app: of one command or several.
        arguments: the words behind the command's name; None for those of this process.

    Returns:
        The exit code.
    """
    import typer

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


def plain_table(caption: str | None = None) -> Table:
    """A table without columns yet, with a rule under its head and no other line."""
    from rich import box
    from rich.table import Table

    return Table(
        box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, caption=caption, caption_justify="left"
    )


def red(text: str, on: bool) -> str:
    """The text in rich's markup, red if `on`."""
    return f"[red]{text}[/red]" if on else text
