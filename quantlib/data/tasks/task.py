"""What a task is, and how its rows are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from quantlib.data.metrics import SCORE_MODES, OutputMode
from quantlib.data.scoring import DEFAULT_THRESHOLD, Scoring
from quantlib.data.tasks.splits import Example, Label, Splits, limit_train
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

_LABELS_IN_MESSAGE = 20  # a task may have thousands


class Source(Protocol):
    """A reader: where the rows of a task come from."""

    def read(self, task: Task, data_dir: Path | None, *, need_train: bool) -> Splits:
        """The rows of `task` in their parts; arguments and errors are those of `read_splits`."""


@dataclass(frozen=True)
class Task:
    """What a task is: its labels, its metrics, and where its rows come from.

    `output_mode` says what a row gets: "classification" one of `labels`, "multi_label" any number of them,
    "regression" a score, "embedding" `width` numbers. `labels` stand in the order of the model's logits, and
    are empty for regression and embedding. Rows of an embedding task have one text each; a scored pair is two
    rows, one after the other, with the same score. The first of `metrics`, names in `METRICS`, is the primary
    one. `source` reads the rows; None if they are read elsewhere. `text_columns` (one, or two for pairs) and
    `label_column` are the names of columns in a table of rows. `score_range` holds the lowest and highest
    score of a regression or of pairs; one without labels needs none. `threshold` is the probability from
    which on a label is predicted, for multi_label alone. `labelled` is False where rows have no labels: the
    teacher's predictions stand for the truth then, and "agreement" is the only metric; for embedding
    "mean_cosine" and "worst_cosine" are. `labels_by_name`: a checkpoint's labels must have these names, or
    those that `label_names` gives, (label, name in the checkpoint); otherwise a checkpoint with names of
    another style has the task's order.
    """

    name: str
    output_mode: OutputMode
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    source: Source | None = None
    text_columns: tuple[str, ...] = ("sentence",)
    label_column: str = "label"
    score_range: tuple[float, float] | None = None
    threshold: float = DEFAULT_THRESHOLD
    labelled: bool = True
    labels_by_name: bool = False
    label_names: tuple[tuple[str, str], ...] = ()
    width: int = 0

    def __post_init__(self) -> None:
        scored = self.output_mode in SCORE_MODES
        if scored == bool(self.labels) or (not scored and self.score_range is not None):
            raise ValueError(f"{self.name}: classes and sets have labels, regression has a score range")
        if scored and self.labelled and self.score_range is None:
            raise ValueError(f"{self.name}: a regression with labels has a score range")
        if (self.width > 0) != (self.output_mode == "embedding"):
            raise ValueError(f"{self.name}: embeddings alone have a width, above 0")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"{self.name}: labels, each once, not {quoted(self.labels)}")
        try:
            _ = self.scoring
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        if len(self.text_columns) not in (1, 2):
            raise ValueError(f"{self.name}: one text column or two, not {self.text_columns}")

    @cached_property
    def scoring(self) -> Scoring:
        """What the scores of its predictions need."""
        return Scoring(self.output_mode, self.num_labels, self.metrics, self.threshold, self.labelled)

    @property
    def primary_metric(self) -> str:
        """The metric in which a drop is counted."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """The number of the model's logits per row: 1 for regression, the width for embedding."""
        return self.width or len(self.labels) or 1

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.text_columns) == 2

    def example(
        self, guid: str, texts: Sequence[str], label: str | float | Sequence[str] | None, where: str
    ) -> Example:
        """A row, checked.

        Args:
            guid: see `Example`.
            texts: one for each of `text_columns`.
            label: a label's word, or a score as a number or text; for multi_label the words of all labels, in
                any order; None for a task without labels.
            where: the place of the row, for the message.

        Raises:
            InputError: an unknown label, a label given twice, a score that is no number or out of range, or
                an empty text.
        """
        checked = self._checked_label(label, where)
        for name, text in zip(self.text_columns, texts, strict=True):
            if not text.strip():
                raise InputError(f"{where}: empty text in column {quoted(name)}; each row needs one")
        return Example(guid, texts[0], texts[1] if self.is_pair else None, checked)

    def _checked_label(self, label: str | float | Sequence[str] | None, where: str) -> Label:
        if not self.labelled:
            if label is not None:
                raise ValueError(f"{self.name} has no labels, but {where} gives {quoted(label)}")
            return None
        if self.output_mode == "classification":
            self._check_known(label, where)
            return str(label)
        if self.output_mode == "multi_label":
            return self._checked_set(label, where)
        assert self.score_range is not None
        low, high = self.score_range
        try:
            score = float(label)  # type: ignore[arg-type]  # what is no number is refused
        except (TypeError, ValueError):
            score = math.nan
        if not low <= score <= high:
            raise InputError(f"{where}: score {quoted(label)}; expected a number from {low:g} to {high:g}")
        return score

    def _checked_set(self, labels: object, where: str) -> tuple[str, ...]:
        """The labels of a multi_label row in the task's order."""
        if not isinstance(labels, list | tuple):
            raise InputError(f"{where}: labels {quoted(labels)}; expected a list of them, empty for none")
        for label in labels:
            self._check_known(label, where)
        if len(set(labels)) < len(labels):
            raise InputError(f"{where}: labels {quoted(labels)}; each can be there once")
        return tuple(sorted(labels, key=self._label_index.__getitem__))

    def _check_known(self, label: object, where: str) -> None:
        if not isinstance(label, str) or label not in self._label_index:
            known = ", ".join(self.labels[:_LABELS_IN_MESSAGE])
            known += f", ... ({len(self.labels)} in all)" if len(self.labels) > _LABELS_IN_MESSAGE else ""
            raise InputError(f"{where}: label {quoted(label)}; known: {known}")

    @cached_property
    def _label_index(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.labels)}


def read_splits(
    task: Task, data_dir: Path | None = None, *, train_rows: int | None = None, need_train: bool = True
) -> Splits:
    """Read a task's rows and split them; the same rows always land in the same part.

    A GLUE task comes from `data_dir` (its files there, or in a folder there with the task's name), or
    without `data_dir` from the hub; see `split_train`. BBC-News comes from its package, without duplicates;
    see `split_all`.

    Args:
        task: one of `TASKS`.
        data_dir: the directory with GLUE's files; None for the hub, and for BBC-News.
        train_rows: keep only the first so many rows of the train part.
        need_train: False where `data_dir` may lack the train file; then train, calibration and validation are
            empty. A train file that is there is read all the same.

    Raises:
        InputError: a missing directory, file, column, or package; a row that does not fit the task; too few
            rows.
    """
    if task.source is None:
        raise ValueError(f"{task.name} has no source of rows")
    splits = task.source.read(task, data_dir, need_train=need_train)
    return splits if train_rows is None else limit_train(splits, train_rows)
