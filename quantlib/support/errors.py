"""Exceptions: for input that cannot be used, and for optional parts that are not available."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_MOST_CHARACTERS = 1800


class InputError(Exception):
    """What the user gave cannot be used.

    The message is a single line that names the file, the line number, the value, and what would be right.
    The command line prints it to stderr and exits with code 2; everything else that is raised is a bug
    and gets a traceback. What it quotes of files cannot break the line, move the cursor of a terminal or fill
    it: line breaks become spaces, other characters that cannot be seen are escaped, and of a long message
    the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(as_line(message))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say first in the block's `InputError` what it is about, which the code that raises it cannot know."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def as_line(message: str) -> str:
    """A message as a single line of at most some thousand visible characters."""
    line = " ".join(message.splitlines())
    if not line.isprintable():
        line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line)
    half = _MOST_CHARACTERS // 2
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:half]} ... {line[-half:]}"


class Unavailable(Exception):
    """Something optional is not available here; the message says what and why, in one line.

    The caller goes on without it, and says so in the output.
    """
