"""Gate records as files: what `pytest bench --gate-update` writes and the next gate run compares with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from quantlib.gate.record import GateRecord, LatencyRecord, VariantRecord
from quantlib.support.errors import InputError
from quantlib.support.files import write_text

SCHEMA_VERSION = 1

_MAKE_ONE = "pytest bench --gate-update"
_NUMBER = (float, int)
_JSON_WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    bool: "true or false",
    dict: "an object",
    type(None): "null",
}


def write_record(path: Path, record: GateRecord) -> None:
    """Write a record as JSON, whole or not at all; the predictions of a variant are on one line.

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
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: not a baseline: {reason}") from error
    try:
        return _gate_record(values)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


# Writing


def _plain(value: Any) -> Any:
    """Records and mappings as dicts, tuples as lists; class indices, stored as floats, as whole numbers."""
    if isinstance(value, GateRecord | VariantRecord | LatencyRecord):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [int(v) if isinstance(v, float) and v.is_integer() else _plain(v) for v in value]
    return value


def _json(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry of an object, and for each list of plain values."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        inner = [f"{json.dumps(key, ensure_ascii=False)}: {_json(v, deeper)}" for key, v in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        inner = [_json(item, deeper) for item in value]
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = f",\n{deeper}".join(inner)
    return f"{opening}\n{deeper}{lines}\n{indent}{closing}"


# Reading


def _gate_record(values: Any) -> GateRecord:
    version = _take(values, "schema_version", int)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"schema_version {version}, but this quantlib reads {SCHEMA_VERSION}; make a new one: {_MAKE_ONE}"
        )
    return GateRecord(
        task=_take(values, "task", str),
        data_hash=_take(values, "data_hash", str),
        labels=_numbers(values, "labels"),
        machine=_take(values, "machine", dict),
        settings=_take(values, "settings", dict),
        variants=_variants(_take(values, "variants", dict)),
        latency=_latency(_take(values, "latency", dict)),
    )


def _variants(values: Any) -> dict[str, VariantRecord]:
    records = {}
    for name in values:
        with _at(f"variants.{name}"):
            records[name] = _variant_record(_take(values, name, dict))
    return records


def _variant_record(values: Any) -> VariantRecord:
    metrics, counts = _take(values, "metrics", dict), _take(values, "op_counts", dict)
    return VariantRecord(
        metrics={name: float(_take(metrics, name, *_NUMBER)) for name in metrics},
        eval_loss=float(_take(values, "eval_loss", *_NUMBER)),
        accuracy_drop=float(_take(values, "accuracy_drop", *_NUMBER)),
        predictions=_numbers(values, "predictions"),
        size_bytes=_take(values, "size_bytes", int),
        compression_ratio=float(_take(values, "compression_ratio", *_NUMBER)),
        quantized_share=_take(values, "quantized_share", *_NUMBER, type(None)),
        op_counts={name: _take(counts, name, int) for name in counts},
        recipe=_take(values, "recipe", dict, type(None)),
    )


def _latency(values: Any) -> dict[str, dict[str, LatencyRecord]]:
    records: dict[str, dict[str, LatencyRecord]] = {}
    for name in values:
        shapes = _take(values, name, dict)
        records[name] = {}
        for shape in shapes:
            with _at(f"latency.{name}.{shape}"):
                records[name][shape] = _latency_record(_take(shapes, shape, dict))
    return records


def _latency_record(values: Any) -> LatencyRecord:
    launches = dict(enumerate(_take(values, "launches", list)))
    return LatencyRecord(
        launches=tuple(_numbers(launches, launch) for launch in launches),
        teacher_ms=float(_take(values, "teacher_ms", *_NUMBER)),
        variant_ms=float(_take(values, "variant_ms", *_NUMBER)),
        others=float(_take(values, "others", *_NUMBER)),
        disturbed=_take(values, "disturbed", bool),
    )


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Prefix the message of a `ValueError` with the place."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _take(values: Any, key: Any, *kinds: type) -> Any:
    """`values[key]`, which must exist and be of one of these types."""
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, not {str(values)[:40]!r}")
    if key not in values:
        raise ValueError(f"{key} is missing")
    value = values[key]
    # JSON's true is no number, though Python's is one.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_JSON_WORDS[kind] for kind in kinds)
        raise ValueError(f"{key} must be {wanted}, not {str(value)[:40]!r}")
    return value


def _numbers(values: Any, key: Any) -> tuple[float, ...]:
    for value in (numbers := _take(values, key, list)):
        if isinstance(value, bool) or not isinstance(value, _NUMBER):
            raise ValueError(f"{key} must hold numbers, not {str(value)[:40]!r}")
    return tuple(map(float, numbers))


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that JSON knows")
