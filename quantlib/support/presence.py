"""What a command found in its place and uses from then on: what is missing of it, somebody else removed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from quantlib.support.errors import InputError

_used: dict[Path, frozenset[str]] = {}  # each with the ways in which an error may write it


def note_used(*paths: Path) -> None:
    """Note files and directories that are there now, and that this command itself never removes."""
    for path in paths:
        if path not in _used:
            _used[path] = frozenset({str(path), str(path.absolute()), str(path.resolve())})


def forget_used() -> None:
    """Forget them all, at the start of a command."""
    _used.clear()


def removed_error(path: Path) -> InputError:
    """The error for what was removed while this command used it."""
    return InputError(f"{path} is gone: it was removed while this command used it; run the command again")


def removed_path(errors: Iterable[BaseException]) -> Path | None:
    """What was removed while this command used it, if that led to one of the errors; the outermost directory.

    An error tells it by naming the path, or a file below it. Some that say that a file is missing name none:
    then whatever is missing is what they are about.
    """
    missing = sorted((path for path in _used if not os.path.lexists(path)), key=lambda path: len(path.parts))
    if missing:
        for error in errors:
            for path in missing:
                if _is_nameless(error) or any(_names(str(error), name) for name in _used[path]):
                    return path
    return None


def _is_nameless(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) and error.filename is None


def _names(text: str, path: str) -> bool:
    """Whether a text names a path or what is below it, and not only a longer name that contains it."""
    return re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w-]|\.\w)", text) is not None
