"""Errors that the machine caused, in one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantlib.cli.app import new_app, run_app
from quantlib.support.errors import InputError
from quantlib.support.exhaustion import reason_for, removal
from quantlib.support.presence import forget_used, note_used


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("[ONNXRuntimeError] : 6 : std::bad_alloc"), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "memory"),
        (ImportError("libx.so: failed to map segment from shared object"), "memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x"), "open files"),
        (RuntimeError("can't start new thread"), "threads or processes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_lacking(error: Exception, lacking: str) -> None:
    reason = reason_for(error)
    assert reason is not None
    assert reason.startswith(f"too little {lacking}")
    assert "\n" not in reason
    beside = ValueError("another")
    beside.__context__ = error
    assert reason_for(beside) == reason, "the first cause counts"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), OSError(errno.EIO, "x")], ids=repr)
def test_a_bug_has_no_reason(error: Exception) -> None:
    assert reason_for(error) is None


@pytest.mark.skipif(os.name == "nt", reason="limits of processes")
def test_a_thread_needs_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = {resource.RLIMIT_NPROC: 100, resource.RLIMIT_AS: 2**30}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], limits[which]))
    error = RuntimeError("can't start new thread")
    said = "too little threads or processes: `ulimit -u` allows 100, `ulimit -v` allows 1024 MB"
    assert reason_for(error) == said
    limits[resource.RLIMIT_AS] = resource.RLIM_INFINITY
    assert reason_for(error) == "too little threads or processes: `ulimit -u` allows 100"
    limits[resource.RLIMIT_NPROC] = resource.RLIM_INFINITY
    assert reason_for(error) == "too little threads or processes"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An entry of a cache, by a path relative to the working directory, that a command uses."""
    monkeypatch.chdir(tmp_path)
    model = Path("cache", "export", "1f", "model.onnx")
    model.parent.mkdir(parents=True)
    model.touch()
    forget_used()
    note_used(Path("cache"), model.parent, model)
    yield model.parent
    forget_used()


def missing(path: Path | str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_a_file_that_is_gone(entry: Path, absolute: bool) -> None:
    model = (entry.absolute() if absolute else entry) / "model.onnx"
    errors = [
        missing(model),
        InputError(f"{model}: no such ONNX model"),
        RuntimeError(f"[ONNXRuntimeError] : 3 : NO_SUCHFILE : Load model from {model} failed"),
        missing(model.parent / "tokenizer" / "vocab.txt"),
    ]
    assert [removal(error) for error in errors] == [None] * 4, "all is there"
    (entry / "model.onnx").unlink()
    assert [(removal(error) or "").split(" is gone: it was removed")[0] for error in errors] == [
        *[str(entry / "model.onnx")] * 3,
        "",
    ]
    entry.rmdir()
    said = f"{entry} is gone: it was removed while this command used it; run the command again"
    assert [removal(error) for error in errors] == [said] * 4
    assert [reason_for(error) for error in errors] == [said] * 4


def test_what_names_no_file_is_about_what_is_missing(entry: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    assert removal(error) is None
    (entry / "model.onnx").unlink()
    assert (removal(error) or "").startswith(f"{entry / 'model.onnx'} is gone")


@pytest.mark.parametrize("name", ["cache2/x", "my-cache/x", "cache.toml", "elsewhere/cache", "num_cache"])
def test_a_missing_file_that_is_none_of_them(entry: Path, name: str) -> None:
    (entry / "model.onnx").unlink()
    for directory in (entry, entry.parent, entry.parents[1]):
        directory.rmdir()
    assert removal(missing(name)) is None
    assert removal(InputError(f"{name}: no such file")) is None


def test_a_command_says_that_a_file_is_gone(entry: Path, capfd: pytest.CaptureFixture[str]) -> None:
    app = new_app()

    @app.command()
    def command() -> None:
        note_used(entry)
        model = entry / "model.onnx"
        model.unlink()
        entry.rmdir()
        raise InputError(f"{model}: no such ONNX model")

    assert run_app(app, []) == 2
    assert capfd.readouterr().err == (
        f"error: {entry} is gone: it was removed while this command used it; run the command again\n"
    )


def test_a_command_says_it_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    app = new_app()

    @app.command()
    def command() -> None:
        raise MemoryError

    assert run_app(app, []) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: too little memory")
    assert err.count("\n") == 1
