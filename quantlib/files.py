"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantlib.errors import InputError

# What the file system says when the user's place is the problem, with the words a user needs.
_PLACE_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process may write",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EEXIST: "a file stands where a directory is needed",
    errno.ENAMETOOLONG: "the name is too long",
}


@contextmanager
def place_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about the place itself (full disk, no permission) into an `InputError` naming it."""
    try:
        yield
    except OSError as error:
        reason = _PLACE_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        raise InputError(f"cannot write {path}: {reason}") from error


def make_dir(path: Path) -> Path:
    """Create a directory with its parents; `InputError` if that is not possible or it cannot be written."""
    with place_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds, remove it if not."""
    make_dir(path.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with place_errors(path):
            yield scratch / path.name
            (scratch / path.name).replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; rename it into place if the block succeeds.

    An existing directory at `path` is replaced.
    """
    make_dir(path.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with place_errors(path):
            new = scratch / "new"
            new.mkdir()
            yield new
            if path.exists():
                path.replace(scratch / "old")
            new.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON-able value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_tree(directory: Path) -> str:
    """The SHA-256 of all regular files below a directory: their relative names and bytes."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return sha256_json([[name, sha256_file(directory / name)] for name in names])


def copy_file(source: Path, target: Path) -> None:
    """Place a copy of `source` at `target`, atomically. A copy, never a link: users edit their outputs."""
    with atomic_file(target) as scratch:
        shutil.copyfile(source, scratch)
        os.utime(scratch)
