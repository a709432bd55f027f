"""The files of a run: results.json, results.csv and run.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlib.compression.variants import TEACHER
from quantlib.report.columns import COLUMNS, VariantResult
from quantlib.support.columns import Value
from quantlib.support.errors import InputError
from quantlib.support.files import write_json, write_text
from quantlib.support.typed import read_json, read_json_text

SCHEMA_VERSION = 1
_RESULTS = dict[str, dict[str, Value]]


def write_results(directory: Path, results: Sequence[VariantResult]) -> None:
    """Write results.json and results.csv into `directory`, each whole or not at all.

    Raises:
        ValueError: the teacher is not the first variant, or a name occurs twice.
        InputError: the directory cannot be written.
    """
    names = [result.name for result in results]
    if not names or names[0] != TEACHER or len(set(names)) != len(names):
        raise ValueError(f"the variants must be {TEACHER!r} and then others, each once, not {names}")
    write_json(directory / "results.json", {result.name: result.values() for result in results})
    write_text(directory / "results.csv", _csv_text(results))


def _csv_text(results: Sequence[VariantResult]) -> str:
    """A row a variant; the columns are all keys in order of first appearance, empty where one is lacking."""
    rows = [{"variant": result.name, **result.values()} for result in results]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # JSON's words, so that both files spell the same value in the same way.
        writer.writerow({k: json.dumps(v) if isinstance(v, bool) else v for k, v in row.items()})
    return text.getvalue()


def read_results(path: Path) -> dict[str, dict[str, Value]]:
    """Read a results.json: the values by name, by variant, as they were written.

    Raises:
        InputError: the file is missing or not JSON, or a variant lacks a value that every results file has.
    """
    return _checked(read_json(_RESULTS, path, "a results file"), str(path))


def parse_results(text: bytes, name: str) -> dict[str, dict[str, Value]]:
    """`read_results`, of the bytes of a file that may lie elsewhere, in a commit for example."""
    return _checked(read_json_text(_RESULTS, text, name, "a results file"), name)


def _checked(results: dict[str, dict[str, Value]], name: str) -> dict[str, dict[str, Value]]:
    if TEACHER not in results:
        raise InputError(f"{name}: expected an object of variants, one of them {TEACHER!r}")
    metric = next(iter(results[TEACHER]), "")  # the primary one stands first
    for variant, values in results.items():
        if metric not in values:
            raise InputError(f"{name}: {variant}: {metric!r} is missing")
        _check_columns(name, variant, values)
    return results


def _check_columns(path: str, variant: str, values: Mapping[str, Value]) -> None:
    for column in (c for c in COLUMNS if c.required or (c.numeric and c.key in values)):
        key = column.key
        if key not in values:
            raise InputError(f"{path}: {variant}: {key!r} is missing")
        if column.nullable and values[key] is None:
            continue
        if isinstance(values[key], bool) or not isinstance(values[key], float | int):
            raise InputError(f"{path}: {variant}: {key!r} must be a number, not {values[key]!r}")
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}: {variant}: {key!r} must be a finite number, not {value!r}")


def write_run(directory: Path, run: Mapping[str, Any]) -> None:
    """Write run.json, the provenance of the results, with the schema version first.

    Raises:
        ValueError: `run` brings a `schema_version` of its own, or holds a NaN.
        InputError: the directory cannot be written.
    """
    if "schema_version" in run:
        raise ValueError("schema_version is written by write_run")
    write_json(directory / "run.json", {"schema_version": SCHEMA_VERSION, **run})
