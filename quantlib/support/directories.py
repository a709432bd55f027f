"""Directories that are replaced in one step: a killed process leaves the old one or the new one, never a mix.

A directory is made in full beside the old one; then both change places in one step of the file system, which
Linux has. Files that are renamed one by one would leave models of one run beside results of another if the
process is killed in between. A manifest would help only readers that check it, and people open the files
themselves. Where the file system cannot exchange two directories, the old one is renamed, then the new one: a
process that is killed in between leaves none, and the next write beside it puts the old one back (`scratch`).
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from quantlib.support.errors import InputError
from quantlib.support.files import make_dir, place_errors, sha256_file
from quantlib.support.locks import locked
from quantlib.support.presence import note_used, removed_error
from quantlib.support.scratch import ASIDE, PREFIX, scratch_dir

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """A new directory where the system wants temporary files, removed at the end.

    One that a killed process left is removed when the next one is made; `tempfile` would leave it for ever.
    Nobody else may read it.

    Raises:
        InputError: the place cannot be written, or belongs to another user.
    """
    system = Path(tempfile.gettempdir())
    note_used(system)
    with place_errors(system):
        place = _own_place(system)
        with scratch_dir(place) as scratch:
            yield scratch


def _own_place(system: Path) -> Path:
    """A directory of this user in the system's place for temporary files, which all users share."""
    place = system / f"bert-quantlib-{os.getuid() if hasattr(os, 'getuid') else 'user'}-scratch"
    place.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and place.lstat().st_uid != os.getuid():
        raise InputError(f"{place} belongs to another user; name another place with TMPDIR")
    return place


@contextmanager
def replacing(directory: Path) -> Iterator[None]:
    """Nobody else replaces the directory, or writes a file into it, in the block.

    Without that, a file that one process writes would go with the directory that another one replaces.
    """
    place = directory.resolve()
    with place_errors(place.parent), locked(place.parent / f"{PREFIX}writes-{place.name}.lock"):
        yield


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`, which takes the place of `path` if the block succeeds."""
    make_dir(path.parent)
    with place_errors(path.parent), scratch_dir(path.parent) as scratch, place_errors(path, scratch=scratch):
        new = scratch / "new"
        new.mkdir()
        with _kept(scratch):
            yield new
        _replace(path, new, scratch)


@contextmanager
def _kept(scratch: Path) -> Iterator[None]:
    """Check that a temporary directory was there all the time.

    Removed with all that was written so far, it may have been made again for what was written then.
    """
    begun = scratch / "begun"
    begun.touch()
    yield
    if not begun.exists():
        raise removed_error(scratch.parent)


@contextmanager
def atomic_files(
    directory: Path, earlier: Callable[[Path], Mapping[str, str]] = lambda _: {}
) -> Iterator[Path]:
    """Yield a temporary directory; if the block succeeds, its files appear in `directory`, all at once.

    Other files in `directory` stay: the new directory has links to them before it takes the old one's place.
    Of several processes that do this at the same time, the last one wins.

    Args:
        directory: made if need be. Its parent must be writable.
        earlier: {name: SHA-256} of files in a directory that an earlier run wrote, which are removed if they
            are still the same. Asked when the new directory is ready.
    """
    place = make_dir(directory).resolve()
    with (
        place_errors(place.parent),
        scratch_dir(place.parent) as scratch,
        place_errors(place, scratch=scratch),
    ):
        new = scratch / "new"
        new.mkdir()
        try:
            with _kept(scratch):
                yield new
        except InputError as error:  # name the user's directory, not the temporary one
            raise InputError(str(error).replace(str(new), str(directory))) from error
        with replacing(place):
            place.mkdir(exist_ok=True)  # removed in the meantime
            shutil.copymode(place, new)
            _link_others(place, new, earlier(place))
            _replace(place, new, scratch)


def _link_others(old: Path, new: Path, earlier: Mapping[str, str]) -> None:
    """Link files of `old` that `new` lacks into `new`, except those of an earlier run."""
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if name.parts[0].startswith(PREFIX):
            continue  # of a process that writes there, or was killed
        target = new / name
        is_dir = path.is_dir() and not path.is_symlink()
        if is_dir and target.is_file():
            raise IsADirectoryError(errno.EISDIR, "", path)
        if is_dir and not any(path.iterdir()):
            target.mkdir(parents=True, exist_ok=True)
        if is_dir or os.path.lexists(target) or _has_hash(path, earlier.get(name.as_posix())):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target, follow_symlinks=False)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError:  # a file system without links, or a file of another user
            shutil.copy2(path, target, follow_symlinks=False)


def _has_hash(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.is_file() and sha256_file(path) == sha256


def _replace(path: Path, new: Path, scratch: Path) -> None:
    """Put the directory `new` in the place of `path`; what was there goes to `scratch`."""
    if os.path.lexists(path) and _exchange(path, new):
        return
    if os.path.lexists(path):
        (scratch / ASIDE).mkdir()
        path.rename(scratch / ASIDE / path.name)
    new.rename(path)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step; False if this system or file system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return renameat2 is not None and not renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
