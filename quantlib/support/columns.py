"""A column of results: its key in files, its heading and its cells in a printed table, its documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Value = float | int | str | bool | None
"""What a file of results holds."""


def plain(value: Value) -> str:
    """A value without a format of its own: four significant digits, yes or no, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fixed(digits: int, suffix: str = "", *, scale: float = 1.0) -> Callable[[Value], str]:
    """A format of numbers with so many decimals; scale: 100 for fractions that are shown in percent."""

    def show(value: Value) -> str:
        if value is None or isinstance(value, str):
            return plain(value)
        return f"{scale * value:z.{digits}f}{suffix}"

    return show


@dataclass(frozen=True)
class Column(Generic[T]):
    """One column, whose values are computed from a `T`.

    key: its name in results.json and results.csv.
    help: what it is, for the documentation.
    value: what the files hold.
    when: whether a `T` has the value at all.
    required: every results file must have it, as a number; this is checked when a file is read.
    nullable: it may be null although it is required.
    numeric: it is a number wherever a file has it.
    show: how a value reads, on the page and, unless there is a `cell`, in the table.
    label, unit: what the page calls it, by default as the key says, and what its numbers are in.
    interval: the keys of the ends of its interval.
    heading, cell, justify: how the table shows it, with rich's markup; not at all without a heading.
    place: columns of the table are sorted by it.
    narrow: in a narrow table columns are left out in this order; None stays.
    """

    key: str
    help: str
    value: Callable[[T], Value]
    when: Callable[[T], bool] = lambda _: True
    required: bool = False
    nullable: bool = False
    numeric: bool = False
    show: Callable[[Value], str] = plain
    label: str = ""
    unit: str = ""
    interval: tuple[str, str] | None = None
    heading: str = ""
    cell: Callable[[T], str] | None = None
    justify: Literal["left", "right"] = "right"
    place: int = 0
    narrow: int | None = None

    def shown(self, item: T) -> str:
        """The cell of the table, with rich's markup."""
        return self.show(self.value(item)) if self.cell is None else self.cell(item)

    @property
    def name(self) -> str:
        """What the page calls it."""
        return self.label or self.key.replace("_", " ")
