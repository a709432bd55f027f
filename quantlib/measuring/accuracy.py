"""A model's logits for the evaluation rows, and their metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlib.data.features import Feature, Feed, batches, labels_array
from quantlib.data.metrics import Array
from quantlib.data.scores import compute_metrics, first_not_finite, mean_loss, predictions_of
from quantlib.data.tasks import Task
from quantlib.machine.engines import DEFAULT_ENGINE, LoadedModel, load_model
from quantlib.machine.sessions import CPU_PROVIDERS
from quantlib.onnx_model.interface import logits_name
from quantlib.support.errors import InputError


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's logits for some rows, and their metrics.

    logits: float32, (examples, labels), in the order of the rows; (examples, 1) for regression, embeddings,
    (examples, width), for embedding.
    predictions: what they predict, in the form that `predictions_of` gives.
    truth: what the predictions are judged by, in the form that `labels_array` gives: the labels, or the
    teacher's predictions for a task without labels.
    metrics: by name, in the order of the task's. eval_loss: see `mean_loss`; None without labels and for
    embedding.
    """

    logits: Array
    predictions: Array
    truth: Array
    metrics: dict[str, float]
    eval_loss: float | None

    def __post_init__(self) -> None:
        rows = self.truth.shape[:1]
        # Of scored pairs, two embeddings make one prediction.
        of_pairs = self.predictions.dtype.kind == "f" and self.logits.shape[0] == 2 * len(self.predictions)
        fits = of_pairs or self.logits.shape[:1] == rows
        if self.logits.ndim != 2 or not fits or self.predictions.shape[:1] != rows:
            raise ValueError(
                f"logits {self.logits.shape}, predictions {self.predictions.shape} and truth "
                f"{self.truth.shape} do not fit together"
            )


def evaluate_onnx(
    onnx_path: Path,
    features: Sequence[Feature],
    task: Task,
    *,
    engine: str = DEFAULT_ENGINE,
    providers: Sequence[str] = CPU_PROVIDERS,
    batch_size: int = 32,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    teacher_logits: Array | None = None,
) -> Evaluation:
    """Run a model over all rows, and score it.

    Args:
        onnx_path, features, task, engine, providers, batch_size, threads, progress: as for `predict_onnx`.
        teacher_logits: as for `score`.

    Raises:
        InputError: as for `predict_onnx`.
        ValueError: as for `score`.
    """
    logits = predict_onnx(
        onnx_path,
        features,
        task,
        engine=engine,
        providers=providers,
        batch_size=batch_size,
        threads=threads,
        progress=progress,
    )
    return score(task, logits, features, teacher_logits)


def predict_onnx(
    onnx_path: Path,
    features: Sequence[Feature],
    task: Task,
    *,
    engine: str = DEFAULT_ENGINE,
    providers: Sequence[str] = CPU_PROVIDERS,
    batch_size: int = 32,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Array:
    """Run a model over all rows: its logits, float32 (examples, labels), all finite.

    Args:
        onnx_path: the model; `quantlib.onnx_model.interface.logits_name` says which output is read.
        features: the rows, at least one.
        task: says which metrics, and how many logits a row must get.
        engine: the name of what runs it.
        providers: ONNX Runtime's execution providers, in order of preference.
        batch_size: rows in a batch, at most; each batch is padded to its longest row.
        threads: of the session; None for the physical cores.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: a missing or corrupt model, one that cannot take the rows or has another number of logits
            than the task has labels, logits that are not finite, or no rows.
    """
    if not features:
        raise InputError(f"{onnx_path}: no rows to evaluate it on; the evaluation split is empty")
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is out of range; it must be at least 1")
    # Execution providers are an option of one engine alone.
    options = {} if tuple(providers) == CPU_PROVIDERS else {"providers": providers}
    model = load_model(onnx_path, engine, threads=threads, **options)
    logits: Array = np.empty((len(features), task.num_labels), dtype=np.float32)
    for rows, feed in batches(features, batch_size):
        logits[rows] = run_logits(model, feed, task)
        if progress is not None:
            progress(len(rows))
    bad_row = first_not_finite(logits)
    if bad_row is not None:
        raise InputError(
            f"{onnx_path}: the logits of row {bad_row} are not finite: {logits[bad_row].tolist()}"
        )
    return logits


def score(
    task: Task, logits: Array, features: Sequence[Feature], teacher_logits: Array | None = None
) -> Evaluation:
    """The metrics and the loss of logits against the labels of their rows, or against the teacher.

    Args:
        task: says which metrics.
        logits: (examples, labels).
        features: the rows.
        teacher_logits: what the teacher gives for the same rows (its own logits where it is scored itself); a
            task without labels needs them, another one does not read them.

    Raises:
        ValueError: the teacher's logits are missing, or as for `compute_metrics`.
    """
    labels = labels_array(features, task)
    loss = None
    if labels is not None:
        truth = labels
        if task.output_mode != "embedding":  # a cosine and a score share no scale
            loss = mean_loss(task, logits, labels)
    elif teacher_logits is not None:
        truth = predictions_of(task, teacher_logits, teacher_logits)
    else:
        raise ValueError(f"{task.name} has no labels: a model is scored against the teacher's logits")
    metrics = compute_metrics(task, logits, truth, teacher_logits)
    return Evaluation(logits, predictions_of(task, logits, teacher_logits), truth, metrics, loss)


def run_logits(model: LoadedModel, feed: Feed, task: Task) -> Array:
    """The logits of one batch: float32, (rows, labels).

    Raises:
        InputError: the model cannot take the batch, or has another number of logits than the task has labels.
    """
    wanted = logits_name(model.path, model.session.outputs)
    (outputs,) = model.run(model.feed(feed), [wanted])
    logits, rows = np.asarray(outputs), len(feed["input_ids"])
    if logits.shape != (rows, task.num_labels):
        raise InputError(
            f"{model.path}: logits of shape {logits.shape} for {rows} rows; "
            f"{task.name} needs {(rows, task.num_labels)}"
        )
    return logits
