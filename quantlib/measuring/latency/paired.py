"""The paired comparison: processes take turns, and the ratio within a turn is compared.

A machine whose speed drifts slows both sides of a turn alike, so their ratio stays right while times do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantlib.measuring.latency.stats import WAKE_SECONDS

FloatArray = npt.NDArray[np.float64]


class Timed(Protocol):
    """Something that can take turns: `TimedProcess`, or a fake in a test."""

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = WAKE_SECONDS) -> list[float]:
        """The time of each run, in ms."""
        ...


Start = Callable[[], AbstractContextManager[Timed]]
"""Starts the process of one model and ends it on exit."""


@contextmanager
def launched(starts: Sequence[Start]) -> Iterator[list[Timed]]:
    """The processes, in order, until the end of the block."""
    with ExitStack() as stack, ThreadPoolExecutor(len(starts)) as pool:
        # In parallel: loading a model keeps only one core busy.
        yield list(pool.map(lambda start: stack.enter_context(start()), starts))


@dataclass(frozen=True)
class PairedRatio:
    """A ratio of latencies with its confidence interval.

    turns: the number of turns. confidence: the coverage of [low, high]; lower than requested if there are too
    few turns for any interval to reach it.
    """

    ratio: float
    low: float
    high: float
    turns: int
    confidence: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high < math.inf:
            raise ValueError(f"ratio {self.ratio} must lie in [{self.low}, {self.high}], all of it positive")
        if self.turns < 2:
            raise ValueError(f"{self.turns} turn(s); an interval needs at least 2")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, not {self.confidence}")


def take_turns(
    processes: Sequence[Timed], turns: int, block: int, *, wake_seconds: float = WAKE_SECONDS
) -> FloatArray:
    """Let processes take turns (A B C, C B A, ...), a block of runs each.

    The order is reversed every turn, so that over an even number of turns a steady drift favours nobody:
    what slows B against A in one turn slows A against B in the next. Each block wakes its process first,
    since it has slept while the others ran; by then their spinning threads have gone to sleep too.

    Args:
        processes: at least one.
        turns: turns of all processes; preferably an even number.
        block: runs in a block, whose median counts.
        wake_seconds: untimed work before each block.

    Returns:
        The block medians in ms: float64, (processes, turns).

    Raises:
        ValueError: `turns` or `block` is below 1.
    """
    if turns < 1 or block < 1:
        raise ValueError(f"turns and block must be at least 1, not {turns} and {block}")
    medians = np.empty((len(processes), turns))
    for turn in range(turns):
        order = range(len(processes))
        for index in order if turn % 2 == 0 else reversed(order):
            times_ms = processes[index].time(block, wake_seconds=wake_seconds)
            medians[index, turn] = np.median(times_ms)
    return medians


def ratio_interval(
    numerator_ms: Sequence[float] | FloatArray,
    denominator_ms: Sequence[float] | FloatArray,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedRatio:
    """The median of per-turn ratios, with a percentile bootstrap interval.

    Works on logarithms, so that a / b and b / a give the same answer. Turns are resampled one by one.
    Averaging the two turns of an A B, B A pair first would cancel linear drift exactly, but a spike would
    then spoil two turns instead of one: in simulation the interval grew by half and covered less. The
    median does not need it: drift moves neighbouring turns by equal amounts in opposite directions.

    A percentile interval is too narrow for few turns n. The tails are therefore taken at
    Phi(sqrt(n / (n - 1)) t(alpha / 2, n - 1)) instead of alpha / 2, the expanded percentile interval of
    Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), section 4.2. No interval within
    the range of n values covers their median with more than 1 - 2^(1 - n); `confidence` of the answer is
    bounded by that, so 95 % needs 6 turns.

    Args:
        numerator_ms, denominator_ms: (turns,), the block medians of the two sides, in ms.
        confidence: the requested coverage, between 0 and 1.
        resamples: bootstrap resamples.
        seed: of the resampling; the same input gives the same interval.

    Raises:
        ValueError: lengths differ, fewer than 2 turns, or times that are not positive and finite.
    """
    logs = _log_ratios(numerator_ms, denominator_ms)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    turns = len(logs)
    picks = np.random.default_rng(seed).integers(0, turns, (resamples, turns))
    medians = np.median(logs[picks], axis=1)
    tail = _expanded_tail((1 - confidence) / 2, turns)
    low, middle, high = np.quantile(medians, tail), np.median(logs), np.quantile(medians, 1 - tail)
    return PairedRatio(
        ratio=math.exp(middle),
        low=math.exp(min(low, middle)),
        high=math.exp(max(high, middle)),
        turns=turns,
        confidence=min(confidence, 1 - 2.0 ** (1 - turns)),
    )


def _log_ratios(numerator_ms: Any, denominator_ms: Any) -> FloatArray:
    numerator = np.asarray(numerator_ms, dtype=np.float64)
    denominator = np.asarray(denominator_ms, dtype=np.float64)
    if numerator.ndim != 1 or numerator.shape != denominator.shape or len(numerator) < 2:
        raise ValueError(
            f"shapes {numerator.shape} and {denominator.shape}; two series of the same 2 or more turns needed"
        )
    times = np.concatenate([numerator, denominator])
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("times must be positive and finite")
    return np.asarray(np.log(numerator) - np.log(denominator))


def _expanded_tail(tail: float, turns: int) -> float:
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(turns / (turns - 1)) * stdtrit(turns - 1, tail)))
