"""How the latency of one variant at one shape was compared with the baseline's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

How = Literal["unchanged", "old model", "teacher", "not compared"]

# One-sided, for each bound of an interval that is looked at once.
CONFIDENCE = 0.975


@dataclass(frozen=True)
class Comparison:
    """What was done, and what it gave.

    how: "unchanged", nothing was timed since the same would have run; "old model", it and the new one took
    turns in this run; "teacher", the ratios to the teacher of two runs are compared, the weaker way; "not
    compared", since that way does not lead from one machine to another.
    words: what is the same, where the old model came from, or why it could not be had.
    launches: for each launch of the old and the new model, the log of (old time / new time) of each turn.
    confidence: of each bound alone, for the look at which measuring stopped. spread: how much more, on the
    log scale, ratios to the teacher of two runs may differ by the states of machines. others, disturbed: as
    in `LatencyRecord`, of these launches.
    """

    how: How
    words: str
    launches: tuple[tuple[float, ...], ...] = ()
    confidence: float = CONFIDENCE
    spread: float = 0.0
    others: float = 0.0
    disturbed: bool = False

    def __post_init__(self) -> None:
        if (self.how == "old model") != bool(self.launches):
            raise ValueError("launches of an old and a new model belong to that comparison, and only to it")
        if self.spread < 0:
            raise ValueError(f"spread {self.spread} must be at least 0")


Comparisons = Mapping[str, Mapping[str, Comparison]]
"""By variant and shape."""
