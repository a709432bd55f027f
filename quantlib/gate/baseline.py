"""Gate records as files: what `pytest bench --gate-update` writes and the next gate run compares with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from quantlib.data.scoring import Scoring
from quantlib.gate.record import GateRecord, LatencyRecord, Origin, VariantRecord
from quantlib.support.errors import InputError
from quantlib.support.files import write_text
from quantlib.support.parsing import read_bytes
from quantlib.support.typed import read_json_text

SCHEMA_VERSION = 1

_MAKE_ONE = "--gate-update"


@dataclass(frozen=True)
class _Header:
    schema_version: int


def write_record(path: Path, record: GateRecord) -> None:
    """Write a record as JSON, whole or not at all; the predictions of a variant are on one line.

    A row of a multi_label task is a list of class indices: [[0, 3], [], [1]].

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, _json({"schema_version": SCHEMA_VERSION, **_plain(record)}) + "\n")


def read_record(path: Path) -> GateRecord:
    """Read a record that `write_record` wrote.

    Raises:
        InputError: the file is missing, not JSON, of another schema version, or a value in it is missing, of
            the wrong type or out of range.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such baseline; make one: {_MAKE_ONE}")
    try:
        return parse_record(read_bytes(path), str(path))
    except OSError as error:
        raise InputError(f"{path}: not a baseline: {error.strerror}") from error


def parse_record(text: bytes, name: str) -> GateRecord:
    """`read_record`, of the bytes of a file that may lie elsewhere, in a commit for example.

    Args:
        text: of the file.
        name: of the file, for messages.

    Raises:
        InputError: see `read_record`.
    """
    version = read_json_text(_Header, text, name, "a baseline").schema_version
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{name}: schema_version {version}, but this quantlib reads {SCHEMA_VERSION}; make a new one: "
            f"{_MAKE_ONE}"
        )
    return read_json_text(GateRecord, text, name, "a baseline")


def _plain(value: Any) -> Any:
    """Records and mappings as dicts, tuples as lists; class indices, stored as floats, as whole numbers."""
    if isinstance(value, GateRecord | VariantRecord | LatencyRecord | Origin | Scoring):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [int(v) if isinstance(v, float) and v.is_integer() else _plain(v) for v in value]
    return value


def _json(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of an object, for each list of plain values, and of sets of indices."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        inner = [f"{json.dumps(key, ensure_ascii=False)}: {_json(v, deeper)}" for key, v in value.items()]
    elif isinstance(value, list) and not _on_one_line(value):
        inner = [_json(item, deeper) for item in value]
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = f",\n{deeper}".join(inner)
    return f"{opening}\n{deeper}{lines}\n{indent}{closing}"


def _on_one_line(values: list[Any]) -> bool:
    """Whether a list holds plain values, or nothing but lists of class indices."""
    nested = [item for item in values if isinstance(item, dict | list)]
    return not nested or (len(nested) == len(values) and all(map(_are_indices, nested)))


def _are_indices(item: Any) -> bool:
    return isinstance(item, list) and all(type(index) is int for index in item)
