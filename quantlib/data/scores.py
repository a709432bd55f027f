"""What a variant scores on a task: metrics, loss, agreement with the teacher, and how sure a drop is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from quantlib.data.metrics import METRICS, Array, FloatArray, Metric, pearson
from quantlib.data.tasks import Task

# Numbers that a chunk of bootstrap resamples may hold: 16 MiB of float64.
_CHUNK = 2**21


def compute_metrics(task: Task, logits: Array, labels: Array) -> dict[str, float]:
    """The task's metrics by name, in the task's order, as fractions; see `METRICS`.

    Args:
        task: says which metrics.
        logits: float32, (examples, labels); (examples, 1) for regression.
        labels: int64 class indices, or float32 scores, (examples,).

    Raises:
        ValueError: shapes that do not fit the task or each other, a class index outside the labels, or a
            number that is not finite; the message names the first such row.
    """
    outputs, truth = _checked_logits(task, logits), _checked_labels(task, labels, len(logits))
    predictions = _predictions(task, outputs)
    return {name: METRICS[name].function(truth, predictions) for name in task.metrics}


def mean_loss(task: Task, logits: Array, labels: Array) -> float:
    """The mean cross-entropy in nats; for regression the mean squared error.

    Arguments and errors are those of `compute_metrics`.
    """
    from scipy.special import log_softmax

    outputs, truth = _checked_logits(task, logits), _checked_labels(task, labels, len(logits))
    if task.output_mode == "regression":
        return float(np.mean((outputs[:, 0] - truth) ** 2))
    return float(-np.mean(log_softmax(outputs, axis=1)[np.arange(len(truth)), truth]))


def agreement(task: Task, logits: Array, teacher_logits: Array) -> float:
    """The share of rows with the teacher's label; for regression Pearson's r with the teacher's scores.

    Scores equal to the teacher's agree by 1 even where they are constant and r is undefined.

    Args:
        task: says whether the logits are of classes or scores.
        logits: float32, (examples, labels).
        teacher_logits: the same, of the teacher for the same rows.

    Raises:
        ValueError: shapes that do not fit the task or each other, or a number that is not finite.
    """
    variants, teachers = _checked_logits(task, logits), _checked_logits(task, teacher_logits)
    _check_same_shape(variants, teachers)
    if task.output_mode == "classification":
        return float(np.mean(variants.argmax(axis=1) == teachers.argmax(axis=1)))
    return 1.0 if np.array_equal(variants, teachers) else pearson(teachers[:, 0], variants[:, 0])


def logit_error(logits: Array, teacher_logits: Array) -> float:
    """The mean absolute difference of all logits, in logits.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(logits, teacher_logits)
    return float(np.mean(np.abs(logits.astype(np.float64) - teacher_logits.astype(np.float64))))


def drop_interval(
    task: Task,
    logits: Array,
    teacher_logits: Array,
    labels: Array,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The confidence interval of the drop: the teacher's primary metric minus the variant's, as fractions.

    A paired percentile bootstrap over rows (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    ch. 13): each resample draws rows with replacement and scores both models on the same rows. Equal
    predictions give (0, 0).

    Args:
        task: says which metric is primary.
        logits: the variant's, float32, (examples, labels).
        teacher_logits: the teacher's for the same rows.
        labels: int64 class indices, or float32 scores, (examples,).
        confidence: the coverage aimed at, between 0 and 1.
        resamples: the number of resamples, at least 1.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: as for `compute_metrics`, or an option out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence {confidence} must lie between 0 and 1, resamples {resamples} be at least 1"
        )
    variants, teachers = _checked_logits(task, logits), _checked_logits(task, teacher_logits)
    _check_same_shape(variants, teachers)
    truth = _checked_labels(task, labels, len(variants))
    metric, rng = METRICS[task.primary_metric], np.random.default_rng(seed)
    rows = np.stack([truth, _predictions(task, teachers), _predictions(task, variants)])
    if metric.output_mode == "classification":
        drops = _class_drops(metric, rows, task.num_labels, resamples, rng)
    else:
        drops = _score_drops(metric, rows, resamples, rng)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drops, [tail, 1 - tail])
    return float(low), float(high)


