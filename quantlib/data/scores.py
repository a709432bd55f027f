"""What a variant scores on a task: metrics, loss, agreement with the teacher, and how sure a drop is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from quantlib.data.embeddings import cosines, pair_cosines, same_neighbours
from quantlib.data.metrics import AGREEMENT, METRICS, SCORE_MODES, Array, Counts, FloatArray, Metric
from quantlib.data.scoring import Scoring
from quantlib.data.tasks import Task

Scored = Task | Scoring
"""A task, or only what its scores need of it."""

# Numbers that a chunk of bootstrap resamples may hold: 16 MiB of float64.
_CHUNK = 2**21
# Logits whose loss is computed at once: 4 MiB of float64.
_VALUES_AT_ONCE = 2**19


def predictions_of(task: Scored, logits: Array, teacher_logits: Array | None = None) -> Array:
    """What logits, (examples, labels), predict; decided here alone.

    Args:
        task: of the rows.
        logits: of a model; for embedding the embeddings, (texts, width), a scored pair's one after the other.
        teacher_logits: the teacher's, for embeddings of texts without scores alone, which are judged by it.

    Returns:
        For classification the class index with the largest logit, int64 (examples,); for regression the
        scores, (examples,), of the logits' type; for multi_label 1 where sigmoid(logit) >= threshold and 0
        elsewhere, int8 (examples, labels); for embedding the cosines of the pairs, float64 (texts / 2,), or
        those with the teacher's embeddings, float64 (texts,).

    Raises:
        ValueError: embeddings without scores, and none of the teacher.
    """
    if task.output_mode == "regression":
        scores: Array = logits[:, 0]
        return scores
    if task.output_mode == "embedding":
        if task.labelled:
            return pair_cosines(logits)
        if teacher_logits is None:
            raise ValueError("embeddings of texts without scores are judged by the teacher's")
        return cosines(logits, teacher_logits)
    if task.output_mode == "multi_label":
        least = task.scoring.least_logit if isinstance(task, Task) else task.least_logit
        return (logits >= least).astype(np.int8)
    return np.asarray(logits.argmax(axis=1))


def compute_metrics(
    task: Scored, logits: Array, truth: Array, teacher_logits: Array | None = None
) -> dict[str, float]:
    """The task's metrics by name, in the task's order, as fractions; see `METRICS`.

    Errors of regression are in the unit of the score, and negative: more is better.

    Args:
        task: says which metrics.
        logits: float32, (examples, labels); (examples, 1) for regression.
        truth: the labels: int64 class indices, or float32 scores, (examples,); 0 or 1, (examples, labels),
            for multi_label; the scores of the pairs for embedding. For a task without labels the teacher's
            predictions, in the same form.
        teacher_logits: as for `predictions_of`.

    Raises:
        ValueError: shapes that do not fit the task or each other, a class index outside the labels, or a
            number that is not finite; the message names the first such row.
    """
    predictions = _checked_predictions(task, logits, teacher_logits)
    truth = _checked_values(task, truth, len(predictions))
    metrics = METRICS[task.output_mode]
    return {name: metrics[name].function(truth, predictions) for name in task.metrics}


def mean_loss(task: Scored, logits: Array, labels: Array) -> float:
    """The mean loss of logits against labels.

    Cross-entropy in nats for classification; binary cross-entropy in nats, the mean over rows and labels, for
    multi_label (torch's `BCEWithLogitsLoss`); the mean squared error for regression.

    Arguments and errors are those of `compute_metrics`.
    """
    _check_logits(task, logits)
    truth = _checked_values(task, labels, len(logits))
    if task.output_mode == "regression":
        return float(np.mean((logits[:, 0].astype(np.float64) - truth) ** 2))
    at_once = max(1, _VALUES_AT_ONCE // task.num_labels)
    total = 0.0
    for start in range(0, len(logits), at_once):
        part = slice(start, start + at_once)
        total += _summed_loss(task, logits[part].astype(np.float64), truth[part])
    return total / (truth.size if task.output_mode == "multi_label" else len(truth))


def _summed_loss(task: Scored, logits: FloatArray, truth: Array) -> float:
    from scipy.special import log_softmax

    if task.output_mode == "multi_label":
        # -log(sigmoid(z)) where true, -log(1 - sigmoid(z)) where not, without a power of a large number.
        losses = np.maximum(logits, 0) - logits * truth + np.log1p(np.exp(-np.abs(logits)))
        return float(losses.sum())
    return float(-log_softmax(logits, axis=1)[np.arange(len(truth)), truth].sum())


def agreement(task: Scored, logits: Array, teacher_logits: Array) -> float:
    """The share of rows with the teacher's label; for regression Pearson's r with the teacher's scores.

    For multi_label a row agrees if it has exactly the teacher's set of labels. Scores equal to the teacher's
    agree by 1 even where they are constant and r is undefined. For embedding it is the share of texts whose
    nearest other text is the teacher's, see `quantlib.data.embeddings.same_neighbours`.

    Args:
        task: says what the logits predict.
        logits: float32, (examples, labels).
        teacher_logits: the same, of the teacher for the same rows.

    Raises:
        ValueError: shapes that do not fit the task or each other, or a number that is not finite.
    """
    _check_same_shape(logits, teacher_logits)
    predictions, teacher_predictions = (
        _checked_predictions(task, each, teacher_logits) for each in (logits, teacher_logits)
    )
    if task.output_mode == "embedding":
        return same_neighbours(logits, teacher_logits)
    return METRICS[task.output_mode][AGREEMENT].function(teacher_predictions, predictions)


def logit_error(logits: Array, teacher_logits: Array) -> float:
    """The mean absolute difference of all logits, in logits.

    Raises:
        ValueError: the shapes differ.
    """
    _check_same_shape(logits, teacher_logits)
    return float(np.mean(np.abs(logits.astype(np.float64) - teacher_logits.astype(np.float64))))


def drop_interval(
    task: Scored,
    logits: Array,
    teacher_logits: Array,
    truth: Array,
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
        truth: as for `compute_metrics`.
        confidence: the coverage aimed at, between 0 and 1.
        resamples: the number of resamples, at least 1.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: as for `compute_metrics`, or an option out of range.
    """
    _check_same_shape(logits, teacher_logits)
    predictions, teacher_predictions = (
        _checked_predictions(task, each, teacher_logits) for each in (logits, teacher_logits)
    )
    return drop_interval_of_predictions(
        task, predictions, teacher_predictions, truth, confidence=confidence, resamples=resamples, seed=seed
    )


def drop_interval_of_predictions(
    task: Scored,
    predictions: Array,
    teacher_predictions: Array,
    truth: Array,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """`drop_interval` of predictions instead of logits, in the form that `predictions_of` gives."""
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence {confidence} must lie between 0 and 1, resamples {resamples} be at least 1"
        )
    values = [
        _checked_values(task, array, len(predictions)) for array in (truth, teacher_predictions, predictions)
    ]
    metric, rng = METRICS[task.output_mode][task.primary_metric], np.random.default_rng(seed)
    if task.output_mode in SCORE_MODES:
        drops = _score_drops(metric, np.stack(values), resamples, rng)
    else:
        drops = _label_drops(task, metric, values, resamples, rng)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drops, [tail, 1 - tail])
    return float(low), float(high)


