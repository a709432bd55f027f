"""Make a student from a teacher: fewer of its layers, trained on its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.checkpoints import load_classifier, quiet_transformers, reorder_logits
from quantlib.errors import InputError
from quantlib.features import Feature
from quantlib.training import (
    Progress,
    TrainingOptions,
    predict_logits,
    save_classifier,
    seed_everything,
    train,
)

if TYPE_CHECKING:
    import torch

    from quantlib.tasks import Task


def distil(
    teacher_dir: Path,
    task: Task,
    features: Sequence[Feature],
    out_dir: Path,
    options: TrainingOptions,
    progress: Progress | None = None,
    *,
    logit_order: Sequence[int] | None = None,
) -> None:
    """Train a student of half the teacher's layers on the teacher's outputs; save it to `out_dir`.

    The loss is the prediction-layer loss of TinyBERT (Jiao et al. 2020, eq. 10) at temperature 1: soft
    cross-entropy with the teacher's probabilities, or mean squared error to its scores for regression. The
    teacher's logits are computed once, in evaluation mode. `logit_order` is the teacher's logit index of each
    of the task's labels, where the order differs.

    Raises:
        InputError: the teacher is no BERT, has a single layer, or there are no rows.
    """
    seed_everything(options)
    teacher = load_classifier(teacher_dir)
    if logit_order is not None:
        reorder_logits(teacher, logit_order)
    targets = predict_logits(teacher, features)
    student = every_second_layer(teacher)
    loss = soft_cross_entropy if task.output_mode == "classification" else _mean_squared_error
    train(student, features, targets, loss, options, progress)
    save_classifier(student, teacher_dir, out_dir, task)


def every_second_layer(teacher: Any) -> Any:
    """A new BERT classifier with layers 2, 4, 6, ... of the teacher, and its embeddings, pooler and head.

    Raises:
        InputError: the teacher is no BERT or has a single layer.
    """
    import copy

    import transformers

    if teacher.config.model_type != "bert":
        raise InputError(f"a student is made of a BERT teacher; this one is {teacher.config.model_type}")
    layers = teacher.config.num_hidden_layers
    if layers < 2:
        raise InputError("a student of half the layers needs a teacher of at least 2; this one has 1")
    kept = list(range(1, layers, 2))
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    with quiet_transformers():
        student = transformers.BertForSequenceClassification(config)
    weights = {}
    for name, value in teacher.state_dict().items():
        prefix, found, rest = name.partition("encoder.layer.")
        if not found:
            weights[name] = value
            continue
        number, _, tail = rest.partition(".")
        if int(number) in kept:
            weights[f"{prefix}{found}{kept.index(int(number))}.{tail}"] = value
    student.load_state_dict(weights)
    return student


def soft_cross_entropy(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits (rows, labels) with the teacher's probabilities; their mean over rows."""
    from torch.nn import functional

    return functional.cross_entropy(logits, teacher_logits.softmax(-1))


def _mean_squared_error(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    return functional.mse_loss(logits, teacher_logits)
