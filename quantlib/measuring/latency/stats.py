"""Times of repeated calls and their statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Clock = Callable[[], float]

WARMUP_RUNS = 5
NUM_RUNS = 30
# Measured: thread pools sleep and caches cool when a session idles, and times are steady again after some
# 80 ms of work.
WAKE_SECONDS = 0.08

NOISY_RELATIVE_ERROR = 0.02
NOISY_RELATIVE_IQR = 0.10


@dataclass(frozen=True)
class LatencyStats:
    """The times of timed runs, in the order in which they were taken, in milliseconds.

    times_ms: (runs,), at least two. warmup_runs: the untimed runs before them.
    """

    times_ms: tuple[float, ...]
    warmup_runs: int

    def __post_init__(self) -> None:
        if len(self.times_ms) < 2:
            raise ValueError(f"{len(self.times_ms)} run(s); a standard deviation needs at least 2")
        if not all(math.isfinite(t) and t >= 0 for t in self.times_ms):
            raise ValueError("times_ms must be finite and not negative")
        if self.warmup_runs < 0:
            raise ValueError(f"warmup_runs must be at least 0, not {self.warmup_runs}")

    @property
    def mean_ms(self) -> float:
        """The arithmetic mean."""
        return float(np.mean(self.times_ms))

    @property
    def std_ms(self) -> float:
        """The sample standard deviation (n - 1)."""
        return float(np.std(self.times_ms, ddof=1))

    @property
    def min_ms(self) -> float:
        """The fastest run."""
        return min(self.times_ms)

    @property
    def max_ms(self) -> float:
        """The slowest run."""
        return max(self.times_ms)

    @property
    def median_ms(self) -> float:
        """The median: what is compared, since one interrupted run does not move it."""
        return float(np.median(self.times_ms))

    @property
    def iqr_ms(self) -> float:
        """The interquartile range (linear interpolation)."""
        first, third = np.percentile(self.times_ms, [25, 75])
        return float(third - first)

    @property
    def standard_error_ms(self) -> float:
        """The standard error of the mean, std / sqrt(n).

        It assumes independent runs. A machine that drifts from one process to the next adds an error that the
        runs of one process cannot show; only a paired comparison removes it.
        """
        return self.std_ms / math.sqrt(len(self.times_ms))

    @property
    def relative_error(self) -> float:
        """The standard error of the mean as a fraction of the mean; 0 where every time is 0."""
        return self.standard_error_ms / self.mean_ms if self.mean_ms else 0.0

    @property
    def noisy(self) -> bool:
        """Whether these runs are too noisy to compare variants.

        True if the standard error exceeds 2 % of the mean (the 95 % interval of the mean is then wider
        than ±4 %, as wide as the differences of interest), or if the interquartile range exceeds 10 % of
        the median (the machine changed its speed while it was measured; a few spikes alone do not do that).
        """
        return self.relative_error > NOISY_RELATIVE_ERROR or self.iqr_ms > NOISY_RELATIVE_IQR * self.median_ms


def time_calls(
    call: Callable[[], object],
    *,
    warmup_runs: int = WARMUP_RUNS,
    num_runs: int = NUM_RUNS,
    wake_seconds: float = WAKE_SECONDS,
    clock: Clock = time.perf_counter,
) -> LatencyStats:
    """Wake the machine, warm up, then time each of `num_runs` calls.

    Args:
        call: the function to time; its result is dropped within the timed span.
        warmup_runs: untimed calls right before the timed ones.
        num_runs: timed calls.
        wake_seconds: how long the call is repeated, untimed, before the warm-up.
        clock: seconds, monotonic.

    Raises:
        ValueError: `num_runs` is below 2, or `warmup_runs` below 0.
    """
    check_counts(warmup_runs, num_runs)
    wake(call, wake_seconds, clock)
    for _ in range(warmup_runs):
        call()
    return LatencyStats(tuple(time_ms(call, num_runs, clock)), warmup_runs)


def check_counts(warmup_runs: int, num_runs: int) -> None:
    """Raise `ValueError` for counts with which no statistics can be made."""
    if num_runs < 2:
        raise ValueError(f"num_runs must be at least 2, not {num_runs}")
    if warmup_runs < 0:
        raise ValueError(f"warmup_runs must be at least 0, not {warmup_runs}")


def wake(call: Callable[[], object], seconds: float, clock: Clock = time.perf_counter) -> None:
    """Repeat the call until `seconds` have passed; not at all for 0."""
    end = clock() + seconds
    while clock() < end:
        call()


def time_ms(call: Callable[[], object], num_runs: int, clock: Clock = time.perf_counter) -> list[float]:
    """The time of each of `num_runs` calls, in milliseconds."""
    times = []
    for _ in range(num_runs):
        start = clock()
        call()
        times.append((clock() - start) * 1e3)
    return times
