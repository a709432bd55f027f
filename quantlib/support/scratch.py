"""Temporary directories that the next run removes if their process was killed.

Beside each lies a lock file that its process holds: `.quantlib-TOKEN` and `.quantlib-TOKEN.lock`. The system
releases a lock when a process ends in any way, so a lock that can be acquired belongs to no living process.
Process ids would not do: they are used again, and containers that share a directory have their own.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.support.locks import acquire, file_lock, left_behind, release_lock
from quantlib.support.presence import removed_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

PREFIX = ".quantlib-"
ASIDE = "aside"
"""The folder of a temporary directory where an old directory waits while a new one takes its place."""


@contextmanager
def scratch_dir(parent: Path) -> Iterator[Path]:
    """A new directory in `parent`, removed at the end; those of killed processes there are removed first.

    Raises:
        InputError: it failed, and somebody else has removed the directory meanwhile.
    """
    remove_stale(parent)
    lock = hold_lock(parent)
    path = Path(lock.lock_file).with_suffix("")
    try:
        with _there(Path(lock.lock_file)):
            path.mkdir()
        with _there(Path(lock.lock_file), path):
            yield path
    finally:
        _end(path, lock)


@contextmanager
def _there(*paths: Path) -> Iterator[None]:
    """The block failed and one of these was removed: then that is the error, whatever a library says.

    Whoever writes a file below may have made the directory again, but not the lock beside it.
    """
    try:
        yield
    except Exception as error:
        if all(map(os.path.lexists, paths)):
            raise
        raise removed_error(paths[0].parent) from error


def hold_lock(parent: Path) -> BaseFileLock:
    """A lock of a new name in `parent`, held until it is released or this process ends."""
    from filelock import Timeout

    while True:
        lock = file_lock(parent / f"{PREFIX}{secrets.token_hex(6)}.lock")
        with suppress(Timeout):  # another process takes it for stale before it is held
            acquire(lock, timeout=0)
            if os.path.lexists(lock.lock_file):
                return lock
            lock.release()


def locks(parent: Path) -> Iterator[tuple[Path, BaseFileLock | None]]:
    """The lock files in `parent`, each with its lock if it could be acquired: then its process has ended."""
    try:
        files = sorted(parent.glob(f"{PREFIX}*.lock"))
    except FileNotFoundError:  # removed while it was listed
        files = []
    for file in files:
        lock = left_behind(file)
        if lock is not None or os.path.lexists(file):
            yield file, lock


def remove_stale(parent: Path) -> None:
    """Remove temporary directories in `parent` whose process has ended."""
    for file, lock in locks(parent):
        if lock is not None:
            _end(file.with_suffix(""), lock)


def _end(scratch: Path, lock: BaseFileLock) -> None:
    """Remove a temporary directory and its lock; where that fails, the lock file stays for the next sweep."""
    _clear(scratch)
    if scratch.exists():
        lock.release()
    else:
        release_lock(lock)


def _clear(scratch: Path) -> None:
    """Remove a temporary directory; what was put aside there and not replaced goes back first."""
    for old in scratch.glob(f"{ASIDE}/*"):
        if not os.path.lexists(scratch.parent / old.name):
            old.rename(scratch.parent / old.name)
    shutil.rmtree(scratch, ignore_errors=True)
