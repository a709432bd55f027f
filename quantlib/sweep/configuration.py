"""sweep.toml: what a sweep's cells are, and what they have in common.

The sections [run], [models] and [task] are those of quantlib.toml, for all cells. The lists of [sweep] name
the tasks, checkpoints and students; an entry is a name, or a table with keys of these sections, which hold
for its cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantlib.compression.recipes import RECIPES
from quantlib.compression.variants import STUDENT, TEACHER
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.configuration import Configuration, read_configuration, suggestion
from quantlib.support.errors import InputError, naming
from quantlib.support.options import Option, options_of
from quantlib.sweep.cells import Block
from quantlib.sweep.options import SweepOptions
from quantlib.training.student.students import parse_student_config

_SECTIONS = ("run", "models", "task")
_LISTS = ("tasks", "checkpoints", "students")
_DIMENSIONS = (*_LISTS, "recipes", "engines")
# What only one run can be asked for: each of them would be a search, a page or a plot for each cell.
_OF_ONE_RUN = ("max_drop", "target_speedup", "explain", "profile", "report_rows")
# What the lists of [sweep] say, so that it cannot be said for all cells.
_SAID_BY_LISTS = {
    "name": "tasks",
    "teacher": "checkpoints",
    "students": "students",
    "no_student": "students",
    "distill": "students",
    "recipes": "recipes",
    "engines": "engines",
}
PACKAGED = "packaged MiniLM"
"""What a teacher is called that is fine-tuned here."""


@dataclass(frozen=True)
class SweepFile:
    """What a sweep.toml says.

    options: how the sweep runs, by field name. blocks: its cells, in the order of the table. cache_dir: where
    this machine keeps what is made; None for the user's cache.
    """

    path: Path
    options: Mapping[str, Any]
    blocks: tuple[Block, ...]
    cache_dir: Path | None


@dataclass(frozen=True)
class _Entry:
    """An entry of a list: what it is called, what options it gives, which tasks and checkpoints it is for."""

    name: str
    values: Mapping[str, Any]
    tasks: tuple[str, ...] | None = None
    checkpoints: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _EntryOfFile(Configuration):
    """The keys of one entry of a list; its lines are found below its heading, [[sweep.LIST]]."""

    entry: str = ""
    number: int = 0

    def line_of(self, section: str, key: str) -> int | None:
        """The line of a key, whatever section of quantlib.toml it is of."""
        number, inside = -1, False
        for line, text in enumerate(self.text.splitlines(), start=1):
            heading = re.match(r"\s*\[+\s*([^\[\]]+?)\s*\]", text)
            if heading:
                is_list = heading[1].replace(" ", "") == f"sweep.{self.entry}"
                number += is_list
                inside = is_list and number == self.number
                if inside and not key:
                    return line
            elif inside and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", text):
                return line
        return None


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep.toml.

    Raises:
        InputError: it cannot be read, or something in it is wrong; with file and, where it is known, line.
    """
    file = read_configuration(path)
    tables = dict(file.tables)
    lists = tables.pop("sweep", {})
    if not isinstance(lists, dict):
        raise file.error("sweep", "", "sweep must be a section, [sweep]")
    known = [*_DIMENSIONS, *(item.key for item in options_of(SweepOptions) if item.section == "sweep")]
    for key in lists:
        if key not in known:
            raise file.error("sweep", key, f"unknown key {key!r} in [sweep]{suggestion(key, known)}")
    for section, table in tables.items():
        if section not in (*_SECTIONS, "latency"):
            raise file.error(
                section,
                "",
                f"unknown section [{section}]{suggestion(section, ('sweep', 'latency', *_SECTIONS))}",
            )
        for key in table if isinstance(table, dict) else ():
            _check_key(file, section, key)
    rest = {key: value for key, value in lists.items() if key not in _DIMENSIONS}
    others = Configuration(file.path, tables | {"sweep": rest}, text=file.text)
    options, common = others.values(SweepOptions, ExperimentOptions)
    common |= _of_all(file, lists)
    cache_dir = common.pop("cache_dir", None)
    blocks = _blocks(file, common, {name: _entries(file, name, lists.get(name)) for name in _LISTS})
    return SweepFile(path, options, tuple(blocks), cache_dir)


