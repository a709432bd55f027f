"""How much slower a variant has become, and how sure that is.

Launch i of the processes gives the log ratios (teacher's time / variant's) of n_i turns; m_i is their median.
The log of the speedup is the Hodges-Lehmann estimate over the k launches: the median of the means of all
pairs of m_i. One bad launch moves it little, and on normal values it is 0.955 as efficient as the mean. Each
m_i has two errors:

* between turns of a launch. The standard error turns_i of a median of n_i normal values is sqrt(pi / 2) sigma
  / sqrt(n_i), with sigma = 1.4826 MAD of the turns about their launch's median (Rousseeuw and Croux,
  "Alternatives to the Median Absolute Deviation", 1993), so that a spike moves neither. The MAD of a few
  turns is a poor estimate, so it is pooled over the launches, and sigma is widened by sqrt(N / (N - k)) for
  the k medians taken from N turns.
* between launches. Memory layout and thread placement move the times of a process for as long as it lives,
  which its turns cannot show.

The spread s of the m_i (their MAD again) shows both errors at once, but two to four launches estimate it
badly: it is often far too small, and Student's quantile, which corrects for that, is 13 for two launches and
4 for three (95 %). So the variance of the estimate is the larger of the observed one, s^2 / k, and the
expected one, sum(LAUNCH_SD^2 + turns_i^2) / k^2, each over the efficiency. The expected one is not estimated
from k values, so the quantile is the normal one. On a machine that varies more than LAUNCH_SD the observed
one decides; the interval of three launches then covers less than it claims, that of more launches does not.
The errors of the current run and of the baseline are independent, and add in quadrature on the log scale.

LAUNCH_SD was measured: 30 launches of MiniLM-L6 and its quant_2 at 1x128 on a shared 2-core machine
(bench/traces/quiet.json) had medians with a standard deviation of 0.018, of which the turns explain 0.008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantlib.gate.record import LatencyRecord
from quantlib.measuring.latency.paired import PairedRatio

# The standard deviation between launches of the log ratio, on a shared 2-core machine.
LAUNCH_SD = 0.016
CONFIDENCE = 0.975

_SD_PER_MAD = 1.4826
_EFFICIENCY = 3 / math.pi  # of the Hodges-Lehmann estimate against the mean, for normal values


@dataclass(frozen=True)
class Slowdown:
    """The baseline's speedup over the current one, minus 1: 0.10 is 10 % slower, -0.10 is 10 % faster.

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
    width = _quantile(confidence)
    log_speedup, error = _log_speedup(record)
    return PairedRatio(
        ratio=math.exp(log_speedup),
        low=math.exp(log_speedup - width * error),
        high=math.exp(log_speedup + width * error),
        turns=sum(map(len, record.launches)),
        confidence=2 * confidence - 1,
    )


def estimate_slowdown(
    current: LatencyRecord, baseline: LatencyRecord, *, confidence: float = CONFIDENCE
) -> Slowdown:
    """How much slower, in units of the teacher's time, a variant is than in the baseline.

    Args:
        current, baseline: the launches of the same variant and shape.
        confidence: of each bound, above 0.5.

    Raises:
        ValueError: `confidence` is out of range.
    """
    width = _quantile(confidence)
    (ours, our_error), (theirs, their_error) = _log_speedup(current), _log_speedup(baseline)
    log_slowdown, error = theirs - ours, math.hypot(our_error, their_error)
    return Slowdown(
        slowdown=math.expm1(log_slowdown),
        low=math.expm1(log_slowdown - width * error),
        high=math.expm1(log_slowdown + width * error),
        confidence=confidence,
    )


def decide(slowdown: Slowdown, limit: float) -> Literal["pass", "fail", "undecided"]:
    """`fail` if the slowdown surely exceeds the limit (a fraction), `pass` if it surely does not."""
    if slowdown.low > limit:
        return "fail"
    return "pass" if slowdown.high <= limit else "undecided"


def _log_speedup(record: LatencyRecord) -> tuple[float, float]:
    """The log of the speedup and its standard error; see the module's docstring."""
    launches = [np.asarray(launch) for launch in record.launches]
    medians = np.array([np.median(launch) for launch in launches])
    turns = np.array([len(launch) for launch in launches])
    residuals = np.concatenate([abs(launch - np.median(launch)) for launch in launches])
    count, total = len(launches), len(residuals)
    variance = (_SD_PER_MAD * np.median(residuals)) ** 2 * total / (total - count)
    expected = np.sum(LAUNCH_SD**2 + math.pi / 2 * variance / turns) / count**2
    middle = _hodges_lehmann(medians)
    spread = _SD_PER_MAD * np.median(abs(medians - middle)) * math.sqrt(count / max(1, count - 1))
    return middle, math.sqrt(max(expected, spread**2 / count) / _EFFICIENCY)


def _hodges_lehmann(values: npt.NDArray[np.float64]) -> float:
    """The median of the means of all pairs, each value with itself too (Hodges and Lehmann 1963)."""
    rows, columns = np.triu_indices(len(values))
    return float(np.median((values[rows] + values[columns]) / 2))


def _quantile(confidence: float) -> float:
    _check_confidence(confidence)
    return NormalDist().inv_cdf(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must lie between 0.5 and 1, not {confidence}")
