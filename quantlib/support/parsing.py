"""Files of strangers: bytes within limits, JSON and TOML as plain values, each with one kind of error.

The readers of Python's library raise `RecursionError` for what is nested deeply, wait for ever for a pipe
that nobody writes to, and read a device until memory ends.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

SMALL_BYTES = 2**28
"""The largest file of configuration, of results, or of a tokenizer's vocabulary that is read."""
_DEEPEST = 100  # no file that is read here nests a tenth as deep


def read_bytes(path: Path, limit: int = SMALL_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: it cannot be read, is a pipe or a device, or is larger than `limit` bytes.
    """
    descriptor = _open(path)
    try:
        _check_file(path, os.fstat(descriptor), limit)
    except OSError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def _check_file(path: Path, status: os.stat_result, limit: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file", str(path))
    if status.st_size > limit:
        words = f"{status.st_size:,} bytes, more than the {limit:,} that are read"
        raise OSError(errno.EFBIG, words, str(path))


def _open(path: Path) -> int:
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


def read_utf8(path: Path, limit: int = SMALL_BYTES) -> str:
    """The text of a regular UTF-8 file, without a BOM.

    Raises:
        OSError: as for `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8-sig")


def parse_json_text(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, is nested deeply, or has half of a surrogate pair in it.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(value)
    return value


def parse_toml_text(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: it is no TOML, or is nested deeply.
    """
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(tables)
    return tables


def _check(value: Any) -> None:
    """Refuse what cannot be shown or written again, level by level, since no recursion is deep enough."""
    level = [value]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each)
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
            elif isinstance(each, str) and not each.isascii():
                _check_unicode(each)
        if not below:
            return
        level = below
    raise ValueError("nested too deeply")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"half of a surrogate pair in {text[:40]!r}, which is no Unicode text") from None
