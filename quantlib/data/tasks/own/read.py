"""A user's own task: what the files hold, described by the names of columns, as a `Task` and its rows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantlib.data.metrics import AGREEMENT, SCORE_MODES, OutputMode, metric_names
from quantlib.data.scoring import DEFAULT_THRESHOLD
from quantlib.data.tables import Table
from quantlib.data.tables.table import listed
from quantlib.data.tasks.labels import ModelLabels, label_order
from quantlib.data.tasks.own.columns import text_columns, texts_of
from quantlib.data.tasks.own.description import OwnTask
from quantlib.data.tasks.own.labels import RawLabel, kind_of, raw_labels
from quantlib.data.tasks.splits import (
    Example,
    Splits,
    in_evaluation,
    parted,
    set_aside,
    split_train,
    with_calibration,
)
from quantlib.data.tasks.task import Task
from quantlib.support.errors import InputError

_USUAL_METRICS: dict[OutputMode, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "exact_match"),
    "regression": ("pearson", "spearman"),
    "embedding": ("spearman", "pearson"),
}


@dataclass(frozen=True)
class OwnRows:
    """What a description came to: the task, its rows, and what was inferred or dropped, in sentences."""

    task: Task
    splits: Splits
    notes: tuple[str, ...]


def read_own_task(own: OwnTask, model: ModelLabels | None, *, calibrate: bool = True) -> OwnRows:
    """Read the files of a user's task.

    Labels are matched by name with those of the model, never by order. Rows of train and calibration whose
    texts are in evaluation too are dropped and counted. Calibration rows are those of the file, else some
    that are set aside from train, else some that are set aside from evaluation and not evaluated on.

    Args:
        own: the description.
        model: what the teacher says of its logits; None where a teacher is yet to be trained.
        calibrate: whether calibration rows are needed.

    Raises:
        InputError: a file, column, label or text that cannot be used.
    """
    notes: list[str] = []
    evaluation = own.read(own.evaluation)
    columns = own.text or text_columns(evaluation, own.label)
    if not own.text:
        notes.append(f"text: column {listed(columns)}, as no other is named")
    train = None if own.train is None else own.read(own.train)
    if model is None and own.kind == "embedding":
        raise InputError(f"{own.name}: kind embedding needs --teacher: no embedding model is trained here")
    if model is None and (train is None or own.label is None):
        raise InputError(
            f"{own.name}: without --teacher one is trained, which needs train rows and their labels "
            "(--train FILE --label COLUMN)"
        )
    tables = [table for table in (evaluation, train) if table is not None]
    kind, separator = kind_of(own, tables, model, notes)
    if kind == "embedding" and own.label is not None and len(columns) != 2:
        raise InputError(
            f"{own.name}: {own.label} holds scores of pairs of texts; name both columns (--text A,B), or "
            "leave out --label"
        )
    raw = {id(table): raw_labels(own, table, kind, separator) for table in tables}
    task = _task(own, kind, columns, [label for labels in raw.values() for label in labels], model, notes)
    rows = _examples(task, evaluation, "evaluation", columns, raw[id(evaluation)])
    learned = None if train is None else _examples(task, train, "train", columns, raw[id(train)])
    if own.calibration is None:
        unlabelled = None
    else:
        table = own.read(own.calibration)
        # Of embeddings, which take the texts of a pair one by one, single texts will do.
        has_pairs = kind != "embedding" or set(columns) <= set(table.columns)
        unlabelled = unlabelled_rows(table, columns if has_pairs else text_columns(table, None))
    splits = _splits(own, rows, learned, unlabelled, notes, calibrate)
    if kind == "embedding":
        splits = parted(splits, own.evaluation)
    return OwnRows(task, splits, tuple(notes))


def unlabelled_rows(table: Table, columns: tuple[str, ...]) -> list[Example]:
    """The rows of a table without labels, to calibrate on.

    Raises:
        InputError: more than two columns, or a row without a text.
    """
    if len(columns) > 2:
        raise InputError(f"text columns {listed(columns)}: one column, or two for a pair")
    bare = Task("texts", "regression", (), (AGREEMENT,), text_columns=columns, labelled=False)
    return _examples(bare, table, "calibration", columns, [None] * len(table))


def _task(
    own: OwnTask,
    kind: OutputMode,
    columns: tuple[str, ...],
    raw: Sequence[RawLabel],
    model: ModelLabels | None,
    notes: list[str],
) -> Task:
    labels: tuple[str, ...] = ()
    if kind not in SCORE_MODES:
        words = _sorted_words(raw)
        labels = words if model is None else _in_model_order(own, words, model)
    elif kind == "regression" and model is not None and model.count != 1:
        raise InputError(f"{model.source}: {model.count} logits; a regression has one")
    _check_fits(own, kind, raw, notes)
    if own.label is None:
        judged_by_teacher = metric_names(kind, "teacher")
        metrics = own.metrics or judged_by_teacher
        if not set(metrics) <= set(judged_by_teacher):
            raise InputError(f"metrics {listed(own.metrics)} need labels; name their column: --label COLUMN")
    else:
        metrics = own.metrics or _USUAL_METRICS[kind]
        if not own.metrics:
            notes.append(f"metrics: {', '.join(metrics)}")
    try:
        return Task(
            name=own.name,
            output_mode=kind,
            labels=labels,
            metrics=metrics,
            text_columns=columns,
            label_column=own.label or "",
            score_range=(-math.inf, math.inf) if kind in SCORE_MODES and own.label else None,
            threshold=own.threshold if kind == "multi_label" else DEFAULT_THRESHOLD,
            labelled=own.label is not None,
            labels_by_name=True,
            label_names=tuple(own.labels.items()),
            width=model.count if kind == "embedding" and model is not None else 0,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_fits(own: OwnTask, kind: OutputMode, raw: Sequence[RawLabel], notes: list[str]) -> None:
    """Refuse what says nothing about such a task, since it was meant to say something."""
    for name, given in (("threshold", own.threshold != DEFAULT_THRESHOLD), ("separator", own.separator)):
        if given and kind != "multi_label":
            raise InputError(
                f"{name} {getattr(own, name)!r} is for multi_label tasks; {own.name} is of kind {kind}"
            )
    words = set(_sorted_words(raw))
    unused = [word for word in own.labels if word not in words]
    if unused and own.label is not None:
        notes.append(f"[task.labels] maps {listed(unused)}, which no row has")


def _sorted_words(raw: Sequence[RawLabel]) -> tuple[str, ...]:
    """The different labels; numbers in their order, words in that of the alphabet."""
    words = {
        w
        for label in raw
        if label is not None
        for w in (label if isinstance(label, tuple) else (str(label),))
    }
    numbered = all(re.fullmatch(r"-?\d{1,18}", word) for word in words)
    return tuple(sorted(words, key=int) if numbered else sorted(words))


def _in_model_order(own: OwnTask, words: Sequence[str], model: ModelLabels) -> tuple[str, ...]:
    """A label for each logit: the word in the rows, or the model's own for those that no row has."""
    order = label_order(words, own.labels, model)
    labels = list(model.names) or [f"LABEL_{place}" for place in range(model.count)]
    for word, place in zip(words, order, strict=True):
        labels[place] = word
    if len(set(labels)) < len(labels):
        raise InputError(
            f"{model.source}: labels {listed(model.names)} of the checkpoint and {listed(words)} of the rows "
            "cannot be told apart; map them by name in [task.labels]"
        )
    return tuple(labels)


