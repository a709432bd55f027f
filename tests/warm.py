"""Processes that start warm: forked from one that has imported this module, and with it the large packages.

Importing PyTorch, transformers, ONNX Runtime, SciPy and scikit-learn takes a process two to four seconds, and
reading the code that makes a cache's entries another half; the tests start dozens.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Self

import pytest

_TESTS = Path(__file__).resolve().parent

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])


def run_pytest(*arguments: str, cwd: Path) -> pytest.RunResult:
    """Run pytest with these arguments in a process of its own, as `pytester.runpytest_subprocess` does."""
    start = time.perf_counter()
    arguments = (f"--basetemp={cwd / 'basetemp'}", *arguments)
    finished = _run(partial(_pytest, arguments), ["pytest", *arguments], cwd)
    seconds = time.perf_counter() - start
    print(finished.stdout, finished.stderr, sep="\n")
    return pytest.RunResult(
        finished.returncode, finished.stdout.splitlines(), finished.stderr.splitlines(), seconds
    )


def run_script(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a Python file with these arguments in a process of its own."""
    return _run(partial(_script, script), [str(script), *arguments], cwd)


@contextmanager
def timed_here() -> Iterator[None]:
    """Time models in a thread of this process, at once: the times, and what a process costs, are not tested.

    Otherwise each model has a process, again in each launch, and wakes the processor before each block.
    """
    from quantlib.measuring.latency import process, worker

    time_runs, read_feeds = process.TimedProcess.time, worker.Worker._read_feeds
    reading = threading.Lock()

    def read_feeds_alone(served: worker.Worker, directory: Path) -> None:
        # NumPy reads a header with ast, which in Python 3.11 fails where two threads are in it.
        with reading:
            read_feeds(served, directory)

    def time_at_once(
        timed: process.TimedProcess, runs: int, *, warmup_runs: int = 0, **_: float
    ) -> list[float]:
        return time_runs(timed, runs, warmup_runs=warmup_runs, wake_seconds=0.0)

    def start(command: Sequence[str], **words: Any) -> Any:
        return _Worker() if command == process._WORKER else subprocess.Popen(command, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process.TimedProcess, "time", time_at_once)
        patch.setattr(worker.Worker, "_read_feeds", read_feeds_alone)
        patch.setattr(process, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
        yield


class _Worker:
    """What serves a `TimedProcess` in a thread, with the interface of its process."""

    pid = os.getpid()

    def __init__(self) -> None:
        from quantlib.measuring.latency.worker import serve

        (commands, stdin), (stdout, answers) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(stdout)

        def served() -> None:
            with os.fdopen(commands) as lines, os.fdopen(answers, "w") as written:
                serve(lines, written)

        self._thread = threading.Thread(target=served)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdout.close()

    def kill(self) -> None:
        """Nothing is killed: the thread ends with its commands."""

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        return 0


class _TimedHere:
    """The plugin of pytest in pytest that is `timed_here`."""

    def pytest_configure(self, config: pytest.Config) -> None:
        stack = ExitStack()
        stack.enter_context(timed_here())
        config.add_cleanup(stack.close)


def _pytest(arguments: Sequence[str]) -> None:
    # Pytest wants to rewrite the asserts of its plugins, and some are imported already.
    late = "-Wignore::pytest.PytestAssertRewriteWarning"
    sys.exit(int(pytest.main([late, *arguments], plugins=[_TimedHere()])))


def _script(script: Path) -> None:
    sys.path.insert(0, str(script.parent))
    with timed_here():
        runpy.run_path(str(script), run_name="__main__")


def _run(main: Callable[[], None], argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    with TemporaryDirectory() as directory:
        outputs = [Path(directory, name) for name in ("stdout", "stderr")]
        arguments = (main, argv, cwd, dict(os.environ), outputs)
        process = _context.Process(target=_child, args=arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(_TESTS), prepend=os.pathsep)  # for the first process, that forks
            process.start()
        process.join()
        stdout, stderr = (path.read_text(encoding="utf-8", errors="replace") for path in outputs)
        assert process.exitcode is not None
        return subprocess.CompletedProcess(argv, process.exitcode, stdout, stderr)


def _child(
    main: Callable[[], None],
    argv: list[str],
    cwd: Path,
    environment: dict[str, str],
    outputs: Sequence[Path],
) -> None:
    assert "preloaded" in sys.modules, "errors of its import are not shown"
    gc.freeze()  # what was imported stays, and need not be looked through again and again
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = argv
    paths = [cwd, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = [*map(str, paths), *(path for path in sys.path if Path(path).resolve() != _TESTS)]
    for descriptor, path in enumerate(outputs, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    main()
