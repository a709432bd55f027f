"""The parent's side of a timing process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

import quantlib
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.machine.sessions import default_threads
from quantlib.measuring.latency.limits import TimeLimits, at_most
from quantlib.measuring.latency.stats import WAKE_SECONDS
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError

Feeds = Sequence[Mapping[str, npt.NDArray[Any]]]

_WORKER = (sys.executable, "-P", "-m", "quantlib.measuring.latency.orphan")
_CLOSE_SECONDS = 10.0


class TimedProcess:
    """A model in a process of its own, so that no other session's threads disturb it.

    A context manager: the process starts, and the model is loaded, on entry; on exit the process has ended.

    Args:
        onnx_path: the model.
        feeds: arrays by input name, cycled through by the timed runs; what the model does not take is
            left out.
        config: the options of the engine's sessions; the default is one thread a physical core. A mapping is
            for a worker of another revision, whose options have other names.
        engine: the name of what runs it.
        profile_prefix: with one, ONNX Runtime traces every run; see `end_profiling`. Times then include
            what tracing costs.
        limits: how long the process may take to answer; one that takes longer is killed.
        worker: the command that starts the process.
    """

    def __init__(
        self,
        onnx_path: Path,
        feeds: Feeds,
        config: Any = None,
        *,
        engine: str = DEFAULT_ENGINE,
        profile_prefix: Path | None = None,
        limits: TimeLimits | None = None,
        worker: Sequence[str] = _WORKER,
    ) -> None:
        self.onnx_path = onnx_path
        config = config or get_engine(engine).config(default_threads(), False)
        self.config: dict[str, Any] = dict(config) if isinstance(config, Mapping) else asdict(config)
        # Left out where it is the default: a worker of an older revision knows no other.
        self._engine = {} if engine == DEFAULT_ENGINE else {"engine": engine}
        self._feeds = feeds
        self._profile_prefix = profile_prefix
        self._limits = limits or TimeLimits()
        self._worker = worker
        self._slowest_ms: float | None = None
        self._stderr: IO[bytes]
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        """Start the process and load the model.

        Raises:
            InputError: the model cannot be loaded, or misses an input.
            RuntimeError: the process died, or took longer than its limit.
        """
        # A file, not a pipe: nobody reads it while the process works, and a full pipe would stop it.
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._worker,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(),
            encoding="utf-8",
        )
        try:
            prefix = None if self._profile_prefix is None else str(self._profile_prefix.resolve())
            model = str(self.onnx_path.resolve())
            self._ask("load", onnx_path=model, profile_prefix=prefix, **self._engine, **self.config)
            self.set_feeds(self._feeds)
        except BaseException:
            self._end(kill=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(kill=kind is not None)

    @property
    def pid(self) -> int:
        """The id of the running process."""
        return self._process.pid

    def set_feeds(self, feeds: Feeds) -> None:
        """Time on these feeds from now on, for example on another shape.

        Raises:
            ValueError: there are no feeds.
            InputError: the model has an input that the feeds lack.
        """
        if not feeds:
            raise ValueError(f"no feeds to time {self.onnx_path} on")
        with temporary_dir() as directory:
            for index, feed in enumerate(feeds):
                arrays: dict[str, Any] = dict(feed)
                np.savez(directory / f"{index:06d}.npz", **arrays)
            self._ask("feeds", directory=str(directory))
        self._slowest_ms = None

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = WAKE_SECONDS) -> list[float]:
        """The time of each of `runs` runs in ms, after waking for `wake_seconds` and `warmup_runs` runs.

        Raises:
            RuntimeError: the model failed on a feed, or the process died or took longer than its limit.
        """
        limit_s = self._limits.for_runs(warmup_runs + runs, wake_seconds, self._slowest_ms)
        arguments = {"runs": runs, "warmup_runs": warmup_runs, "wake_seconds": wake_seconds}
        times_ms: list[float] = self._ask("time", limit_s, **arguments)
        self._slowest_ms = max(times_ms if self._slowest_ms is None else [self._slowest_ms, *times_ms])
        return times_ms

    def end_profiling(self) -> Path:
        """The trace of all runs so far, a file whose path begins with `profile_prefix`; once only.

        Raises:
            RuntimeError: the process died, or took longer than its limit.
        """
        return Path(self._ask("end_profiling"))

    def _ask(self, command: str, limit_s: float | None = None, /, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        limit_s = self._limits.answer_s if limit_s is None else limit_s
        request = json.dumps({"command": command, **arguments})
        with at_most(limit_s, self._process.kill) as overdue:
            try:
                self._process.stdin.write(request + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if overdue.is_set():
            raise RuntimeError(
                f"the process that times {self.onnx_path} did not answer {request} within {limit_s:g} s; "
                "it was killed"
            )
        if not line:
            raise RuntimeError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            # The load error names the model; the others only name an input or an operator.
            text = answer["error"]
            text = text if str(self.onnx_path) in text else f"{self.onnx_path}: {text}"
            raise InputError(text) if answer["input"] else RuntimeError(text)
        return answer["result"]

    def _last_words(self) -> str:
        code = self._process.wait(_CLOSE_SECONDS)
        self._stderr.seek(0)
        stderr = self._stderr.read().decode("utf-8", errors="replace").strip()[-2000:] or "no message"
        return f"the process that timed {self.onnx_path} died with exit code {code}: {stderr}"

    def _end(self, *, kill: bool) -> None:
        """End the process, by closing its stdin or by force; reap it, and close its pipes."""
        assert self._process.stdin is not None
        with self._stderr, self._process:
            if kill:
                self._process.kill()
            with suppress(BrokenPipeError):  # a command that never reached a dead process
                self._process.stdin.close()
            with at_most(_CLOSE_SECONDS, self._process.kill):
                self._process.wait()  # without a timeout: with one, it looks every 50 ms only


def _environment() -> dict[str, str]:
    """This environment, with the child finding the same quantlib as the parent, also in a source checkout.

    Site-packages must not be put on the path: there it would come before the standard library.
    """
    parent = str(Path(quantlib.__file__).resolve().parent.parent)
    installed = {str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib")}
    if parent in installed:
        return dict(os.environ)
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([parent, inherited] if inherited else [parent])}
