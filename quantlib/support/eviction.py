"""The size of a cache on the disk, and which entries are removed when it is too large.

The least recently used entries are removed first. An entry that a living run used stays: each run holds a
lock in the cache from its start to the end of its process, and entries used since the oldest one began stay.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.support.files import RECORD
from quantlib.support.locks import left_behind, locked, release_lock
from quantlib.support.scratch import PREFIX, hold_lock, locks, remove_stale

if TYPE_CHECKING:
    from filelock import BaseFileLock

_run_locks: dict[Path, BaseFileLock] = {}  # held until this process ends
_used_here: set[Path] = set()  # entries that this process has used


@dataclass(frozen=True)
class Stored:
    """An entry on the disk, finished or not. used: when it was last used, in seconds since 1970."""

    path: Path
    size_bytes: int
    used: float


def begin_run(root: Path) -> None:
    """Mark the start of this process's run, and remove what killed processes left: directories and locks."""
    for directory in (root, *root.glob("*/"), *root.glob("*/*.unfinished/")):
        remove_stale(directory)
    for file in root.glob("*/*.lock"):
        lock = None if file.name.startswith(PREFIX) else left_behind(file)
        if lock is not None:
            release_lock(lock)
    if _began_ns(root) is None:
        if root in _run_locks:  # which the cache took along when it was removed
            release_lock(_run_locks[root])
        _run_locks[root] = hold_lock(root)
        atexit.register(release_lock, _run_locks[root])


def mark_used(entry: Path, clock: Callable[[], float] = time.time) -> None:
    """Note that an entry is used now.

    Never before this process's run began: a clock that is set back must not make what the run uses look old.
    """
    _used_here.add(entry.absolute())
    # In nanoseconds: a float that is written and read again may be a little less.
    used_ns = max(int(clock() * 1e9), _began_ns(entry.absolute().parent.parent) or 0)
    path = entry / RECORD
    try:
        os.utime(path, ns=(used_ns, used_ns))
    except FileNotFoundError as error:  # os.utime does not name the file
        raise FileNotFoundError(error.errno, error.strerror, str(path)) from error


def _began_ns(root: Path) -> int | None:
    """When this process's run began, as its lock in the cache says; None if there is no such lock."""
    try:
        return Path(_run_locks[root].lock_file).stat().st_mtime_ns if root in _run_locks else None
    except FileNotFoundError:
        return None


def lock_of(path: Path) -> Path:
    """The lock file that is held while an entry is built or removed."""
    return path.with_suffix(".lock")


def stored(root: Path) -> list[Stored]:
    """All entries, the least recently used first."""
    entries = []
    for path in root.glob("*/*"):
        if path.suffix != ".lock" and not path.name.startswith(PREFIX):
            with suppress(FileNotFoundError):  # another process removes it
                stats = [file.stat() for file in (path, *path.rglob("*"))]
                entries.append(Stored(path, sum(stat.st_size for stat in stats), _used(path)))
    return sorted(entries, key=lambda entry: (entry.used, entry.path))


def shrink(root: Path, limit_bytes: float) -> int:
    """Remove entries until at most `limit_bytes` are left; 0 clears the cache. Returns the bytes freed.

    Entries that are being built, or that a living run used, are left; so more than the limit may stay.
    """
    entries = stored(root)
    size = before = sum(entry.size_bytes for entry in entries)
    free = _free(root)
    for entry in entries:
        if size > limit_bytes and free(entry) and _remove(entry):
            size -= entry.size_bytes
    return before - size


def _free(root: Path) -> Callable[[Stored], bool]:
    """Whether no living run used an entry.

    One that was used in the future, by a clock that has been set back since, counts as used by any other run.
    """
    began = _living_runs(root)
    own = _run_locks.get(root.absolute())
    others = [file for file in began if own is None or file.absolute() != Path(own.lock_file).absolute()]
    oldest, now = min(began.values(), default=math.inf), time.time()
    return lambda entry: (
        entry.used < oldest or (not others and entry.used > now and entry.path.absolute() not in _used_here)
    )


def _used(path: Path) -> float:
    record = path / RECORD
    files = [record] if record.is_file() else [path, *path.rglob("*")]
    return max(file.stat().st_mtime for file in files)


def _living_runs(root: Path) -> dict[Path, float]:
    """The locks of living runs, and when each began, in seconds since 1970."""
    began = {}
    for file, lock in locks(root):
        if lock is not None:
            release_lock(lock)
        else:
            with suppress(FileNotFoundError):
                began[file] = file.stat().st_mtime
    return began


def _remove(entry: Stored) -> bool:
    """Remove an entry, unless it is being built or has been used since; whether it was removed."""
    from filelock import Timeout

    try:
        with locked(lock_of(entry.path), timeout=0):
            if _used(entry.path) > entry.used:
                return False
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink()
    except (Timeout, OSError):
        return False  # another process has it
    return True
