"""Ratios against the teacher over several launches of the processes, until they are precise enough.

What a process happens to get when it starts (memory layout, cores) moves its times for as long as it lives.
Turns of one launch cannot show that; launching anew can.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np

from quantlib.errors import InputError
from quantlib.latency.paired import FloatArray, Timed, take_turns
from quantlib.latency.stats import Clock

Start = Callable[[], AbstractContextManager[Timed]]
"""Starts the process of one model and ends it on exit."""


@dataclass(frozen=True)
class Sampling:
    """How much is measured.

    turns: turns in a launch. block: runs in a block, its median counts. min_launches: before anything may
    be called decided. max_launches: when to give up. seconds: after which no further launch starts.
    wake_seconds: untimed work before each block.
    """

    turns: int = 6
    block: int = 8
    min_launches: int = 3
    max_launches: int = 12
    seconds: float = 60.0
    wake_seconds: float = 0.05

    def __post_init__(self) -> None:
        if min(self.turns, self.block, self.min_launches) < 1 or self.max_launches < self.min_launches:
            raise InputError(
                "turns, block and launches must be at least 1, max_launches at least min_launches"
            )
        if self.seconds <= 0:
            raise InputError(f"a time budget of {self.seconds} s is none; it must be positive")


@dataclass(frozen=True)
class Launches:
    """The times of one variant and of the teacher beside it.

    log_ratios: for each launch, the log of (teacher's time / variant's time) of each turn.
    teacher_ms, variant_ms: medians of all blocks.
    """

    log_ratios: tuple[tuple[float, ...], ...]
    teacher_ms: float
    variant_ms: float


def sample_ratios(
    teacher: Start,
    variants: Mapping[str, Start],
    sampling: Sampling,
    decided: Callable[[str, Launches], bool],
    *,
    progress: Callable[[str], None] | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Launches]:
    """Let the teacher and the variants take turns, launch after launch.

    After `min_launches` a variant for which `decided(name, launches so far)` holds is left out of further
    launches; the others go on until the budget is spent.

    Args:
        teacher: starts the teacher's process.
        variants: starts each variant's process, by name; at least one.
        sampling: how much is measured.
        decided: whether what was measured of a variant is enough.
        progress: called before each launch with a line to show.
        clock: in seconds.

    Raises:
        ValueError: there is no variant.
    """
    if not variants:
        raise ValueError("no variant to compare with the teacher")
    started = clock()
    blocks: dict[str, list[tuple[FloatArray, FloatArray]]] = {name: [] for name in variants}
    open_names = list(variants)
    for launch in range(1, sampling.max_launches + 1):
        if launch > sampling.min_launches and clock() - started > sampling.seconds:
            break
        if progress:
            progress(f"launch {launch}: {', '.join(open_names)}")
        starts = [teacher, *(variants[name] for name in open_names)]
        # Alternate who starts first, so that no model always gets the better place.
        times = _one_launch(starts if launch % 2 else starts[::-1], sampling)
        times = times if launch % 2 else times[::-1]
        for name, row in zip(open_names, times[1:], strict=True):
            blocks[name].append((times[0], row))
        if launch >= sampling.min_launches:
            open_names = [name for name in open_names if not decided(name, _summary(blocks[name]))]
            if not open_names:
                break
    return {name: _summary(found) for name, found in blocks.items()}


def _one_launch(starts: Sequence[Start], sampling: Sampling) -> FloatArray:
    with ExitStack() as stack, ThreadPoolExecutor(len(starts)) as pool:
        # Side by side: loading a model keeps one core busy, and waiting for it none.
        processes = list(pool.map(lambda start: stack.enter_context(start()), starts))
        return take_turns(processes, sampling.turns, sampling.block, wake_seconds=sampling.wake_seconds)


def _summary(blocks: Sequence[tuple[FloatArray, FloatArray]]) -> Launches:
    return Launches(
        log_ratios=tuple(tuple(np.log(t / v).tolist()) for t, v in blocks),
        teacher_ms=float(np.median([t for t, _ in blocks])),
        variant_ms=float(np.median([v for _, v in blocks])),
    )
