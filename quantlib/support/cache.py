"""Results of expensive steps, kept between runs under a key of everything that decides them.

An entry is a directory with an `entry.json` that names its key and the SHA-256 of each of its files. A
lookup checks both, so a stale hit is impossible and a damaged entry is built again. The cache has an upper
size, see `eviction`.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.support.code import code_key
from quantlib.support.directories import atomic_dir
from quantlib.support.errors import InputError
from quantlib.support.eviction import begin_run, lock_of, mark_used, shrink
from quantlib.support.files import RECORD, make_dir, place_errors, sha256_files, sha256_json, write_json
from quantlib.support.locks import locked
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.support.presence import note_used

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "Cache",
    "Entry",
    "code_key",
    "default_cache_dir",
    "only_looking",
    "open_cache",
    "recording",
    "versions_key",
]

ENVIRONMENT_VARIABLE, SIZE_VARIABLE = "QUANTLIB_CACHE_DIR", "QUANTLIB_CACHE_GIB"
DEFAULT_GIB = 10


def default_cache_dir() -> Path:
    """The directory named by QUANTLIB_CACHE_DIR, else the user's cache directory of this platform."""
    import platformdirs

    path = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(path) if path else Path(platformdirs.user_cache_dir("bert-quantlib", appauthor=False))


def versions_key(*packages: str) -> dict[str, str]:
    """The installed versions of packages, for use in a key."""
    return {package: importlib.metadata.version(package) for package in packages}


def installed_version(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Entry:
    """A finished entry: its directory, and whether it was there before."""

    path: Path
    hit: bool


_used: ContextVar[list[Entry] | None] = ContextVar("used", default=None)
_looking: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def recording() -> Iterator[list[Entry]]:
    """Yield a list that grows by each entry that this thread finds or builds in the block."""
    entries: list[Entry] = []
    token = _used.set(entries)
    try:
        yield entries
    finally:
        _used.reset(token)


@contextmanager
def only_looking() -> Iterator[None]:
    """In the block nothing is built by this thread: an entry that is missing raises `NotCached`."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


class NotCached(Exception):
    """An entry is missing, and nothing is to be built (`only_looking`)."""


@dataclass(frozen=True)
class Cache:
    """A directory of entries, safe to share between processes (one builds, the others wait).

    After a build, entries that were not used for longest are removed until at most `limit_bytes` are left.
    """

    root: Path
    limit_bytes: float = math.inf

    def get(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], object]) -> Entry:
        """The entry for `key`, built by `build(directory)` if it is missing or damaged.

        A build that raises leaves no entry.

        Raises:
            InputError: the cache directory cannot be written, or the disk is full.
            NotCached: it is missing, in a block that only looks.
        """
        entry = self._get(kind, key, build)
        used = _used.get()
        if used is not None:
            used.append(entry)
        return entry

    def _get(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], object]) -> Entry:
        path = self._path(kind, key)
        if _looking.get() and not path.is_dir():
            raise NotCached(kind)
        make_dir(path.parent)
        with place_errors(path, scratch=lock_of(path)), locked(lock_of(path)):
            if _is_whole(path, key):
                _use(path)
                return Entry(path, hit=True)
            if _looking.get():
                raise NotCached(kind)
            with atomic_dir(path) as scratch:
                build(scratch)
                write_json(scratch / RECORD, {"key": dict(key), "files": sha256_files(scratch)})
            _use(path)
            shutil.rmtree(self.unfinished(kind, key), ignore_errors=True)
        if self.limit_bytes < math.inf:
            shrink(self.root, self.limit_bytes)
        return Entry(path, hit=False)

    def unfinished(self, kind: str, key: Mapping[str, Any]) -> Path:
        """A directory that the build of an entry may use to go on after an interruption.

        It is there until the entry is finished.
        """
        return self._path(kind, key).with_suffix(".unfinished")

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.root / kind / sha256_json({"kind": kind, "key": key})[:24]


def _use(entry: Path) -> None:
    note_used(entry, *entry.rglob("*"))
    mark_used(entry)


def open_cache(root: Path | None) -> Cache:
    """The cache at `root`, or at the default place; what killed runs left there is removed.

    Raises:
        InputError: the place cannot be written, or its size is not a number.
    """
    limit_bytes = _limit_bytes()
    try:
        directory = make_dir(root or default_cache_dir())
        with place_errors(directory):
            note_used(directory)
            begin_run(directory.absolute())
    except InputError as error:
        raise InputError(f"{error}; name another cache directory with {ENVIRONMENT_VARIABLE}") from error
    return Cache(directory, limit_bytes)


def _limit_bytes() -> float:
    text = os.environ.get(SIZE_VARIABLE, str(DEFAULT_GIB))
    try:
        limit = float(text) * 2**30
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise InputError(f"{SIZE_VARIABLE}: {text!r} is not a number of GiB, such as {DEFAULT_GIB}")
    return limit


def _is_whole(path: Path, key: Mapping[str, Any]) -> bool:
    try:
        record = parse_json_text(read_utf8(path / RECORD))
        files = sha256_files(path)
        files.pop(RECORD)
        return bool(sha256_json(record["key"]) == sha256_json(dict(key)) and record["files"] == files)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing or damaged: both are built again
