"""Entries of a cache that travel: what arrives is what was sent, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantlib.support.artifacts import (
    Artifact,
    artifact_of,
    chunks_of,
    finish,
    pack,
    read_chunk,
    write_chunk,
)
from quantlib.support.cache import Cache, NotCached, only_looking, recording
from quantlib.support.errors import InputError, Unavailable

KEY = {"seed": 3}


def build(directory: Path) -> None:
    (directory / "folder").mkdir()
    (directory / "folder" / "model.bin").write_bytes(bytes(range(256)) * 5)
    (directory / "empty.txt").touch()


def never(directory: Path) -> None:
    raise AssertionError(f"{directory} was to be built again")


def sent(artifact: Artifact, source: Path, target: Cache, size: int = 100) -> Artifact:
    """The artifact, once its pieces have arrived in another cache."""
    for name, offset, length in chunks_of(artifact, size):
        write_chunk(target, "token", name, offset, read_chunk(source, name, offset, length))
    finish(target, "token", artifact)
    return artifact


@pytest.mark.parametrize("size", [1, 100, 1280, 5000])
def test_an_entry_arrives_as_it_was_sent(size: int, tmp_path: Path) -> None:
    entry = Cache(tmp_path / "here").get("kind", KEY, build)
    artifact = artifact_of(entry.path)
    there = Cache(tmp_path / "there")
    assert not artifact.is_in(there.root)
    sent(artifact, entry.path, there, size)
    assert artifact.is_in(there.root)
    assert there.get("kind", KEY, never).hit, "its bytes are those of its record"
    assert artifact_of(artifact.path(there.root)) == artifact
    assert not list((there.root / "incoming").iterdir())
    assert artifact.size_bytes == 1280


def test_what_arrives_twice_is_kept_once(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "here").get("kind", KEY, build)
    there = Cache(tmp_path / "there", limit_bytes=10**9)
    artifact = sent(artifact_of(entry.path), entry.path, there)
    before = (artifact.path(there.root) / "entry.json").stat().st_ino
    sent(artifact, entry.path, there)
    assert (artifact.path(there.root) / "entry.json").stat().st_ino == before


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "here").get("kind", KEY, build)
    artifact, there = artifact_of(entry.path), Cache(tmp_path / "there")
    (entry.path / "folder" / "model.bin").write_bytes(b"x" * 1280)
    with pytest.raises(Unavailable, match=r"folder/model\.bin arrived with other bytes$"):
        sent(artifact, entry.path, there)
    assert not artifact.is_in(there.root)
    write_chunk(there, "other", "empty.txt", 0, b"")
    with pytest.raises(Unavailable, match="arrived with other bytes"):
        finish(there, "other", artifact)


def test_what_is_gone_or_cut_off_is_told(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "here").get("kind", KEY, build)
    (entry.path / "folder" / "model.bin").write_bytes(b"short")
    with pytest.raises(Unavailable, match="shorter than it was"):
        read_chunk(entry.path, "folder/model.bin", 0, 100)
    with pytest.raises(Unavailable, match=r"nothing\.bin: No such file"):
        read_chunk(entry.path, "nothing.bin", 0, 1)
    (entry.path / "empty.txt").unlink()
    with pytest.raises(Unavailable, match="the cache lost kind/"):
        artifact_of(entry.path)


@pytest.mark.parametrize(
    ("kind", "name", "file"),
    [
        ("..", "x", "y"),
        ("kind", "/etc", "y"),
        ("kind", "x", "../../y"),
        ("kind", "", "y"),
        ("kind", "x", "/y"),
    ],
)
def test_no_name_leads_out_of_the_cache(kind: str, name: str, file: str) -> None:
    with pytest.raises(InputError, match="leads out of the cache"):
        Artifact(kind, name, {file: ("0", 1)}, "{}")


def test_files_are_known_by_what_they_hold(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / "two" / "unread.txt").write_text("x")
    first, second = (pack("inputs", tmp_path / place, ["config.json"]) for place in ("one", "two"))
    assert first == second
    (tmp_path / "two" / "config.json").write_text("[]")
    changed = pack("inputs", tmp_path / "two", ["config.json"])
    assert changed.sha256 != first.sha256
    assert changed.name != first.name
    there = Cache(tmp_path / "there")
    sent(first, tmp_path / "one", there)
    assert json.loads((first.path(there.root) / "entry.json").read_text())["files"].keys() == {"config.json"}
    assert not replace(first, record="{}").is_in(there.root)
    with pytest.raises(InputError, match=r"cannot read .*nowhere: No such file"):
        pack("inputs", tmp_path, ["nowhere"])


def test_what_a_block_uses_is_recorded(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with recording() as outer:
        made = cache.get("kind", KEY, build)
        with recording() as inner:
            found = cache.get("kind", KEY, never)
    cache.get("kind", {"seed": 4}, build)
    assert outer == [made]
    assert inner == [found]
    assert (made.hit, found.hit) == (False, True)


def test_who_only_looks_builds_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with only_looking(), pytest.raises(NotCached):
        cache.get("kind", KEY, never)
    assert not list(tmp_path.iterdir())
    entry = cache.get("kind", KEY, build)
    with only_looking():
        assert cache.get("kind", KEY, never).hit
        (entry.path / "folder" / "model.bin").write_bytes(b"damaged")
        with pytest.raises(NotCached):
            cache.get("kind", KEY, never)
    assert not cache.get("kind", KEY, build).hit
