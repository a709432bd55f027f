"""How much of the machine other programs use during a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

MAX_OTHERS = 0.1
"""Above this share of the machine's cores, times of a model on all cores are not its own."""

Watch = Callable[[Sequence[Any]], Callable[[], float]]
"""Given the processes that are measured, starts watching; what it returns gives the share so far."""


def watch_others(processes: Sequence[Any]) -> Callable[[], float]:
    """Watch the time that other programs, or a hypervisor, take from this machine's cores.

    The busy time of all cores, minus that of `processes` and of this process, as a share of the time of all
    cores; 0.5 is one of two cores. A process without a `pid` (a fake in a test) is not counted.
    """
    pids = [process.pid for process in processes if hasattr(process, "pid")]
    busy, ours, started = _busy_seconds(), _our_seconds(pids), time.monotonic()

    def share() -> float:
        wall = (time.monotonic() - started) * (os.cpu_count() or 1)
        used = _busy_seconds() - busy - (_our_seconds(pids) - ours)
        # Clocks tick in hundredths of a second: in less, more may seem used than there is.
        return min(1.0, max(0.0, used / wall)) if wall > 0 else 0.0

    return share


def _busy_seconds() -> float:
    import psutil

    times = psutil.cpu_times()._asdict()
    # Linux counts guests' time in user time too.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(value for name, value in times.items() if name not in idle))


def _our_seconds(pids: Sequence[int]) -> float:
    import psutil

    cpu_times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), *pids)]
    return float(sum(times.user + times.system for times in cpu_times))
