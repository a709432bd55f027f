from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from quantlib.support.directories import atomic_dir, atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import (
    atomic_file,
    copy_file,
    make_dir,
    place_errors,
    sha256_file,
    sha256_json,
    sha256_tree,
    write_json,
    write_text,
)


def tree(directory: Path) -> dict[str, str]:
    """Every file below a directory, hidden ones too, with its text."""
    return {p.relative_to(directory).as_posix(): p.read_text() for p in directory.rglob("*") if p.is_file()}


def everything(directory: Path) -> list[str]:
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*"))


# Errors of the place


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "the file is larger than this process may write"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EISDIR, "a directory stands where a file is needed"),
        (errno.ELOOP, "its symbolic links go in a circle"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_errors_of_the_place_name_it(number: int, words: str) -> None:
    with (
        pytest.raises(InputError, match=f"^cannot write here/x: {words}$"),
        place_errors(Path("here/x")),
    ):
        raise OSError(number, os.strerror(number))


def test_a_library_in_rust_gives_the_number_as_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no space left"), place_errors(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="os error 999"), place_errors(tmp_path):
        raise RuntimeError("something else (os error 999)")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "broken"),
        OSError("no number"),
        ValueError("a bug"),
        InputError("said (os error 28)"),
    ],
    ids=["EIO", "no_number", "bug", "said_already"],
)
def test_other_errors_pass_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, place_errors(Path("here")):
        raise error
    assert caught.value is error


def test_an_error_about_another_file_names_that_file(tmp_path: Path) -> None:
    data, place = tmp_path / "rows.tsv", tmp_path / "cache" / "entry"
    for number, words in ((errno.EACCES, "permission denied"), (errno.EISDIR, "a directory stands where")):
        with (
            pytest.raises(InputError, match=f"^cannot open {data}: {words}"),
            place_errors(place),
            atomic_dir(place),
        ):
            raise OSError(number, os.strerror(number), str(data))


@pytest.mark.parametrize("inside", ["", "model.onnx", "..", "../.."])
def test_an_error_about_the_place_or_what_it_lies_in_names_the_place(tmp_path: Path, inside: str) -> None:
    place = tmp_path / "cache" / "entry"
    with pytest.raises(InputError, match=f"^cannot write {place}: permission denied$"), place_errors(place):
        raise PermissionError(errno.EACCES, "", str(place / inside))


