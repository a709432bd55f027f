"""Fine-tune a classifier: the loop that teachers and students share. One of the places that need torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.data.features import Feature, labels_array
from quantlib.support.errors import InputError
from quantlib.training.architectures import accepted
from quantlib.training.checkpoints import PROBLEM_TYPES, loading_errors, quiet_transformers, read_config
from quantlib.training.upper import upper_layers, whole_model

if TYPE_CHECKING:
    import torch

    from quantlib.data.tasks import Task

    Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

Progress = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class TrainingOptions:
    """How a model is trained: AdamW, linear warm-up, then linear decay to zero, gradients clipped at 1.

    trained_layers: train only that many upper layers, pooler and classifier, for a fraction of the time; None
    trains everything. warmup_ratio: share of the steps in which the learning rate rises.
    threads: CPU threads; part of what decides the weights, since sums are split among them.
    """

    epochs: int = 3
    learning_rate: float = 2e-4
    trained_layers: int | None = 2
    batch_size: int = 16
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    seed: int = 42
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is out of range; it must be at least 1")
        if self.trained_layers is not None and self.trained_layers < 1:
            raise InputError(f"trained layers {self.trained_layers} is out of range; it must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning rate {self.learning_rate} is out of range; it must be within (0, 1)")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warm-up ratio {self.warmup_ratio} is out of range; it must be within [0, 1]")


def fine_tune(
    base_dir: Path,
    task: Task,
    features: Sequence[Feature],
    out_dir: Path,
    options: TrainingOptions,
    progress: Progress | None = None,
) -> None:
    """Fine-tune the checkpoint at `base_dir` (with or without a classifier) on a task; save it to `out_dir`.

    See `task_loss` for the loss.

    Raises:
        InputError: there are no rows, or they have no labels.
    """
    labels = labels_array(features, task)
    if labels is None:
        raise InputError(f"{task.name} has no labels to fine-tune a teacher on; give a fine-tuned teacher")
    import torch
    import transformers

    make_repeatable(options.seed, options.threads)
    with quiet_transformers(), loading_errors(base_dir):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            base_dir,
            num_labels=task.num_labels,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        )
    targets = torch.from_numpy(labels)
    train(model, features, targets, task_loss(task), options, progress)
    save_classifier(model, base_dir, out_dir, task)


def task_loss(task: Task) -> Loss:
    """Cross-entropy of logits (rows, labels) with classes, or mean squared error of logits (rows, 1).

    For multi_label binary cross-entropy of logits with 0 or 1, (rows, labels), its mean over both.
    """
    from torch.nn import functional

    if task.output_mode == "multi_label":
        return lambda logits, truth: functional.binary_cross_entropy_with_logits(
            logits, truth.to(logits.dtype)
        )
    if task.output_mode == "classification":
        return functional.cross_entropy
    return lambda logits, scores: functional.mse_loss(logits.squeeze(-1), scores)


def make_repeatable(seed: int, threads: int) -> None:
    """Make what follows repeatable on this machine: seeds, thread count, deterministic kernels."""
    import torch
    import torch.utils.deterministic

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Filling new memory before it is written to took a tenth of a step on short rows.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def train(
    model: Any,
    features: Sequence[Feature],
    targets: torch.Tensor,
    loss: Loss,
    options: TrainingOptions,
    progress: Progress | None = None,
) -> None:
    """Train `model` in place so that `loss(logits, targets)` falls.

    Args:
        model: a classifier of transformers; left in evaluation mode.
        features: the rows; at least one.
        targets: (rows, ...), one entry for each row, in their order.
        loss: of logits (batch, labels) and targets (batch, ...), to a scalar.
        options: see `TrainingOptions`.
        progress: called after each step.
    """
    import torch

    if not features:
        raise InputError("no rows to train on: the train split is empty")
    steps = options.epochs * -(-len(features) // options.batch_size)
    count = options.trained_layers
    part = whole_model(model, features) if count is None else upper_layers(model, features, count)
    optimizer = torch.optim.AdamW(
        parameter_groups(part.module, options.weight_decay), lr=options.learning_rate, fused=True
    )
    warmup = max(1, round(steps * options.warmup_ratio))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))
    )
    part.module.train()
    for step, index in enumerate(_epochs(features, options), start=1):
        batch_loss = loss(part.logits(index), targets[torch.from_numpy(index)])
        optimizer.zero_grad(set_to_none=True)
        batch_loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(part.module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress:
            progress(step, steps, float(batch_loss.detach()))
    model.eval()


def parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: on biases and LayerNorm it hurts (Devlin et al. 2019, their code)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _epochs(features: Sequence[Feature], options: TrainingOptions) -> Iterator[np.ndarray[Any, Any]]:
    """Row indices of each batch, all epochs: random, but rows of similar length together.

    Each epoch is shuffled, cut into chunks of 32 batches, sorted by length within a chunk, and the batches
    of a chunk come in random order; little padding is left, and each row comes once an epoch.
    """
    rng = random.Random(options.seed)
    lengths = [len(feature) for feature in features]
    for _ in range(options.epochs):
        yield from shuffled_batches(lengths, options.batch_size, rng)


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, rng: random.Random
) -> list[np.ndarray[Any, Any]]:
    """Row indices of each batch of an epoch, drawn by `rng`; `lengths` are the rows' tokens."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), 32 * batch_size):
        chunk = sorted(order[start : start + 32 * batch_size], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return [np.array(batch, dtype=np.int64) for batch in batches]


def predict_logits(model: Any, features: Sequence[Feature], batch_size: int = 32) -> torch.Tensor:
    """The logits of a model in evaluation mode, float32 (rows, labels), in the order of the rows."""
    import torch

    from quantlib.data.features import batches

    model.eval()
    logits = torch.empty(len(features), model.config.num_labels)
    with torch.no_grad():
        for index, feed in batches(features, batch_size):
            tensors = {k: torch.from_numpy(v) for k, v in feed.items()}
            logits[torch.from_numpy(index)] = model(**accepted(model, tensors)).logits
    return logits


def save_classifier(model: Any, tokenizer_dir: Path, out_dir: Path, task: Task) -> None:
    """Save a trained model with safetensors, the task's kind and label names, and the tokenizer's files."""
    import shutil

    model.config.problem_type = PROBLEM_TYPES[task.output_mode]
    if task.labels:
        names = dict(task.label_names)
        words = [names.get(label, label) for label in task.labels]
        model.config.id2label = dict(enumerate(words))
        model.config.label2id = {word: i for i, word in enumerate(words)}
    model.config.name_or_path = ""  # transformers would write the path of this machine
    with quiet_transformers():
        model.save_pretrained(out_dir)
    for name in TOKENIZER_FILES:
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, out_dir / name)
    config = read_config(out_dir)
    if "_name_or_path" in config:
        raise RuntimeError(f"{out_dir}/config.json names the path of this machine")
