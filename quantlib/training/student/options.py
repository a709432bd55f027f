"""How a student is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from quantlib.support.errors import InputError
from quantlib.training.student.augmentation import AugmentationOptions
from quantlib.training.student.mapping import layer_mapping

PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULES = ("linear", "constant")
GIB = 2**30


@dataclass(frozen=True)
class PhaseOptions:
    """How one of the two phases is trained: AdamW, warm-up, then a schedule; gradients clipped at 1.

    epochs: passes over the rows; 0 leaves the phase out. warmup_ratio: share of the steps in which the
    learning rate rises. schedule: after that, "linear" falls to zero at the last step, "constant" stays.
    """

    epochs: int
    learning_rate: float
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    schedule: str = "linear"

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise InputError(f"epochs {self.epochs} is out of range; it must be at least 0")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning rate {self.learning_rate} is out of range; it must be within (0, 1)")
        if not 0 <= self.warmup_ratio <= 1:
            raise InputError(f"warm-up ratio {self.warmup_ratio} is out of range; it must be within [0, 1]")
        if not 0 <= self.weight_decay < 1:
            raise InputError(f"weight decay {self.weight_decay} is out of range; it must be within [0, 1)")
        if self.schedule not in SCHEDULES:
            raise InputError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` of `steps`, counted from 0."""
        warmup = max(1, round(steps * self.warmup_ratio))
        decay = (steps - step) / max(1, steps - warmup) if self.schedule == "linear" else 1.0
        return self.learning_rate * min((step + 1) / warmup, max(0.0, decay))


@dataclass(frozen=True)
class DistillationOptions:
    """How a student is trained: both phases, and what they share.

    transformer: learns hidden states and attention scores. prediction: learns the teacher's logits.
    temperature: of the prediction loss. label_weight: the weight of the labels in it, for labels,
    since the label is better than a teacher that is unsure or wrong; 0 is TinyBERT's own loss, without
    labels. dropout: of the student while it is trained; None is the teacher's. mapping: see `layer_mapping`.
    held_out: share of the rows that are not trained on, but decide which weights are kept. patience: epochs
    of a phase without a better held-out score before it ends. precision: "bfloat16" computes products in 16
    bits (autocast), "auto" does so where that is faster (`precision`). device: "auto" is CUDA where there is
    one. disk_bytes: the most that the teacher's states may take on disk, where they are needed in several
    epochs; if they need more, they are computed anew in each. windows: of a row that was cut off, how many
    windows of the text that follows are learned from too. augmentation: of the rows that are trained on.
    checkpoint_steps: steps between two checkpoints, in addition to the one at each epoch's end. threads: CPU
    threads; part of what decides the weights, since sums are split among them.

    Raises:
        InputError: a value out of range.
    """

    transformer: PhaseOptions = field(default_factory=lambda: PhaseOptions(1, 5e-4))
    prediction: PhaseOptions = field(default_factory=lambda: PhaseOptions(1, 5e-5))
    temperature: float = 1.0
    label_weight: float = 0.5
    dropout: float | None = 0.0
    mapping: str = "uniform"
    batch_size: int = 16
    held_out: float = 0.1
    patience: int = 2
    seed: int = 42
    threads: int = 2
    precision: str = "auto"
    device: str = "auto"
    windows: int = 0
    augmentation: AugmentationOptions = field(default_factory=AugmentationOptions)
    disk_bytes: int = 2 * GIB
    checkpoint_steps: int = 500

    def __post_init__(self) -> None:
        for name in ("batch_size", "patience", "threads", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is out of range; it must be at least 1")
        if self.prediction.epochs < 1:
            raise InputError("prediction epochs 0 is out of range; it must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature {self.temperature} is out of range; it must be above 0")
        if not 0 <= self.label_weight <= 1:
            raise InputError(f"label weight {self.label_weight} is out of range; it must be within [0, 1]")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout} is out of range; it must be within [0, 1)")
        if not 0 <= self.held_out < 1:
            raise InputError(f"held-out share {self.held_out} is out of range; it must be within [0, 1)")
        if self.windows < 0:
            raise InputError(f"windows {self.windows} is out of range; it must be at least 0")
        if self.disk_bytes < 0:
            raise InputError(f"disk_bytes {self.disk_bytes} is out of range; it must be at least 0")
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}; known: {', '.join(PRECISIONS)}")
        if "," not in self.mapping and not self.mapping.isdecimal():
            layer_mapping(1, 1, self.mapping)


FROM_LITTLE = DistillationOptions(prediction=PhaseOptions(1, 2e-4), windows=3)
"""For a student that can copy little from its teacher: more rows, and larger steps."""

FROM_PRUNED = DistillationOptions(PhaseOptions(3, 1e-4), PhaseOptions(2, 5e-5), label_weight=0.0)
"""For a student that starts as its teacher without some neurons. It agrees with it from the start: smaller
steps, more of them, and no labels, which would lead it elsewhere."""
