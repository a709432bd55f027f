"""The losses of TinyBERT (Jiao et al. 2020, section 3.2), over real tokens only.

The paper averages over all positions; here padded ones are left out, so that a row's loss does not depend on
the other rows of its batch. The teacher's tensors carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Projection = Callable[[torch.Tensor], torch.Tensor]


NO_LABEL = -100


@dataclass(frozen=True, eq=False)
class States:
    """The hidden states and attention scores of a transformer for a batch.

    hidden: layers + 1 tensors (rows, tokens, width), the embeddings' output first. scores: a tensor (rows,
    heads, tokens, tokens) for each layer: attention scores before softmax, q·kᵀ/√d, not masked.
    """

    hidden: tuple[torch.Tensor, ...]
    scores: tuple[torch.Tensor, ...]

    def of_layers(self, mapping: Sequence[int]) -> States:
        """The states of some layers, counted from 1; those of the embeddings, layer 0, come first."""
        return States(
            tuple(self.hidden[layer] for layer in mapping),
            tuple(self.scores[layer - 1] for layer in mapping[1:]),
        )

    def float(self) -> States:
        """The same in float32."""
        return States(tuple(h.float() for h in self.hidden), tuple(s.float() for s in self.scores))


def attention_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error of attention scores before softmax (eq. 7) over heads and pairs of real tokens.

    Args:
        student: (rows, heads, tokens, tokens).
        teacher: the same shape.
        mask: (rows, tokens), 1 for a real token and 0 for padding.
    """
    pairs = mask[:, None, :, None] * mask[:, None, None, :]
    return _masked_mean_square(student, teacher, pairs)


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error of hidden states (eq. 8 and 9) over real tokens and the teacher's width.

    Args:
        student: (rows, tokens, teacher's width): already projected where the widths differ.
        teacher: the same shape.
        mask: (rows, tokens), 1 for a real token and 0 for padding.
    """
    return _masked_mean_square(student, teacher, mask[:, :, None])


def _masked_mean_square(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    if bool(mask.all()):  # rows of one length: a pass over the scores instead of four
        return functional.mse_loss(student, teacher)
    difference, real = student - teacher, mask.expand_as(student).bool()
    # Filled, not multiplied: padded positions never count, even if they are infinite.
    return difference.masked_fill(~real, 0.0).square().sum() / real.sum()


def transformer_loss(
    student: States, teacher: States, mask: torch.Tensor, project: Projection | None = None
) -> torch.Tensor:
    """The sum over layers of hidden loss and attention loss (eq. 11), the embeddings' hidden loss included.

    Attention is compared only where both have the same number of heads.

    Args:
        student: states of a batch.
        teacher: of the same batch, one layer for each of the student's (`States.of_layers`).
        mask: (rows, tokens), 1 for a real token and 0 for padding.
        project: from the student's width to the teacher's, shared by all layers; None where widths agree.

    Raises:
        ValueError: the numbers of layers differ.
    """
    losses = [
        hidden_loss(hidden if project is None else project(hidden), target, mask)
        for hidden, target in zip(student.hidden, teacher.hidden, strict=True)
    ]
    losses += [
        attention_loss(scores, target, mask)
        for scores, target in zip(student.scores, teacher.scores, strict=True)
        if scores.shape[1] == target.shape[1]
    ]
    import torch

    return torch.stack(losses).sum()


def soft_cross_entropy(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Cross-entropy of logits with the teacher's, CE(z_T / t, z_S / t) (eq. 10); their mean over rows.

    As in the paper, not multiplied by t²; `mixed_cross_entropy`, which adds a loss on labels, does that.

    Args:
        logits: the student's, (rows, labels).
        teacher_logits: the same shape.
        temperature: divides both logits; above 1, the teacher's small probabilities count for more.
    """
    from torch.nn import functional

    return functional.cross_entropy(logits / temperature, (teacher_logits / temperature).softmax(-1))


def mixed_cross_entropy(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    label_weight: float,
    temperature: float = 1.0,
) -> torch.Tensor:
    """(1 - w)·t²·CE(z_T / t, z_S / t) + w·CE(y, z_S), the mean over rows (Hinton et al. 2015, section 2).

    t² keeps the gradients of the first term as large as at t = 1. A row without a label has the first term
    only, with weight 1.

    Args:
        logits: the student's, (rows, labels).
        teacher_logits: the same shape.
        labels: int64 (rows,), `NO_LABEL` where there is none.
        label_weight: w, within [0, 1].
        temperature: t.
    """
    import torch
    from torch.nn import functional

    teacher_probabilities = (teacher_logits / temperature).softmax(-1)
    soft = (
        functional.cross_entropy(logits / temperature, teacher_probabilities, reduction="none")
        * temperature**2
    )
    hard = functional.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)
    return torch.where(labels == NO_LABEL, soft, (1 - label_weight) * soft + label_weight * hard).mean()


def soft_binary_cross_entropy(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """`soft_cross_entropy` where each label is a yes or no of its own: BCE(z_T / t, z_S / t).

    The teacher's probabilities are sigmoid(z_T / t). The mean over rows and labels, as torch's
    `BCEWithLogitsLoss`. Arguments are those of `soft_cross_entropy`.
    """
    from torch.nn import functional

    teacher_probabilities = (teacher_logits / temperature).sigmoid()
    return functional.binary_cross_entropy_with_logits(logits / temperature, teacher_probabilities)


def mixed_binary_cross_entropy(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    label_weight: float,
    temperature: float = 1.0,
) -> torch.Tensor:
    """`mixed_cross_entropy` where each label is a yes or no of its own; the mean over rows and labels.

    Args:
        logits, teacher_logits, label_weight, temperature: as for `mixed_cross_entropy`.
        labels: 0 or 1, (rows, labels), `NO_LABEL` in all of a row without labels.
    """
    import torch
    from torch.nn import functional

    loss = functional.binary_cross_entropy_with_logits
    teacher_probabilities = (teacher_logits / temperature).sigmoid()
    soft = loss(logits / temperature, teacher_probabilities, reduction="none") * temperature**2
    hard = loss(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
    return torch.where(labels == NO_LABEL, soft, (1 - label_weight) * soft + label_weight * hard).mean()


def score_loss(logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Mean squared error of a regression's scores with the teacher's, both (rows, 1)."""
    from torch.nn import functional

    return functional.mse_loss(logits, teacher_logits)
