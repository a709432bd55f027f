"""Files by their hash: whole, checked, linked where that is possible."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantlib.support.errors import Unavailable
from quantlib.support.files import sha256_file
from quantlib.support.store import FileStore


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    return path


def test_a_kept_file_is_found_by_its_hash(tmp_path: Path, model: Path) -> None:
    store, digest = FileStore(tmp_path / "new" / "store", ".onnx"), sha256_file(model)
    assert not store.has(digest)
    store.put(model, digest)
    store.put(model, digest)
    assert store.has(digest)
    assert store.get(digest).read_bytes() == b"weights"
    assert [path.name for path in store.directory.iterdir()] == [f"{digest}.onnx"]
    assert store.get(digest).samefile(model)


def test_a_file_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    store, digest = FileStore(tmp_path / "store", ".onnx"), sha256_file(model)
    store.put(model, digest)
    assert not store.get(digest).samefile(model)


def test_a_file_of_other_bytes_is_not_kept(tmp_path: Path, model: Path) -> None:
    store = FileStore(tmp_path / "store", ".onnx")
    with pytest.raises(Unavailable, match="has other bytes than 000000000000"):
        store.put(model, "0" * 64)
    assert not store.has("0" * 64)


def test_a_file_that_is_not_there_or_damaged_is_said(tmp_path: Path, model: Path) -> None:
    store, digest = FileStore(tmp_path / "store", ".onnx"), sha256_file(model)
    with pytest.raises(Unavailable, match=f"the store has no model {digest[:12]}"):
        store.get(digest)
    store.put(model, digest)
    kept = store.directory / f"{digest}.onnx"
    kept.unlink()
    kept.write_bytes(b"cut off")
    with pytest.raises(Unavailable, match=f"model {digest[:12]} is damaged"):
        store.get(digest)
