"""The ratio of two latencies, estimated from the turns of several launches.

Launch i of the processes gives the log ratios of n_i turns; m_i is their median. The estimate is that of
Hodges and Lehmann (1963) over the k medians: the median of the means of all pairs. It is the mean of two
launches; of more, one bad launch moves it little, and on normal values it is 0.955 as efficient as the mean.

Each m_i has two errors. The turns of a launch differ: the standard error of a median of n_i normal values is
sqrt(pi / 2) sigma / sqrt(n_i). sigma is 1.4826 MAD of the turns about their launch's median, pooled over the
launches since the MAD of a few turns is a poor estimate, and widened by sqrt(N / (N - k)) for the k medians
taken from N turns (Rousseeuw and Croux, "Alternatives to the Median Absolute Deviation", 1993). And launches
differ: memory layout and the placement of threads move the times of a process for as long as it lives.

Both show in the spread of the m_i, but two to four launches estimate it badly. So it is joined with what is
known beforehand, as in Smyth, "Linear Models and Empirical Bayes Methods" (2004), the moderated variance

    V = (v (LAUNCH_SD^2 + mean of the turns' squared errors) + sum (m_i - mean)^2) / (v + k - 1)

where the prior counts as v = PRIOR_DEGREES launches; an interval takes Student's t with v + k - 1 degrees of
freedom. LAUNCH_SD was measured: 30 launches of MiniLM-L6 and its quant_2 at 1x128 on a shared 2-core machine
(bench/traces/quiet.json) had medians with a standard deviation of 0.018, of which the turns explain 0.008.
With v = 3 the 95 % intervals of 2 launches of 3 turns hold the truth in 94 to 98 % of the draws from recorded
traces, and from synthetic ones with spikes, steps and launches that differ by a quarter more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantlib.measuring.latency.paired import PairedRatio

LAUNCH_SD = 0.016
PRIOR_DEGREES = 3.0

_SD_PER_MAD = 1.4826
_EFFICIENCY = 3 / math.pi  # of the Hodges-Lehmann estimate against the mean, for normal values

Launches = Sequence[Sequence[float]]
"""For each launch the log ratio of each of its turns, at least one."""


@dataclass(frozen=True)
class LogRatio:
    """The log of a ratio, its standard error, and the degrees of freedom of that error.

    turns: all turns that it rests on.
    """

    center: float
    error: float
    degrees: float
    turns: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.center) and 0 < self.error < math.inf and self.degrees > 0):
            raise ValueError(f"{self.center} ± {self.error} with {self.degrees} degrees is no estimate")

    def quantile(self, probability: float) -> float:
        """The value below which the log ratio lies with this probability, between 0 and 1.

        Raises:
            ValueError: `probability` is out of range.
        """
        if not 0 < probability < 1:
            raise ValueError(f"a probability must lie between 0 and 1, not {probability}")
        from scipy.special import stdtrit

        return self.center + float(stdtrit(self.degrees, probability)) * self.error

    def ratio(self, confidence: float = 0.95) -> PairedRatio:
        """The ratio with its interval.

        Raises:
            ValueError: `confidence` does not lie between 0 and 1.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
        tail = (1 - confidence) / 2
        return PairedRatio(
            ratio=math.exp(self.center),
            low=math.exp(self.quantile(tail)),
            high=math.exp(self.quantile(1 - tail)),
            turns=self.turns,
            confidence=confidence,
        )


def estimate_log_ratio(launches: Launches) -> LogRatio:
    """The log ratio that the launches agree on; see the module's docstring.

    Args:
        launches: at least one launch, two turns in all.

    Raises:
        ValueError: there are too few turns, or one is not finite.
    """
    turns = [np.asarray(launch, dtype=np.float64) for launch in launches]
    if not turns or min(map(len, turns)) < 1 or sum(map(len, turns)) < 2:
        raise ValueError("an estimate needs two turns, and one in each launch")
    if not all(np.isfinite(launch).all() for launch in turns):
        raise ValueError("log ratios must be finite")
    medians = np.array([np.median(launch) for launch in turns])
    counts = np.array([len(launch) for launch in turns])
    launch_count, turn_count = len(medians), int(counts.sum())
    # The median of one or two turns is their mean, which is more efficient than a median.
    of_median = np.where(counts > 2, math.pi / 2, 1.0) / counts
    of_turns = float(np.mean(of_median)) * _variance_of_a_turn(turns)
    between = float(np.sum((medians - medians.mean()) ** 2))
    degrees = PRIOR_DEGREES + launch_count - 1
    variance = (PRIOR_DEGREES * (LAUNCH_SD**2 + of_turns) + between) / degrees
    efficiency = _EFFICIENCY if launch_count > 2 else 1.0
    return LogRatio(
        center=hodges_lehmann(medians),
        error=math.sqrt(variance / launch_count / efficiency),
        degrees=degrees,
        turns=turn_count,
    )


def _variance_of_a_turn(launches: Sequence[npt.NDArray[np.float64]]) -> float:
    """Of turns about their launch's median; 0 where each launch has one turn: the launches show it all."""
    residuals = np.concatenate([np.abs(launch - np.median(launch)) for launch in launches])
    free = len(residuals) - len(launches)
    return float((_SD_PER_MAD * np.median(residuals)) ** 2 * len(residuals) / free) if free else 0.0


def hodges_lehmann(values: npt.NDArray[np.float64]) -> float:
    """The median of the means of all pairs, each value with itself too (Hodges and Lehmann 1963)."""
    rows, columns = np.triu_indices(len(values))
    return float(np.median((values[rows] + values[columns]) / 2))
