from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from processes import other_process

from quantlib.support import eviction
from quantlib.support.cache import Cache, default_cache_dir, open_cache, versions_key
from quantlib.support.errors import InputError

KEY = {"seed": 42, "options": {"epochs": 2}, "shape": (1, 8)}


class Build:
    """Writes a file, and counts how often it had to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, directory: Path) -> None:
        self.calls += 1
        (directory / "sub").mkdir()
        (directory / "sub" / "model").write_text("weights")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return open_cache(tmp_path / "cache")


def test_the_second_time_it_is_a_hit(cache: Cache) -> None:
    build = Build()
    first, second = cache.get("teacher", KEY, build), cache.get("teacher", dict(reversed(KEY.items())), build)
    assert (first.hit, second.hit, build.calls) == (False, True, 1)
    assert first.path == second.path
    assert (second.path / "sub" / "model").read_text() == "weights"


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("teacher", KEY | {"seed": 43}),
        ("teacher", KEY | {"options": {"epochs": 3}}),
        ("teacher", KEY | {"more": None}),
        ("teacher", {}),
        ("student", KEY),
    ],
    ids=["value", "nested_value", "more", "empty", "kind"],
)
def test_another_key_is_another_entry(cache: Cache, kind: str, key: dict[str, object]) -> None:
    build = Build()
    first, other = cache.get("teacher", KEY, build), cache.get(kind, key, build)
    assert not other.hit
    assert other.path != first.path
    assert cache.get("teacher", KEY, build).hit


def cut(path: Path) -> None:
    (path / "sub" / "model").write_text("wei")


def edit(path: Path) -> None:
    (path / "sub" / "model").write_text("WEIGHTS")


def remove(path: Path) -> None:
    (path / "sub" / "model").unlink()


def add(path: Path) -> None:
    (path / "more").write_text("")


def no_record(path: Path) -> None:
    (path / "entry.json").unlink()


def broken_record(path: Path) -> None:
    (path / "entry.json").write_bytes(b'{"key": \xff')


def listed_record(path: Path) -> None:
    (path / "entry.json").write_text("[]")


def other_key(path: Path) -> None:
    record = json.loads((path / "entry.json").read_text())
    record["key"]["seed"] = 43
    (path / "entry.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "damage",
    [cut, edit, remove, add, no_record, broken_record, listed_record, other_key],
    ids=lambda f: f.__name__,
)
def test_a_damaged_entry_is_built_again(cache: Cache, damage: Callable[[Path], None]) -> None:
    build = Build()
    damage(cache.get("teacher", KEY, build).path)
    entry = cache.get("teacher", KEY, build)
    assert (entry.hit, build.calls) == (False, 2)
    assert (entry.path / "sub" / "model").read_text() == "weights"
    assert not (entry.path / "more").exists()
    assert cache.get("teacher", KEY, build).hit


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
def test_a_build_that_fails_leaves_nothing(cache: Cache, error: type[BaseException]) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise error("stopped")

    with pytest.raises(error, match="stopped"):
        cache.get("teacher", KEY, fail)
    left = [path for path in cache.root.rglob("*") if path.suffix != ".lock" and path.name != "teacher"]
    assert left == []
    assert not cache.get("teacher", KEY, Build()).hit


def test_a_full_disk_is_the_users_problem(cache: Cache) -> None:
    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot write .*teacher.*: no space left on the disk"):
        cache.get("teacher", KEY, fail)


def test_a_file_that_a_build_cannot_read_is_not_called_a_problem_of_the_cache(cache: Cache) -> None:
    def read(_: Path) -> None:
        raise PermissionError(13, "Permission denied", "/data/train.tsv")

    with pytest.raises(InputError, match=r"^cannot open /data/train.tsv: permission denied$"):
        cache.get("teacher", KEY, read)


# Size


def kilobyte(directory: Path) -> None:
    (directory / "x").write_bytes(bytes(1024))


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a cache of three entries of past runs: a, b, c, used an hour after one another, c first."""
    monkeypatch.setattr(eviction, "_run_locks", {})
    cache = Cache(tmp_path / "cache")
    for hour, name in enumerate("cba"):
        used = 1_000_000 + 3600 * hour
        os.utime(cache.get("models", {"name": name}, kilobyte).path / "entry.json", (used, used))
    return cache.root


def kept(root: Path) -> str:
    """The names of the entries in a cache, in the order of their use."""
    records = [json.loads((entry.path / "entry.json").read_text()) for entry in eviction.stored(root)]
    return "".join(record["key"]["name"] for record in records)


def test_what_is_stored(full: Path) -> None:
    assert kept(full) == "cba"
    assert all(entry.size_bytes > 1024 for entry in eviction.stored(full))
    (full / "student").mkdir()
    (full / "student" / "1.unfinished").mkdir()
    (full / "student" / "1.unfinished" / "training.pt").write_bytes(bytes(2048))
    newest = eviction.stored(full)[-1]
    assert newest.path.name == "1.unfinished"
    assert newest.size_bytes > 2048


def test_the_entry_that_was_not_used_for_longest_goes_first(full: Path) -> None:
    size = sum(entry.size_bytes for entry in eviction.stored(full))
    assert eviction.shrink(full, size) == 0
    assert eviction.shrink(full, size - 1) > 1024
    assert kept(full) == "ba"
    assert Cache(full).get("models", {"name": "b"}, kilobyte).hit
    assert kept(full) == "ab", "a hit is a use"
    eviction.shrink(full, size / 3 + 1)
    assert kept(full) == "b"


