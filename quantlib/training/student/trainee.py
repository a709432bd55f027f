"""A student in training: its outputs, its losses in both phases, and its score on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.data.features import Feature, by_length, labels_array
from quantlib.data.metrics import Array
from quantlib.data.scores import compute_metrics, predictions_of
from quantlib.training.forward import logits_of
from quantlib.training.student.device import autocast, feed_of
from quantlib.training.student.losses import (
    NO_LABEL,
    States,
    mixed_binary_cross_entropy,
    mixed_cross_entropy,
    score_loss,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    transformer_loss,
)
from quantlib.training.student.options import DistillationOptions
from quantlib.training.student.phases import Phase
from quantlib.training.student.saved import Score
from quantlib.training.student.states import run_with_states
from quantlib.training.student.targets import Targets

if TYPE_CHECKING:
    import torch

    from quantlib.data.tasks import Task
    from quantlib.training.student.phases import Index

    Loss = Callable[[Index, dict[str, torch.Tensor]], torch.Tensor]

_ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Trainee:
    """A student that is trained on `rows` of the features and judged on those of `held_out`.

    labelled: how many features, the first ones, have a label of their own.
    """

    student: Any
    task: Task
    features: Sequence[Feature]
    rows: Sequence[int]
    held_out: Sequence[int]
    options: DistillationOptions
    labelled: int

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        device: torch.device = self.student.device
        return device

    def run(self, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        """The student's logits, float32 (rows, labels)."""
        with autocast(self.device, self.options.precision):
            return logits_of(self.student, feed).float()

    def run_with_states(self, feed: dict[str, torch.Tensor]) -> States:
        """The student's states of a batch, float32."""
        with autocast(self.device, self.options.precision):
            states = run_with_states(self.student, feed)[1]
        return states.float()

    def batches(self, rows: Sequence[int]) -> Iterator[tuple[Index, dict[str, torch.Tensor]]]:
        """Rows of like length together, in batches on the device."""
        for batch in by_length([len(self.features[row]) for row in rows], _ROWS_AT_ONCE):
            index = np.array(rows, dtype=np.int64)[batch]
            yield index, feed_of(self.features, index, self.device)


def distillation_phases(trainee: Trainee, teacher_width: int, targets: Targets) -> list[Phase]:
    """The two phases of TinyBERT, in order; the first one only if it has epochs."""
    import torch

    options, modules = trainee.options, torch.nn.ModuleDict({"student": trainee.student})
    width = trainee.student.config.hidden_size
    labels = _labels(trainee)
    multi_label = trainee.task.output_mode == "multi_label"
    soft_loss = soft_binary_cross_entropy if multi_label else soft_cross_entropy
    mixed_loss = mixed_binary_cross_entropy if multi_label else mixed_cross_entropy
    project = None
    if width != teacher_width:
        project = torch.nn.Linear(width, teacher_width, device=trainee.device)

    def layer_loss(index: Index, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        teacher_states = targets.states(index, feed)
        return transformer_loss(
            trainee.run_with_states(feed), teacher_states, feed["attention_mask"], project
        )

    def logit_loss(index: Index, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        teacher_logits = targets.logits_for(index, feed)
        if trainee.task.output_mode == "regression":
            return score_loss(trainee.run(feed), teacher_logits)
        if not options.label_weight:
            return soft_loss(trainee.run(feed), teacher_logits, options.temperature)
        row_labels = labels[torch.from_numpy(index)].to(trainee.device)
        weights = options.label_weight, options.temperature
        return mixed_loss(trainee.run(feed), teacher_logits, row_labels, *weights)

    with_projection = torch.nn.ModuleDict(
        {"student": trainee.student} | ({"projection": project} if project else {})
    )
    # After one epoch there is nothing to choose from.
    score = loss_score(trainee, layer_loss) if options.transformer.epochs > 1 else None
    first = Phase("transformer", options.transformer, with_projection, layer_loss, score)
    second = Phase(
        "prediction", options.prediction, modules, logit_loss, metric_score(trainee, logit_loss, targets)
    )
    return [first, second] if options.transformer.epochs else [second]


def _labels(trainee: Trainee) -> torch.Tensor:
    """The labels of all rows that a prediction loss reads, `NO_LABEL` where there is none.

    int64 (rows,) for classes; int8 (rows, labels) for multi_label, a byte each.
    """
    import torch

    task, rows = trainee.task, len(trainee.features)
    if task.output_mode == "multi_label":
        labels = torch.full((rows, task.num_labels), NO_LABEL, dtype=torch.int8)
    else:
        labels = torch.full((rows,), NO_LABEL)
    known = labels_array(trainee.features[: trainee.labelled], task)
    if known is not None and task.output_mode != "regression":
        labels[: trainee.labelled] = torch.from_numpy(known)
    return labels


def loss_score(trainee: Trainee, loss: Loss) -> Callable[[], Score] | None:
    """A score by the loss on held-out rows: less is better."""
    return (lambda: (-_mean_loss(trainee, loss), 0.0)) if trainee.held_out else None


def metric_score(trainee: Trainee, loss: Loss, targets: Targets | None = None) -> Callable[[], Score] | None:
    """A score by the task's primary metric on held-out rows; where that is equal, by the loss.

    targets: the teacher's; only a task without labels is judged by them.
    """
    import torch

    task, held_out = trainee.task, list(trainee.held_out)

    def teacher_predictions() -> Array:
        assert targets is not None
        logits = torch.empty(len(trainee.features), task.num_labels)
        for index, feed in trainee.batches(held_out):
            logits[index] = targets.logits_for(index, feed).cpu()
        return predictions_of(task, logits[held_out].numpy())

    def score() -> Score:
        logits = torch.empty(len(trainee.features), task.num_labels)
        with torch.no_grad():
            for index, feed in trainee.batches(held_out):
                logits[index] = trainee.run(feed).cpu()
        labels = labels_array([trainee.features[row] for row in held_out], task)
        metrics = compute_metrics(
            task, logits[held_out].numpy(), teacher_predictions() if labels is None else labels
        )
        return metrics[task.primary_metric], -_mean_loss(trainee, loss)

    return score if held_out else None


def _mean_loss(trainee: Trainee, loss: Loss) -> float:
    """The mean loss over the held-out rows."""
    import torch

    total = 0.0
    with torch.no_grad():
        for index, feed in trainee.batches(trainee.held_out):
            total += float(loss(index, feed)) * len(index)
    return total / len(trainee.held_out)
