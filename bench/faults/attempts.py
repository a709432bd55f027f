"""One command in a process of its own, and what is done to it: a signal, limits, a patched system.

Processes start warm: forked from one that has imported PyTorch and the rest (tests/warm.py). The moment of a
signal is a time, or the N-th operation on files, which repeats exactly: most of what can be left half done is
between two of these.
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).resolve().parents[2] / "tests"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["preloaded"])

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_OPERATIONS = tuple(f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "link", "utime"))
_OPERATIONS += ("shutil.", "subprocess.")
_POLL_SECONDS = 0.005
_ORPHAN_SECONDS = 3.0  # after which a process that its parent left is one that stays behind
_LIMIT_SECONDS = 300.0

_BEGAN = "QUANTLIB_FAULTS_BEGAN"

Prepare = Callable[[], None]


def begin() -> None:
    """Called by a command when it is ready to be disturbed."""
    if _BEGAN in os.environ:
        Path(os.environ[_BEGAN]).touch()


@dataclass(frozen=True)
class Strike:
    """A signal and its moment: before an operation on files, counted from 1, or seconds after the start."""

    number: int
    operation: int | None = None
    seconds: float | None = None

    @property
    def group(self) -> bool:
        """Whether it reaches all processes of the group, as Ctrl-C does."""
        return self.number == signal.SIGINT

    def __str__(self) -> str:
        when = f"{self.seconds:.2f} s" if self.operation is None else f"operation {self.operation}"
        return f"{signal.Signals(self.number).name} at {when}"


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    code: the exit code, negative for a signal. seconds: from its start. after: seconds from the signal to the
    end; None if it had ended before. operations: on files, as far as it came. left: its processes that live
    on. Seconds in which the machine did not let the waiting process run are in neither time.
    """

    code: int
    out: str
    err: str
    seconds: float
    after: float | None
    operations: int
    left: tuple[str, ...]


def run(
    main: Callable[[], int],
    place: Path,
    strike: Strike | None = None,
    prepare: Prepare | None = None,
    limit_seconds: float = _LIMIT_SECONDS,
    logs_name: str = "logs",
) -> Ended:
    """Run `main` in a process, a session of its own, in the directory `place`.

    main, prepare: functions that can be pickled; `prepare` is called first. logs_name: of the directory
    beside `place` for what the process says; processes that run at the same time need one each.

    Raises:
        TimeoutError: the process did not end in time; it was killed.
    """
    logs = place.parent / f"{place.name}.{logs_name}"
    logs.mkdir(exist_ok=True)
    for file in logs.iterdir():
        file.unlink()
    arguments = (main, place, logs, strike, prepare, dict(os.environ))
    process = _context.Process(target=_child, args=arguments)
    _start(process)
    assert process.pid is not None
    started, frozen, struck = time.monotonic(), 0.0, None
    last, began = started, None
    while not wait([process.sentinel], _POLL_SECONDS):
        now = time.monotonic()
        if now - last > 0.25:  # this process was stopped, and so was the other
            frozen += now - last
        last = now
        if struck is None and strike is not None and strike.seconds is not None:
            if began is None and (logs / "began").exists():
                began = now - frozen
            if began is not None and now - began - frozen >= strike.seconds:
                struck = now
                _send(strike, process.pid)
        if now - started - frozen > limit_seconds:
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"did not end within {limit_seconds:g} s")
    ended = time.monotonic()
    process.join()
    if (logs / "struck").exists():
        struck = float((logs / "struck").read_text())
    left = _left_behind(process.pid)
    assert process.exitcode is not None
    out, err = ((logs / name).read_text("utf-8", errors="replace") for name in ("stdout", "stderr"))
    return Ended(
        process.exitcode,
        out,
        err,
        seconds=ended - started - frozen,
        after=None if struck is None else max(0.0, ended - struck - frozen),
        operations=_count(logs),
        left=left,
    )


def _start(process: BaseProcess) -> None:
    """Start it; the process that it is forked from finds what it has to import."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *([before] if before else [])])
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _send(strike: Strike, pid: int) -> None:
    try:
        if strike.group:
            os.killpg(pid, strike.number)
        else:
            os.kill(pid, strike.number)
    except ProcessLookupError:
        return


def _count(logs: Path) -> int:
    counted = logs / "operations"
    return int(counted.read_text()) if counted.exists() else 0


def _left_behind(session: int) -> tuple[str, ...]:
    """The processes of a session that are still there after a while."""
    until = time.monotonic() + _ORPHAN_SECONDS
    while True:
        alive = _of_session(session)
        if not alive or time.monotonic() > until:
            return tuple(alive)
        time.sleep(0.05)


def _of_session(session: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:200])
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found


# In the child


def _child(
    main: Callable[[], int],
    place: Path,
    logs: Path,
    strike: Strike | None,
    prepare: Prepare | None,
    environment: dict[str, str],
) -> None:
    """Become a process of a session of its own, as if it had just been started, and run `main`."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    atexit._clear()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        opened = os.open(logs / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    if prepare is not None:
        prepare()
    os.environ[_BEGAN] = str(logs / "began")
    counter = _Counter(strike, logs)
    sys.addaudithook(counter)
    # What a timing process says as it dies goes to a file that its parent reads; here it is a thread.
    usual = threading.excepthook
    threading.excepthook = lambda died: None if _times(died.thread) else usual(died)
    code = 1
    try:
        code = main()
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:  # noqa: BLE001 (shown, as the interpreter would)
        sys.excepthook(type(error), error, error.__traceback__)
    # What the end of an interpreter does; this process is a copy of another one, whose own end it is not.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    counter.write()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _times(thread: threading.Thread | None) -> bool:
    """Whether a thread stands for a timing process (`warm.timed_here`)."""
    return thread is not None and thread.name.endswith("(served)")


class _Counter:
    """Counts operations on files, and sends the signal before the one that is asked for."""

    def __init__(self, strike: Strike | None, logs: Path) -> None:
        self._strike, self._logs, self._busy = strike, logs, False
        self._began = False
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy or not is_operation(event, arguments):
            return
        if not self._began:
            self._began = str(arguments[0]) == os.environ[_BEGAN]
            return
        self.count += 1
        strike = self._strike
        if strike is None or self.count != strike.operation:
            return
        self._busy = True
        (self._logs / "struck").write_text(str(time.monotonic()))
        self.write()
        self._busy = False
        _send(strike, os.getpid())

    def write(self) -> None:
        """Write down how many operations there were."""
        self._busy = True
        (self._logs / "operations").write_text(json.dumps(self.count))


def is_operation(event: str, arguments: Sequence[Any]) -> bool:
    """Whether an event of Python's audit hooks changes files, or starts a process."""
    if event == "open":
        path, mode, flags = arguments
        written = flags & _WRITES if isinstance(flags, int) else False
        return bool(written or set(mode or "") & set("wax+")) and not str(path).endswith(".pyc")
    return event.startswith(_OPERATIONS)
