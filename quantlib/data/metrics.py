"""The table of metrics: what each is computed from, by what, and how it is resampled for an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# Below this ratio of spread to mean, scipy.stats.pearsonr warns that its input is nearly constant.
_NEARLY_CONSTANT = 1e-13


@dataclass(frozen=True)
class Metric:
    """A metric: more is better, and 0 where it is undefined, because no rows were distinguished.

    output_mode: "classification" compares class indices, "regression" scores. function: of (truth,
    predictions), each (rows,). resampled: the same of many resamples at once, float64 (resamples,): for
    classification of confusion matrices, (resamples, labels, predictions); for regression of truth and
    predictions, each (resamples, rows). num_labels: the one number of labels that it is defined for; None for
    any.
    """

    name: str
    output_mode: Literal["classification", "regression"]
    function: Callable[[Array, Array], float]
    resampled: Callable[..., FloatArray]
    num_labels: int | None = None


# Of one set of rows


def _accuracy(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predictions))


def _f1(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predictions, pos_label=1, zero_division=0.0))


def _mcc(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(truth) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(matthews_corrcoef(truth, predictions))


def pearson(truth: Array, predictions: Array) -> float:
    """Pearson's r of two arrays (rows,); 0 where either is constant."""
    from scipy.stats import pearsonr

    if _is_constant(truth[None])[0] or _is_constant(predictions[None])[0]:
        return 0.0
    return float(pearsonr(truth, predictions).statistic)


def _spearman(truth: Array, predictions: Array) -> float:
    from scipy.stats import spearmanr

    if np.ptp(truth) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(spearmanr(truth, predictions).statistic)


# Of many resamples


def _accuracies(confusions: FloatArray) -> FloatArray:
    return np.asarray(np.trace(confusions, axis1=1, axis2=2) / confusions.sum(axis=(1, 2)))


def _f1s(confusions: FloatArray) -> FloatArray:
    hits = 2 * confusions[:, 1, 1]
    return _divided(hits, hits + confusions[:, 0, 1] + confusions[:, 1, 0])


def _mccs(confusions: FloatArray) -> FloatArray:
    """Matthews correlation of any number of classes (Gorodkin 2004, R_K)."""
    rows = confusions.sum(axis=(1, 2))
    truth, predictions = confusions.sum(axis=2), confusions.sum(axis=1)
    covariance = np.trace(confusions, axis1=1, axis2=2) * rows - (truth * predictions).sum(axis=1)
    variances = (rows**2 - (truth**2).sum(axis=1)) * (rows**2 - (predictions**2).sum(axis=1))
    return _divided(covariance, np.sqrt(variances))


def _pearsons(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    x = truth - truth.mean(axis=1, keepdims=True)
    y = predictions - predictions.mean(axis=1, keepdims=True)
    x_norms, y_norms = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    flat = _is_constant(truth) | _is_constant(predictions)
    return _divided(np.where(flat, 0.0, np.einsum("ij,ij->i", x, y)), x_norms * y_norms)


def _spearmans(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    """Pearson's r of the ranks in each resample; equal scores share the mean of their ranks."""
    from scipy.stats import rankdata

    return _pearsons(rankdata(truth, axis=1), rankdata(predictions, axis=1))


def _is_constant(samples: FloatArray) -> npt.NDArray[np.bool_]:
    """For each row of `samples` (rows, values): is its spread nothing but rounding?"""
    means = samples.mean(axis=1)
    spreads = np.linalg.norm(samples - means[:, None], axis=1)
    return np.asarray((np.ptp(samples, axis=1) == 0) | (spreads <= _NEARLY_CONSTANT * np.abs(means)))


def _divided(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """Quotients, and 0 for 0/0."""
    return np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators != 0)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "classification", _accuracy, _accuracies),
        Metric("f1", "classification", _f1, _f1s, num_labels=2),  # of the second label
        Metric("mcc", "classification", _mcc, _mccs),
        Metric("pearson", "regression", pearson, _pearsons),
        Metric("spearman", "regression", _spearman, _spearmans),
    )
}
