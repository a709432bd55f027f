"""The console's tables: a line for each operator, and for each role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantlib.measuring.profile.result import OUTSIDE, Line, Profile
from quantlib.support.console import plain_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_NUMBERS = ("count", "ms", "time\n%", "Gop", "Gop/s", "peak\n%")


def show(profile: Profile, console: Console) -> None:
    """Print both tables, and below them a summary in words."""
    for table in (operator_table(profile), role_table(profile)):
        console.print(table, crop=False)
    for line in (f"{profile.variant}: {profile.summary}.", *profile.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def operator_table(profile: Profile) -> Table:
    """A line for each operator, the longest first; then what is outside of kernels, and the sum.

    Shares of the time refer to that sum, shares of the peak to this machine's peak for the kind of product.
    """
    shown, small = profile.shown()
    table = _table(f"{profile.variant}, {profile.shape[0]}x{profile.shape[1]}", profile, shown)
    if small:
        names, count = f"{len(small)} other operators", sum(line.count for line in small)
        _add(table, profile, names, count, sum(line.ms for line in small))
    _add(table, profile, OUTSIDE, None, profile.outside_ms)
    table.add_section()
    whole = profile.line("", profile.nodes)
    gop = f"{whole.operations.total / 1e9:.3f}" if whole.operations.total else ""
    _add(table, profile, "sum", whole.count, profile.parts_ms, gop)
    return table


def role_table(profile: Profile) -> Table:
    """A line for each role in the network, the longest first."""
    return _table("by role", profile, profile.by_role())


def _table(title: str, profile: Profile, lines: Sequence[Line]) -> Table:
    from rich.markup import escape

    table = plain_table()
    table.add_column(escape(title), justify="left", no_wrap=True)
    for column in _NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        gops, share = line.gops, line.peak_share
        _add(
            table,
            profile,
            line.name,
            line.count,
            line.ms,
            f"{line.operations.total / 1e9:.3f}" if line.operations.total else "",
            "" if gops is None else f"{gops:.0f}",
            "" if share is None else f"{100 * share:.0f}",
        )
    return table


def _add(table: Table, profile: Profile, name: str, count: int | None, ms: float, *product: str) -> None:
    from rich.markup import escape

    share = f"{100 * ms / profile.parts_ms:.1f}" if profile.parts_ms else ""
    table.add_row(escape(name), "" if count is None else str(count), f"{ms:.3f}", share, *product)
