"""The process in which a model is timed: one session, commands on stdin, answers on stdout, a JSON line each.

Started by `quantlib.measuring.latency.process`. Commands:
    {"command": "load", "onnx_path": ..., "threads": ..., "spinning": ..., "providers": [...],
     "disabled_optimizers": [...], "profile_prefix": ...}   the last one may be null or left out; for another
     engine than the default the options are its own, and "engine" names it
    {"command": "feeds", "directory": ...}   a directory of .npz files, cycled through in order of name
    {"command": "time", "runs": ..., "warmup_runs": ..., "wake_seconds": ...}
    {"command": "end_profiling"}   of a session with a profile_prefix
Answers: {"result": ...}, the times in ms for "time", the trace's path for "end_profiling", or
{"error": text, "input": is it an InputError?}.
Any other exception ends the process with its traceback on stderr, where the parent finds it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from quantlib.machine.engines import DEFAULT_ENGINE, feed_of, get_engine
from quantlib.machine.sessions import shorten
from quantlib.measuring.latency.stats import time_ms, wake
from quantlib.support.errors import InputError


class Worker:
    """One session and the feeds it is timed on."""

    def __init__(self) -> None:
        self.errors: tuple[type[Exception], ...] = ()
        self._session: Any = None
        self._timed: Iterator[dict[str, Any]] = iter(())
        self._untimed: Iterator[dict[str, Any]] = iter(())

    def obey(self, command: dict[str, Any]) -> list[float] | str | None:
        """Run one command and give its result."""
        match command.pop("command"):
            case "load":
                engine = get_engine(command.pop("engine", DEFAULT_ENGINE))
                path, prefix = Path(command.pop("onnx_path")), command.pop("profile_prefix", None)
                if prefix is not None:
                    command["profile_prefix"] = Path(prefix)
                self.errors = engine.errors()
                self._session = engine.open(path, **command)
                return None
            case "feeds":
                self._read_feeds(Path(command["directory"]))
                return None
            case "time":
                return self._time(**command)
            case "end_profiling":
                return str(self._session.end_profiling())
            case unknown:
                raise ValueError(f"unknown command {unknown!r}")

    def _read_feeds(self, directory: Path) -> None:
        feeds = []
        for path in sorted(directory.glob("*.npz")):
            with np.load(path) as arrays:
                feeds.append(feed_of(self._session, arrays))
        # Waking takes a number of runs that depends on the model's speed. It has a cycle of its own, so
        # that the n-th timed run has the same feed in every process that takes turns.
        self._timed, self._untimed = itertools.cycle(feeds), itertools.cycle(feeds)

    def _time(self, runs: int, warmup_runs: int, wake_seconds: float) -> list[float]:
        def untimed() -> None:
            self._session.run(None, next(self._untimed))

        wake(untimed, wake_seconds)
        for _ in range(warmup_runs):
            untimed()
        return time_ms(lambda: self._session.run(None, next(self._timed)), runs)


def serve(commands: Iterable[str], answers: TextIO) -> None:
    """Obey one command a line until there are no more."""
    worker = Worker()
    for line in commands:
        try:
            answer: dict[str, Any] = {"result": worker.obey(json.loads(line))}
        except InputError as error:
            answer = {"error": str(error), "input": True}
        except worker.errors as error:
            answer = {"error": shorten(str(error)), "input": False}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve the parent process until it closes the pipe."""
    # Whatever a library prints must not get between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
