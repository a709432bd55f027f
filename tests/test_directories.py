"""Directories that are as before or as after, also where the process is killed at any moment."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantlib.support import directories
from quantlib.support.directories import atomic_dir, atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_files, write_text

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import filelock  # not in the children, where opening its files would count
from quantlib.support import directories
from quantlib.support.files import sha256_files
from quantlib.support.scratch import remove_stale

root, exchange = Path(sys.argv[1]), sys.argv[2]
place = root / "SST-2"
if exchange == "no":
    directories._exchange = lambda *_: False

BEFORE = {"results.json": "1", "model_old.onnx": "1", "student/model_old.onnx": "1", "notes.txt": "mine"}
AFTER = {"results.json": "2", "model_new.onnx": "2", "notes.txt": "mine"}

def tree():
    return {p.relative_to(place).as_posix(): p.read_text() for p in place.rglob("*") if p.is_file()}

def start():
    shutil.rmtree(place, ignore_errors=True)
    for name, text in BEFORE.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)

def replace():
    earlier = sha256_files(place)
    del earlier["notes.txt"]
    with directories.atomic_files(place, lambda _: earlier) as new:
        for name in ("results.json", "model_new.onnx"):
            (new / name).write_text(AFTER[name])

def killed(moment):
    \'\'\'Whether a process that replaces the directory was killed before its operation of this number.\'\'\'
    child = os.fork()
    if child == 0:
        count = 0
        def hook(event, _):
            nonlocal count
            if event.startswith(("os.", "open", "shutil.", "ctypes.dlsym")):
                count += 1
                if count == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        try:
            replace()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)

seen, moment = [], 0
while True:
    moment += 1
    start()
    was_killed = killed(moment)
    found = tree()
    assert found in (BEFORE, AFTER) or (exchange == "no" and found == {}), (moment, found)
    remove_stale(root)
    assert tree() in (BEFORE, AFTER), (moment, tree())
    assert found in (tree(), {}), "what is there stays"
    left = [p.name for p in root.iterdir() if p != place]
    assert left == [], (moment, left)
    seen.append("gone" if not found else "before" if found == BEFORE else "after")
    if not was_killed:
        break
print(len(seen), *sorted(set(seen)))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("exchange", ["yes", "no"])
def test_a_run_is_whole_wherever_it_is_killed(tmp_path: Path, exchange: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), exchange]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    count, *states = process.stdout.split()
    assert int(count) > 20, "moments"
    can_exchange = exchange == "yes" and sys.platform == "linux"
    assert states == (["after", "before"] if can_exchange else ["after", "before", "gone"])


@pytest.mark.parametrize("removed", ["all", "part"])
@pytest.mark.parametrize("write", [atomic_dir, atomic_files], ids=["atomic_dir", "atomic_files"])
def test_what_is_removed_while_it_is_written_is_never_taken_for_finished(
    tmp_path: Path, write: Any, removed: str
) -> None:
    place = tmp_path / "runs" / "SST-2"
    with pytest.raises(InputError, match=r"runs is gone: it was removed"), write(place) as new:
        (new / "model_1.onnx").write_text("1")
        shutil.rmtree(place.parent if removed == "all" else new.parent)
        write_text(new / "results.json", "1")  # which makes the directory again
    assert not place.exists() or texts(place) == {}


def test_other_files_may_go_while_a_directory_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "SST-2"
    place.mkdir()
    (place / "notes.txt").touch()
    link = os.link

    def removed(path: Path, target: Path, **words: Any) -> None:
        path.unlink()
        link(path, target, **words)

    monkeypatch.setattr(os, "link", removed)
    with atomic_files(place) as new:
        (new / "results.json").write_text("1")
    assert texts(place) == {"results.json": "1"}


def texts(directory: Path) -> dict[str, str]:
    return {p.relative_to(directory).as_posix(): p.read_text() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture(params=["exchanged", "renamed"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "renamed":
        monkeypatch.setattr(directories, "_exchange", lambda *_: False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with two files of an earlier run, one of them edited since, and the user's own."""
    directory = tmp_path / "SST-2"
    (directory / "student").mkdir(parents=True)
    (directory / "empty").mkdir()
    for name in ("model_1.onnx", "student/model_1.onnx", "notes.txt", "student/notes.txt"):
        (directory / name).write_text(name)
    (directory / "link").symlink_to("elsewhere")
    return directory


@pytest.mark.usefixtures("system")
def test_files_of_an_earlier_run_go_and_others_stay(place: Path) -> None:
    earlier = {name: digest for name, digest in sha256_files(place).items() if "model" in name}
    (place / "student" / "model_1.onnx").write_text("edited")
    inode = (place / "notes.txt").stat().st_ino
    with atomic_files(place, lambda _: earlier) as new:
        (new / "model_2.onnx").write_text("new")
    assert texts(place) == {
        "model_2.onnx": "new",
        "notes.txt": "notes.txt",
        "student/model_1.onnx": "edited",
        "student/notes.txt": "student/notes.txt",
    }
    assert (place / "empty").is_dir()
    assert (place / "link").readlink() == Path("elsewhere")
    assert (place / "notes.txt").stat().st_ino == inode, "the same file, not a copy"
    assert [path.name for path in place.parent.iterdir()] == ["SST-2"]


def test_a_file_system_without_links(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(os, "link", refuse)
    before = texts(place)
    with atomic_files(place) as new:
        (new / "model_2.onnx").write_text("new")
    assert texts(place) == before | {"model_2.onnx": "new"}
    assert (place / "link").readlink() == Path("elsewhere")


@pytest.mark.usefixtures("system")
def test_a_place_that_is_a_link(place: Path) -> None:
    link = place.parent / "link"
    link.symlink_to(place)
    with atomic_files(link) as new:
        (new / "x").write_text("new")
    assert link.is_symlink()
    assert (place / "x").read_text() == "new"


@pytest.mark.usefixtures("system")
def test_a_rename_that_fails_leaves_the_old_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_exchange", lambda *_: False)
    before, rename = texts(place), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(errno.ENOSPC, "")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match="no space left on the disk"), atomic_dir(place) as new:
        (new / "x").write_text("new")
    assert texts(place) == before
