"""What a check is: a row that says how it is run, and what is shown of its result."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from quantlib.data.features import Feature
from quantlib.data.tasks import Task
from quantlib.machine.engines import DEFAULT_ENGINE
from quantlib.measuring.checks.logits import Progress
from quantlib.support.columns import Column
from quantlib.support.console import red

R = TypeVar("R")


@dataclass(frozen=True)
class Subject:
    """The model that is checked, and the rows on which it is.

    onnx_path: the model.
    rows: the evaluation rows, at least one; checks use a few of them.
    task: says how many logits a row must get.
    quantized: whether the model is meant to be, so that what it leaves in float needs a reason.
    kept: the names of the nodes that its recipe keeps in float.
    engine: the name of what runs it.
    threads: of the sessions; None for the physical cores.
    progress: called with the number of rows that were just compared.
    """

    onnx_path: Path
    rows: Sequence[Feature]
    task: Task
    quantized: bool
    kept: Collection[str] = ()
    engine: str = DEFAULT_ENGINE
    threads: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Check(Generic[R]):
    """One check; `R` is the frozen dataclass of its results.

    name: its key in run.json and in cached results.
    result: the class `R`.
    run: gives None where the question does not arise.
    columns: what results files and the table of checks show of a result.
    rows: how many rows it compares, at most.
    remarks: what deserves a word.
    words: the result in a sentence or two.
    failed: whether a variant fails with this result; the flag says that its activations are quantized
        dynamically, so that their ranges depend on the batch.
    in_run_json: whether run.json lists whole results.
    """

    name: str
    result: type[R]
    run: Callable[[Subject], R | None]
    columns: tuple[Column[R], ...]
    rows: int = 0
    remarks: Callable[[R], list[str]] = lambda _: []
    words: Callable[[R], str] = lambda _: ""
    failed: Callable[[R, bool], bool] = lambda _, __: False
    in_run_json: bool = True


def changed_cell(changed: int | None, rows: int) -> str:
    """The rows whose label changes, of all that were compared; nothing for regression."""
    return "" if changed is None else red(f"{changed}/{rows}{' change' if changed else ''}", changed > 0)


def changed_words(changed: int | None) -> str:
    """How many rows get another label, to end a sentence with; nothing for regression."""
    if changed is None:
        return ""
    return (
        f", and {changed or 'no'} label{'' if changed == 1 else 's'} with {'it' if changed == 1 else 'them'}"
    )
