"""Progress of a distillation."""

from __future__ import annotations

from collections.abc import Callable

from quantlib.training.student.saved import TrainingState

Progress = Callable[[int, int, str], None]
"""Called with (batches done, batches in all, a note): the teacher's batches first, then steps."""


class Report:
    """Reports progress: first batches of the teacher, then steps of the student.

    remark: shown with every step, also with the last one.
    """

    remark = ""

    def __init__(self, progress: Progress, metric: str) -> None:
        self._progress, self._metric = progress, metric
        self._teacher, self._steps = 0, [0, 0]

    def teacher(self, done: int, count: int) -> None:
        """`done` of the teacher's `count` batches are done."""
        self._teacher = count
        self._progress(done, 2 * count, "the teacher's outputs")

    def plan(self, steps: list[int]) -> None:
        """Set the number of steps of each phase, at most."""
        self._steps = steps

    def training(self, state: TrainingState, steps: int) -> None:
        """`steps` of the current phase are done."""
        before = self._teacher + sum(self._steps[: state.phase])
        self._progress(before + steps, self._teacher + sum(self._steps), self._note(state))

    def finish(self, state: TrainingState) -> None:
        """Report the end, even if fewer steps were taken than planned."""
        total = self._teacher + sum(self._steps)
        self._progress(total, total, self._note(state))

    def _note(self, state: TrainingState) -> str:
        words = [f"{name} loss {loss:.3f}" for name, loss in state.losses.items()]
        if state.phase == len(self._steps) - 1 and state.best_score is not None:
            words.append(f"held-out {self._metric} {state.best_score[0]:.3f}")
        return ", ".join([*words, self.remark] if self.remark else words)
