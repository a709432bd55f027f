"""Rows with named columns, as a user's file has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias, cast

from quantlib.data.text import quoted
from quantlib.support.errors import InputError

Scalar: TypeAlias = str | int | float | bool | None
Cell: TypeAlias = Scalar | list[Scalar]
"""What a row has in a column; None is a missing value, a list the labels of a multi-label task."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Unusable:
    """The value of a cell that is no `Cell`; kind: what it is, for the message ("an object", "date32")."""

    kind: str


@dataclass(frozen=True)
class Table:
    """Rows of a user's file, in its order; at least one.

    source: the file, directory or data set, for messages. columns: their names, in order. cells: the values
    of each column, one a row; `column` checks them. places: where each row stands in the source, counted from
    1: the line on which it begins, or its number; unit says which.
    """

    source: str
    columns: tuple[str, ...]
    cells: Mapping[str, Sequence[Cell | Unusable]]
    places: Sequence[int]
    unit: Literal["line", "row"]

    def __post_init__(self) -> None:
        if self.columns != tuple(self.cells) or not self.columns or not self.places:
            raise ValueError(f"{self.source}: columns {self.columns}, cells of {tuple(self.cells)}")
        for name, cells in self.cells.items():
            if len(cells) != len(self.places):
                raise ValueError(f"{self.source}: {name} has {len(cells)} cells, not {len(self.places)}")

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.places)

    def where(self, row: int) -> str:
        """The place of a row, for messages; row: its index, from 0."""
        return f"{self.source} {self.unit} {self.places[row]}"

    def column(self, name: str) -> Sequence[Cell]:
        """The values of a column, one a row.

        Raises:
            InputError: there is no such column, or it holds something that is no `Cell`, or a text that is no
                Unicode (half of a surrogate pair, which JSON can write).
        """
        if name not in self.cells:
            close = get_close_matches(name, self.columns, n=1)
            meant = f" (did you mean {quoted(close[0])}?)" if close else ""
            raise InputError(
                f"{self.source}: no column {quoted(name)}{meant}; columns: {listed(self.columns)}"
            )
        cells = self.cells[name]
        for row, cell in enumerate(cells):
            if isinstance(cell, Unusable):
                raise InputError(
                    f"{self.where(row)}: column {quoted(name)} holds {cell.kind}; "
                    "expected text, a number, true or false, or a list of these"
                )
            for value in cell if isinstance(cell, list) else (cell,):
                if isinstance(value, str) and not _is_unicode(value):
                    raise InputError(
                        f"{self.where(row)}: column {quoted(name)} holds half of a surrogate pair: "
                        f"{quoted(value)}; expected Unicode text"
                    )
        return cast(Sequence[Cell], cells)


def usable(value: object, kind: str) -> Cell | Unusable:
    """A value as a cell; kind: what it is if it is no `Cell`."""
    if type(value) in _SCALARS:
        return cast(Scalar, value)
    if type(value) is list and all(type(member) in _SCALARS for member in value):
        return cast(list[Scalar], value)
    return Unusable(kind)


def check_names(names: Sequence[str], where: str) -> None:
    """Check that each column has a name of its own; `InputError`, with the place `where`, if not."""
    counts = Counter(names)
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise InputError(f"{where}: column {number} has no name ({quoted(name)}); each column needs one")
        if counts[name] > 1:
            raise InputError(
                f"{where}: {counts[name]} columns are named {quoted(name)}; each needs its own name"
            )


def listed(names: Sequence[str]) -> str:
    """Names as they stand in a one-line message; of many the first ones only."""
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(quoted(name) for name in names[:_NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
