"""Times of several models that take turns, launch after launch, until their ratios are precise enough.

Milliseconds of two moments do not compare: the machine changes its speed, and other programs come and go.
So every model has a block of runs in each turn, beside the reference's, and a turn in which other programs
used too much of the machine is repeated. New launches show what a process gets when it starts.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quantlib.measuring.latency.estimate import LogRatio, estimate_log_ratio
from quantlib.measuring.latency.others import MAX_OTHERS, Watch, watch_others
from quantlib.measuring.latency.paired import Start, Timed, launched
from quantlib.measuring.latency.stats import NUM_RUNS, WARMUP_RUNS, Clock, LatencyStats
from quantlib.support.errors import InputError

Place = tuple[int, int]
"""The number of a launch, and of a turn in it."""


@dataclass(frozen=True)
class TurnOptions:
    """How much is timed.

    runs, warmup_runs: of each model; the runs are spread over the turns. launches, turns: at least so many
    launches, and undisturbed turns in each. seconds: after which nothing further starts, but for these.
    precision: the half width of a 95 % interval, as a fraction, at which a model needs no further launch.
    max_others: the share of the machine that other programs may use in a turn that counts. wake_seconds:
    untimed work before each block.
    """

    runs: int = NUM_RUNS
    warmup_runs: int = WARMUP_RUNS
    launches: int = 2
    turns: int = 3
    seconds: float = 60.0
    precision: float = 0.05
    max_others: float = MAX_OTHERS
    wake_seconds: float = 0.05

    def __post_init__(self) -> None:
        if min(self.runs, self.launches) < 2 or self.turns < 1 or self.warmup_runs < 0:
            raise InputError(
                "at least 2 runs, 2 launches and 1 turn are needed, and no fewer than 0 warm-ups"
            )
        if not (self.seconds >= 0 and self.precision > 0 and 0 <= self.max_others <= 1):
            raise InputError("seconds and precision must not be negative, max_others must be 0 to 1")

    @property
    def block(self) -> int:
        """The runs of a block."""
        return -(-self.runs // (self.launches * self.turns))


@dataclass(frozen=True)
class Turn:
    """One turn of all models that took part in it.

    place: its launch and number. others: the share of the machine that other programs used. times_ms: the
    runs of each model's block, in ms, by name.
    """

    place: Place
    others: float
    times_ms: Mapping[str, tuple[float, ...]]

    def log_ratio(self, reference: str, name: str) -> float:
        """The log of the reference's median over the model's."""
        return math.log(np.median(self.times_ms[reference]) / np.median(self.times_ms[name]))


@dataclass(frozen=True)
class PairedTimes:
    """A model's times, and its ratios to the reference in the same turns.

    latency: `runs` runs, of the turns in which other programs used the least. log_ratios: the log of the
    reference's median over the model's, in each turn that counts. others: the share of the machine that other
    programs used, the median over these turns. disturbed: too few turns were undisturbed, so all count.
    """

    latency: LatencyStats
    log_ratios: Mapping[Place, float]
    others: float
    disturbed: bool
    launches: tuple[tuple[float, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "launches", by_launch(self.log_ratios))

    def estimate(self) -> LogRatio:
        """The log of the reference's time over the model's."""
        return estimate_log_ratio(self.launches)


def by_launch(log_ratios: Mapping[Place, float]) -> tuple[tuple[float, ...], ...]:
    """The log ratios of each launch, in order."""
    groups = itertools.groupby(sorted(log_ratios), key=lambda place: place[0])
    return tuple(tuple(log_ratios[place] for place in places) for _, places in groups)


def take_turns_until_precise(
    reference: str,
    starts: Mapping[str, Start],
    options: TurnOptions,
    *,
    beside: Collection[str] = (),
    then: Callable[[Mapping[str, Timed]], None] | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Watch = watch_others,
    clock: Clock = time.perf_counter,
) -> list[Turn]:
    """Let all models take turns, then those whose interval is too wide again, beside the reference.

    Args:
        reference: the name of the model that every other one is compared with.
        starts: starts each model's process, by name, the reference's among them.
        options: how much is timed.
        beside: names that take part in every launch, as the reference does, but are compared with nothing.
        then: called at the end of each of the first `options.launches` launches with the processes.
        progress: called after each turn with 1.
        watch: tells how much of the machine other programs use.
        clock: in seconds.

    Raises:
        ValueError: the reference is not among the models.
    """
    if reference not in starts:
        raise ValueError(f"no model {reference!r} to compare with")
    turns: list[Turn] = []
    began, names = clock(), list(starts)
    for launch in itertools.count():
        # The first launches share the time that is left, so that a busy one leaves some for the next.
        share = min(1.0, (launch + 1) / options.launches)
        with launched([starts[name] for name in names]) as started:
            processes = dict(zip(names, started, strict=True))
            # Who goes first alternates from launch to launch too: an odd number of turns is no favour then.
            for turn in _turns(processes, launch, options, watch, lambda: clock() - began, share):
                turns.append(turn)
                if progress is not None:
                    progress(1)
            if then is not None and launch < options.launches:
                then(processes)
        if launch + 1 >= options.launches:
            stay = {reference, *beside}
            wide = {name for name in starts if name not in stay and _is_wide(name, reference, turns, options)}
            if not wide or clock() - began >= options.seconds:
                return turns
            names = [name for name in starts if name in stay | wide]
    raise AssertionError("unreachable: the launches are counted without end")


def _turns(
    processes: Mapping[str, Timed],
    launch: int,
    options: TurnOptions,
    watch: Watch,
    elapsed: Callable[[], float],
    share: float,
) -> Iterator[Turn]:
    """The turns of a launch: as many undisturbed ones as are wanted, if the time for them is there."""
    undisturbed = 0
    for number in itertools.count():
        if number >= options.turns and (undisturbed >= options.turns or elapsed() >= share * options.seconds):
            return
        others = watch(list(processes.values()))
        forward = (launch + number) % 2 == 0
        times_ms = {
            name: tuple(
                processes[name].time(
                    options.block,
                    warmup_runs=0 if number else options.warmup_runs,
                    wake_seconds=options.wake_seconds,
                )
            )
            for name in (list(processes) if forward else reversed(list(processes)))
        }
        turn = Turn((launch, number), others(), times_ms)
        undisturbed += turn.others <= options.max_others
        yield turn


def _is_wide(name: str, reference: str, turns: Sequence[Turn], options: TurnOptions) -> bool:
    times = paired_times(name, reference, turns, options)
    return times.disturbed or half_width(times.estimate()) > options.precision


def half_width(estimate: LogRatio, confidence: float = 0.95) -> float:
    """Half of the width of the ratio's interval, as a fraction of the ratio."""
    return math.expm1(estimate.quantile((1 + confidence) / 2) - estimate.center)


