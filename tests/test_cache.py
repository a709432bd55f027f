from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_the_second_time_it_is_found(cache: Cache) -> None:
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
    found = versions_key("numpy", "onnx")
    assert found == {"numpy": importlib.import_module("numpy").__version__, "onnx": found["onnx"]}
