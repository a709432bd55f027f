"""The Pareto front: which variants no other one beats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What counts as better, and not as noise: half a point of the metric, 5 % of the time (two timings of one and
# the same file may differ by that), 1 % of the bytes.
CLEAR_SCORE, CLEAR_TIME, CLEAR_SIZE = 0.005, 0.05, 0.01


@dataclass(frozen=True)
class Score:
    """What a variant is judged by: the task's primary metric (more is better), latency and size (less is)."""

    metric: float
    median_ms: float
    size_bytes: int

    def beats(self, other: Score) -> bool:
        """Whether this is at least as good in all three, and clearly better in one."""
        as_good = (
            self.metric >= other.metric
            and self.median_ms <= other.median_ms
            and self.size_bytes <= other.size_bytes
        )
        return as_good and (
            self.metric >= other.metric + CLEAR_SCORE
            or self.median_ms <= other.median_ms * (1 - CLEAR_TIME)
            or self.size_bytes <= other.size_bytes * (1 - CLEAR_SIZE)
        )


def beaten_by(variants: Mapping[str, Score]) -> dict[str, str | None]:
    """{variant: the fastest one that beats it}; None for a variant on the front.

    The one named is on the front itself: among those that beat a variant, the fastest, then the most
    accurate, then the smallest one is beaten by none.
    """
    fastest: dict[str, str | None] = {}
    for name, score in variants.items():
        rivals = [rival for rival, other in variants.items() if other.beats(score)]
        fastest[name] = min(rivals, key=lambda rival: _preference(variants[rival]), default=None)
    return fastest


def _preference(score: Score) -> tuple[float, float, int]:
    return score.median_ms, -score.metric, score.size_bytes
