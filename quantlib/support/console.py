"""The style of the tables that commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


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
