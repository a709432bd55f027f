"""Ratios against the teacher over several launches of the processes, until they are precise enough.

What a process gets when it starts (memory layout, cores) moves its times for as long as it lives. Turns of
one launch cannot show that; new launches can. Launches during which other programs used the machine are
discarded: other programs slow models unequally, so that even the ratio is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np

from quantlib.measuring.latency.others import MAX_OTHERS, Watch, watch_others
from quantlib.measuring.latency.paired import FloatArray, Timed, take_turns
from quantlib.measuring.latency.stats import Clock
from quantlib.support.errors import InputError

Start = Callable[[], AbstractContextManager[Timed]]
"""Starts the process of one model and ends it on exit."""


@dataclass(frozen=True)
class Sampling:
    """How much to measure.

    turns: in a launch. block: runs in a block, whose median counts. min_launches: before anything may be
    decided. max_launches: when to give up. seconds: after which no further launch starts.
    wake_seconds: untimed work before each block. max_others: the share of the machine's cores that other
    programs may use during a launch that counts.
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

    log_ratios: for each launch, the log of (teacher's time / variant's time) of each turn.
    teacher_ms, variant_ms: medians of all blocks. others: the share of the machine that other programs used,
    the median over these launches. disturbed: whether that is more than allowed, since no launch was
    undisturbed.
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
        spent = clock() - started > sampling.seconds
        if spent and (quiet >= sampling.min_launches or number >= sampling.max_launches):
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
        quiet += others <= sampling.max_others
        if quiet >= sampling.min_launches:
            open_names = [n for n in open_names if not decided(n, _summary(launches[n], sampling))]
    return {name: _summary(of_variant, sampling) for name, of_variant in launches.items()}


@dataclass(frozen=True)
class _Launch:
    teacher_ms: FloatArray
    variant_ms: FloatArray
    others: float


def _one_launch(starts: Sequence[Start], sampling: Sampling, watch: Watch) -> tuple[FloatArray, float]:
    with ExitStack() as stack, ThreadPoolExecutor(len(starts)) as pool:
        # In parallel: loading a model keeps only one core busy.
        processes = list(pool.map(lambda start: stack.enter_context(start()), starts))
        others = watch(processes)
        times = take_turns(processes, sampling.turns, sampling.block, wake_seconds=sampling.wake_seconds)
        return times, others()


def _summary(launches: Sequence[_Launch], sampling: Sampling) -> Launches:
    """The undisturbed launches, or all of them if none is undisturbed."""
    quiet = [launch for launch in launches if launch.others <= sampling.max_others] or launches
    others = float(np.median([launch.others for launch in quiet]))
    return Launches(
        log_ratios=tuple(tuple(np.log(launch.teacher_ms / launch.variant_ms).tolist()) for launch in quiet),
        teacher_ms=float(np.median([launch.teacher_ms for launch in quiet])),
        variant_ms=float(np.median([launch.variant_ms for launch in quiet])),
        others=others,
        disturbed=others > sampling.max_others,
    )
