"""Files that are either whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.support.presence import removed_error
from quantlib.support.scratch import scratch_dir

# The file of a cache entry that lists the others; its time of change says when the entry was used.
RECORD = "entry.json"

_NO_LOCKS = "its file system has no locks (flock), without which two processes would write one file"
# Errors of the file system that a user can mend, in the user's words.
_PLACE_ERRORS = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process may write",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EEXIST: "a file stands where a directory is needed",
    errno.EISDIR: "a directory stands where a file is needed",
    errno.ELOOP: "its symbolic links go in a circle",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EBUSY: "it is in use, as a mount point is; name a directory inside it",
}
# Only writing raises these, even if the error of a copy names its source.
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def place_errors(path: Path, *, scratch: Path | None = None) -> Iterator[None]:
    """Turn errors of the file system that a user can mend (full disk, no permission) into an `InputError`.

    It says that `path` cannot be written, or which file elsewhere cannot be opened, if the error names one.

    Args:
        path: what is written, a file or a directory.
        scratch: where it is written before it is renamed into its place.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = _PLACE_ERRORS.get(_errno(error))
        if reason is None:
            raise
        elsewhere = _file_elsewhere(error, [path] if scratch is None else [path, scratch])
        subject = f"cannot write {path}" if elsewhere is None else f"cannot open {elsewhere}"
        raise InputError(f"{subject}: {reason}") from error


def _errno(error: Exception) -> int:
    """The errno of an error, 0 for none; libraries in Rust (safetensors) give it as text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    number = re.search(r"\(os error (\d+)\)$", str(error).strip())
    return int(number[1]) if number else 0


def _file_elsewhere(error: Exception, places: Sequence[Path]) -> str | None:
    """The file that an error names, if it is neither in one of the places nor a directory above them."""
    name = getattr(error, "filename", None)
    if _errno(error) in _WRITE_ERRORS or not isinstance(name, str | os.PathLike):
        return None
    file = Path(os.fsdecode(name)).absolute()
    absolute = [place.absolute() for place in places]
    if any(file.is_relative_to(place) or place.is_relative_to(file) for place in absolute):
        return None
    return str(name)


def make_dir(path: Path) -> Path:
    """Create a directory with its parents; `InputError` if that is not possible or it cannot be written."""
    try:
        with place_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # /proc/x, or a working directory that was removed
        raise InputError(f"cannot write {path}: no directory can be made there") from error
    try:
        with place_errors(path), tempfile.TemporaryFile(dir=path):
            pass
    except FileNotFoundError as error:
        raise removed_error(path) from error
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it into place if the block succeeds, remove it if not."""
    parent = make_dir(path.parent)
    with place_errors(parent), scratch_dir(parent) as scratch, place_errors(path, scratch=scratch):
        yield scratch / path.name
        (scratch / path.name).replace(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def reading_json(path: Path, version: int, what: str, missing: str = "no such file") -> Iterator[Any]:
    """The value of a JSON file of this schema version; errors of its use in the block become an `InputError`.

    Args:
        path: the file.
        version: what its `schema_version` has to be.
        what: what the file should be, with its article: "an explain.json".
        missing: the words of the error if there is no such file.
    """
    try:
        value = parse_json_text(read_utf8(path))
        if value["schema_version"] != version:
            raise ValueError(f"version {value['schema_version']!r}, not {version}")
        yield value
    except FileNotFoundError as error:
        raise InputError(f"{path}: {missing}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (InputError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not {what}: {error}") from error


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, whole or not at all; all have the columns of the first row, and None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The SHA-256 of a JSON-able value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_files(directory: Path) -> dict[str, str]:
    """The SHA-256 of each regular file below a directory, by its relative name."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return {name: sha256_file(directory / name) for name in names}


def sha256_tree(directory: Path) -> str:
    """The SHA-256 of all regular files below a directory: their relative names and bytes.

    The record of a cache entry does not count: another key may give the same files.
    """
    return sha256_json([[name, digest] for name, digest in sha256_files(directory).items() if name != RECORD])


def copy_file(source: Path, target: Path) -> None:
    """Place a copy of `source` at `target`, atomically. A copy, never a link: users edit their outputs."""
    with atomic_file(target) as scratch:
        shutil.copyfile(source, scratch)
        os.utime(scratch)
