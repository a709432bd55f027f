"""Text files as lines, and values as they stand in a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.support.errors import InputError
from quantlib.support.parsing import read_bytes

LARGEST_TABLE = 2**30
"""Bytes of the largest file of rows that is read: a table takes some times its file in memory."""


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn the error of a file that cannot be read into an `InputError` naming it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a BOM.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    with read_errors(path):
        data = read_bytes(path, LARGEST_TABLE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec has cut off a BOM, so positions are those in `error.object`.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def split_lines(text: str) -> list[str]:
    """The lines of a text, split at LF alone: texts hold U+2028, form feeds and the like.

    A CR before an LF is not part of the line; blank lines at the end are dropped.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file; see `split_lines`. Errors are those of `read_text`."""
    return split_lines(read_text(path))


def collapsed(text: str) -> str:
    """The text with each run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def quoted(value: object) -> str:
    """A value as it stands in a one-line message: quoted, escaped, and cut."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