def paired_times(name: str, reference: str, turns: Sequence[Turn], options: TurnOptions) -> PairedTimes:
    """What the turns say of one model.

    Raises:
        ValueError: it took part in fewer than two turns.
    """
    taken = [turn for turn in turns if name in turn.times_ms]
    undisturbed = [turn for turn in taken if turn.others <= options.max_others]
    enough = len(undisturbed) >= max(2, options.turns)
    counted = undisturbed if enough else taken
    return PairedTimes(
        latency=LatencyStats(_least_disturbed(name, taken, options.runs), options.warmup_runs),
        log_ratios={turn.place: turn.log_ratio(reference, name) for turn in counted},
        others=float(np.median([turn.others for turn in counted])),
        disturbed=not enough,
    )


def _least_disturbed(name: str, turns: Sequence[Turn], runs: int) -> tuple[float, ...]:
    """The times of `runs` runs in their order, from the turns in which other programs used the least."""
    chosen: list[Turn] = []
    for turn in sorted(turns, key=lambda turn: (turn.others, turn.place)):
        if sum(len(each.times_ms[name]) for each in chosen) >= runs:
            break
        chosen.append(turn)
    times = [time for turn in sorted(chosen, key=lambda turn: turn.place) for time in turn.times_ms[name]]
    return tuple(times[:runs])
