"""Models that take turns: what is timed, when it stops, and what a busy machine does to it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from quantlib.measuring.latency.interleaved import (
    Turn,
    TurnOptions,
    paired_times,
    take_turns_until_precise,
)
from quantlib.measuring.latency.paired import Timed
from quantlib.support.errors import InputError


class Machine:
    """Starts fakes, whose runs take as long as `time_ms(turn)`; others use `shares[turn]` of it."""

    def __init__(self, shares: Callable[[int], float] = lambda _: 0.0) -> None:
        self.turn, self.seconds, self.shares = -1, 0.0, shares
        self.asked: list[tuple[str, int, int]] = []
        self.launched: list[tuple[str, ...]] = []

    def start(self, name: str, time_ms: Callable[[int], float]) -> Any:
        machine = self

        class Fake:
            def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = 0.0) -> list[float]:
                machine.asked.append((name, runs, warmup_runs))
                machine.seconds += 1
                return [time_ms(machine.turn)] * runs

        @contextlib.contextmanager
        def started() -> Iterator[Timed]:
            machine.launched[-1:] = [(*machine.launched[-1], name)] if machine.launched else [(name,)]
            yield Fake()

        return started

    def watch(self, _: Any) -> Callable[[], float]:
        self.turn += 1
        return lambda: self.shares(self.turn)

    def run(
        self, times_ms: Mapping[str, Callable[[int], float]], options: TurnOptions, **more: Any
    ) -> list[Turn]:
        starts = {name: self.start(name, time_ms) for name, time_ms in times_ms.items()}
        return take_turns_until_precise(
            next(iter(starts)), starts, options, watch=self.watch, clock=lambda: self.seconds, **more
        )


QUIET: dict[str, Callable[[int], float]] = {"teacher": lambda _: 10.0, "a": lambda _: 5.0, "b": lambda _: 2.0}


def test_thirty_runs_are_spread_over_the_turns_of_two_launches() -> None:
    machine, options = Machine(), TurnOptions()
    turns = machine.run(QUIET, options)
    assert [turn.place for turn in turns] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [name for name, _, _ in machine.asked[:6]] == ["teacher", "a", "b", "b", "a", "teacher"]
    assert [name for name, _, _ in machine.asked[9:12]] == ["b", "a", "teacher"], "the other first, next time"
    assert {runs for _, runs, _ in machine.asked} == {5}
    assert [warm for name, _, warm in machine.asked if name == "a"] == [5, 0, 0, 5, 0, 0]
    times = paired_times("b", "teacher", turns, options)
    assert len(times.latency.times_ms) == 30
    assert times.launches == ((math.log(5),) * 3,) * 2
    assert (times.others, times.disturbed) == (0.0, False)


def test_what_is_wide_goes_on_beside_the_reference_until_the_budget_is_spent() -> None:
    noisy_ms: Callable[[int], float] = lambda turn: 5.0 if turn % 2 else 10.0  # noqa: E731
    machine, options = Machine(), TurnOptions(seconds=40)
    turns = machine.run(QUIET | {"a": noisy_ms}, options)
    assert {tuple(turn.times_ms) for turn in turns if turn.place[0] > 1} <= {
        ("teacher", "a"),
        ("a", "teacher"),
    }
    assert 40 <= machine.seconds <= 40 + 2 * 3, "a launch that was begun is ended"
    narrow = Machine()
    assert {turn.place[0] for turn in narrow.run(QUIET, options)} == {0, 1}


def test_disturbed_turns_are_repeated_and_do_not_count() -> None:
    def load(turn: int) -> float:
        return 0.5 if turn in (1, 2, 5) else 0.01

    def slowed(turn: int) -> float:
        return 20.0 if turn in (1, 2, 5) else 5.0

    machine, options = Machine(load), TurnOptions(seconds=1000)
    turns = machine.run(QUIET | {"a": slowed}, options)
    assert len(turns) == 9, "three of them were disturbed"
    times = paired_times("a", "teacher", turns, options)
    assert set(times.log_ratios.values()) == {math.log(2)}
    assert times.latency.max_ms == 5.0, "the times that are shown are those of quiet turns too"
    assert (times.others, times.disturbed) == (0.01, False)


def test_a_machine_that_is_never_quiet_is_said_to_be_disturbed() -> None:
    machine, options = Machine(lambda _: 0.4), TurnOptions(seconds=60)
    turns = machine.run(QUIET, options)
    times = paired_times("a", "teacher", turns, options)
    assert times.disturbed
    assert times.others == 0.4
    assert machine.seconds < 60 + 10


def test_what_is_beside_takes_every_turn_and_is_compared_with_nothing() -> None:
    noisy_ms: Callable[[int], float] = lambda turn: 5.0 if turn % 2 else 10.0  # noqa: E731
    machine = Machine()
    turns = machine.run(QUIET | {"a": noisy_ms, "probe": noisy_ms}, TurnOptions(seconds=60), beside=["probe"])
    assert all("probe" in turn.times_ms for turn in turns)
    assert any("b" not in turn.times_ms for turn in turns)


def test_the_processes_of_the_first_launches_are_lent() -> None:
    lent: list[set[str]] = []
    Machine().run(QUIET, TurnOptions(), then=lambda processes: lent.append(set(processes)))
    assert lent == [set(QUIET)] * 2


@pytest.mark.parametrize(
    "wrong",
    [{"runs": 1}, {"launches": 1}, {"turns": 0}, {"warmup_runs": -1}, {"seconds": -1}, {"max_others": 2}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        TurnOptions(**wrong)


def test_the_reference_takes_part() -> None:
    with pytest.raises(ValueError, match="no model 'x'"):
        take_turns_until_precise("x", {}, TurnOptions())
