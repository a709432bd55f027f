"""How much faster a model is than the reference, with what is known of the machine's states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from quantlib.measuring.latency.estimate import estimate_log_ratio
from quantlib.measuring.latency.interleaved import PairedTimes, Place, by_launch
from quantlib.measuring.latency.states import History, state_limit

# A ratio is shown without its interval if that is no wider than ±10 %, and trusted if it is within ±5 %.
BARE, TRUSTED = 0.10, 0.05
_FEW = 2  # turns in a state from which an interval can be made


@dataclass(frozen=True)
class Speedup:
    """The reference's time over a model's.

    ratio: the estimate. low, high: its 95 % interval, which covers all known states of the machine.
    others: the share of the machine that other programs used. doubtful: whether nothing is sure, however
    narrow the interval: others used too much, or the machine has a state of which nothing is known. note:
    what is to be said of the machine's states; empty otherwise.
    """

    ratio: float
    low: float
    high: float
    others: float = 0.0
    doubtful: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high < math.inf:
            raise ValueError(
                f"speedup {self.ratio} must lie in [{self.low}, {self.high}], all of it positive"
            )
        if not 0 <= self.others < math.inf:
            raise ValueError(f"others {self.others} must be a share")

    @property
    def spread(self) -> float:
        """The larger distance from the ratio to an end of its interval, as a fraction of the ratio."""
        return max(self.high / self.ratio - 1, 1 - self.low / self.ratio)

    @property
    def trusted(self) -> bool:
        """Whether the interval is within ±5 %, and nothing is doubtful."""
        return not self.doubtful and self.spread <= TRUSTED

    @property
    def bare(self) -> bool:
        """Whether the ratio may be shown without its interval."""
        return not self.doubtful and self.spread <= BARE


EQUAL = Speedup(1.0, 1.0, 1.0)
"""Of the reference itself."""


def speedup_of(times: PairedTimes, probe: Mapping[Place, float], history: History, model: str) -> Speedup:
    """A model's speedup from its turns, the probe's times in them, and earlier runs.

    The interval holds the median of all turns too. What disturbs a model for a turn only slows it down; where
    that meets many turns, but fewer than half, it moves the medians of launches and their interval away from
    what most turns say.

    Where the machine has two states, the interval covers that of each: of a state that this run did not see,
    by what the same bytes did in it before; if they are new, by the largest change of any known model.

    Args:
        times: of the model.
        probe: the probe's time in each turn, in ms; empty if there is none.
        history: of earlier runs, without this one.
        model: its key in the history.
    """
    estimate = times.estimate().ratio()
    median = math.exp(float(np.median(list(times.log_ratios.values()))))
    low, high = min(estimate.low, median), max(estimate.high, median)
    plain = Speedup(estimate.ratio, low, high, times.others, times.disturbed)
    limit = state_limit([*history.probe_ms, *probe.values()]) if probe else None
    if limit is None:
        return plain
    states = [
        {
            place: value
            for place, value in times.log_ratios.items()
            if place in probe and (probe[place] > limit) == slow
        }
        for slow in (False, True)
    ]
    seen = [len(state) >= _FEW for state in states]
    if all(seen):
        fast, slow = (estimate_log_ratio(by_launch(state)).ratio() for state in states)
        note = f"{fast.ratio:.2f}x and {slow.ratio:.2f}x: this machine had two states"
        return _covering(plain, fast.low, fast.high, slow.low, slow.high, note=note)
    missing_is_slow = seen[0]
    known = history.log_ratios(model, limit, missing_is_slow)
    what = "slow" if missing_is_slow else "fast"
    if len(known) > _FEW:
        other = estimate_log_ratio([known]).ratio()
        note = f"{other.ratio:.2f}x in this machine's {what} state, which this run did not see"
        return _covering(plain, other.low, other.high, note=note)
    shift = history.shift(limit)
    note = f"this machine has a {what} state, in which this model was not timed"
    if shift is None:
        return replace(plain, doubtful=True, note=note)
    factor = math.exp(shift if missing_is_slow else -shift)
    return _covering(plain, plain.low * factor, plain.high * factor, note=note)


def _covering(speedup: Speedup, *ends: float, note: str) -> Speedup:
    """The speedup with an interval that holds these ends too; the note only if that is clearly wider."""
    low, high = min(speedup.low, *ends), max(speedup.high, *ends)
    wider = replace(speedup, low=low, high=high)
    return replace(wider, note=note if wider.spread > TRUSTED else "")


def probe_times(times_ms: Mapping[Place, tuple[float, ...]]) -> dict[Place, float]:
    """The probe's median in each turn, in ms."""
    return {place: float(np.median(times)) for place, times in times_ms.items()}
