"""What a variant is worth: metrics, loss, agreement with the teacher, and how sure a drop is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.data.tasks import Task

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# Numbers that a chunk of bootstrap resamples may hold: 16 MiB of float64.
_CHUNK = 2**21
# Below this ratio of spread to mean, scipy.stats.pearsonr warns that its input is nearly constant.
_NEARLY_CONSTANT = 1e-13


def compute_metrics(task: Task, logits: Array, labels: Array) -> dict[str, float]:
    """The task's metrics by name, in the task's order, as fractions.

    `f1` is that of the second label. Where a metric is undefined it is 0, because nothing was told apart:
    `mcc` with a single predicted or true class, `f1` without a positive row or prediction, `pearson` and
    `spearman` of constant scores.

    Args:
        task: says which metrics.
        logits: float32, (examples, labels); (examples, 1) for regression.
        labels: int64 class indices, or float32 scores, (examples,).

    Raises:
        ValueError: shapes that do not fit the task or each other, a class index outside the labels, or a
            number that is not finite; the message names the first such row.
    """
    outputs, truth = _checked_logits(task, logits), _checked_labels(task, labels, len(logits))
    answers = outputs[:, 0] if task.output_mode == "regression" else outputs.argmax(axis=1)
    return {name: _METRICS[name](truth, answers) for name in task.metrics}


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
    ours, teachers = _checked_logits(task, logits), _checked_logits(task, teacher_logits)
    _check_same_shape(ours, teachers)
    if task.output_mode == "classification":
        return float(np.mean(ours.argmax(axis=1) == teachers.argmax(axis=1)))
    return 1.0 if np.array_equal(ours, teachers) else _pearson(teachers[:, 0], ours[:, 0])


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
    ch. 13): each resample draws rows with replacement and scores both models on the same rows. Equal answers
    give (0, 0).

    Args:
        task: its primary metric is accuracy, f1, mcc or pearson.
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
    ours, teachers = _checked_logits(task, logits), _checked_logits(task, teacher_logits)
    _check_same_shape(ours, teachers)
    truth = _checked_labels(task, labels, len(ours))
    rng = np.random.default_rng(seed)
    if task.output_mode == "regression":
        if task.primary_metric != "pearson":
            raise ValueError(f"no bootstrap for {task.primary_metric}; there is one for pearson")
        drops = _pearson_drops(truth, teachers[:, 0], ours[:, 0], resamples, rng)
    else:
        answers = teachers.argmax(axis=1), ours.argmax(axis=1)
        drops = _class_drops(task, truth, *answers, resamples=resamples, rng=rng)
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


# Metrics of (truth, answers)


def _accuracy(truth: Array, answers: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, answers))


def _f1(truth: Array, answers: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, answers, pos_label=1, zero_division=0.0))


def _mcc(truth: Array, answers: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(truth) == 0 or np.ptp(answers) == 0:
        return 0.0
    return float(matthews_corrcoef(truth, answers))


def _pearson(truth: Array, answers: Array) -> float:
    from scipy.stats import pearsonr

    if _is_constant(truth[None])[0] or _is_constant(answers[None])[0]:
        return 0.0
    return float(pearsonr(truth, answers).statistic)


def _spearman(truth: Array, answers: Array) -> float:
    from scipy.stats import spearmanr

    if np.ptp(truth) == 0 or np.ptp(answers) == 0:
        return 0.0
    return float(spearmanr(truth, answers).statistic)


_METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "mcc": _mcc,
    "pearson": _pearson,
    "spearman": _spearman,
}


def _is_constant(samples: FloatArray) -> npt.NDArray[np.bool_]:
    """For each row of `samples` (rows, values): is its spread nothing but rounding?"""
    means = samples.mean(axis=1)
    spreads = np.linalg.norm(samples - means[:, None], axis=1)
    return np.asarray((np.ptp(samples, axis=1) == 0) | (spreads <= _NEARLY_CONSTANT * np.abs(means)))


# Bootstrap


def _class_drops(
    task: Task, truth: Array, teachers: Array, ours: Array, *, resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Drops in `resamples` resamples: float64, (resamples,).

    Rows with the same label, teacher's answer and variant's answer are interchangeable, so a resample is a
    draw of how many rows of each such kind it holds: a multinomial one.
    """
    kinds, counts = np.unique(np.stack([truth, teachers, ours], axis=1), axis=0, return_counts=True)
    draws = rng.multinomial(len(truth), counts / len(truth), size=resamples).astype(np.float64)
    score = _CONFUSION_METRICS[task.primary_metric]
    teacher_scores, our_scores = (
        score(_confusions(draws, kinds[:, 0], answers, task.num_labels))
        for answers in (kinds[:, 1], kinds[:, 2])
    )
    return np.asarray(teacher_scores - our_scores)


def _confusions(draws: FloatArray, truth: Array, answers: Array, num_labels: int) -> FloatArray:
    """Confusion matrices, (resamples, labels, answers), from draws of kinds, (resamples, kinds)."""
    cells = np.zeros((len(truth), num_labels * num_labels))
    cells[np.arange(len(truth)), truth * num_labels + answers] = 1
    return (draws @ cells).reshape(-1, num_labels, num_labels)


def _accuracies(confusions: FloatArray) -> FloatArray:
    return np.asarray(np.trace(confusions, axis1=1, axis2=2) / confusions.sum(axis=(1, 2)))


def _f1s(confusions: FloatArray) -> FloatArray:
    hits = 2 * confusions[:, 1, 1]
    return _divided(hits, hits + confusions[:, 0, 1] + confusions[:, 1, 0])


def _mccs(confusions: FloatArray) -> FloatArray:
    """Matthews correlation of any number of classes (Gorodkin 2004, R_K)."""
    rows = confusions.sum(axis=(1, 2))
    truth, answers = confusions.sum(axis=2), confusions.sum(axis=1)
    covariance = np.trace(confusions, axis1=1, axis2=2) * rows - (truth * answers).sum(axis=1)
    variances = (rows**2 - (truth**2).sum(axis=1)) * (rows**2 - (answers**2).sum(axis=1))
    return _divided(covariance, np.sqrt(variances))


_CONFUSION_METRICS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "accuracy": _accuracies,
    "f1": _f1s,
    "mcc": _mccs,
}


def _pearson_drops(
    truth: FloatArray, teachers: FloatArray, ours: FloatArray, resamples: int, rng: np.random.Generator
) -> FloatArray:
    drops = [
        _pearsons(truth[index], teachers[index]) - _pearsons(truth[index], ours[index])
        for index in _resampled_rows(len(truth), resamples, rng)
    ]
    return np.concatenate(drops)


def _resampled_rows(rows: int, resamples: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Row indices of all resamples, (some, rows) at a time, so that memory does not grow with the data."""
    size = max(1, _CHUNK // rows)
    for start in range(0, resamples, size):
        yield rng.integers(rows, size=(min(size, resamples - start), rows))


def _pearsons(truth: FloatArray, answers: FloatArray) -> FloatArray:
    """Pearson's r of each resample, (resamples, rows) each; 0 where either is constant."""
    x = truth - truth.mean(axis=1, keepdims=True)
    y = answers - answers.mean(axis=1, keepdims=True)
    x_norms, y_norms = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    flat = _is_constant(truth) | _is_constant(answers)
    return _divided(np.where(flat, 0.0, np.einsum("ij,ij->i", x, y)), x_norms * y_norms)


def _divided(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """Quotients, and 0 for 0/0."""
    return np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators != 0)
