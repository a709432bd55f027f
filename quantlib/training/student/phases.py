"""One phase of a training: epochs over the rows, a score on held-out ones, the best weights kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature
from quantlib.support.errors import InputError
from quantlib.training.student.device import feed_of
from quantlib.training.student.options import DistillationOptions, PhaseOptions
from quantlib.training.student.saved import Score, Standing, random_state, restore_random_state
from quantlib.training.teacher import parameter_groups, shuffled_batches

if TYPE_CHECKING:
    import torch

    Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """What a phase trains, its loss and its score.

    modules: a ModuleDict of everything that is trained. loss: of the rows `index`, whose padded batch is
    `feed`, to a scalar. score: of the modules in evaluation mode, on held-out rows; None if no row is held
    out; the last weights are kept then.
    """

    name: str
    options: PhaseOptions
    modules: Any
    loss: Callable[[Index, dict[str, torch.Tensor]], torch.Tensor]
    score: Callable[[], Score] | None


def run_phase(
    phase: Phase,
    features: Sequence[Feature],
    rows: Sequence[int],
    options: DistillationOptions,
    standing: Standing,
    save: Callable[[Standing], None],
    report: Callable[[Standing, int], None],
) -> Standing:
    """Train a phase from where it stands; its modules are left with the best weights, in evaluation mode.

    Args:
        phase: see `Phase`.
        features: all rows of the task.
        rows: the indices of those to train on.
        options: see `DistillationOptions`.
        standing: a new one, or one that was passed to `save`, to continue from there.
        save: called at each epoch's end and every `checkpoint_steps` steps.
        report: called after each step with where training stands and the steps done.

    Raises:
        InputError: the loss is no longer finite.
    """
    import torch

    device = next(phase.modules.parameters()).device
    groups = parameter_groups(phase.modules, phase.options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=phase.options.learning_rate, fused=True)
    if standing.weights is not None and standing.optimizer is not None:
        phase.modules.load_state_dict(standing.weights)
        optimizer.load_state_dict(standing.optimizer)
        restore_random_state(standing.random)
    lengths = [len(features[row]) for row in rows]
    per_epoch = -(-len(rows) // options.batch_size)

    def keep() -> None:
        standing.weights, standing.optimizer = phase.modules.state_dict(), optimizer.state_dict()
        standing.random = random_state()
        save(standing)

    while standing.epoch < phase.options.epochs and standing.stale < options.patience:
        draw = random.Random(f"{options.seed} {phase.name} {standing.epoch}")
        batches = shuffled_batches(lengths, options.batch_size, draw)
        phase.modules.train()
        for batch in batches[standing.batch :]:
            index = np.array(rows, dtype=np.int64)[batch]
            step = standing.epoch * per_epoch + standing.batch
            rate = phase.options.rate(step, phase.options.epochs * per_epoch)
            loss = _step(phase, optimizer, rate, index, feed_of(features, index, device))
            standing.losses = standing.losses | {phase.name: loss}
            standing.batch += 1
            if (step + 1) % options.checkpoint_steps == 0 and standing.batch < per_epoch:
                keep()
            report(standing, step + 1)
        standing.epoch, standing.batch = standing.epoch + 1, 0
        _judge(phase, standing)
        keep()
        report(standing, standing.epoch * per_epoch)
    if standing.best is not None:
        phase.modules.load_state_dict(standing.best)
    phase.modules.eval()
    return standing


def _step(phase: Phase, optimizer: Any, rate: float, index: Index, feed: dict[str, torch.Tensor]) -> float:
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = phase.loss(index, feed)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(phase.modules.parameters(), 1.0)
    optimizer.step()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise InputError(
            f"the {phase.name} loss is {value}: training diverged at a learning rate of "
            f"{phase.options.learning_rate}; a lower one would help"
        )
    return value


def _judge(phase: Phase, standing: Standing) -> None:
    """Keep the weights as the best ones if their score on held-out rows is the best so far."""
    if phase.score is None:
        return
    phase.modules.eval()
    score = phase.score()
    if standing.best_score is None or score > tuple(standing.best_score):
        standing.best_score, standing.stale = score, 0
        standing.best = {name: value.clone() for name, value in phase.modules.state_dict().items()}
    else:
        standing.stale += 1
