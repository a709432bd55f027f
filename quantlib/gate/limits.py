"""Limits: what a variant may lose and what it must win, from a TOML file, by variant and task."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from quantlib.compression.recipes import RECIPES
from quantlib.compression.variants import COMPILED, QUANTIZED_STUDENT, STUDENT, VariantName
from quantlib.data.tasks import TASKS
from quantlib.support.errors import InputError

# The least and the largest value of each limit. A max_slowdown of 5 surely means 5 %, so it is refused.
_RANGES = {
    "max_drop_points": (0.0, 100.0),
    "min_relative_score": (0.0, 1.0),
    "min_compression_ratio": (0.0, math.inf),
    "min_quantized_share": (0.0, 1.0),
    "min_speedup": (0.0, math.inf),
    "max_slowdown": (0.0, 1.0),
}

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """The limits of one variant on one task; None where there is no limit.

    max_drop_points: the teacher's score minus the variant's in the primary metric, in points (hundredths).
    min_relative_score: the variant's score over the teacher's; 0.99 is MLPerf's 99 %.
    min_compression_ratio: the teacher's bytes over the variant's.
    min_quantized_share: quantized MatMul, Gemm and Attention nodes over all with weights, 0 to 1.
    min_speedup: the teacher's time over the variant's.
    max_slowdown: the variant's time in units of the teacher's, against the baseline's; 0.05 is 5 % slower.
    report_only: why the variant is shown but not held to anything; empty for one that is.
    """

    max_drop_points: float | None = None
    min_relative_score: float | None = None
    min_compression_ratio: float | None = None
    min_quantized_share: float | None = None
    min_speedup: float | None = None
    max_slowdown: float | None = None
    report_only: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, float | int):
                raise ValueError(f"{name} must be a number {wanted}, not {value!r}")
            if not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f"{name} {value} is out of range; it must be {wanted}")
        if not isinstance(self.report_only, str):
            raise ValueError(f"report_only must be the reason as a string, not {self.report_only!r}")


_KEYS = tuple(field.name for field in fields(Limits))


@dataclass(frozen=True)
class LimitTable:
    """The tables of a limits file, by their path: `("default",)`, `("recipe", "quant_1")`,
    `("task", "CoLA")`, `("task", "CoLA", "recipe", "quant_1")`; each holds some of the keys of `Limits`.
    """

    tables: Mapping[tuple[str, ...], Table]

    def __post_init__(self) -> None:
        for place, table in self.tables.items():
            _check_table(place, table)

    def of(self, variant: str, task: str) -> Limits:
        """What `variant` is held to on `task`.

        The default is overridden by the variant's table, that by the task's, that by the variant's within the
        task's. What is said of `student` holds for every float student, of `student_quantized` for every
        quantized one, of `student_quant_1` for `student_2_quant_1` too, unless a narrower table says more.

        A recipe that is declared report-only stays so, unless a table sets `report_only = ""`.
        """
        own = [("recipe", name) for name in _namesakes(variant)]
        places = (("default",), *own, ("task", task), *(("task", task, *place) for place in own))
        held: dict[str, Any] = {"report_only": _declared_report_only(variant)}
        for place in places:
            held.update(self.tables.get(place, {}))
        return Limits(**held)


def read_limits(path: Path) -> LimitTable:
    """Read a limits file.

    Raises:
        InputError: the file is missing or not TOML; an unknown table, key, task or variant; a value of
            the wrong type or out of range.
    """
    try:
        with path.open("rb") as stream:
            document = tomllib.load(stream)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: not a limits file: {reason}") from error
    try:
        return LimitTable(dict(_tables(document)))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _tables(document: Table) -> Iterator[tuple[tuple[str, ...], Table]]:
    """Every table of limits with its path; `ValueError` for a table that has no place there."""
    _check_names((), document, ("default", "recipe", "task"), "table")
    if "default" in document:
        yield ("default",), document["default"]
    yield from _variant_tables(("recipe",), document.get("recipe", {}))
    tasks = _as_table(("task",), document.get("task", {}))
    _check_names(("task",), tasks, tuple(TASKS), "task")
    for task, table in tasks.items():
        own = dict(_as_table(("task", task), table))
        yield from _variant_tables(("task", task, "recipe"), own.pop("recipe", {}))
        yield ("task", task), own


def _variant_tables(place: tuple[str, ...], tables: Any) -> Iterator[tuple[tuple[str, ...], Table]]:
    for variant, table in _as_table(place, tables).items():
        if variant != QUANTIZED_STUDENT:
            _check_variant(place, variant)
        yield (*place, variant), table


def _check_variant(place: tuple[str, ...], variant: str) -> None:
    """Refuse a misspelled name, which would hold nothing to its limits."""
    try:
        recipe = VariantName.parse(variant).recipe
        known = recipe is None or recipe in RECIPES
    except InputError:
        known = False
    if not known:
        floats = [str(VariantName(*name)) for name in ((0,), (0, COMPILED), (1,), (2,))]
        names = ", ".join((*floats, QUANTIZED_STUDENT, f"{STUDENT}_RECIPE", *RECIPES))
        raise ValueError(f"{_shown(place)}: unknown variant {variant!r}; known: {names}")


def _check_table(place: tuple[str, ...], table: Any) -> None:
    _check_names(place, _as_table(place, table), _KEYS, "key")
    try:
        Limits(**table)
    except ValueError as error:
        raise ValueError(f"{_shown(place)}: {error}") from error


def _check_names(place: tuple[str, ...], table: Table, known: tuple[str, ...], what: str) -> None:
    for name in table:
        if name not in known:
            where = f"{_shown(place)}: " if place else ""
            raise ValueError(f"{where}unknown {what} {name!r}; known: {', '.join(known)}")


def _as_table(place: tuple[str, ...], value: Any) -> Table:
    if not isinstance(value, Mapping):
        raise ValueError(f"{_shown(place)} must be a table, not {value!r}")
    return value


def _shown(place: tuple[str, ...]) -> str:
    return f"[{'.'.join(place)}]"


def _namesakes(variant: str) -> list[str]:
    """The names whose tables hold for a variant, its own last."""
    name = VariantName.parse(variant)
    if not name.student:
        return [variant]
    every = QUANTIZED_STUDENT if name.recipe else STUDENT
    return list(dict.fromkeys((every, str(replace(name, student=1)), variant)))


def _declared_report_only(variant: str) -> str:
    """What the table of recipes says of the variant's recipe; `student_2_quant_1` has recipe quant_1."""
    recipe = RECIPES.get(VariantName.parse(variant).recipe or "")
    return recipe.report_only if recipe else ""
