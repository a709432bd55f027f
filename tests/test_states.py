"""The states of a machine: told apart, remembered, and covered by the interval of a speedup."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.machine.sessions import SessionConfig, feed_for, open_configured
from quantlib.measuring.latency.interleaved import PairedTimes, Place
from quantlib.measuring.latency.probe import probe_feed, write_probe
from quantlib.measuring.latency.speedup import Speedup, speedup_of
from quantlib.measuring.latency.states import History, read_history, state_limit, write_history
from quantlib.measuring.latency.stats import LatencyStats

FAST_MS, SLOW_MS = 3.0, 6.0
FAST, SLOW = math.log(3.16), math.log(2.58)  # `quant_2` on the machine of DESIGN.md


def draw(rng: np.random.Generator, states: str) -> tuple[PairedTimes, dict[Place, float]]:
    """Two launches; a letter of `states` is a turn in the fast (f) or slow (s) state."""
    half = len(states) // 2
    places = [(index // half, index % half) for index in range(len(states))]
    launch = rng.normal(0, 0.01, 2)
    ratios = {
        place: (FAST if state == "f" else SLOW) + launch[place[0]] + rng.normal(0, 0.015)
        for place, state in zip(places, states, strict=True)
    }
    probe = {
        place: (FAST_MS if state == "f" else SLOW_MS) * math.exp(rng.normal(0, 0.04))
        for place, state in zip(places, states, strict=True)
    }
    return PairedTimes(LatencyStats((1.0, 1.0), 5), ratios, 0.01, disturbed=False), probe


@given(st.integers(0, 2**32 - 1), st.integers(6, 200), st.floats(0.001, 0.3))
def test_one_level_has_no_limit(seed: int, count: int, spread: float) -> None:
    times = 5 * np.exp(np.random.default_rng(seed).uniform(-spread, spread, count))
    limit = state_limit(times.tolist())
    assert limit is None or spread > 0.15


@given(st.integers(0, 2**32 - 1), st.integers(20, 40), st.integers(20, 40))
def test_two_levels_are_parted(seed: int, fast: int, slow: int) -> None:
    rng = np.random.default_rng(seed)
    times = [*(3 * np.exp(rng.normal(0, 0.03, fast))), *(5 * np.exp(rng.normal(0, 0.03, slow)))]
    limit = state_limit(times)
    assert limit is not None
    assert max(times[:fast]) < limit < min(times[fast:])


def test_a_few_spikes_are_no_state() -> None:
    assert state_limit([3.0, 3.1, 2.9, 3.0, 3.05, 9.0, 9.1]) is None
    assert state_limit([6.51, 2.48, 2.56, 2.47, 2.59, 2.56, 1.89, 1.87, 5.61, 5.83, 2.49, 2.93]) is None
    assert state_limit([]) is None


def test_a_run_that_saw_two_states_says_so() -> None:
    times, probe = draw(np.random.default_rng(0), "fsfsfsfs")
    speedup = speedup_of(times, probe, History(), "x")
    assert speedup.low < 2.6 < 3.1 < speedup.high
    assert not speedup.trusted
    assert not speedup.bare
    assert "this machine had two states" in speedup.note


def test_a_state_that_was_seen_before_is_covered() -> None:
    rng, history = np.random.default_rng(1), History()
    for states in ("ffffff", "ssssss"):
        times, probe = draw(rng, states)
        history.add(probe, {"known": times.log_ratios})
    times, probe = draw(rng, "ffffff")
    speedup = speedup_of(times, probe, history, "known")
    assert speedup.low < 2.58 < 3.16 < speedup.high
    assert "slow state, which this run did not see" in speedup.note
    new = speedup_of(times, probe, history, "new")
    assert new.low < 2.7, "by as much as what is known changes"
    assert "in which this model was not timed" in new.note
    history.ratios.clear()
    assert speedup_of(times, probe, history, "new").doubtful
    times, probe = draw(rng, "ssssss")
    assert speedup_of(times, probe, history, "new").doubtful


def test_one_state_is_as_plain_as_before() -> None:
    times, probe = draw(np.random.default_rng(2), "ffffff")
    plain = speedup_of(times, {}, History(), "x")
    assert speedup_of(times, probe, History(), "x") == plain
    assert plain.trusted
    assert plain.note == ""


@pytest.mark.parametrize("states", ["ffffff", "ssssss", "ffffss", "fsfsfs", "sssfff"])
def test_intervals_hold_what_each_state_gives(states: str) -> None:
    """With a history that knows both states, the interval holds the truth of both in 93 % and more."""
    rng, hits = np.random.default_rng(5), 0
    for _ in range(100):
        history = History()
        for earlier in ("ffffff", "ssssss"):
            times, probe = draw(rng, earlier)
            history.add(probe, {"known": times.log_ratios})
        times, probe = draw(rng, states)
        speedup = speedup_of(times, probe, history, "known")
        hits += speedup.low <= math.exp(SLOW) and math.exp(FAST) <= speedup.high
    assert hits >= 93


def test_the_interval_holds_what_most_turns_say() -> None:
    """Recorded: a 4 ms model on two cores, of which something small often took one for a moment."""
    turns = [
        4.61, 3.42, 2.50, 4.59, 4.52, 2.85, 4.75, 4.77, 4.64, 4.73, 4.74, 4.72, 4.64, 4.61, 3.91,
        4.68, 3.23, 2.47, 4.67, 3.41, 2.95, 4.64, 3.49, 2.85, 4.52, 4.77, 3.20, 4.54, 3.24, 2.52,
        4.60, 4.58, 4.61, 4.75, 3.37, 2.41, 4.62, 3.20, 4.57, 4.63, 2.86, 4.60, 4.67, 3.17, 2.46,
        4.56, 2.49, 4.54,
    ]  # fmt: skip
    ratios = {(index // 3, index % 3): math.log(turn) for index, turn in enumerate(turns)}
    times = PairedTimes(LatencyStats((1.0, 1.0), 5), ratios, 0.01, disturbed=False)
    of_launches = times.estimate().ratio()
    assert of_launches.high < 4.5, "nothing is left of the case"
    speedup = speedup_of(times, {}, History(), "model")
    assert speedup.ratio == of_launches.ratio
    assert speedup.low == of_launches.low
    assert speedup.high == pytest.approx(np.median(turns), rel=1e-3)
    assert not speedup.bare


def test_a_disturbed_machine_is_doubtful() -> None:
    times = PairedTimes(LatencyStats((1.0, 1.0), 5), {(0, 0): 1.0, (1, 0): 1.0}, 0.4, disturbed=True)
    speedup = speedup_of(times, {}, History(), "x")
    assert (speedup.doubtful, speedup.trusted, speedup.bare) == (True, False, False)


def test_a_history_is_what_it_was_when_read_again(tmp_path: Path) -> None:
    times, probe = draw(np.random.default_rng(3), "ffssfs")
    history = History()
    history.add(probe, {"a": times.log_ratios})
    write_history(tmp_path / "history.json", history)
    assert read_history(tmp_path / "history.json") == history
    text = (tmp_path / "history.json").read_text()
    digit = next(index for index, sign in enumerate(text) if sign == "." and index > text.index("probe_ms"))
    changed = text[: digit + 1] + str((int(text[digit + 1]) + 1) % 10) + text[digit + 2 :]
    (tmp_path / "history.json").write_text(changed)
    assert read_history(tmp_path / "history.json") == History(), "a digit that was changed is no time"
    for _ in range(200):
        history.add(probe, {"a": times.log_ratios})
    assert len(history.probe_ms) == 600
    assert len(history.ratios["a"]) == 60


@pytest.mark.parametrize("text", ["", "[]", '{"probe_ms": [-1], "ratios": {}}', '{"probe_ms": 3}', "{"])
def test_a_damaged_history_is_lost_and_no_more(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.json").write_text(text, encoding="utf-8")
    assert read_history(tmp_path / "history.json") == History()
    assert read_history(tmp_path / "none.json") == History()


@pytest.mark.parametrize("wrong", [(1.0, 1.1, 1.2), (1.0, 0.0, 1.2), (2.0, 1.0, 1.5)])
def test_a_speedup_lies_in_its_interval(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        Speedup(*wrong)


def test_the_probe_runs(tmp_path: Path) -> None:
    session = open_configured(write_probe(tmp_path / "probe.onnx"), SessionConfig(1))
    (result,) = session.run(None, feed_for(session, probe_feed()))
    assert np.array_equal(result, probe_feed()["input"])


def test_spread_is_the_largest_change_between_states() -> None:
    rng, history = np.random.default_rng(5), History()
    times, probe = draw(rng, "ffffffffffff")
    history.add(probe, {"quant_2": times.log_ratios})
    assert history.spread() is None
    times, probe = draw(rng, "ssssssssssss")
    history.add(probe, {"quant_2": times.log_ratios, "new": times.log_ratios})
    spread = history.spread()
    assert spread is not None
    assert math.isclose(spread, FAST - SLOW, abs_tol=0.03)