# Checks


def first_not_finite(values: Array) -> int | None:
    """The first row that holds a NaN or an infinite number; None if all are finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return None if finite.all() else int(finite.argmin())


def _checked_logits(task: Task, logits: Array) -> FloatArray:
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] != task.num_labels:
        raise ValueError(f"logits have shape {logits.shape}; {task.name} needs (examples, {task.num_labels})")
    row = first_not_finite(logits)
    if row is not None:
        raise ValueError(f"the logits of row {row} are not finite: {logits[row].tolist()}")
    return logits.astype(np.float64)


def _checked_labels(task: Task, labels: Array, examples: int) -> Array:
    if labels.shape != (examples,):
        raise ValueError(f"labels have shape {labels.shape}; the logits need ({examples},)")
    if task.output_mode == "regression":
        row = first_not_finite(labels)
        if row is not None:
            raise ValueError(f"the score of row {row} is not finite: {labels[row]}")
        return labels.astype(np.float64)
    known = np.isin(labels, np.arange(task.num_labels))
    if not known.all():
        row = int(known.argmin())
        raise ValueError(f"label {labels[row]} of row {row} is not a class index below {task.num_labels}")
    return labels.astype(np.int64)


def _check_same_shape(logits: Array, teacher_logits: Array) -> None:
    if logits.shape != teacher_logits.shape:
        raise ValueError(f"logits {logits.shape} and the teacher's {teacher_logits.shape} differ in shape")


def _predictions(task: Task, logits: FloatArray) -> Array:
    """Class indices or scores, (examples,)."""
    return logits[:, 0] if task.output_mode == "regression" else logits.argmax(axis=1)


# Bootstrap


def _class_drops(
    metric: Metric, rows: Array, num_labels: int, resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Drops in `resamples` resamples: float64, (resamples,).

    Rows with the same label, teacher's prediction and variant's prediction are interchangeable, so a resample
    is a multinomial draw of how many rows of each such kind it holds.

    Args:
        metric: one of classification.
        rows: int64, (3, examples): label, teacher's prediction, variant's prediction.
        num_labels: the number of classes.
        resamples: how many.
        rng: draws them.
    """
    kinds, counts = np.unique(rows, axis=1, return_counts=True)
    draws = rng.multinomial(rows.shape[1], counts / rows.shape[1], size=resamples).astype(np.float64)
    truth, teachers, variants = kinds
    return np.asarray(
        metric.resampled(_confusions(draws, truth, teachers, num_labels))
        - metric.resampled(_confusions(draws, truth, variants, num_labels))
    )


def _confusions(draws: FloatArray, truth: Array, predictions: Array, num_labels: int) -> FloatArray:
    """Confusion matrices, (resamples, labels, predictions), from draws of kinds, (resamples, kinds)."""
    cells = np.zeros((len(truth), num_labels * num_labels))
    cells[np.arange(len(truth)), truth * num_labels + predictions] = 1
    return (draws @ cells).reshape(-1, num_labels, num_labels)


def _score_drops(metric: Metric, rows: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """The same for a metric of regression; `rows` are scores, float64 (3, examples)."""
    truth, teachers, variants = rows
    drops = [
        metric.resampled(truth[index], teachers[index]) - metric.resampled(truth[index], variants[index])
        for index in _resampled_rows(len(truth), resamples, rng)
    ]
    return np.concatenate(drops)


def _resampled_rows(rows: int, resamples: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Row indices of all resamples, (some, rows) at a time, so that memory does not grow with the data."""
    size = max(1, _CHUNK // rows)
    for start in range(0, resamples, size):
        yield rng.integers(rows, size=(min(size, resamples - start), rows))
