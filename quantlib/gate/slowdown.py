"""How much slower is a variant than in the baseline, and is that sure?

Where the old and the new model took turns, their ratio says it. Where they did not, the speedups of two runs
do: each is the teacher's time over the variant's, and the slowdown is the baseline's speedup over the current
one, minus 1. Times of two moments do not compare; ratios within a turn do, as far as what drifts drifts for
both.

Every log ratio and its error come from `estimate_log_ratio`. Errors of two runs are independent: they add in
quadrature, and the degrees of freedom of the sum are those of Welch and Satterthwaite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantlib.gate.comparison import CONFIDENCE, Comparison
from quantlib.gate.record import LatencyRecord
from quantlib.measuring.latency.estimate import estimate_log_ratio
from quantlib.measuring.latency.paired import PairedRatio


@dataclass(frozen=True)
class Slowdown:
    """The new time over the old one, minus 1: 0.10 is 10 % slower, -0.10 is 10 % faster.

    confidence: of each bound alone, since each decision rests on one of them. The interval between both has
    2 confidence - 1.
    """

    slowdown: float
    low: float
    high: float
    confidence: float

    def __post_init__(self) -> None:
        if not -1 < self.low <= self.slowdown <= self.high < math.inf:
            raise ValueError(f"slowdown {self.slowdown} must lie in [{self.low}, {self.high}], above -1")
        _check_confidence(self.confidence)


def estimate_speedup(record: LatencyRecord, confidence: float = CONFIDENCE) -> PairedRatio:
    """The teacher's time over the variant's, with its interval.

    Args:
        record: the launches of one variant at one shape.
        confidence: of each bound, above 0.5; the interval's own is 2 confidence - 1.

    Raises:
        ValueError: `confidence` is out of range.
    """
    _check_confidence(confidence)
    return estimate_log_ratio(record.launches).ratio(2 * confidence - 1)


def estimate_slowdown(
    current: LatencyRecord, baseline: LatencyRecord, *, confidence: float = CONFIDENCE, spread: float = 0.0
) -> Slowdown:
    """How much slower, in units of the teacher's time, a variant is than in the baseline.

    Args:
        current, baseline: the launches of the same variant and shape.
        confidence: of each bound, above 0.5.
        spread: how much more the two log ratios may differ because the machines were in other states.

    Raises:
        ValueError: `confidence` is out of range.
    """
    ours, theirs = estimate_log_ratio(current.launches), estimate_log_ratio(baseline.launches)
    error = math.hypot(ours.error, theirs.error)
    degrees = error**4 / (ours.error**4 / ours.degrees + theirs.error**4 / theirs.degrees)
    width = _width(error, degrees, confidence) + spread
    return _slowdown(theirs.center - ours.center, width, confidence)


def estimate_paired_slowdown(
    launches: Sequence[Sequence[float]], *, confidence: float = CONFIDENCE
) -> Slowdown:
    """How much slower a model is than the old one with which it took turns.

    Args:
        launches: for each launch the log of (old time / new time) of each turn.
        confidence: of each bound, above 0.5.

    Raises:
        ValueError: `confidence` is out of range.
    """
    ratio = estimate_log_ratio(launches)
    return _slowdown(-ratio.center, _width(ratio.error, ratio.degrees, confidence), confidence)


def decide(slowdown: Slowdown, limit: float) -> Literal["pass", "fail", "undecided"]:
    """`fail` if the slowdown surely exceeds the limit (a fraction), `pass` if it surely does not."""
    if slowdown.low > limit:
        return "fail"
    return "pass" if slowdown.high <= limit else "undecided"


def decide_pair(comparison: Comparison, limit: float) -> Literal["pass", "fail", "undecided"]:
    """`decide`, for an old and a new model that took turns on a machine that was quiet enough."""
    if comparison.disturbed:
        return "undecided"
    return decide(estimate_paired_slowdown(comparison.launches, confidence=comparison.confidence), limit)


def _slowdown(log_slowdown: float, width: float, confidence: float) -> Slowdown:
    return Slowdown(
        slowdown=math.expm1(log_slowdown),
        low=math.expm1(log_slowdown - width),
        high=math.expm1(log_slowdown + width),
        confidence=confidence,
    )


def _width(error: float, degrees: float, confidence: float) -> float:
    """From the estimate to each bound, by Student's t."""
    from scipy.special import stdtrit

    _check_confidence(confidence)
    return float(stdtrit(degrees, confidence)) * error


def _check_confidence(confidence: float) -> None:
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, not {confidence}")
