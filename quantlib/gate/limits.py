"""Limits: what a variant may lose and what it must win, from a TOML file, by variant and task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

from quantlib.compression.recipes import PEERS, RECIPES, Recipe, unpruned
from quantlib.compression.variants import (
    BUDGETED,
    COMPILED,
    QUANTIZED_STUDENT,
    STUDENT,
    TARGETED,
    VariantName,
)
from quantlib.data.tasks import TASKS
from quantlib.machine.engines import DEFAULT_ENGINE
from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_toml_text, read_utf8
from quantlib.support.typed import WrongValue, parse_values

# The least and the largest value of each limit. A max_slowdown of 5 surely means 5 %, so it is refused.
_RANGES = {
    "max_drop_points": (0.0, 100.0),
    "min_relative_score": (0.0, 1.0),
    "min_compression_ratio": (0.0, math.inf),
    "min_quantized_share": (0.0, 1.0),
    "min_speedup": (0.0, math.inf),
    "max_slowdown": (0.0, 1.0),
}


@dataclass(frozen=True)
class Limits:
    """The limits of one variant on one task; None where there is no limit.

    max_drop_points: the teacher's score minus the variant's in the primary metric, in points (hundredths).
    min_relative_score: the variant's score over the teacher's; 0.99 is MLPerf's 99 %.
    min_compression_ratio: the teacher's bytes over the variant's.
    min_quantized_share: quantized MatMul, Gemm and Attention nodes over all with weights, 0 to 1.
    min_speedup: the teacher's time over the variant's.
    max_slowdown: the variant's time against that of the baseline's model; 0.05 is 5 % slower.
    report_only: why the variant is shown but not held to anything; "" for one that is, whatever a wider table
    or the recipe says.
    """

    max_drop_points: float | None = None
    min_relative_score: float | None = None
    min_compression_ratio: float | None = None
    min_quantized_share: float | None = None
    min_speedup: float | None = None
    max_slowdown: float | None = None
    report_only: str | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f"{name} {value:g} is out of range; it must be {_range(name)}")


@dataclass(frozen=True)
class TaskLimits(Limits):
    """What is said of one task: limits of all variants, and of some by their names."""

    recipe: Mapping[str, Limits] = field(default_factory=dict)


@dataclass(frozen=True)
class Tables:
    """A limits file: `[default]`, `[recipe.quant_1]`, `[task.CoLA]`, `[task.CoLA.recipe.quant_1]`."""

    default: Limits = Limits()
    recipe: Mapping[str, Limits] = field(default_factory=dict)
    task: Mapping[str, TaskLimits] = field(default_factory=dict)


@dataclass(frozen=True)
class LimitTable:
    """The tables of a limits file, and the recipes and names of tasks of which they speak."""

    tables: Tables = Tables()
    recipes: Mapping[str, Recipe] = field(default_factory=lambda: RECIPES | PEERS)
    tasks: tuple[str, ...] = tuple(TASKS)

    def __post_init__(self) -> None:
        _check_variants("[recipe]", self.tables.recipe, self.recipes)
        for task, limits in self.tables.task.items():
            if task not in self.tasks:
                raise ValueError(f"[task]: unknown task {task!r}; known: {', '.join(self.tasks)}")
            _check_variants(f"[task.{task}.recipe]", limits.recipe, self.recipes)

    def of(self, variant: str, task: str) -> Limits:
        """What `variant` is held to on `task`.

        The default is overridden by the variant's table, that by the task's, that by the variant's within the
        task's. What is said of `student` holds for every float student, of `student_quantized` for every
        quantized one, of `student_quant_1` for `student_2_quant_1` too, of `quant_1` for `quant_1@openvino`
        too, unless a narrower table says more.

        A recipe that is declared report-only stays so, unless a table sets `report_only = ""`.
        """
        recipe = self.recipes.get(VariantName.parse(variant).recipe or "")
        limits = Limits(report_only=recipe.report_only or None if recipe else None)
        for table in self._tables_of(variant, task):
            given = {key: getattr(table, key) for key in _KEYS}
            limits = replace(limits, **{key: value for key, value in given.items() if value is not None})
        return limits

    def _tables_of(self, variant: str, task: str) -> Iterator[Limits]:
        """The tables that hold for a variant on a task, the widest first."""
        names, of_task = _names_of(variant), self.tables.task.get(task, TaskLimits())
        yield self.tables.default
        yield from (self.tables.recipe[name] for name in names if name in self.tables.recipe)
        yield of_task
        yield from (of_task.recipe[name] for name in names if name in of_task.recipe)


_KEYS = tuple(field.name for field in fields(Limits))


def read_limits(path: Path, recipes: Sequence[Recipe] = (), task: str | None = None) -> LimitTable:
    """Read a limits file.

    Args:
        path: the file.
        recipes: those of the run; a limits file may name them as well as those of the table.
        task: the name of the run's, which may be none of the table of tasks; the same holds for it.

    Raises:
        InputError: the file is missing or not TOML; an unknown table, key, task or variant; a value of
            the wrong type or out of range.
    """
    try:
        document = parse_toml_text(read_utf8(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: not a limits file: {reason}") from error
    try:
        tables = parse_values(Tables, document)
        known = dict.fromkeys([*TASKS, *([] if task is None else [task])])
        return LimitTable(tables, RECIPES | PEERS | {recipe.name: recipe for recipe in recipes}, tuple(known))
    except WrongValue as error:
        raise InputError(f"{path}: {_words(error)}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _words(error: WrongValue) -> str:
    """What is wrong with a value, with the table that it stands in."""
    place = [str(part) for part in error.place]
    if error.problem == "rule":
        return f"[{'.'.join(place)}]: {error.wanted}"
    if error.wanted == "an object":
        return f"[{'.'.join(place)}] must be a table, not {error.value!r}"
    *table, key = place
    where = f"[{'.'.join(table)}]: " if table else ""
    if error.problem == "unknown":
        known = _KEYS if table else [field.name for field in fields(Tables)]
        return f"{where}unknown {'key' if table else 'table'} {key!r}; known: {', '.join(known)}"
    wanted = f"a number {_range(key)}" if key in _RANGES else error.wanted
    return f"{where}{key} must be {wanted}, not {error.value!r}"


def _range(key: str) -> str:
    low, high = _RANGES[key]
    return f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"


def _check_variants(place: str, variants: Mapping[str, Limits], recipes: Mapping[str, Recipe]) -> None:
    """Refuse a misspelled name, which would hold nothing to its limits."""
    known = [*recipes, *(name for name in (BUDGETED, TARGETED) if name not in recipes)]
    for variant in variants:
        if variant == QUANTIZED_STUDENT or _is_known(variant, known):
            continue
        floats = [str(VariantName(*name)) for name in ((0,), (0, COMPILED), (1,), (2,))]
        names = [*floats, QUANTIZED_STUDENT, *known]
        students = [str(VariantName(number, step)) for number in range(1, 10) for step in (COMPILED, *known)]
        near = get_close_matches(variant, [*names, *students], n=1)
        guess = f" (did you mean {near[0]!r}?)" if near else ""
        names.insert(names.index(QUANTIZED_STUDENT) + 1, f"{STUDENT}_RECIPE")
        raise ValueError(
            f"{place}: unknown variant {variant!r}{guess}; known: {', '.join(names)}; "
            "the recipe of a file is known when --recipes names the file"
        )


def _is_known(variant: str, recipes: Sequence[str]) -> bool:
    try:
        name = VariantName.parse(variant)
    except InputError:
        return False
    return name.recipe is None or unpruned(name.recipe) in recipes


def _names_of(variant: str) -> list[str]:
    """The names whose tables hold for a variant, its own last."""
    name = VariantName.parse(variant)
    on_default = replace(name, engine=DEFAULT_ENGINE)
    # Whatever is said of an engine is narrower than what is said of all.
    names = [str(on_default), variant]
    if name.student:
        firsts = [str(replace(each, student=1)) for each in (on_default, name)]
        every = QUANTIZED_STUDENT if name.recipe else STUDENT
        names = [every, firsts[0], names[0], firsts[1], variant]
    elif not name.step and name.engine != DEFAULT_ENGINE:
        names = [str(VariantName(step=COMPILED)), variant]  # the teacher's own graph, run otherwise
    return list(dict.fromkeys(names))
