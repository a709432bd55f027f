"""The ratio of two latencies from launches: invariances, and that 95 % intervals hold the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.measuring.latency.estimate import LAUNCH_SD, LogRatio, estimate_log_ratio

TRACES = Path(__file__).parent.parent / "bench" / "traces"
Rng = np.random.Generator
Draw = Callable[[Rng, int, int], list[list[float]]]

launches_of_turns = st.lists(
    st.lists(st.floats(-3, 3, allow_nan=False), min_size=2, max_size=6), min_size=1, max_size=5
)


@given(launches_of_turns, st.floats(-2, 2))
def test_a_common_factor_moves_the_estimate_and_nothing_else(
    launches: list[list[float]], shift: float
) -> None:
    before = estimate_log_ratio(launches)
    after = estimate_log_ratio([[value + shift for value in launch] for launch in launches])
    assert after.center == pytest.approx(before.center + shift, abs=1e-9)
    assert after.error == pytest.approx(before.error, rel=1e-6, abs=1e-12)


@given(launches_of_turns)
def test_the_inverse_ratio_has_the_inverse_interval(launches: list[list[float]]) -> None:
    forward = estimate_log_ratio(launches).ratio()
    backward = estimate_log_ratio([[-value for value in launch] for launch in launches]).ratio()
    assert (forward.low, forward.ratio, forward.high) == pytest.approx(
        (1 / backward.high, 1 / backward.ratio, 1 / backward.low)
    )


def test_equal_launches_are_as_sure_as_the_prior() -> None:
    estimate = estimate_log_ratio([[0.5, 0.5, 0.5]] * 4)
    # V = 3 LAUNCH_SD^2 / 6, over 4 launches, and Hodges-Lehmann's efficiency.
    assert estimate.error == pytest.approx(LAUNCH_SD * math.sqrt(3 / 6 / 4 * math.pi / 3))
    assert (estimate.center, estimate.degrees, estimate.turns) == (0.5, 6, 12)


def test_launches_that_differ_widen_the_interval() -> None:
    equal, different = estimate_log_ratio([[0.0, 0.0]] * 2), estimate_log_ratio([[-0.1, -0.1], [0.1, 0.1]])
    assert different.center == pytest.approx(equal.center)
    assert different.error > 3 * equal.error


@pytest.mark.parametrize("launches", [[], [[]], [[0.1]], [[0.1, math.nan]], [[0.1, 0.2], []]])
def test_too_little_is_refused(launches: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"turns|finite"):
        estimate_log_ratio(launches)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="no estimate"):
        LogRatio(0.0, 0.0, 3.0, 6)
    with pytest.raises(ValueError, match="confidence"):
        estimate_log_ratio([[0.1, 0.2]]).ratio(1.0)
    with pytest.raises(ValueError, match="probability"):
        estimate_log_ratio([[0.1, 0.2]]).quantile(0.0)


def _synthetic(
    rng: Rng, launches: int, turns: int, *, launch_sd: float, spikes: float, step: float, drift: float
) -> list[list[float]]:
    drawn = []
    for number in range(launches):
        values = rng.normal(0, launch_sd) + rng.normal(0, 0.02, turns)
        values += (rng.random(turns) < spikes) * rng.choice([-1, 1], turns) * rng.uniform(0.2, 1, turns)
        values[turns // 2 :] += step * rng.choice([-1, 1]) * (rng.random() < 0.3)
        # The order is reversed every turn and every launch, so a steady drift shows with alternating sign.
        values += drift * (-1.0) ** (np.arange(turns) + number)
        drawn.append(values.tolist())
    return drawn


def _recorded(name: str) -> tuple[Draw, float]:
    record = json.loads((TRACES / name).read_text(encoding="utf-8"))
    logs = [np.log(launch["teacher_ms"]) - np.log(launch["variant_ms"]) for launch in record["launches"]]

    def draw(rng: Rng, launches: int, turns: int) -> list[list[float]]:
        drawn = []
        for index in rng.choice(len(logs), launches, replace=False):
            start = rng.integers(0, len(logs[index]) - turns + 1)
            drawn.append(logs[index][start : start + turns].tolist())
        return drawn

    return draw, float(np.median(np.concatenate(logs)))


def _coverage(draw: Draw, truth: float, launches: int, turns: int, draws: int = 300) -> float:
    rng = np.random.default_rng(13)
    intervals = [estimate_log_ratio(draw(rng, launches, turns)).ratio() for _ in range(draws)]
    return float(np.mean([interval.low <= math.exp(truth) <= interval.high for interval in intervals]))


@pytest.mark.parametrize("shape", [(2, 3), (4, 2), (3, 3)])
@pytest.mark.parametrize("trace", ["quiet.json", "busy.json"])
def test_intervals_hold_the_truth_of_recorded_traces(trace: str, shape: tuple[int, int]) -> None:
    draw, truth = _recorded(trace)
    assert _coverage(draw, truth, *shape) >= 0.93


@pytest.mark.parametrize("shape", [(2, 3), (4, 2), (3, 3)])
@pytest.mark.parametrize(
    "disturbance",
    [
        {},
        {"spikes": 0.1},
        {"step": 0.05},
        {"drift": 0.03},
        {"launch_sd": 0.02},
        {"spikes": 0.1, "drift": 0.02, "launch_sd": 0.02},
    ],
    ids=["quiet", "spikes", "steps", "drift", "launches that differ", "all"],
)
def test_intervals_hold_the_truth_on_troubled_machines(
    disturbance: dict[str, float], shape: tuple[int, int]
) -> None:
    options = {"launch_sd": LAUNCH_SD, "spikes": 0.0, "step": 0.0, "drift": 0.0} | disturbance

    def draw(rng: Rng, launches: int, turns: int) -> list[list[float]]:
        return _synthetic(rng, launches, turns, **options)

    assert _coverage(draw, 0.0, *shape) >= 0.93
