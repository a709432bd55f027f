"""What a task's directory holds of a run, read for its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from quantlib.machine.hardware import Hardware
from quantlib.measuring import explain, profile
from quantlib.measuring.checks import CHECKS
from quantlib.report import changes, results
from quantlib.report.choices import Choice
from quantlib.support.columns import Value
from quantlib.support.errors import InputError
from quantlib.support.presence import note_used
from quantlib.support.typed import WrongValue, parse_json, parse_values, read_json

T = TypeVar("T")

RESULTS, RUN, SCALING = "results.json", "run.json", "scaling.json"


@dataclass(frozen=True)
class RunFacts:
    """What the page shows of a run.json; what an older one lacks has a default."""

    arguments: Mapping[str, Any]
    packages: Mapping[str, str | None]
    python: str
    hardware: Hardware
    int8: str
    threads: int
    sha256: Mapping[str, Any]
    durations_s: Mapping[str, float]
    seeds: Mapping[str, int] = field(default_factory=dict)
    hub_commits: Mapping[str, str] = field(default_factory=dict)
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checks: Mapping[str, Mapping[str, Mapping[str, Any] | None]] = field(default_factory=dict)
    not_quantized: Mapping[str, tuple[Mapping[str, str], ...]] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    cached: tuple[str, ...] = ()
    peak_memory_bytes: int | None = None


@dataclass(frozen=True)
class ScalingPoint:
    """A time of bench/scaling.py."""

    model: str
    threads: int
    batch: int
    length: int
    ms: float


@dataclass(frozen=True)
class Scaling:
    """What the page shows of a scaling.json."""

    points: tuple[ScalingPoint, ...]
    cpu_model: str = ""


@dataclass(frozen=True)
class TaskRun:
    """A run's results and all that explains them.

    results: {variant: values}, the teacher first. checked: sentences of the checks, by variant. changes: None
    where a run is older than changes.json. layers, profiles: empty, and scaling None, where they were not
    measured.
    """

    name: str
    results: Mapping[str, Mapping[str, Value]]
    run: RunFacts
    checked: Mapping[str, tuple[str, ...]]
    changes: changes.Changes | None
    layers: tuple[explain.LayerNoise, ...]
    profiles: tuple[profile.Profile, ...]
    scaling: Scaling | None


def read_task(directory: Path, name: str | None = None, run: Mapping[str, Any] | None = None) -> TaskRun:
    """A run's files.

    Args:
        directory: of the task.
        name: of the task; by default as changes.json says, else the directory's.
        run: what run.json is to say; by default it is read.

    Raises:
        InputError: results.json or run.json is missing, or a file is damaged.
    """
    while True:
        before = _identity(directory)
        try:
            read = _read_task(directory, name, run)
        except InputError:
            if _identity(directory) == before:
                raise
        else:
            if _identity(directory) == before:
                return read
        # Another run has replaced the directory meanwhile: its files are not to be mixed with older ones.


def _identity(directory: Path) -> int | None:
    return directory.stat().st_ino if directory.is_dir() else None


def _read_task(directory: Path, name: str | None, run: Mapping[str, Any] | None) -> TaskRun:
    values, place = results.read_results(directory / RESULTS), directory / RUN
    try:
        facts = (
            read_json(RunFacts, place, f"a {RUN}") if run is None else parse_json(RunFacts, json.dumps(run))
        )
        checked = {variant: _sentences(of) for variant, of in facts.checks.items()}
    except WrongValue as error:
        raise InputError(f"{place}: {error}") from error
    unknown = {c.variant for c in facts.choices if c.variant} - set(values)
    if unknown:
        raise InputError(f"{place}: chooses {min(unknown)!r}, which {RESULTS} does not have")
    changed = _if_there(directory / changes.FILE, changes.read_changes)
    layers = _if_there(directory / explain.JSON, explain.read_explanation) or ()
    profiles = [profile.read_profile(path) for path in sorted(directory.glob(profile.file_name("*")))]
    return TaskRun(
        name or (changed.task.name if changed else directory.resolve().name),
        values,
        facts,
        checked,
        changed,
        tuple(layers),
        tuple(each for each in profiles if each.variant in values),
        _if_there(directory / SCALING, _read_scaling),
    )


def task_directories(output_dir: Path) -> list[Path]:
    """The directories of tasks in an output directory, by name; itself, if it is a task's.

    Raises:
        InputError: there is none.
    """
    if (output_dir / RESULTS).is_file():
        return _noted([output_dir])
    if not output_dir.is_dir():
        raise InputError(f"{output_dir}: no such directory; name the one that a run wrote into")
    found = sorted(path.parent for path in output_dir.glob(f"*/{RESULTS}"))
    if not found:
        raise InputError(f"{output_dir}: no {RESULTS} there, nor in a directory of it; a run writes one")
    return _noted(found)


def _noted(directories: list[Path]) -> list[Path]:
    note_used(*directories, *(directory / RESULTS for directory in directories))
    return directories


def _if_there(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.is_file() else None


def _read_scaling(path: Path) -> Scaling:
    return read_json(Scaling, path, f"a {SCALING}")


def _sentences(of: Mapping[str, Mapping[str, Any] | None]) -> tuple[str, ...]:
    """The results of one variant's checks in words."""
    known = [(check, of.get(check.name)) for check in CHECKS]
    words = (check.words(parse_values(check.result, result)) for check, result in known if result)
    return tuple(sentence for sentence in words if sentence)