def test_building_keeps_the_cache_below_its_limit(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(entry.size_bytes for entry in eviction.stored(full))
    monkeypatch.setenv("QUANTLIB_CACHE_GIB", str(size / 2**30))
    cache = open_cache(full)
    assert cache.get("models", {"name": "a"}, kilobyte).hit
    assert not cache.get("models", {"name": "d"}, kilobyte).hit
    assert kept(full) == "bad"
    monkeypatch.setenv("QUANTLIB_CACHE_GIB", "0")
    open_cache(full).get("models", {"name": "e"}, kilobyte)
    assert kept(full) == "ade", "what this run used stays, however large it is"


def test_clearing_leaves_what_a_living_run_used(full: Path) -> None:
    other = """
from pathlib import Path
from quantlib.support.cache import open_cache
open_cache(Path(sys.argv[1])).get("models", {"name": "c"}, None)
wait()
"""
    with other_process(other, full):
        assert eviction.shrink(full, 0) > 0
        assert kept(full) == "c"
    assert eviction.shrink(full, 0) > 0
    assert kept(full) == ""
    assert eviction.shrink(full, 0) == 0


def test_an_entry_that_is_being_built_or_used_meanwhile_is_left(full: Path) -> None:
    oldest, second, _ = eviction.stored(full)
    with FileLock(eviction.lock_of(oldest.path)):
        eviction.shrink(full, 0)
    assert kept(full) == "c"
    os.utime(oldest.path / "entry.json")
    assert not eviction._remove(oldest), "it was used since it was listed"
    assert not eviction._remove(second), "another process removed it"
    assert kept(full) == "c"


@pytest.mark.parametrize(
    ("text", "limit"), [("0.5", 2**29), ("0", 0), ("inf", math.inf), (None, 10 * 2**30)], ids=str
)
def test_the_limit(text: str | None, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUANTLIB_CACHE_GIB", raising=False)
    if text is not None:
        monkeypatch.setenv("QUANTLIB_CACHE_GIB", text)
    assert open_cache(tmp_path).limit_bytes == limit


@pytest.mark.parametrize("text", ["ten", "-1", "nan", ""])
def test_a_limit_that_is_no_number(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLIB_CACHE_GIB", text)
    with pytest.raises(
        InputError, match=f"^QUANTLIB_CACHE_GIB: '{text}' is not a number of GiB, such as 10$"
    ):
        open_cache(tmp_path)


def test_an_interrupted_build_goes_on_until_it_is_finished(cache: Cache) -> None:
    unfinished = cache.unfinished("student", KEY)

    def build(directory: Path) -> None:
        unfinished.mkdir(parents=True, exist_ok=True)
        (unfinished / "state").touch()
        if len(list(unfinished.iterdir())) == 1:
            (unfinished / "interrupted").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("student", KEY, build)
    assert unfinished.is_dir()
    assert not cache.get("student", KEY, build).hit
    assert not unfinished.exists()


# The place


def test_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUANTLIB_CACHE_DIR", str(tmp_path / "named"))
    assert default_cache_dir() == tmp_path / "named"
    assert open_cache(None).root == tmp_path / "named"
    assert open_cache(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.delenv("QUANTLIB_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "bert-quantlib" in str(default_cache_dir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*name another .* with QUANTLIB_CACHE_DIR") as caught:
        open_cache(tmp_path / "file" / "cache")
    assert "\n" not in str(caught.value)


# Parts of keys


def test_versions() -> None:
    versions = versions_key("numpy", "onnx")
    assert versions == {name: importlib.import_module(name).__version__ for name in ("numpy", "onnx")}


# The clock

OPEN = """
from pathlib import Path
from quantlib.support.cache import open_cache
open_cache(Path(sys.argv[1]))
wait()
"""


def test_a_clock_that_is_set_back_does_not_make_what_a_run_uses_look_old(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time()
    monkeypatch.setenv("QUANTLIB_CACHE_GIB", "0")
    cache = open_cache(full)
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: began - 1e8)
        for entry in (full / "models").iterdir():
            eviction.mark_used(entry, time.time)
    assert not cache.get("models", {"name": "d"}, kilobyte).hit
    assert set(kept(full)) == set("abcd")


def test_entries_that_were_used_in_the_future_do_not_stay_for_ever(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = time.time() + 1e8
    for name in "ab":
        path = Cache(full).get("models", {"name": name}, kilobyte).path
        os.utime(path / "entry.json", (future, future))
    monkeypatch.setattr(eviction, "_used_here", set())
    monkeypatch.setenv("QUANTLIB_CACHE_GIB", "0")
    cache = open_cache(full)
    assert cache.get("models", {"name": "a"}, kilobyte).hit
    with other_process(OPEN, full):
        eviction.shrink(full, 0)
        assert set(kept(full)) == set("ab"), "another run may have used them before the clock was set back"
    eviction.shrink(full, 0)
    assert kept(full) == "a", "this run has used it"


def test_a_cache_that_is_removed_while_it_is_open_is_made_anew(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache")
    cache.get("models", {"name": "a"}, kilobyte)
    shutil.rmtree(cache.root)
    assert not cache.get("models", {"name": "a"}, kilobyte).hit
    open_cache(cache.root)
    assert cache.get("models", {"name": "a"}, kilobyte).hit
    with other_process(OPEN, cache.root):
        eviction.shrink(cache.root, 0)
    assert cache.get("models", {"name": "a"}, kilobyte).hit, "this run holds a lock there again"


def test_lock_files_of_killed_builds_go(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from quantlib.support.cache import Cache
Cache(Path(sys.argv[1])).get("models", {}, lambda _: wait())
"""
    with other_process(code, tmp_path):
        open_cache(tmp_path)
        # The lock of the entry; the temporary directory and its lock.
        assert len(list((tmp_path / "models").iterdir())) == 3, "those of a living process stay"
    assert len(list((tmp_path / "models").iterdir())) == 3
    open_cache(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
