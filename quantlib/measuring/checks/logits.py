"""Logits of single batches, and what changes between two sets of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, Feed
from quantlib.data.metrics import SCORE_MODES
from quantlib.data.scores import predictions_of
from quantlib.data.tasks import Task
from quantlib.machine.engines import LoadedModel
from quantlib.measuring.accuracy import run_logits
from quantlib.support.errors import InputError

Array = npt.NDArray[Any]
Progress = Callable[[int], None]
"""Called with the number of rows that were just compared."""


def predict(model: LoadedModel, feed: Feed, task: Task) -> Array:
    """The logits of one batch, all of them finite: float32, (rows, labels).

    Raises:
        InputError: as for `quantlib.measuring.accuracy.run_logits`, or a logit is not finite.
    """
    logits = run_logits(model, feed, task)
    if not np.isfinite(logits).all():
        raise InputError(f"{model.path}: the logits of a batch of {feed['input_ids'].shape} are not finite")
    return logits


def largest_change(reference: Array, *others: Array) -> float:
    """The largest absolute difference of a logit, from (rows, labels) to any of the others.

    Raises:
        ValueError: the shapes differ.
    """
    if any(other.shape != reference.shape for other in others):
        raise ValueError(f"logits of shape {reference.shape} and {[other.shape for other in others]}")
    return float(max(np.abs(other.astype(np.float64) - reference).max() for other in others))


def labels_changed(task: Task, reference: Array, *others: Array) -> int | None:
    """The number of rows with another label, or another set of labels, in any of the others.

    None for regression and embedding, which have no labels.
    """
    if task.output_mode in SCORE_MODES:
        return None
    labels = predictions_of(task, reference)
    changed = [(predictions_of(task, other) != labels).reshape(len(labels), -1) for other in others]
    return int(np.any([each.any(axis=1) for each in changed], axis=0).sum())


def need_rows(onnx_path: Path, rows: Sequence[Feature]) -> None:
    """Raise InputError where there is nothing to check a model on."""
    if not rows:
        raise InputError(f"{onnx_path}: no rows to check it on; the evaluation split is empty")
