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
from quantlib.training.student.saved import Score, TrainingState, random_state, restore_random_state
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
    state: TrainingState,
    save: Callable[[TrainingState], None],
    report: Callable[[TrainingState, int], None],
) -> TrainingState:
    """Train a phase from where it stopped; its modules are left with the best weights, in evaluation mode.

    Args:
        phase: see `Phase`.
        features: all rows of the task.
        rows: the indices of those to train on.
        options: see `DistillationOptions`.
        state: a new one, or one that was passed to `save`, to go on from there.
        save: called at each epoch's end and every `checkpoint_steps` steps.
        report: called after each step with the state and the steps done.

    Raises:
        InputError: the loss is no longer finite.
    """
    import torch

    device = next(phase.modules.parameters()).device
    groups = parameter_groups(phase.modules, phase.options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=phase.options.learning_rate, fused=True)
    if state.weights is not None and state.optimizer is not None:
        phase.modules.load_state_dict(state.weights)
        optimizer.load_state_dict(state.optimizer)
        restore_random_state(state.random)
    lengths = [len(features[row]) for row in rows]
    per_epoch = -(-len(rows) // options.batch_size)

    def save_checkpoint() -> None:
        state.weights, state.optimizer = phase.modules.state_dict(), optimizer.state_dict()
        state.random = random_state()
        save(state)

    while state.epoch < phase.options.epochs and state.stale < options.patience:
        rng = random.Random(f"{options.seed} {phase.name} {state.epoch}")
        batches = shuffled_batches(lengths, options.batch_size, rng)
        phase.modules.train()
        for batch in batches[state.batch :]:
            index = np.array(rows, dtype=np.int64)[batch]
            step = state.epoch * per_epoch + state.batch
            rate = phase.options.rate(step, phase.options.epochs * per_epoch)
            loss = _step(phase, optimizer, rate, index, feed_of(features, index, device))
            state.losses = state.losses | {phase.name: loss}
            state.batch += 1
            if (step + 1) % options.checkpoint_steps == 0 and state.batch < per_epoch:
                save_checkpoint()
            report(state, step + 1)
        state.epoch, state.batch = state.epoch + 1, 0
        _score_epoch(phase, state)
        save_checkpoint()
        report(state, state.epoch * per_epoch)
    if state.best is not None:
        phase.modules.load_state_dict(state.best)
    phase.modules.eval()
    return state


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


def _score_epoch(phase: Phase, state: TrainingState) -> None:
    """Keep the weights as the best ones if their score on held-out rows is the best so far."""
    if phase.score is None:
        return
    phase.modules.eval()
    score = phase.score()
    if state.best_score is None or score > tuple(state.best_score):
        state.best_score, state.stale = score, 0
        state.best = {name: value.clone() for name, value in phase.modules.state_dict().items()}
    else:
        state.stale += 1
