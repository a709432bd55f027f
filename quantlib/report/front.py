"""The Pareto front: which variants no other one beats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# What counts as better, and not as noise: half a point of the metric, 5 % of the time (two timings of one and
# the same file may differ by that), 1 % of the bytes.
CLEAR_SCORE, CLEAR_TIME, CLEAR_SIZE = 0.005, 0.05, 0.01


@dataclass(frozen=True)
class Worth:
    """What a variant is judged by: the task's primary metric (more is better), latency and size (less is)."""

    score: float
    median_ms: float
    size_bytes: int

    def beats(self, other: Worth) -> bool:
        """Whether this is at least as good in all three, and clearly better in one."""
        as_good = (
            self.score >= other.score
            and self.median_ms <= other.median_ms
            and self.size_bytes <= other.size_bytes
        )
        return as_good and (
            self.score >= other.score + CLEAR_SCORE
            or self.median_ms <= other.median_ms * (1 - CLEAR_TIME)
            or self.size_bytes <= other.size_bytes * (1 - CLEAR_SIZE)
        )


def beaten_by(variants: Mapping[str, Worth]) -> dict[str, str | None]:
    """{variant: the fastest one that beats it}; None for a variant on the front.

    The one named is on the front itself: among those that beat a variant, the fastest, then the most
    accurate, then the smallest one is beaten by none.
    """
    found: dict[str, str | None] = {}
    for name, worth in variants.items():
        rivals = [rival for rival, other in variants.items() if other.beats(worth)]
        found[name] = min(rivals, key=lambda rival: _preference(variants[rival]), default=None)
    return found


def _preference(worth: Worth) -> tuple[float, float, int]:
    return worth.median_ms, -worth.score, worth.size_bytes
