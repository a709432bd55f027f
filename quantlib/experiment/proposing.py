"""A configuration file from a user's rows and checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.compression.variants import TEACHER
from quantlib.data import tasks
from quantlib.data.tables import Table, read_table
from quantlib.data.tasks.own import label_column, text_columns
from quantlib.experiment import given_models
from quantlib.support.configuration import FILE
from quantlib.support.errors import InputError
from quantlib.support.files import write_text

# Names of files beside the evaluation rows that a run can use.
_TRAIN, _CALIBRATION = ("train", "training"), ("calibration", "unlabelled", "unlabeled")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Proposal:
    """A configuration file that was written, and what it rests on.

    rows: where rows come from. notes: what was found out, in sentences. open: what the user has to fill in,
    in sentences.
    """

    path: Path
    text: str
    rows: tuple[str, ...]
    notes: tuple[str, ...]
    open: tuple[str, ...]


def propose(
    data: str, teacher: str | None, path: Path, *, label: str | None, text: Sequence[str], name: str | None
) -> Proposal:
    """Write a configuration file for rows and a checkpoint.

    Args:
        data: the evaluation rows; train and calibration rows are looked for beside them.
        teacher: a checkpoint or an ONNX file; None to fine-tune the packaged MiniLM.
        path: the file to write.
        label: the column with labels; None for a usual name.
        text: the columns with texts; empty for usual names.
        name: of the task; None for the data's.

    Raises:
        InputError: the file is there already, or rows or checkpoint cannot be used.
    """
    if path.exists():
        raise InputError(f"{path}: is there already; remove it, or name another file (--config FILE)")
    table = read_table(data)
    model = None if teacher is None else given_models.labels_of(given_models.resolve(teacher, TEACHER))
    wanted = label or label_column(table) or _column_of_labels(table, model)
    if wanted is not None:
        table.column(wanted)
    columns = tuple(text) or _columns_of_texts(table, wanted)
    # Of embeddings, only scores of pairs say anything.
    says_nothing = model is not None and model.kind == "embedding" and len(columns) != 2
    label = label if says_nothing else wanted
    beside = {key: _beside(data, names) for key, names in (("train", _TRAIN), ("calibration", _CALIBRATION))}
    found: dict[str, Any] = {
        "name": name or tasks.name_of(data),
        "evaluation": data,
        **{key: str(file) for key, file in beside.items() if file is not None},
        "text": columns,
        **({} if label is None else {"label": label}),
    }
    notes = [f"{key} rows: {file}" for key, file in beside.items() if file is not None]
    notes.append(
        "no column of labels: agreement with the teacher is what is judged"
        if label is None
        else f"labels: {label}"
    )
    unsettled: list[str] = []
    try:
        rows = tasks.read_own_task(tasks.OwnTask(**found), model)
    except tasks.LabelMismatch as error:
        unsettled.append(str(error))
        mapping = dict.fromkeys(error.labels, "")
    else:
        mapping = {}
        notes += rows.notes
        found |= {"kind": rows.task.output_mode, "metrics": rows.task.metrics}
    document = _document(found, teacher, mapping, None if model is None else model.words(), path)
    write_text(path, document)
    places = (data, *(str(file) for file in beside.values() if file is not None))
    return Proposal(path, document, places, tuple(notes), tuple(unsettled))


def _column_of_labels(table: Table, model: tasks.ModelLabels | None) -> str | None:
    """The only column whose values are all names of the model's labels; None where there is none."""
    if model is None or model.are_generic:
        return None
    fitting = []
    for name, cells in table.cells.items():
        words = {cell for cell in cells if isinstance(cell, str)}
        if len(words) in range(1, model.count + 1) and len(words) == len(set(map(str, cells))):
            with suppress(InputError):
                tasks.label_order(sorted(words), {}, model)
                fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None


def _columns_of_texts(table: Table, label: str | None) -> tuple[str, ...]:
    """The columns with usual names; else the one with the longest texts."""
    try:
        return text_columns(table, label)
    except InputError:
        letters = {
            name: sum(len(cell) for cell in cells if isinstance(cell, str))
            for name, cells in table.cells.items()
            if name != label
        }
        longest = max(letters, key=lambda name: letters[name], default=None)
        if longest is None or not letters[longest]:
            raise
        return (longest,)


def _beside(data: str, names: Sequence[str]) -> Path | None:
    """The first file beside the data with one of these names and a known suffix."""
    path = Path(data)
    if not path.is_file():
        return None
    suffixes = dict.fromkeys((path.suffix.lower(), *_SUFFIXES))
    candidates = (path.with_name(name + suffix) for name in names for suffix in suffixes)
    return next((file for file in candidates if file.is_file() and file != path), None)


def _document(
    found: Mapping[str, Any], teacher: str | None, mapping: Mapping[str, str], names: str | None, path: Path
) -> str:
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("What `quantlib run`, `quantlib check` and `quantlib gate` work on."))
    document.add(
        tomlkit.comment(
            "Every key is also an option of the command; `quantlib run --help-all` explains them."
        )
    )
    document.add(tomlkit.nl())
    task = tomlkit.table()
    for key, value in found.items():
        is_place = key in ("evaluation", "train", "calibration")
        task.add(
            key, _relative(value, path) if is_place else list(value) if isinstance(value, tuple) else value
        )
    document.add("task", task)
    if mapping:
        labels = tomlkit.table()
        labels.comment(f"label of the rows = name in the checkpoint, one of {names}")
        for word in mapping:
            labels.add(word, "")
        task.add("labels", labels)
    if teacher is not None:
        models = tomlkit.table()
        models.add("teacher", _relative(teacher, path))
        document.add("models", models)
    limits = tomlkit.table()
    limits.add("max_drop_points", 0.5)
    document.add("limits", limits)
    return tomlkit.dumps(document)


def _relative(value: str, path: Path) -> str:
    """A path as it is written in a file: relative to it, but for an absolute one elsewhere."""
    place, root = Path(value).absolute(), path.absolute().parent
    if not place.exists() or (Path(value).is_absolute() and not place.is_relative_to(root)):
        return value
    return Path(os.path.relpath(place, root)).as_posix()


def default_path() -> Path:
    """Where a configuration file is written if no place is named."""
    return Path(FILE)
