"""The tables of a run on the console, and the documentation's table of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantlib.data.metrics import METRICS, metric_names
from quantlib.measuring.checks import CHECKS
from quantlib.report.columns import COLUMNS, METRIC_HELP, VariantResult, metric_columns
from quantlib.support.columns import Column
from quantlib.support.console import plain_table

if TYPE_CHECKING:
    from rich.table import Table

_WIDER_THAN_ANY = 10_000
# Marks a variant that no other one beats in accuracy, latency and size.
ON_THE_FRONT = "*"
# How far from the interval of the speedup a ratio of medians may be and be left without a word.
_MEDIANS_OFF = 1.25


def table(results: Sequence[VariantResult], width: int | None = None) -> Table:
    """The results for a person to read, in the order given; drops in points, agreement in percent.

    Colour (red for slower than the teacher or a drop above one point) repeats what the numbers say. A star
    marks a variant that no other one beats (`front_note` says which do the rest).

    Args:
        results: of a run, the teacher first.
        width: characters in a line; a column that others tell less about is left out if names do not fit.
    """
    from rich.console import Console

    columns = [*metric_columns(results), *(column for column in COLUMNS if column.heading)]
    columns.sort(key=lambda column: column.place)
    ruler = Console(width=_WIDER_THAN_ANY)
    # Of columns that may leave together, the last one goes first.
    leaving = [column for column in reversed(columns) if column.narrow is not None]
    leaving.sort(key=lambda column: column.narrow or 0)
    table = _table_of(results, columns)
    for column in leaving:
        if width is None or ruler.measure(table).maximum <= width:
            break
        columns.remove(column)
        table = _table_of(results, columns)
    return table


def _table_of(results: Sequence[VariantResult], columns: Sequence[Column[VariantResult]]) -> Table:
    from rich.markup import escape

    table = plain_table()
    table.add_column("variant", justify="left", overflow="fold")
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for result in results:
        name = escape(result.name) + (ON_THE_FRONT if result.on_front else "")
        table.add_row(name, *(column.shown(result) if column.when(result) else "" for column in columns))
    return table


def front_note(results: Sequence[VariantResult]) -> str:
    """What the stars of the table mean, which variants are beaten, and whether medians mislead, in words."""
    beaten = [f"{result.name} by {result.beaten_by}" for result in results if result.beaten_by]
    note = f"{ON_THE_FRONT} worth shipping: no other is as accurate, fast and small, and clearly better."
    if beaten:
        note += f" Beaten: {', '.join(beaten)}."
    if any(_medians_mislead(result) for result in results):
        note += " The machine changed between the medians in ms: compare variants by speedup, from turns."
    return note


def _medians_mislead(result: VariantResult) -> bool:
    """Whether the medians tell another speedup than the turns that were taken with the teacher."""
    if result.paired is None:
        return False
    ratio = result.reference.median_ms / result.median_ms
    return not result.timing.low / _MEDIANS_OFF <= ratio <= result.timing.high * _MEDIANS_OFF


def checks_table(results: Sequence[VariantResult]) -> Table:
    """What was checked of each variant, in their order: the largest change of a logit, and changed labels.

    Colour (red for labels that change) repeats what the words say.
    """
    from rich.markup import escape

    table = plain_table()
    table.add_column("checks", justify="left", overflow="fold")
    for column in (column for check in CHECKS for column in check.columns if column.heading):
        table.add_column(column.heading, justify=column.justify, no_wrap=True)
    for result in results:
        if result.checks is not None:
            table.add_row(escape(result.name), *result.checks.cells())
    return table


def columns_markdown() -> str:
    """The documentation's table of columns: key, heading in the printed tables, and what it is."""
    names = dict.fromkeys(name for mode in METRICS for name in metric_names(mode))
    metrics = ", ".join(f"`{name}`" for name in names)
    lines = ["| results.json | table | what it is |", "| --- | --- | --- |"]
    lines.append(f"| {metrics} | the same | {METRIC_HELP} |")
    for column in (*COLUMNS, *(column for check in CHECKS for column in check.columns)):
        heading = " ".join(column.heading.split()).replace(" /", "/")
        lines.append(f"| `{column.key}` | {heading} | {column.help} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"
