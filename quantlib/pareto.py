"""The Pareto front: which variants no other one beats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Worth:
    """What a variant is judged by: the task's primary metric (more is better), latency and size (less is)."""

    score: float
    median_ms: float
    size_bytes: int

    def beats(self, other: Worth) -> bool:
        """Whether this is at least as good in all three, and better in one."""
        ours = (self.score, -self.median_ms, -self.size_bytes)
        theirs = (other.score, -other.median_ms, -other.size_bytes)
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


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
