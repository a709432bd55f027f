"""The table of metrics: a row for each, with its function and how it is resampled for an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
OutputMode = Literal["classification", "regression", "multi_label", "embedding"]
# Those whose predictions are a number each: a score; for embeddings a cosine.
SCORE_MODES: frozenset[OutputMode] = frozenset({"regression", "embedding"})

# Below this ratio of spread to mean, scipy.stats.pearsonr warns that its input is nearly constant.
_NEARLY_CONSTANT = 1e-13


@dataclass(frozen=True)
class Metric:
    """A metric of one output mode: more is better, and 0 where it is undefined.

    It is undefined where its formula is 0/0, for example where all predictions are the same.

    function: of (truth, predictions) of one set of rows, to a number. Both are class indices (rows,) for
    classification, scores (rows,) for regression, cosines (rows,) for embedding, and 0 or 1 (rows, labels)
    for multi_label.
    resampled: the same of many resamples at once, float64 (resamples,): of `Counts`; for `SCORE_MODES` of
    truth and predictions, each (resamples, rows).
    num_labels: the only number of labels that it is defined for; None for any.
    needs: what stands for the truth: the labels of the rows, or the teacher's predictions for them.
    """

    name: str
    function: Callable[[Array, Array], float]
    resampled: Callable[..., FloatArray]
    num_labels: int | None = None
    needs: Literal["labels", "teacher"] = "labels"


@dataclass(frozen=True, eq=False)
class Counts:
    """What metrics of classes and of sets of labels need to know of many resamples of rows.

    labels: those that occur at all, int64 (labels,); the columns of the following, rising.
    hits, truths, predictions: in how many rows a label is both true and predicted, true, predicted; float64,
    (resamples, labels).
    exact: in how many rows the whole prediction is right. rows: how many there are. Both are float64,
    (resamples,).
    macro_labels: how many labels a macro average is over; None for those that occur in the resample. As in
    scikit-learn, other labels are left out for classes, and count as 0 for sets of labels.
    """

    labels: npt.NDArray[np.int64]
    hits: FloatArray
    truths: FloatArray
    predictions: FloatArray
    exact: FloatArray
    rows: FloatArray
    macro_labels: int | None = None

    def macro(self, values: FloatArray) -> FloatArray:
        """The mean over labels of values, (resamples, labels), that are 0 for labels that do not occur."""
        if self.macro_labels is not None:
            return np.asarray(values.sum(axis=1) / self.macro_labels)
        occurring = np.count_nonzero(self.truths + self.predictions, axis=1).astype(np.float64)
        return _divided(values.sum(axis=1), occurring)


# Of one set of rows: classes


def _accuracy(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(truth, predictions))


def _f1(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predictions, pos_label=1, zero_division=0.0))


def _macro_f1(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predictions, average="macro", zero_division=0.0))


def _weighted_f1(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, predictions, average="weighted", zero_division=0.0))


def _macro_precision(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import precision_score

    return float(precision_score(truth, predictions, average="macro", zero_division=0.0))


def _macro_recall(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import recall_score

    return float(recall_score(truth, predictions, average="macro", zero_division=0.0))


def _balanced_accuracy(truth: Array, predictions: Array) -> float:
    # The same as balanced_accuracy_score, which warns where a predicted label is never true.
    from sklearn.metrics import recall_score

    return float(recall_score(truth, predictions, labels=np.unique(truth), average="macro"))


def _mcc(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(truth) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return float(matthews_corrcoef(truth, predictions))


def _cohen_kappa(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import cohen_kappa_score

    if np.ptp(truth) == 0 or np.ptp(predictions) == 0:  # agreement is then what chance gives
        return 0.0
    return float(cohen_kappa_score(truth, predictions))


# Of one set of rows: sets of labels


def _exact_match(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(*_indicators(truth, predictions)))


def _multi_label_score(score: str, average: Literal["micro", "macro"]) -> Callable[[Array, Array], float]:
    """One of scikit-learn's scores of sets of labels, by the name of its function."""

    def function(truth: Array, predictions: Array) -> float:
        from sklearn import metrics

        # scikit-learn takes one column as two classes; for the second one both averages are the same.
        averaged = average if truth.shape[1] > 1 else "binary"
        pair = _indicators(truth, predictions)
        return float(getattr(metrics, score)(*pair, average=averaged, zero_division=0.0))

    return function


