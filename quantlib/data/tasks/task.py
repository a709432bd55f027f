"""What a task is, and how its rows are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from quantlib.data.metrics import METRICS
from quantlib.data.tasks.splits import Example, Splits, limit_train
from quantlib.data.text import quoted
from quantlib.support.errors import InputError


class Source(Protocol):
    """A reader: where the rows of a task come from."""

    def read(self, task: Task, data_dir: Path | None, *, need_train: bool) -> Splits:
        """The rows of `task`, parted; arguments and errors are those of `read_splits`."""


@dataclass(frozen=True)
class Task:
    """What a task is: its labels, its metrics, and where its rows come from.

    `labels` stand in the order of the model's logits, and are empty for regression. The first of `metrics`,
    names in `METRICS`, is the primary one. `source` reads the rows. `text_columns` (one, or two for pairs)
    and `label_column` are the names that a table of rows has for them. `score_range` holds the lowest and
    highest score of a regression.
    """

    name: str
    output_mode: Literal["classification", "regression"]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    source: Source
    text_columns: tuple[str, ...] = ("sentence",)
    label_column: str = "label"
    score_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        regression = self.output_mode == "regression"
        known = {name for name, metric in METRICS.items() if metric.output_mode == self.output_mode}
        if not self.metrics or set(self.metrics) - known:
            raise ValueError(
                f"{self.name}: metrics {', '.join(self.metrics) or 'missing'}; "
                f"known for {self.output_mode}: {', '.join(sorted(known))}"
            )
        if regression == bool(self.labels) or regression != (self.score_range is not None):
            raise ValueError(f"{self.name}: classification has labels, regression has a score range")
        if not regression and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"{self.name}: two labels or more, each once, not {self.labels}")
        for name in self.metrics:
            if METRICS[name].num_labels not in (None, self.num_labels):
                raise ValueError(
                    f"{self.name}: {name} needs {METRICS[name].num_labels} labels, not {self.num_labels}"
                )
        if len(self.text_columns) not in (1, 2):
            raise ValueError(f"{self.name}: one text column or two, not {self.text_columns}")

    @property
    def primary_metric(self) -> str:
        """The metric in which a drop is counted."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """The number of the model's logits per row: 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.text_columns) == 2

    def example(self, guid: str, texts: Sequence[str], label: str | float, where: str) -> Example:
        """A row, checked.

        Args:
            guid: see `Example`.
            texts: one for each of `text_columns`.
            label: a label's word, or a score as a number or text.
            where: the place of the row, for the message.

        Raises:
            InputError: an unknown label, a score that is none or out of range, or an empty text.
        """
        checked = self._checked_label(label, where)
        for name, text in zip(self.text_columns, texts, strict=True):
            if not text.strip():
                raise InputError(f"{where}: empty text in column {quoted(name)}; each row needs one")
        return Example(guid, texts[0], texts[1] if self.is_pair else None, checked)

    def _checked_label(self, label: str | float, where: str) -> str | float:
        if self.score_range is None:
            if label not in self.labels:
                raise InputError(f"{where}: label {quoted(label)}; known: {', '.join(self.labels)}")
            return label
        low, high = self.score_range
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not low <= score <= high:
            raise InputError(f"{where}: score {quoted(label)}; expected a number from {low:g} to {high:g}")
        return score


def read_splits(
    task: Task, data_dir: Path | None = None, *, train_rows: int | None = None, need_train: bool = True
) -> Splits:
    """Read a task's rows and part them; the same rows always land in the same part.

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
        InputError: a missing directory, file, column, or package; a row that is not one; too few rows.
    """
    splits = task.source.read(task, data_dir, need_train=need_train)
    return splits if train_rows is None else limit_train(splits, train_rows)
