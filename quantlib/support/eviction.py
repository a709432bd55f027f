"""The size of a cache on the disk, and which entries are removed when it is too large.

The least recently used entries are removed first. An entry that a living run used stays: each run holds a
lock in the cache from its start to the end of its process, and entries used since the oldest one began stay.
"""

from __future__ import annotations

import atexit
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.support.files import RECORD
from quantlib.support.scratch import PREFIX, hold_lock, locks, release_lock, remove_stale

if TYPE_CHECKING:
    from filelock import BaseFileLock

_run_locks: dict[Path, BaseFileLock] = {}  # held until this process ends


@dataclass(frozen=True)
class Stored:
    """An entry on the disk, finished or not. used: when it was last used, in seconds since 1970."""

    path: Path
    size_bytes: int
    used: float


def begin_run(root: Path) -> None:
    """Mark the start of this process's run, and remove temporary directories of killed processes."""
    for directory in (root, *root.glob("*/"), *root.glob("*/*.unfinished/")):
        remove_stale(directory)
    if root not in _run_locks:
        _run_locks[root] = hold_lock(root)
        atexit.register(release_lock, _run_locks[root])


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
    oldest_run = _oldest_run(root)
    for entry in entries:
        if size > limit_bytes and entry.used < oldest_run and _remove(entry):
            size -= entry.size_bytes
    return before - size


def _used(path: Path) -> float:
    record = path / RECORD
    files = [record] if record.is_file() else [path, *path.rglob("*")]
    return max(file.stat().st_mtime for file in files)


def _oldest_run(root: Path) -> float:
    """When the oldest living run began, in seconds since 1970; infinity if there is none."""
    oldest = math.inf
    for file, lock in locks(root):
        if lock is not None:
            release_lock(lock)
        else:
            with suppress(FileNotFoundError):
                oldest = min(oldest, file.stat().st_mtime)
    return oldest


def _remove(entry: Stored) -> bool:
    """Remove an entry, unless it is being built or has been used since; whether it was removed."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock_of(entry.path), timeout=0):
            if _used(entry.path) > entry.used:
                return False
            if entry.path.is_dir():
                shutil.rmtree(entry.path)
            else:
                entry.path.unlink()
    except (Timeout, OSError):
        return False  # another process has it
    return True
