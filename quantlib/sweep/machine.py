"""Who may use this machine: many jobs at once, or one that measures latency, alone.

The locks are files in the system's temporary directory, so that they hold for all sweeps of this user on the
machine. A lock of a killed process is free.
"""

from __future__ import annotations

import getpass
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.support.files import make_dir, place_errors
from quantlib.support.locks import acquire, file_lock, release_lock
from quantlib.support.scratch import hold_lock, locks

_POLL_SECONDS = 0.05


def lock_directory() -> Path:
    """Where the locks of this machine are."""
    return Path(tempfile.gettempdir()) / f"bert-quantlib-{getpass.getuser()}"


@contextmanager
def shared(directory: Path | None = None) -> Iterator[None]:
    """Use the machine beside others; waits while one measures latency, or is about to."""
    place = make_dir(directory or lock_directory())
    with _latency_lock(place):
        lock = hold_lock(place)
    try:
        yield
    finally:
        release_lock(lock)


@contextmanager
def alone(directory: Path | None = None, sleep: Callable[[float], object] = time.sleep) -> Iterator[None]:
    """Use the machine alone: waits until those that use it are done, and holds back those that come."""
    place = make_dir(directory or lock_directory())
    with _latency_lock(place):
        while _in_use(place):
            sleep(_POLL_SECONDS)
        yield


@contextmanager
def _latency_lock(place: Path) -> Iterator[None]:
    """Held by whoever begins to use the machine for a moment, and by who uses it alone, to the end."""
    lock = file_lock(place / "latency.lock")
    with place_errors(place):
        acquire(lock)
    try:
        yield
    finally:
        release_lock(lock)


def _in_use(place: Path) -> bool:
    in_use = False
    for _, lock in locks(place):
        if lock is None:
            in_use = True
        else:
            release_lock(lock)
    return in_use