def _check_key(file: Configuration, section: str, key: str) -> None:
    """Refuse what a sweep says elsewhere, or what only one run can be asked for."""
    if section == "latency":
        return
    if key in _OF_ONE_RUN:
        raise file.error(section, key, f"{key} is for one run; a sweep has no cell for it")
    if key == "output_dir":
        raise file.error(section, key, "output_dir of a sweep stands in [sweep]")
    if key in _SAID_BY_LISTS:
        raise file.error(section, key, f"{key}: a sweep names them in [sweep] {_SAID_BY_LISTS[key]}")


def _of_all(file: Configuration, lists: Mapping[str, Any]) -> dict[str, Any]:
    """The recipes and engines of all cells, as far as the file names some."""
    given = {key: lists[key] for key in ("recipes", "engines") if key in lists}
    (values,) = _InSweep(file.path, {"run": given}, text=file.text).values(ExperimentOptions)
    if "recipes" in values:
        values["recipes"] = _spelled_out(values["recipes"])
    return values


@dataclass(frozen=True)
class _InSweep(Configuration):
    """Keys of [run] that stand in [sweep]."""

    def line_of(self, section: str, key: str) -> int | None:
        """The line of a key in [sweep]."""
        return super().line_of("sweep", key)


def _spelled_out(recipes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(RECIPES) if recipes == ("all",) else recipes


def _entries(file: Configuration, name: str, given: Any) -> list[_Entry]:
    """The entries of a list; for a list that is left out, the one that a run would have, or none."""
    if given is None:
        return [] if name == "students" else [_Entry(PACKAGED if name == "checkpoints" else "", {})]
    if not isinstance(given, list) or not (given or name == "students"):
        raise file.error("sweep", name, f"{name} must be a list of names or tables, not {given!r}")
    entries = [_entry(file, name, number, value) for number, value in enumerate(given)]
    names = [entry.name for entry in entries]
    for entry in entries:
        if names.count(entry.name) > 1:
            hint = "" if name == "tasks" else "; give one of them another `called`"
            raise file.error("sweep", name, f"{name}: two are called {entry.name!r}{hint}")
    return entries


def _entry(file: Configuration, name: str, number: int, given: Any) -> _Entry:
    if isinstance(given, str):
        key = {"tasks": "name", "checkpoints": "teacher", "students": "student"}[name]
        given = {key: given}
    if not isinstance(given, dict):
        raise file.error("sweep", name, f"{name} must be a list of names or tables, not of {given!r}")
    table = dict(given)
    place = _EntryOfFile(file.path, {}, "", file.text, name, number)
    own = {"called": str} | ({"tasks": list} if name != "tasks" else {})
    own |= {"checkpoints": list, "student": str} if name == "students" else {}
    said: dict[str, Any] = {}
    for key in [key for key in table if key in own]:
        said[key] = table.pop(key)
        texts = said[key] if own[key] is list else [said[key]]
        if not isinstance(said[key], own[key]) or not all(isinstance(text, str) for text in texts):
            wanted = "a list of names" if own[key] is list else "a string"
            raise place.error("", key, f"{key} must be {wanted}, not {said[key]!r}")
    places = _keys()
    sections: dict[str, dict[str, Any]] = {}
    for key, value in table.items():
        if key not in places:
            raise place.error("", key, f"unknown key {key!r}{suggestion(key, [*own, *places])}")
        if key in _elsewhere(name):
            raise place.error("", key, f"{key} stands in [sweep] {_elsewhere(name)[key]}")
        if key in (*_OF_ONE_RUN, "output_dir", "cache_dir", "no_student", "distill"):
            raise place.error("", key, f"{key} cannot be said of one cell of a sweep")
        sections.setdefault(places[key].section, {})[key] = value
    if "student" in said:
        sections.setdefault("models", {}).update(_student(said["student"]))
    (values,) = replace(place, tables=sections).values(ExperimentOptions)
    if "recipes" in values:
        values["recipes"] = _spelled_out(values["recipes"])
    default = {
        "tasks": values.get("task", ""),
        "checkpoints": given.get("teacher", PACKAGED),
        "students": said.get("student", given.get("student_config", "half")),
    }[name]
    restricted = {key: tuple(said[key]) for key in ("tasks", "checkpoints") if key in said}
    return _Entry(said.get("called", default), values, **restricted)


def _elsewhere(name: str) -> dict[str, str]:
    """The keys that entries of a list cannot have, since those of another list say them."""
    said = {"name": "tasks", "teacher": "checkpoints", "students": "students", "student_config": "students"}
    return {key: of for key, of in said.items() if of != name or key == "students"}


def _student(text: str) -> dict[str, Any]:
    """A student by one word: a shape that is to be made, else a checkpoint."""
    try:
        parse_student_config(text)
    except InputError:
        return {"students": [text]}
    return {"student_config": text}


def _keys() -> dict[str, Option]:
    """{key: option} of what an entry can say, of all sections: no two of them share a key."""
    return {item.key: item for item in options_of(ExperimentOptions) if item.section in _SECTIONS}


def _blocks(
    file: Configuration, common: Mapping[str, Any], entries: Mapping[str, list[_Entry]]
) -> list[Block]:
    blocks = []
    tasks = [(entry, _task_name(file, common, entry)) for entry in entries["tasks"]]
    _check_names(file, "tasks", [name for _, name in tasks], entries["checkpoints"] + entries["students"])
    _check_names(file, "checkpoints", [entry.name for entry in entries["checkpoints"]], entries["students"])
    for task, task_name in tasks:
        for teacher in entries["checkpoints"]:
            if not _is_for(teacher, task_name, teacher.name):
                continue
            values = {**common, **task.values, **teacher.values}
            blocks.append(_block(file, values, task_name, teacher.name, None))
            for student in entries["students"]:
                if _is_for(student, task_name, teacher.name):
                    blocks.append(
                        _block(file, {**values, **student.values}, task_name, teacher.name, student.name)
                    )
    if not blocks:
        raise InputError(f"{file.path}: no cells: no checkpoint is for any of the tasks")
    cells = [(block.task, block.teacher, block.student) for block in blocks]
    for cell in cells:
        if cells.count(cell) > 1:
            raise InputError(f"{file.path}: two tasks are called {cell[0]!r}")
    return blocks


def _check_names(file: Configuration, key: str, known: list[str], entries: list[_Entry]) -> None:
    """Check the names to which entries are restricted."""
    for entry in entries:
        for name in getattr(entry, key) or ():
            if name not in known:
                raise InputError(
                    f"{file.path}: {entry.name}: {key}: unknown {name!r}{suggestion(name, known)}"
                )


def _is_for(entry: _Entry, task: str, checkpoint: str) -> bool:
    return (entry.tasks is None or task in entry.tasks) and (
        entry.checkpoints is None or checkpoint in entry.checkpoints
    )


def _task_name(file: Configuration, common: Mapping[str, Any], entry: _Entry) -> str:
    values = {k: v for k, v in {**common, **entry.values}.items() if _trains(k) != STUDENT}
    with naming(f"{file.path}: {entry.name or 'the task'}"):
        return ExperimentOptions(**_without(values, TEACHER), teacher="any", no_student=True).task_name


def _block(
    file: Configuration, values: Mapping[str, Any], task: str, teacher: str, student: str | None
) -> Block:
    """A block, with what applies to it: how a teacher is trained is of no use to one that is given."""
    chosen = dict(values)
    if student is None or "students" in chosen:
        chosen = _without(chosen, STUDENT)
    if chosen.get("teacher") is not None:
        chosen = _without(chosen, TEACHER)
    if student is None:
        chosen["no_student"] = True
    with naming(f"{file.path}: {' / '.join(filter(None, (task, teacher, student)))}"):
        options = ExperimentOptions(**chosen)
        if student is not None and not (options.students or options.trains_student):
            raise InputError(f"no student can be trained, as {options.no_training}")
        if options.own_task is not None:  # the name of a file's task is that of its directory, here only
            options = replace(options, task=options.task_name)
    return Block(task, teacher, student, options)


def _without(values: Mapping[str, Any], role: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _trains(name) != role}


def _trains(name: str) -> str:
    return next(item.trains for item in options_of(ExperimentOptions) if item.name == name)
