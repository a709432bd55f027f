"""What the scores of a task's predictions need of the task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from quantlib.data.metrics import METRICS, OutputMode, metric_names

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Scoring:
    """How the logits of a task become predictions, and what those are scored by.

    output_mode: what a row gets: one label, a score, any number of labels, or an embedding. num_labels:
    logits per row, 1 for regression, the width for embedding. metrics: names in `METRICS` of that mode, the
    primary one first. threshold: the probability from which on a label is predicted, for multi_label.
    labelled: whether the rows have labels; without them the teacher's predictions stand for the truth.

    Raises:
        ValueError: values that contradict each other.
    """

    output_mode: OutputMode
    num_labels: int
    metrics: tuple[str, ...]
    threshold: float = DEFAULT_THRESHOLD
    labelled: bool = True

    def __post_init__(self) -> None:
        mode = self.output_mode
        if mode not in get_args(OutputMode):
            raise ValueError(f"unknown output mode {mode!r}; known: {', '.join(get_args(OutputMode))}")
        if self.num_labels != 1 if mode == "regression" else self.num_labels < 1 + (mode == "classification"):
            raise ValueError(f"{mode} of {self.num_labels} labels")
        known = metric_names(mode, "labels" if self.labelled else "teacher")
        if not self.metrics or set(self.metrics) - set(known) or len(set(self.metrics)) < len(self.metrics):
            raise ValueError(
                f"metrics {', '.join(self.metrics) or 'missing'}; known for {mode} "
                f"{'with' if self.labelled else 'without'} labels, each once: {', '.join(known)}"
            )
        for name in self.metrics:
            needed = METRICS[mode][name].num_labels
            if needed not in (None, self.num_labels):
                raise ValueError(f"{name} needs {needed} labels, not {self.num_labels}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} must lie between 0 and 1")
        if mode != "multi_label" and self.threshold != DEFAULT_THRESHOLD:
            raise ValueError(f"a threshold is of multi_label tasks, not of {mode}")

    @property
    def primary_metric(self) -> str:
        """The metric in which a drop is counted."""
        return self.metrics[0]

    @property
    def least_logit(self) -> float:
        """The logit from which on a label of a multi_label row is predicted: logit(threshold), 0 for 0.5."""
        return math.log(self.threshold / (1 - self.threshold))