# Checks


def first_not_finite(values: Array) -> int | None:
    """The first row that holds a NaN or an infinite number; None if all are finite."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return None if finite.all() else int(finite.argmin())


def _check_logits(task: Scored, logits: Array) -> None:
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] != task.num_labels:
        raise ValueError(f"logits have shape {logits.shape}; the task needs (examples, {task.num_labels})")
    row = first_not_finite(logits)
    if row is not None:
        raise ValueError(f"the logits of row {row} are not finite: {logits[row].tolist()}")


def _checked_predictions(task: Scored, logits: Array, teacher_logits: Array | None = None) -> Array:
    _check_logits(task, logits)
    predictions = predictions_of(task, logits, teacher_logits)
    return predictions.astype(np.float64) if task.output_mode in SCORE_MODES else predictions


def _checked_values(task: Scored, values: Array, examples: int) -> Array:
    """Labels or predictions: int64 or float64 (examples,), int8 (examples, labels) for multi_label."""
    shape = (examples, task.num_labels) if task.output_mode == "multi_label" else (examples,)
    if values.shape != shape:
        raise ValueError(f"labels have shape {values.shape}; the logits need {shape}")
    if task.output_mode in SCORE_MODES:
        row = first_not_finite(values)
        if row is not None:
            raise ValueError(f"the score of row {row} is not finite: {values[row]}")
        return values.astype(np.float64)
    if task.output_mode == "multi_label":
        known = ((values == 0) | (values == 1)).all(axis=1)
        if not known.all():
            raise ValueError(f"the labels of row {int(known.argmin())} are not all 0 or 1")
        return values.astype(np.int8, copy=False)
    known = np.isin(values, np.arange(task.num_labels))
    if not known.all():
        row = int(known.argmin())
        raise ValueError(f"label {values[row]} of row {row} is not a class index below {task.num_labels}")
    return values.astype(np.int64)


def _check_same_shape(logits: Array, teacher_logits: Array) -> None:
    if logits.shape != teacher_logits.shape:
        raise ValueError(f"logits {logits.shape} and the teacher's {teacher_logits.shape} differ in shape")


# Bootstrap


def _label_drops(
    task: Scored, metric: Metric, values: list[Array], resamples: int, rng: np.random.Generator
) -> FloatArray:
    """Drops in `resamples` resamples: float64, (resamples,).

    Rows with the same labels, teacher's predictions and variant's predictions are interchangeable, so a
    resample is a multinomial draw: how often each distinct row occurs in it.

    Args:
        task: of classes or of sets of labels.
        metric: one of the task's.
        values: labels, teacher's predictions, variant's predictions, as `_checked_values` gives them.
        resamples: how many.
        rng: draws them.
    """
    first_rows, counts = _distinct_rows(values)
    truth, teacher_predictions, predictions = (array[first_rows] for array in values)
    count_teacher, count_variant = (
        label_counter(task, truth, array) for array in (teacher_predictions, predictions)
    )
    chunk = max(1, _CHUNK // max(len(counts), task.num_labels))
    drops = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=count).astype(np.float64)
        drops.append(metric.resampled(count_teacher(draws)) - metric.resampled(count_variant(draws)))
    return np.concatenate(drops)


def _distinct_rows(values: list[Array]) -> tuple[Array, Array]:
    """The first of all rows that are the same, and how many those are: int64, (distinct rows,)."""
    if values[0].ndim == 1:
        _, first_rows, counts = np.unique(np.stack(values), axis=1, return_index=True, return_counts=True)
        return first_rows, counts
    packed = np.concatenate([np.packbits(array, axis=1) for array in values], axis=1)
    groups: dict[bytes, list[int]] = {}
    for number, row in enumerate(packed):
        groups.setdefault(row.tobytes(), []).append(number)
    return np.array([same[0] for same in groups.values()]), np.array([len(same) for same in groups.values()])


def label_counter(task: Scored, truth: Array, predictions: Array) -> Callable[[FloatArray], Counts]:
    """A function that counts the labels of resamples of these rows.

    Args:
        task: of classes or of sets of labels.
        truth: class indices, (rows,), or 0 and 1, (rows, labels).
        predictions: the same.

    Returns:
        A function of how often each row occurs in each resample, float64 (resamples, rows).
    """
    from scipy.sparse import csr_array

    def label_pairs(values: Array) -> tuple[Array, Array]:
        """All pairs of a row and one of its labels: the rows, the labels."""
        if values.ndim == 2:
            rows, labels = np.nonzero(values)
            return rows, labels
        return np.arange(len(values)), values

    pairs = label_pairs(truth), label_pairs(predictions)
    occurring = np.unique(np.concatenate([labels for _, labels in pairs])).astype(np.int64)
    shape = len(occurring), len(truth)
    # Labels by rows, so that a product with (rows, resamples) visits each pair once.
    true, predicted = (
        csr_array((np.ones(len(rows)), (np.searchsorted(occurring, labels), rows)), shape=shape)
        for rows, labels in pairs
    )
    hit, exact = true.multiply(predicted).tocsr(), _same_rows(truth, predictions).astype(np.float64)
    macro_labels = task.num_labels if task.output_mode == "multi_label" else None

    def counts(draws: FloatArray) -> Counts:
        columns = np.ascontiguousarray(draws.T)
        hits, truths, predictions = (np.asarray(each @ columns).T for each in (hit, true, predicted))
        return Counts(occurring, hits, truths, predictions, draws @ exact, draws.sum(axis=1), macro_labels)

    return counts


def _same_rows(truth: Array, predictions: Array) -> npt.NDArray[np.bool_]:
    """Which rows have the same class, or the same set of labels: (rows,)."""
    return np.asarray((truth == predictions).reshape(len(truth), -1).all(axis=1))


def _score_drops(metric: Metric, values: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """`_label_drops` for a metric of `SCORE_MODES`; values: scores, float64 (3, examples)."""
    truth, teacher_scores, scores = values
    drops = [
        metric.resampled(truth[index], teacher_scores[index]) - metric.resampled(truth[index], scores[index])
        for index in _resampled_rows(len(truth), resamples, rng)
    ]
    return np.concatenate(drops)


def _resampled_rows(rows: int, resamples: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Row indices of all resamples, (resamples, rows), in chunks: memory does not grow with the data."""
    size = max(1, _CHUNK // rows)
    for start in range(0, resamples, size):
        yield rng.integers(rows, size=(min(size, resamples - start), rows))
