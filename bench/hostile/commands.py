"""The command line of quantlib in this process, held to its promise: one line on stderr and exit code 2."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from quantlib.cli.main import quantlib
from quantlib.support.errors import InputError


class BrokenPromise(Exception):
    """A command ended otherwise than it says."""


def run(words: Sequence[str], directory: Path) -> str:
    """What a command prints, run in a directory.

    Raises:
        InputError: it ended with exit code 2.
        BrokenPromise: another exit code than 0, 1 and 2, or a refusal of more than one line.
    """
    out, err = io.StringIO(), io.StringIO()
    before = Path.cwd()
    os.chdir(directory)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = quantlib(words)
    finally:
        os.chdir(before)
    said = err.getvalue()
    if code == 2 and re.fullmatch(r"error: .*\n", said):
        raise InputError(said.removeprefix("error: ").rstrip("\n"))
    if code not in (0, 1):
        raise BrokenPromise(f"exit code {code}: {said[:500]}")
    return out.getvalue()
