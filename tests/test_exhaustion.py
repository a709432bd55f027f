"""Errors that the machine caused, in one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from quantlib.cli.app import new_app, run_app
from quantlib.support.exhaustion import reason_for


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


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "export" / "model.onnx"))
    assert reason_for(error) is None
    reason = reason_for(error, [tmp_path])
    assert reason is not None
    assert reason.startswith(f"{tmp_path / 'export' / 'model.onnx'} is gone: it was removed")


def test_a_command_says_it_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    app = new_app()

    @app.command()
    def command() -> None:
        raise MemoryError

    assert run_app(app, []) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: too little memory")
    assert err.count("\n") == 1
