"""Temporary directories of processes that were killed, and of those that live."""

from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from processes import other_process

from quantlib.support import scratch
from quantlib.support.cache import open_cache
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file, write_text
from quantlib.support.locks import locked
from quantlib.support.scratch import scratch_dir


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


HALF_WRITTEN = """
from pathlib import Path
from quantlib.support.directories import atomic_dir
with atomic_dir(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("half")
    wait()
"""


def test_a_scratch_directory_goes_with_its_block(tmp_path: Path) -> None:
    with scratch_dir(tmp_path) as path:
        (path / "x").write_text("x")
        assert len(names(tmp_path)) == 2
    with pytest.raises(ZeroDivisionError), scratch_dir(tmp_path) as path:
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_scratch_directory_that_is_removed_is_the_error(tmp_path: Path) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    with pytest.raises(InputError, match=f"{place} is gone: it was removed"), scratch_dir(place) as path:
        shutil.rmtree(place)
        (path / "x").write_text("x")
    place.mkdir()
    with pytest.raises(InputError, match=f"{place} is gone: it was removed"), scratch_dir(place) as path:
        shutil.rmtree(place)
        path.mkdir(parents=True)  # by who writes there
        raise RuntimeError("cannot read what was written")
    place.mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError), scratch_dir(place) as path:
        (path / "x").read_text()  # never written: a bug


def test_a_directory_that_is_removed_while_it_is_listed_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "removed", str(tmp_path))

    monkeypatch.setattr(Path, "glob", removed)
    assert list(scratch.locks(tmp_path)) == []


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path: Path) -> None:
    with other_process(HALF_WRITTEN, tmp_path / "entry"):
        pass
    assert len(names(tmp_path)) == 2, "the directory and its lock"
    with atomic_file(tmp_path / "out") as file:
        file.write_text("new")
    assert names(tmp_path) == ["out"]


def test_a_living_process_keeps_its_own(tmp_path: Path) -> None:
    with other_process(HALF_WRITTEN, tmp_path / "entry"):
        before = names(tmp_path)
        with scratch_dir(tmp_path) as own:
            scratch.remove_stale(tmp_path)
            assert own.is_dir()
        assert names(tmp_path) == before
        assert [p.name for p in tmp_path.glob(".quantlib-*/*/*")] == ["half"]
    scratch.remove_stale(tmp_path)
    assert names(tmp_path) == []


def test_a_lock_that_is_taken_for_stale_before_it_is_held_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = iter(["taken", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(tokens))
    with FileLock(tmp_path / ".quantlib-taken.lock"), scratch_dir(tmp_path) as path:
        assert path.name == ".quantlib-free"


def test_what_was_put_aside_comes_back(tmp_path: Path) -> None:
    """Where two directories cannot be exchanged, a process may be killed between the two renames."""
    code = """
from pathlib import Path
from quantlib.support.scratch import scratch_dir
with scratch_dir(Path(sys.argv[1])) as scratch:
    (scratch / "aside" / "SST-2").mkdir(parents=True)
    (scratch / "aside" / "SST-2" / "run.json").write_text("first")
    wait()
"""
    with other_process(code, tmp_path):
        pass
    scratch.remove_stale(tmp_path)
    assert names(tmp_path) == ["SST-2"]
    assert (tmp_path / "SST-2" / "run.json").read_text() == "first"


def test_opening_a_cache_removes_what_killed_runs_left(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from quantlib.support.cache import open_cache
from quantlib.support.scratch import scratch_dir
def build(directory):
    (directory / "states").write_text("2 GiB")
    with scratch_dir(Path(cache.root) / "student" / "1.unfinished") as states:
        (states / "states").write_text("2 GiB")
        (states.parent / "training.pt").write_text("goes on from here")
        wait()
cache = open_cache(Path(sys.argv[1]))
Path(cache.root, "student", "1.unfinished").mkdir(parents=True)
cache.get("student", {}, build)
"""
    with other_process(code, tmp_path):
        open_cache(tmp_path)
        assert len([path for path in tmp_path.rglob("states") if path.is_file()]) == 2
    open_cache(tmp_path)
    assert [path for path in tmp_path.rglob("states") if path.is_file()] == []
    assert (tmp_path / "student" / "1.unfinished" / "training.pt").exists()


def test_a_directory_that_cannot_be_removed_keeps_its_lock_for_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # as with too many open files
        with scratch_dir(tmp_path) as path:
            pass
    assert path.is_dir()
    scratch.remove_stale(tmp_path)
    assert names(tmp_path) == []


TEMPORARY = """
from quantlib.support.directories import temporary_dir
with temporary_dir() as scratch:
    (scratch / "half").write_text("half")
    wait()
"""


def test_temporary_directories_of_killed_processes_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with other_process(TEMPORARY):
        (place,) = tmp_path.iterdir()
        assert len(names(place)) == 2, "the directory and its lock"
    with temporary_dir() as path:
        assert path.parent == place
        assert len(names(place)) == 2, "its own"
        assert place.stat().st_mode & 0o077 == 0, "nobody else may look"
    assert names(place) == []


def test_a_temporary_place_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 4711)
    words = r"-scratch belongs to another user; name another place with TMPDIR$"
    with pytest.raises(InputError, match=words), temporary_dir():
        pass


def test_a_file_system_without_locks_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"^cannot write .*out: its file system has no locks"):
        write_text(tmp_path / "out" / "file", "text")
    assert names(tmp_path / "out") == [], "no file that stands for a lock"


def test_a_lock_has_a_file_only_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path):
        assert path.exists()
        with pytest.raises(Timeout), locked(path, timeout=0):
            pass
        assert path.exists()
    assert names(tmp_path) == []


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    """One waits for a lock, and its file goes with the one who holds it: both must not believe to hold it."""
    path, order = tmp_path / "x.lock", []

    def wait() -> None:
        with locked(path):
            order.append(path.exists())

    with ThreadPoolExecutor() as pool:
        with locked(path):
            waiting = [pool.submit(wait) for _ in range(4)]
        for each in waiting:
            each.result()
    assert order == [True] * 4
    assert names(tmp_path) == []
