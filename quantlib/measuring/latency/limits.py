"""How long a timing process may take to answer, before it counts as hung and is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class TimeLimits:
    """Seconds that a timing process may take: far more than it needs on any machine that still works.

    answer_s: for an answer, besides the runs that it takes: loading a model, reading its feeds.
    first_run_s: for each run on feeds of which none was timed yet.
    slowdown: how many times as long as the slowest timed run of these feeds a later run may take.
    """

    answer_s: float = 600.0
    first_run_s: float = 60.0
    slowdown: float = 100.0

    def for_runs(self, runs: int, wake_seconds: float, slowest_ms: float | None) -> float:
        """Seconds for `runs` runs after waking; `slowest_ms` is the slowest run so far, None before any."""
        run_s = self.first_run_s if slowest_ms is None else self.slowdown * slowest_ms / 1e3
        return self.answer_s + wake_seconds + runs * run_s


@contextmanager
def at_most(seconds: float, kill: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `kill` if the block takes longer than `seconds`; the event that is yielded says if it was called.

    Reading a pipe cannot be given a time limit on every system, but ends when the process behind it is gone.
    """
    overdue = threading.Event()

    def end() -> None:
        overdue.set()
        kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True  # Ctrl-C may come before it can be cancelled, and a process waits for other threads
    try:
        timer.start()
        yield overdue
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