def _indicators(truth: Array, predictions: Array) -> tuple[Any, Any]:
    """Sparse matrices, since they take less memory; for a single label, arrays of two classes."""
    from scipy.sparse import csr_matrix

    if truth.shape[1] == 1:
        return truth[:, 0], predictions[:, 0]
    return csr_matrix(truth), csr_matrix(predictions)


# Of one set of rows: scores


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


def _r2(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import r2_score

    return 0.0 if _is_constant(truth[None])[0] else float(r2_score(truth, predictions))


def _negative_absolute_error(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import mean_absolute_error

    return -float(mean_absolute_error(truth, predictions))


def _negative_squared_error(truth: Array, predictions: Array) -> float:
    from sklearn.metrics import root_mean_squared_error

    return -float(root_mean_squared_error(truth, predictions))


# Of one set of rows: with the teacher, whose predictions stand for the truth


def _label_agreement(truth: Array, predictions: Array) -> float:
    return float(np.mean((truth == predictions).reshape(len(truth), -1).all(axis=1)))


def _score_agreement(truth: Array, predictions: Array) -> float:
    return 1.0 if np.array_equal(truth, predictions) else pearson(truth, predictions)


# Of one set of rows: cosines with the teacher's embeddings, whose truth is 1


def _mean(truth: Array, predictions: Array) -> float:
    return float(predictions.mean())


def _worst(truth: Array, predictions: Array) -> float:
    return float(predictions.min())


# Of many resamples


def _exact_shares(counts: Counts) -> FloatArray:
    return np.asarray(counts.exact / counts.rows)


def _f1s(counts: Counts) -> FloatArray:
    return np.asarray(_label_f1s(counts)[:, counts.labels == 1].sum(axis=1))


def _macro_f1s(counts: Counts) -> FloatArray:
    return counts.macro(_label_f1s(counts))


def _weighted_f1s(counts: Counts) -> FloatArray:
    return np.asarray((_label_f1s(counts) * counts.truths).sum(axis=1) / counts.rows)


def _micro_f1s(counts: Counts) -> FloatArray:
    return _divided(2 * counts.hits.sum(axis=1), (counts.truths + counts.predictions).sum(axis=1))


def _label_f1s(counts: Counts) -> FloatArray:
    return _divided(2 * counts.hits, counts.truths + counts.predictions)


def _macro_precisions(counts: Counts) -> FloatArray:
    return counts.macro(_divided(counts.hits, counts.predictions))


def _micro_precisions(counts: Counts) -> FloatArray:
    return _divided(counts.hits.sum(axis=1), counts.predictions.sum(axis=1))


def _macro_recalls(counts: Counts) -> FloatArray:
    return counts.macro(_divided(counts.hits, counts.truths))


def _micro_recalls(counts: Counts) -> FloatArray:
    return _divided(counts.hits.sum(axis=1), counts.truths.sum(axis=1))


def _balanced_accuracies(counts: Counts) -> FloatArray:
    true_labels = np.count_nonzero(counts.truths, axis=1)
    return np.asarray(_divided(counts.hits, counts.truths).sum(axis=1) / true_labels)


def _mccs(counts: Counts) -> FloatArray:
    """Matthews correlation of any number of classes (Gorodkin 2004, R_K)."""
    rows, truths, predictions = counts.rows, counts.truths, counts.predictions
    covariance = counts.exact * rows - (truths * predictions).sum(axis=1)
    variances = (rows**2 - (truths**2).sum(axis=1)) * (rows**2 - (predictions**2).sum(axis=1))
    return _divided(covariance, np.sqrt(variances))


def _cohen_kappas(counts: Counts) -> FloatArray:
    """(observed - expected agreement) / (1 - expected agreement) (Cohen 1960)."""
    rows, expected = counts.rows, (counts.truths * counts.predictions).sum(axis=1)
    return _divided(counts.exact * rows - expected, rows**2 - expected)


def _pearsons(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    x = truth - truth.mean(axis=1, keepdims=True)
    y = predictions - predictions.mean(axis=1, keepdims=True)
    x_norms, y_norms = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    constant = _is_constant(truth) | _is_constant(predictions)
    return _divided(np.where(constant, 0.0, np.einsum("ij,ij->i", x, y)), x_norms * y_norms)


def _spearmans(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    """Pearson's r of the ranks in each resample; equal scores share the mean of their ranks."""
    from scipy.stats import rankdata

    return _pearsons(rankdata(truth, axis=1), rankdata(predictions, axis=1))


def _r2s(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    """1 - (sum of squared errors) / (sum of squared differences from the mean)."""
    errors = ((truth - predictions) ** 2).sum(axis=1)
    spreads = ((truth - truth.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    constant = _is_constant(truth)
    return np.where(constant, 0.0, 1 - errors / np.where(constant, 1.0, spreads))


def _negative_absolute_errors(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    return np.asarray(-np.abs(truth - predictions).mean(axis=1))


def _negative_squared_errors(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    return np.asarray(-np.sqrt(((truth - predictions) ** 2).mean(axis=1)))


def _score_agreements(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    return np.where((truth == predictions).all(axis=1), 1.0, _pearsons(truth, predictions))


def _means(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    return np.asarray(predictions.mean(axis=1))


def _worsts(truth: FloatArray, predictions: FloatArray) -> FloatArray:
    return np.asarray(predictions.min(axis=1))


def _is_constant(samples: FloatArray) -> npt.NDArray[np.bool_]:
    """For each row of `samples` (rows, values): is its spread nothing but rounding?"""
    means = samples.mean(axis=1)
    spreads = np.linalg.norm(samples - means[:, None], axis=1)
    return np.asarray((np.ptp(samples, axis=1) == 0) | (spreads <= _NEARLY_CONSTANT * np.abs(means)))


def _divided(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """Quotients, and 0 for 0/0."""
    return np.divide(numerators, denominators, out=np.zeros_like(numerators), where=denominators != 0)


AGREEMENT = "agreement"
MEAN_COSINE, WORST_COSINE = "mean_cosine", "worst_cosine"

# Errors of regression are negative, with scikit-learn's names of scorers: more is better.
METRICS: dict[OutputMode, dict[str, Metric]] = {
    "classification": {
        metric.name: metric
        for metric in (
            Metric("accuracy", _accuracy, _exact_shares),
            Metric("f1", _f1, _f1s, num_labels=2),  # of the second label
            Metric("macro_f1", _macro_f1, _macro_f1s),
            Metric("weighted_f1", _weighted_f1, _weighted_f1s),
            Metric("balanced_accuracy", _balanced_accuracy, _balanced_accuracies),
            Metric("macro_precision", _macro_precision, _macro_precisions),
            Metric("macro_recall", _macro_recall, _macro_recalls),
            Metric("mcc", _mcc, _mccs),
            Metric("cohen_kappa", _cohen_kappa, _cohen_kappas),
            Metric(AGREEMENT, _label_agreement, _exact_shares, needs="teacher"),
        )
    },
    "multi_label": {
        metric.name: metric
        for metric in (
            Metric("micro_f1", _multi_label_score("f1_score", "micro"), _micro_f1s),
            Metric("macro_f1", _multi_label_score("f1_score", "macro"), _macro_f1s),
            Metric("exact_match", _exact_match, _exact_shares),
            Metric("micro_precision", _multi_label_score("precision_score", "micro"), _micro_precisions),
            Metric("micro_recall", _multi_label_score("recall_score", "micro"), _micro_recalls),
            Metric(AGREEMENT, _label_agreement, _exact_shares, needs="teacher"),
        )
    },
    "regression": {
        metric.name: metric
        for metric in (
            Metric("pearson", pearson, _pearsons),
            Metric("spearman", _spearman, _spearmans),
            Metric("r2", _r2, _r2s),
            Metric("neg_mean_absolute_error", _negative_absolute_error, _negative_absolute_errors),
            Metric("neg_root_mean_squared_error", _negative_squared_error, _negative_squared_errors),
            Metric(AGREEMENT, _score_agreement, _score_agreements, needs="teacher"),
        )
    },
    "embedding": {
        metric.name: metric
        for metric in (
            Metric("spearman", _spearman, _spearmans),
            Metric("pearson", pearson, _pearsons),
            Metric(MEAN_COSINE, _mean, _means, needs="teacher"),
            Metric(WORST_COSINE, _worst, _worsts, needs="teacher"),
        )
    },
}


def metric_names(output_mode: OutputMode, needs: Literal["labels", "teacher"] = "labels") -> tuple[str, ...]:
    """The metrics of tasks of that output mode, with labels or without, in the order of the table."""
    return tuple(name for name, metric in METRICS[output_mode].items() if metric.needs == needs)
