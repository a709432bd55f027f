"""Locks between processes: files that are there only while a lock is held.

The system releases a lock when a process ends in any way. A file that a killed process left behind is no
lock; whoever takes it next removes it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.support.presence import removed_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of this file; others that want it wait.

    Raises:
        filelock.Timeout: another process holds it for longer than `timeout` seconds; -1 waits for ever.
        OSError: the directory cannot be written, or its file system has no locks.
        InputError: the directory was removed meanwhile.
    """
    lock = file_lock(path)
    acquire(lock, timeout)
    try:
        yield
    finally:
        release_lock(lock)


def file_lock(path: Path) -> BaseFileLock:
    """The lock of a file, not held yet.

    A file system without locks is an error. filelock would go on with files that stand for locks, and what a
    killed process left would then stop every later one.
    """
    from filelock import FileLock

    return FileLock(path, fallback_to_soft=False)


def acquire(lock: BaseFileLock, timeout: float = -1) -> None:
    """Acquire a lock in a directory that is there; where the file system has none, its file does not stay.

    Raises:
        filelock.Timeout: another process holds it for longer than `timeout` seconds; -1 waits for ever.
        OSError: the directory cannot be written, or its file system has no locks.
        InputError: the directory was removed meanwhile.
    """
    try:
        _acquire(lock, timeout)
    except FileNotFoundError as error:
        raise removed_error(Path(lock.lock_file).parent) from error


def _acquire(lock: BaseFileLock, timeout: float) -> None:
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            Path(lock.lock_file).unlink(missing_ok=True)
        raise


def release_lock(lock: BaseFileLock) -> None:
    """Release a held lock and remove its file.

    The file goes first. Who has opened it and waits sees that it has no name any more, and starts over.
    """
    with suppress(OSError):  # Windows removes no open file
        Path(lock.lock_file).unlink()
    lock.release()


def left_behind(path: Path) -> BaseFileLock | None:
    """The lock of a lock file whose process has ended, now held; None if it lives, or if that is unknown."""
    from filelock import Timeout

    lock = file_lock(path)
    try:
        _acquire(lock, timeout=0)
    except (Timeout, FileNotFoundError, PermissionError):  # of another user, who may be alive
        return None
    if os.path.lexists(path):
        return lock
    lock.release()
    return None
