"""Which variants are worth shipping: comparisons that rest on intervals, and what is chosen by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from quantlib.measuring.latency.estimate import LogRatio, estimate_log_ratio
from quantlib.measuring.latency.interleaved import Place, by_launch

# What counts as clearly better: half a point of the metric, 5 % of the time, 1 % of the bytes. Where metrics
# tie: one row in a hundred with the teacher's label, or a fifth of the error of the logits, if that is more
# than what the order of sums does.
CLEAR_SCORE, CLEAR_TIME, CLEAR_SIZE = 0.005, 0.05, 0.01
CLEAR_AGREEMENT, CLEAR_LOGITS, NO_LOGIT_ERROR = 0.01, 0.2, 1e-3
_SURE = 0.975

Sure = Callable[[str, str], bool]
"""Whether the interval of the difference of two variants' metrics leaves out 0."""


@dataclass(frozen=True)
class Score:
    """What a variant is judged by.

    metric: the task's primary metric; more is better. agreement: with the teacher, at most 1. logit_error:
    mean absolute difference to the teacher's logits. size_bytes: external data included. log_ratios: the log
    of the teacher's time over the variant's, by launch and turn; two at least.
    """

    metric: float
    agreement: float
    logit_error: float
    size_bytes: int
    log_ratios: Mapping[Place, float] = field(repr=False)

    @cached_property
    def log_speedup(self) -> float:
        """The log of the teacher's time over the variant's."""
        return estimate_log_ratio(by_launch(self.log_ratios)).center


@dataclass(frozen=True)
class Field:
    """The variants of a run, compared with each other.

    scores: by name; the teacher's is among them. sure: see `Sure`. report_only: the names of those that are
    shown to compare with, and beat none. moving: the names of those whose labels change with the batch.
    """

    scores: Mapping[str, Score]
    teacher: str
    sure: Sure = lambda _, __: True
    report_only: frozenset[str] = frozenset()
    moving: frozenset[str] = frozenset()

    def accuracy(self, ours: str, theirs: str) -> int:
        """1 if `ours` is clearly more accurate, -1 if `theirs` is, 0 if neither.

        A metric above the teacher's is no merit unless that is sure. Ties are decided by agreement with the
        teacher, then by the error of the logits.
        """
        a, b = self.scores[ours], self.scores[theirs]
        metric = self._metric(ours) - self._metric(theirs)
        if abs(metric) >= CLEAR_SCORE - 1e-12 and self.sure(ours, theirs):
            return 1 if metric > 0 else -1
        agreement = a.agreement - b.agreement
        if abs(agreement) >= CLEAR_AGREEMENT - 1e-12:
            return 1 if agreement > 0 else -1
        error, other_error = (max(score.logit_error, NO_LOGIT_ERROR) for score in (a, b))
        if min(error, other_error) <= (1 - CLEAR_LOGITS) * max(error, other_error):
            return 1 if error < other_error else -1
        return 0

    def _metric(self, name: str) -> float:
        metric, limit = self.scores[name].metric, self.scores[self.teacher].metric
        return metric if metric <= limit or self.sure(name, self.teacher) else limit

    def speed(self, ours: str, theirs: str) -> LogRatio:
        """The log of `theirs`' time over `ours`; from the turns that both took, if they took any together."""
        a, b = self.scores[ours].log_ratios, self.scores[theirs].log_ratios
        common = {place: a[place] - b[place] for place in a if place in b}
        if len(common) > 1:
            return estimate_log_ratio(by_launch(common))
        first, second = (estimate_log_ratio(by_launch(ratios)) for ratios in (a, b))
        return LogRatio(
            center=first.center - second.center,
            error=math.hypot(first.error, second.error),
            degrees=min(first.degrees, second.degrees),
            turns=min(first.turns, second.turns),
        )

    def beats(self, ours: str, theirs: str) -> bool:
        """Whether `ours` is clearly as good in accuracy, time and size, and clearly better in one."""
        size, other_size = self.scores[ours].size_bytes, self.scores[theirs].size_bytes
        accuracy = self.accuracy(ours, theirs)
        if accuracy < 0 or size > other_size * (1 + CLEAR_SIZE):
            return False
        if self.speed(ours, theirs).quantile(1 - _SURE) < math.log(1 - CLEAR_TIME):
            return False
        return accuracy > 0 or self.clearly_faster(ours, theirs) or size <= other_size * (1 - CLEAR_SIZE)

    def clearly_faster(self, ours: str, theirs: str) -> bool:
        """Whether `ours` is surely faster, and by more than 5 % as measured."""
        speed = self.speed(ours, theirs)
        return bool(speed.quantile(1 - _SURE) > 0 and speed.center >= -math.log(1 - CLEAR_TIME))

    def beaten_by(self) -> dict[str, str | None]:
        """{variant: the fastest of those that beat it}; None for a variant on the front.

        Of several, one that is beaten by none itself is named, if there is one.
        """
        shipped = [name for name in self.scores if name not in self.report_only]
        rivals = {name: [r for r in shipped if self.beats(r, name)] for name in self.scores}
        return {
            name: max(
                beating, key=lambda rival: (not rivals[rival], self.scores[rival].log_speedup), default=None
            )
            for name, beating in rivals.items()
        }

    def most_accurate(self, names: list[str]) -> str:
        """The one that is clearly less accurate than the fewest.

        Of several, those that are clearly slower than another of them or beaten by it are left out; then
        those whose labels change with the batch, if there are others; then the logit error decides.
        """
        behind = {name: sum(self.accuracy(other, name) > 0 for other in names) for name in names}
        tied = [name for name in names if behind[name] == min(behind.values())]
        best = [name for name in tied if not any(self.clearly_faster(other, name) for other in tied)]
        front = [name for name in best if not any(self.beats(other, name) for other in best)] or best
        return min(front, key=lambda name: (name in self.moving, self.scores[name].logit_error, name))

    def about_as_fast(self, names: list[str], *, far: float = 3 * CLEAR_TIME) -> list[str]:
        """Those that are not clearly slower than the fastest, by more than 5 %.

        Nor by more than `far` as measured: a wide interval makes nothing fast.
        """
        fastest = max(names, key=lambda name: self.scores[name].log_speedup)
        least, farthest = math.log(1 - CLEAR_TIME), math.log(1 - far)

        def is_as_fast(name: str) -> bool:
            speed = self.speed(name, fastest)
            return speed.quantile(_SURE) >= least and speed.center >= farthest

        return [name for name in names if name == fastest or is_as_fast(name)]
