"""Errors that say that this process got too little: memory, open files, threads; or lost its files.

Libraries in C++ tell it in words only, and a timing process in its last words.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator

from quantlib.support.presence import removed_error, removed_path

_MEMORY, _FILES, _THREADS = "memory", "open files", "threads or processes"
_ERRNOS = {errno.ENOMEM: _MEMORY, errno.EMFILE: _FILES, errno.ENFILE: _FILES}
_WORDS = {
    "bad_alloc": _MEMORY,
    "bad allocation": _MEMORY,
    "memoryerror": _MEMORY,
    "unable to allocate": _MEMORY,
    "allocate memory": _MEMORY,  # "cannot", "can't" and "failed to"
    "not enough memory": _MEMORY,
    "failed to map segment": _MEMORY,  # of a shared library
    "too many open files": _FILES,
    "can't start new thread": _THREADS,
    "pthread_create failed": _THREADS,
}
# The command of the shell that shows and raises a limit, and the limit's name in `resource`. A thread needs
# memory for its stack too.
_OF_MEMORY = ("-v", "RLIMIT_AS")
_LIMITS = {
    _MEMORY: (_OF_MEMORY,),
    _FILES: (("-n", "RLIMIT_NOFILE"),),
    _THREADS: (("-u", "RLIMIT_NPROC"), _OF_MEMORY),
}


def reason_for(error: BaseException) -> str | None:
    """What ended a command, in one line, if the machine or another process did; None for any other error.

    Args:
        error: with all that led to it.
    """
    for each in _chain(error):
        lacking = _lacking(each)
        if lacking is not None:
            return f"too little {lacking}{_limit(lacking)}"
    return removal(error)


def removal(error: BaseException) -> str | None:
    """In one line, that a file which the command used was removed, if that led to the error; else None."""
    path = removed_path(_chain(error))
    return None if path is None else str(removed_error(path))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and what it was raised beside."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop(0)
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [other for other in (each.__cause__, each.__context__) if other is not None]


def _lacking(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    text = str(error).lower()
    return next((what for words, what in _WORDS.items() if words in text), None)


def _limit(lacking: str) -> str:
    """What the limits of this process are, where it has any."""
    if sys.platform == "win32":
        return ""
    import resource

    limits = [
        f"`ulimit {flag}` allows {f'{limit / 2**20:.0f} MB' if (flag, name) == _OF_MEMORY else limit}"
        for flag, name in _LIMITS[lacking]
        if (limit := resource.getrlimit(getattr(resource, name))[0]) != resource.RLIM_INFINITY
    ]
    return ": " + ", ".join(limits) if limits else ""
