"""The shapes that are timed, as they are written: BATCHxLENGTH."""

from __future__ import annotations

from typing import NamedTuple

from quantlib.support.errors import InputError


class Shape(NamedTuple):
    """A shape of a batch. batch: rows. length: tokens in each."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


def parse_shape(text: str, flag: str) -> Shape:
    """A shape from its text.

    Args:
        text: for example "8x128".
        flag: the option that it was given with, for the message.

    Raises:
        InputError: it is none.
    """
    batch, x, length = text.partition("x")
    if not (x and batch.isdecimal() and length.isdecimal() and int(batch) and int(length)):
        raise InputError(f"{flag} {text!r} is not BATCHxLENGTH, for example 8x128")
    return Shape(int(batch), int(length))
