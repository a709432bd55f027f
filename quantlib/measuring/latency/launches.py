"""Ratios against the teacher over several launches of the processes, until they are precise enough.

What a process gets when it starts (memory layout, cores) moves its times for as long as it lives. Turns of
one launch cannot show that; new launches can. Turns during which other programs used the machine are
discarded: other programs slow models unequally, so that even the ratio is wrong. A launch goes on for more
turns then, since what disturbs often comes and goes, and starting processes takes longer than a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantlib.measuring.latency.others import MAX_OTHERS, Watch, watch_others
from quantlib.measuring.latency.paired import FloatArray, Start, launched, take_turns
from quantlib.measuring.latency.stats import Clock
from quantlib.support.errors import InputError

MOST_TURNS = 3
"""A launch on a busy machine takes at most so many times as many turns as it needs."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sampling:
    """How much to measure.

    turns: undisturbed ones in a launch; it gives up after `MOST_TURNS` times as many. block: runs in a block,
    whose median counts. min_launches: before anything may be decided. max_launches: when to give up.
    seconds: after which no further launch starts; twice as many where too few launches count.
    wake_seconds: untimed work before each block. max_others: the share of the machine's cores that other
    programs may use during a turn that counts.
    """

    turns: int = 6
    block: int = 8
    min_launches: int = 3
    max_launches: int = 12
    seconds: float = 60.0
    wake_seconds: float = 0.05
    max_others: float = MAX_OTHERS

    def __post_init__(self) -> None:
        if min(self.turns, self.block, self.min_launches) < 1 or self.max_launches < self.min_launches:
            raise InputError(
                "turns, block and launches must be at least 1, max_launches at least min_launches"
            )
        if not 0 <= self.max_others <= 1:
            raise InputError(f"a share of {self.max_others} that others may use is none; it must be 0 to 1")
        if self.seconds <= 0:
            raise InputError(f"a time budget of {self.seconds} s is none; it must be positive")


@dataclass(frozen=True)
class Launches:
    """The times of one variant and of the teacher in the same launches.

    log_ratios: for each launch, the log of (teacher's time / variant's time) of each undisturbed turn.
    teacher_ms, variant_ms: medians of all blocks. others: the share of the machine that other programs used,
    the median over these turns. disturbed: whether these are all turns, since no launch had undisturbed ones.
    """

    log_ratios: tuple[tuple[float, ...], ...]
    teacher_ms: float
    variant_ms: float
    others: float
    disturbed: bool


def sample_ratios(
    teacher: Start,
    variants: Mapping[str, Start],
    sampling: Sampling,
    decided: Callable[[str, Launches], bool],
    *,
    progress: Callable[[str], None] | None = None,
    watch: Watch = watch_others,
    clock: Clock = time.perf_counter,
) -> dict[str, Launches]:
    """Let the teacher and the variants take turns, launch after launch.

    After `min_launches`, variants for which `decided(name, launches so far)` is true are left out of further
    launches; the others continue until the budget is spent.

    Args:
        teacher: starts the teacher's process.
        variants: starts each variant's process, by name; at least one.
        sampling: how much to measure.
        decided: whether a variant needs no further launches.
        progress: called before each launch with a line to show.
        watch: tells how much of the machine other programs use.
        clock: in seconds.

    Raises:
        ValueError: there is no variant.
    """
    if not variants:
        raise ValueError("no variant to compare with the teacher")
    started = clock()
    launches: dict[str, list[_Launch]] = {name: [] for name in variants}
    open_names, quiet, number = list(variants), 0, 0
    while open_names and quiet < sampling.max_launches:
        if _is_spent(clock() - started, quiet, number, sampling):
            break
        number += 1
        if progress:
            progress(f"launch {number}: {', '.join(open_names)}")
        starts = [teacher, *(variants[name] for name in open_names)]
        # Alternate who starts first, so that no model always gets the better place.
        times, others = _one_launch(starts if number % 2 else starts[::-1], sampling, watch)
        times = times if number % 2 else times[::-1]
        for name, row in zip(open_names, times[1:], strict=True):
            launches[name].append(_Launch(times[0], row, others))
        quiet += _is_quiet(others, sampling)
        if quiet >= sampling.min_launches:
            open_names = [n for n in open_names if not decided(n, _summary(launches[n], sampling))]
    return {name: _summary(of_variant, sampling) for name, of_variant in launches.items()}


def _is_spent(seconds: float, quiet: int, number: int, sampling: Sampling) -> bool:
    """Whether no further launch should start: a machine that is not quiet gets twice the time."""
    if seconds <= sampling.seconds:
        return False
    if quiet >= sampling.min_launches or number >= sampling.max_launches:
        return True
    return seconds > 2 * sampling.seconds and number >= sampling.min_launches


@dataclass(frozen=True)
class _Launch:
    """What one launch measured; all (turns,). others: the share that other programs used in each turn."""

    teacher_ms: FloatArray
    variant_ms: FloatArray
    others: FloatArray

    def of(self, turns: BoolArray) -> _Launch:
        """These turns only."""
        return _Launch(self.teacher_ms[turns], self.variant_ms[turns], self.others[turns])


def _one_launch(starts: Sequence[Start], sampling: Sampling, watch: Watch) -> tuple[FloatArray, FloatArray]:
    """The block times of each process, (processes, turns), and what others used in each turn."""
    with launched(starts) as processes:
        times: list[FloatArray] = []
        others: list[float] = []
        while len(times) < MOST_TURNS * sampling.turns:
            step = 1 if len(times) % 2 == 0 else -1  # A B C, C B A, ...: steady drift favours nobody
            share = watch(processes)
            turn = take_turns(processes[::step], 1, sampling.block, wake_seconds=sampling.wake_seconds)
            others.append(share())
            times.append(turn[::step, 0])
            if np.sum(np.array(others) <= sampling.max_others) == sampling.turns:
                break
        return np.stack(times, axis=1), np.array(others)


def _is_quiet(others: FloatArray, sampling: Sampling) -> bool:
    """Whether a launch has undisturbed turns enough to count; their spread takes two."""
    return int(np.sum(others <= sampling.max_others)) >= min(2, sampling.turns)


def _summary(launches: Sequence[_Launch], sampling: Sampling) -> Launches:
    """The undisturbed turns of launches that have some, or everything if none has."""
    quiet = [
        launch.of(launch.others <= sampling.max_others)
        for launch in launches
        if _is_quiet(launch.others, sampling)
    ]
    used = quiet or launches
    return Launches(
        log_ratios=tuple(tuple(np.log(launch.teacher_ms / launch.variant_ms).tolist()) for launch in used),
        teacher_ms=float(np.median(np.concatenate([launch.teacher_ms for launch in used]))),
        variant_ms=float(np.median(np.concatenate([launch.variant_ms for launch in used]))),
        others=float(np.median(np.concatenate([launch.others for launch in used]))),
        disturbed=not quiet,
    )
