"""Results of expensive steps, kept between runs under a key of everything that decides them.

An entry is a directory with an `entry.json` that names its key and the SHA-256 of each of its files. A
lookup checks both, so a stale hit is impossible and a damaged entry is found and built again.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.support.code import code_key
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_dir, make_dir, place_errors, sha256_file, sha256_json, write_json

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "Cache",
    "Entry",
    "code_key",
    "default_cache_dir",
    "open_cache",
    "versions_key",
]

ENVIRONMENT_VARIABLE = "QUANTLIB_CACHE_DIR"


def default_cache_dir() -> Path:
    """The directory named by QUANTLIB_CACHE_DIR, else the user's cache directory of this platform."""
    import platformdirs

    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("bert-quantlib", appauthor=False))


def versions_key(*packages: str) -> dict[str, str]:
    """The installed versions of packages, for use in a key."""
    return {package: importlib.metadata.version(package) for package in packages}


@dataclass(frozen=True)
class Entry:
    """A finished entry: its directory, and whether it was found (or had to be built)."""

    path: Path
    hit: bool


@dataclass(frozen=True)
class Cache:
    """A directory of entries, safe to share between processes (one builds, the others wait)."""

    root: Path

    def get(self, kind: str, key: Mapping[str, Any], build: Callable[[Path], object]) -> Entry:
        """The entry for `key`, built by `build(directory)` if it is missing or damaged.

        A build that raises leaves no entry.

        Raises:
            InputError: the cache directory cannot be written, or the disk is full.
        """
        from filelock import FileLock

        name = sha256_json({"kind": kind, "key": key})[:24]
        path = make_dir(self.root / kind) / name
        lock = path.with_suffix(".lock")
        with place_errors(path, scratch=lock), FileLock(lock):
            if _is_whole(path, key):
                return Entry(path, hit=True)
            with atomic_dir(path) as scratch:
                build(scratch)
                write_json(scratch / "entry.json", {"key": dict(key), "files": _file_hashes(scratch)})
        return Entry(path, hit=False)


def open_cache(root: Path | None) -> Cache:
    """The cache at `root`, or at the default place.

    Raises:
        InputError: the place cannot be written.
    """
    try:
        return Cache(make_dir(root or default_cache_dir()))
    except InputError as error:
        raise InputError(f"{error}; name another cache directory with {ENVIRONMENT_VARIABLE}") from error


def _file_hashes(directory: Path) -> dict[str, str]:
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "entry.json")
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in files}


def _is_whole(path: Path, key: Mapping[str, Any]) -> bool:
    try:
        entry = json.loads((path / "entry.json").read_text(encoding="utf-8"))
        return bool(
            sha256_json(entry["key"]) == sha256_json(dict(key)) and entry["files"] == _file_hashes(path)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing or damaged: both are built again
