"""Temporary directories of processes that were killed, and of those that live."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock
from processes import other_process

from quantlib.support import scratch
from quantlib.support.cache import open_cache
from quantlib.support.files import atomic_file
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
