"""Ratios over launches: what is sampled, when it stops, and what a busy machine does to it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from quantlib.measuring.latency import Launches, Sampling, sample_ratios
from quantlib.measuring.latency.launches import MOST_TURNS
from quantlib.measuring.latency.others import watch_others
from quantlib.support.errors import InputError


class Fake:
    """A process whose runs all take the same time."""

    def __init__(self, time_ms: float) -> None:
        self.time_ms = time_ms

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = 0.0) -> list[float]:
        return [self.time_ms] * runs


class Starts:
    """Counts the launches of one fake."""

    def __init__(self, time_ms: float) -> None:
        self.time_ms, self.launches = time_ms, 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Fake]:
        self.launches += 1
        yield Fake(self.time_ms)


def quiet(_: Any) -> Callable[[], float]:
    return lambda: 0.0


def shares(*values: float) -> Callable[[Any], Callable[[], float]]:
    """Other programs use these shares, launch after launch, and the last one from then on."""
    left = list(values)
    return lambda _: lambda: left.pop(0) if len(left) > 1 else left[0]


def never(*_: Any) -> bool:
    return False


def always(*_: Any) -> bool:
    return True


def test_ratios_are_the_teacher_over_the_variant():
    samples = sample_ratios(
        Starts(10.0), {"a": Starts(5.0), "b": Starts(20.0)}, Sampling(turns=4), always, watch=quiet
    )
    assert np.allclose(samples["a"].log_ratios, math.log(2))
    assert np.allclose(samples["b"].log_ratios, -math.log(2))
    assert [len(launch) for launch in samples["a"].log_ratios] == [4, 4, 4]
    assert (samples["a"].teacher_ms, samples["a"].variant_ms) == (10.0, 5.0)


def test_what_is_decided_is_not_launched_again():
    slow, fast = Starts(5.0), Starts(2.0)
    sampling = Sampling(min_launches=2, max_launches=5)
    samples = sample_ratios(
        Starts(10.0), {"slow": slow, "fast": fast}, sampling, lambda name, _: name == "fast", watch=quiet
    )
    assert (slow.launches, fast.launches) == (5, 2)
    assert len(samples["slow"].log_ratios) == 5


def test_budget_ends_the_sampling_but_not_before_the_least_launches():
    times_s = iter(np.arange(0, 1000, 7.0))
    start = Starts(5.0)
    sampling = Sampling(min_launches=2, max_launches=50, seconds=20.0)
    sample_ratios(Starts(1.0), {"a": start}, sampling, never, watch=quiet, clock=lambda: float(next(times_s)))
    assert start.launches == 2


def test_disturbed_turns_are_set_aside_and_made_up_for():
    start = Starts(5.0)
    sampling = Sampling(turns=3, min_launches=2, max_launches=3, max_others=0.1)
    samples = sample_ratios(Starts(1.0), {"a": start}, sampling, never, watch=shares(0.5, 0.0, 0.4, 0.05))
    assert start.launches == 3
    assert [len(launch) for launch in samples["a"].log_ratios] == [3, 3, 3]
    assert not samples["a"].disturbed
    assert samples["a"].others == pytest.approx(0.05)


def test_a_launch_without_a_quiet_turn_does_not_count():
    start = Starts(5.0)
    sampling = Sampling(turns=2, min_launches=2, max_launches=2, max_others=0.1)
    busy = [0.5] * 2 * MOST_TURNS
    samples = sample_ratios(Starts(1.0), {"a": start}, sampling, never, watch=shares(*busy, 0.0))
    assert start.launches == 3
    assert [len(launch) for launch in samples["a"].log_ratios] == [2, 2]


def test_times_belong_to_their_models_whoever_starts_and_begins():
    samples = sample_ratios(
        Starts(8.0), {"a": Starts(4.0), "b": Starts(2.0)}, Sampling(turns=3), always, watch=quiet
    )
    assert np.allclose(samples["a"].log_ratios, math.log(2))
    assert np.allclose(samples["b"].log_ratios, math.log(4))


def test_a_machine_that_is_never_quiet_is_told():
    times_s = iter(np.arange(0, 1000, 10.0))
    samples = sample_ratios(
        Starts(1.0),
        {"a": Starts(5.0)},
        Sampling(min_launches=2, max_launches=4, seconds=15.0),
        always,
        watch=shares(0.6),
        clock=lambda: float(next(times_s)),
    )
    assert samples["a"].disturbed
    assert samples["a"].others == pytest.approx(0.6)


def test_a_machine_that_is_never_quiet_gets_twice_the_time():
    start, times_s = Starts(5.0), iter(np.arange(0, 1000, 10.0))
    sample_ratios(
        Starts(1.0),
        {"a": start},
        Sampling(min_launches=2, max_launches=50, seconds=25.0),
        always,
        watch=shares(0.6),
        clock=lambda: float(next(times_s)),
    )
    # The clock says 0 at the start, then 10, 20, ...: 50 is not yet more than twice 25.
    assert start.launches == 5


def test_others_are_none_while_only_we_work():
    share = watch_others([])
    total = sum(i * i for i in range(200_000))
    assert total > 0
    assert 0 <= share() <= 1


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no variant"):
        sample_ratios(Starts(1.0), {}, Sampling(), always, watch=quiet)


@pytest.mark.parametrize(
    "options",
    [{"turns": 0}, {"min_launches": 4, "max_launches": 3}, {"seconds": 0.0}, {"max_others": 1.5}],
)
def test_sampling_is_checked_when_built(options):
    with pytest.raises(InputError):
        Sampling(**options)


def test_launches_are_values():
    assert Launches(((0.1, 0.2),), 2.0, 1.0, 0.0, False) == Launches(((0.1, 0.2),), 2.0, 1.0, 0.0, False)