def _examples(
    task: Task,
    table: Table,
    split: str,
    columns: Sequence[str],
    labels: Sequence[RawLabel],
) -> list[Example]:
    texts = [texts_of(table, column) for column in columns]
    return [
        task.example(f"{split}-{row + 1}", cells, label, table.where(row))
        for row, (*cells, label) in enumerate(zip(*texts, labels, strict=True))
    ]


def _splits(
    own: OwnTask,
    evaluation: Sequence[Example],
    train: Sequence[Example] | None,
    calibration: Sequence[Example] | None,
    notes: list[str],
    calibrate: bool,
) -> Splits:
    for name, rows in (("train", train), ("calibration", calibration)):
        dropped = in_evaluation(rows or (), evaluation)
        if dropped:
            notes.append(f"{name}: {dropped} rows dropped, as their texts are in evaluation too")
    if train is not None:
        whole = split_train(train, evaluation, own.train or "")
        return whole if calibration is None else with_calibration(whole, calibration)
    if calibration is not None:
        return with_calibration(Splits((), (), (), tuple(evaluation)), calibration)
    if not calibrate:
        return Splits((), (), (), tuple(evaluation))
    splits = set_aside(evaluation, own.evaluation)
    notes.append(
        f"calibration: {len(splits.calibration)} of the {len(evaluation)} evaluation rows, set aside and not "
        "evaluated on, as neither train nor calibration rows are given"
    )
    twice = len(evaluation) - len(splits.calibration) - len(splits.evaluation)
    if twice:
        notes.append(f"evaluation: {twice} rows left out, as their texts were set aside for calibration")
    return splits