def test_an_error_about_the_temporary_file_names_the_place(tmp_path: Path, atomic: Any) -> None:
    place = atomic[0]
    expected = pytest.raises(InputError, match=f"^cannot write {tmp_path}/target: permission denied$")
    with expected, place(tmp_path / "target") as scratch:
        raise PermissionError(errno.EACCES, "", str(scratch / "x"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_make_dir_where_the_system_allows_none() -> None:
    with pytest.raises(InputError, match=r"^cannot write /proc/x/SST-2: no directory can be made there$"):
        make_dir(Path("/proc/x/SST-2"))


def test_make_dir_that_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary_file = tempfile.TemporaryFile

    def removed_before(**words: Any) -> Any:
        words["dir"].rmdir()
        return temporary_file(**words)

    monkeypatch.setattr(tempfile, "TemporaryFile", removed_before)
    with pytest.raises(InputError, match=rf"^{tmp_path / 'x'} is gone: it was removed while this command"):
        make_dir(tmp_path / "x")


def test_make_dir(tmp_path: Path) -> None:
    assert make_dir(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_dir(tmp_path / "a").is_dir()
    assert everything(tmp_path) == ["a", "a/b"], "the test of writing leaves nothing"


def occupy(path: Path, how: str) -> Path:
    """A path that cannot become a directory; tests may run as root, so permissions do not stop them."""
    if how == "file":
        path.write_text("")
    elif how == "below_a_file":
        path.write_text("")
        return path / "below"
    elif how == "circle":
        path.symlink_to(path)
    else:
        return path / ("long" * 100)
    return path


@pytest.mark.parametrize("how", ["file", "below_a_file", "circle", "long_name"])
def test_make_dir_where_it_cannot_be(tmp_path: Path, how: str) -> None:
    path = occupy(tmp_path / "taken", how)
    with pytest.raises(InputError) as caught:
        make_dir(path)
    assert str(caught.value).startswith(f"cannot write {path}: ")
    assert "\n" not in str(caught.value)


# Whole or absent


def fill_file(scratch: Path) -> None:
    scratch.write_text("new")


def fill_dir(scratch: Path) -> None:
    (scratch / "sub").mkdir()
    (scratch / "sub" / "file").write_text("new")


ATOMIC: dict[str, tuple[Callable[[Path], AbstractContextManager[Path]], Callable[[Path], None]]] = {
    "file": (atomic_file, fill_file),
    "dir": (atomic_dir, fill_dir),
    "files": (atomic_files, fill_dir),
}


@pytest.fixture(params=ATOMIC)
def atomic(
    request: pytest.FixtureRequest,
) -> Iterator[tuple[Callable[[Path], AbstractContextManager[Path]], Callable[[Path], None]]]:
    yield ATOMIC[request.param]


def test_what_succeeds_is_there_and_nothing_else(tmp_path: Path, atomic: Any) -> None:
    place, fill = atomic
    with place(tmp_path / "deep" / "target") as scratch:
        fill(scratch)
        assert scratch != tmp_path / "deep" / "target"
    assert set(tree(tmp_path)) <= {"deep/target", "deep/target/sub/file"}
    assert list(tree(tmp_path).values()) == ["new"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["target"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError(errno.ENOSPC, "full")], ids=str)
def test_what_fails_leaves_no_file(tmp_path: Path, atomic: Any, error: Any) -> None:
    place, fill = atomic
    expected = InputError if isinstance(error, OSError) else error
    with pytest.raises(expected), place(tmp_path / "target") as scratch:
        fill(scratch)
        raise error
    assert tree(tmp_path) == {}
    assert set(everything(tmp_path)) <= {"target"}, "at most the empty directory is left"


def test_what_fails_leaves_the_old_in_place(tmp_path: Path, atomic: Any) -> None:
    place, fill = atomic
    with place(tmp_path / "target") as scratch:
        fill(scratch)
    before = tree(tmp_path)
    with pytest.raises(RuntimeError), place(tmp_path / "target") as scratch:
        fill(scratch)
        (scratch if scratch.is_file() else scratch / "sub" / "file").write_text("other")
        raise RuntimeError
    assert tree(tmp_path) == before


def test_an_old_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").write_text("old")
    with atomic_dir(tmp_path / "target") as scratch:
        (scratch / "new").write_text("new")
    assert tree(tmp_path) == {"target/new": "new"}


def test_atomic_files_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine").write_text("mine")
    (tmp_path / "b").write_text("old")
    with atomic_files(tmp_path) as scratch:
        write_text(scratch / "a", "new")
        write_text(scratch / "b", "new")
        write_text(scratch / "sub" / "c", "new")
        assert (tmp_path / "b").read_text() == "old"
    assert tree(tmp_path) == {"a": "new", "b": "new", "sub/c": "new", "sub/mine": "mine"}


def test_atomic_files_names_the_place_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    source = tmp_path / "source"
    source.write_text("x")
    monkeypatch.setattr(shutil, "copyfile", full)
    out = tmp_path / "out"
    with (
        pytest.raises(InputError, match=f"^cannot write {out}/sub/model.onnx: no space left on the disk$"),
        atomic_files(out) as scratch,
    ):
        write_text(scratch / "first", "whole")
        copy_file(source, scratch / "sub" / "model.onnx")
    assert everything(out) == []


def test_atomic_files_moves_nothing_when_one_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with (
        pytest.raises(InputError, match="a directory stands where a file is needed"),
        atomic_files(tmp_path) as scratch,
    ):
        write_text(scratch / "a", "new")
        write_text(scratch / "b", "new")
    assert everything(tmp_path) == ["b"]


@pytest.mark.parametrize("name", ["n" * 250, "n" * 300], ids=["scratch_too_long", "too_long"])
def test_a_name_that_is_too_long(tmp_path: Path, atomic: Any, name: str) -> None:
    place, fill = atomic
    try:
        with place(tmp_path / name) as scratch:
            fill(scratch)
    except InputError as error:
        assert str(error).endswith("the name is too long")
        assert tree(tmp_path) == {}


# Content


def test_text_is_utf8_with_its_line_ends_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "é\r\n\n")
    assert (tmp_path / "x").read_bytes() == "é\r\n\n".encode()


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"é": [1, 2.5, None]})
    assert (tmp_path / "x.json").read_text(encoding="utf-8").endswith("]\n}\n")
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "y.json", value)
    assert everything(tmp_path) == ["x.json"]


def test_a_copy_is_a_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "sub" / "target"
    source.write_text("x")
    os.utime(source, (1, 1))
    copy_file(source, target)
    target.write_text("edited")
    assert source.read_text() == "x"
    assert target.stat().st_mtime > 1


# Hashes


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_sha256_of_json_ignores_the_order_of_keys_only() -> None:
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": (1, 2)}) == sha256_json({"a": [1, 2]})
    others = [{"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": 1}, {}]
    assert len({sha256_json(value) for value in others} | {sha256_json({"a": 1, "b": [1, 2]})}) == 5


def test_sha256_of_a_tree(tmp_path: Path) -> None:
    hashes: list[str] = []
    for name, text in (("a", "1"), ("sub/a", "1"), ("a", "2")):
        path = tmp_path / str(len(hashes)) / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        hashes.append(sha256_tree(tmp_path / str(len(hashes))))
    assert len(set(hashes)) == 3
    (tmp_path / "0" / "empty").mkdir()
    assert sha256_tree(tmp_path / "0") == hashes[0]
    shutil.copytree(tmp_path / "2", tmp_path / "copy")
    assert sha256_tree(tmp_path / "copy") == hashes[2]
