"""A column of results: its key in files, its heading and its cells in a printed table, its documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Value = float | int | str | bool | None
"""What a file of results holds."""


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
    heading: str = ""
    cell: Callable[[T], str] = lambda _: ""
    justify: Literal["left", "right"] = "right"
    place: int = 0
    narrow: int | None = None
