"""The states of a machine, told apart by the probe's times, and what each model did in them.

What was timed in earlier runs is kept in a history, so that a run that saw one state knows of the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from quantlib.measuring.latency.interleaved import Place
from quantlib.support.files import sha256_json, write_json
from quantlib.support.parsing import parse_json_text, read_utf8

# Two levels of the probe are two states if one is a quarter above the other, and the gap between them is
# four times as wide as the levels themselves. Of normal values Otsu's best cut leaves 2.65 times, of equally
# spread ones 3.46.
MIN_STEP, MIN_GAP = math.log(1.25), 4.0
_FEW, _SHARE = 3, 0.3  # turns, and their share of all: fewer are spikes, not a state
_TURNS_KEPT, _RATIOS_KEPT = 600, 60


def state_limit(probe_ms: Sequence[float]) -> float | None:
    """The time of the probe that parts the machine's two states, in ms; None if there is one state only.

    The cut is that of Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979), on logarithms:
    where the variance within both sides is least.
    """
    times = np.sort(np.asarray(probe_ms, dtype=np.float64))
    logs = np.log(times)
    few = max(_FEW, math.ceil(_SHARE * len(logs)))
    if len(logs) < 2 * few:
        return None
    logs -= logs.mean()  # the sums below lose no digits then
    cuts = np.arange(few, len(logs) - few + 1)
    below = np.cumsum(logs)[cuts - 1]
    # The sums of both sides are opposite, so this is the squares' sum less those of both means.
    within = np.sum(logs**2) - below**2 * (1 / cuts + 1 / (len(logs) - cuts))
    best = int(np.argmin(within))
    cut = int(cuts[best])
    step = float(logs[cut:].mean() - logs[:cut].mean())
    spread = math.sqrt(max(0.0, float(within[best])) / len(logs))
    if step < MIN_STEP or step < MIN_GAP * spread:
        return None
    return math.sqrt(times[cut - 1] * times[cut])


@dataclass
class History:
    """What earlier runs on this machine measured: the probe's times, and the log ratios of each model.

    probe_ms: of the last turns. ratios: {model and shape: [(probe_ms, log ratio to the reference)]}.
    """

    probe_ms: list[float] = field(default_factory=list)
    ratios: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, probe: Mapping[Place, float], ratios: Mapping[str, Mapping[Place, float]]) -> None:
        """Add a run's turns: the probe's times and the log ratios of each model, by place."""
        self.probe_ms = [*self.probe_ms, *probe.values()][-_TURNS_KEPT:]
        for model, of_model in ratios.items():
            pairs = [(probe[place], value) for place, value in of_model.items() if place in probe]
            self.ratios[model] = [*self.ratios.pop(model, []), *pairs][-_RATIOS_KEPT:]
        for model in list(self.ratios)[:-_TURNS_KEPT]:
            del self.ratios[model]

    def log_ratios(self, model: str, limit: float, slow: bool) -> list[float]:
        """Those of a model in the state above the limit (slow) or below it."""
        return [value for probe_ms, value in self.ratios.get(model, ()) if (probe_ms > limit) == slow]

    def shift(self, limit: float) -> float | None:
        """The largest change of a log ratio from the fast state to the slow one; None if none is known."""
        shifts = [
            float(np.median(slow) - np.median(fast))
            for fast, slow in (
                (self.log_ratios(model, limit, False), self.log_ratios(model, limit, True))
                for model in self.ratios
            )
            if len(fast) >= _FEW and len(slow) >= _FEW
        ]
        return max(shifts, key=abs, default=None)

    def spread(self) -> float | None:
        """The size of that change; None where no two states are known."""
        limit = state_limit(self.probe_ms)
        shift = None if limit is None else self.shift(limit)
        return None if shift is None else abs(shift)


def read_history(path: Path) -> History:
    """The history in a file; an empty one where there is none, or a damaged one, which is only lost."""
    try:
        record = parse_json_text(read_utf8(path))
        values = record["history"]
        if record["sha256"] != sha256_json(values):
            return History()
        return History(
            _positive(values["probe_ms"]),
            {
                str(model): [(float(probe_ms), float(value)) for probe_ms, value in pairs]
                for model, pairs in values["ratios"].items()
            },
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return History()


def write_history(path: Path, history: History) -> None:
    """Write a history as JSON, with the SHA-256 of its values: a changed digit would be read as a time.

    Raises:
        InputError: the file cannot be written.
    """
    values = {"probe_ms": history.probe_ms, "ratios": history.ratios}
    write_json(path, {"sha256": sha256_json(values), "history": values})


def _positive(values: Iterable[float]) -> list[float]:
    times = [float(value) for value in values]
    if not all(0 < time < math.inf for time in times):
        raise ValueError("times must be positive and finite")
    return times
