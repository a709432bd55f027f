"""JSON Lines: an object a line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from quantlib.data.tables.table import Cell, Table, Unusable, check_names, usable
from quantlib.data.text import quoted, read_lines
from quantlib.support.errors import InputError

# Each line with other keys would make a table of lines times lines cells out of a small file.
_MAX_MISSING = 20_000_000


class _DoubledKey(ValueError):
    pass


def read_jsonl(path: Path) -> Table:
    """Its rows. Columns are the keys of all lines in the order in which they first occur.

    Raises:
        InputError: a line that is no JSON object, or has a key twice.
    """
    lines = read_lines(path)
    if not lines:
        raise InputError(f"{path}: no rows, the file is empty")
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    cells: dict[str, list[Cell | Unusable]] = {}
    missing = 0
    for row, line in enumerate(lines):
        for name, value in _parsed(decoder, line, f"{path} line {row + 1}").items():
            column = cells.setdefault(name, [])
            missing += _fill(column, row)
            if missing > _MAX_MISSING:
                raise _too_sparse(path, len(cells))
            column.append(usable(value, "an object" if isinstance(value, dict) else "a nested list"))
    if not cells:
        raise InputError(f"{path}: no columns, its objects are empty")
    check_names(list(cells), str(path))
    missing += sum(len(lines) - len(column) for column in cells.values())
    if missing > _MAX_MISSING:
        raise _too_sparse(path, len(cells))
    for column in cells.values():
        _fill(column, len(lines))
    return Table(str(path), tuple(cells), cells, range(1, len(lines) + 1), "line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        (doubled, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _DoubledKey(f"the key {quoted(doubled)} is there twice; an object has each key once")
    return value


def _parsed(decoder: json.JSONDecoder, line: str, where: str) -> dict[str, Any]:
    try:
        value = decoder.decode(line)
    except _DoubledKey as error:
        raise InputError(f"{where}: {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON, {error.msg} at character {error.pos + 1}; "
            f"expected one JSON object a line, not {quoted(line)}"
        ) from error
    except RecursionError as error:
        raise InputError(f"{where}: JSON nested too deeply; expected a flat object") from error
    except ValueError as error:  # an integer with more digits than Python reads
        raise InputError(f"{where}: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected one JSON object a line, not {quoted(line)}")
    return value


def _fill(column: list[Cell | Unusable], rows: int) -> int:
    """Append None until the column has so many rows; returns how many."""
    gap = rows - len(column)
    column.extend([None] * gap)
    return gap


def _too_sparse(path: Path, columns: int) -> InputError:
    return InputError(
        f"{path}: its {columns} columns are almost empty, more than {_MAX_MISSING:,} values are missing; "
        "expected the same keys on each line"
    )
