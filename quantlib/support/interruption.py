"""How a command ends when it is interrupted: with one line, within two seconds, and the shell's exit code.

Ctrl-C, SIGTERM and SIGHUP raise a KeyboardInterrupt, so that what is half done is cleaned up on the way out.
That may not be enough: native code may keep the main thread busy, a library may swallow the exception, and
threads may wait for the processes that time models. So a thread watches: it kills the processes that were
started, then ends this one. What it leaves behind is what SIGKILL would leave, which the next run removes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from quantlib.support.exhaustion import reason_for

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# Seconds after the signal: time to clean up, then children are killed, then this process ends.
_CHILDREN_SECONDS, _END_SECONDS = 0.7, 1.5
_SHOW_CURSOR = "\x1b[?25h"

_received: list[int] = []  # signals, the first one decides
_said = threading.Event()


def interrupted() -> bool:
    """Whether a signal has told this command to end."""
    return bool(_received)


def main_process(command: Callable[[], int]) -> int:
    """Run the command of this process, from here to its end; what it returns is the exit code.

    A signal that the caller ignores (nohup) stays ignored. On Windows, Ctrl-C raises a KeyboardInterrupt as
    usual, and nothing else changes. Where no thread or pipe is left to watch signals with, that is one line
    and exit code 2, and the command does not begin.
    """
    if sys.platform != "win32":
        try:
            _watch_signals()
        except (RuntimeError, MemoryError, OSError) as error:
            reason = reason_for(error)
            if reason is None:
                raise
            print("error:", reason, file=sys.stderr)
            return 2
    try:
        code = command()
    except BaseException:
        if not interrupted():
            raise
        code = 0
    return end_of_command() if interrupted() else code


def end_of_command() -> int:
    """Say in one line, once, that the command was interrupted; the exit code of the shell for that."""
    number = _received[0] if _received else signal.SIGINT
    if not _said.is_set():
        _said.set()
        cursor = _SHOW_CURSOR if sys.stderr.isatty() else ""
        name = signal.Signals(number).name
        line = f"interrupted by {name}; what is finished is kept, so the same command goes on from there\n"
        os.write(2, (cursor + line).encode())
    return 128 + number


def _watch_signals() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(reading,), daemon=True, name="interruption").start()
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    """Raise KeyboardInterrupt once; further signals change nothing, the end is near."""
    if _received:
        return
    _received.append(number)
    # What threads, destructors and exit handlers say of a process that is ending helps nobody.
    sys.unraisablehook = _say_nothing
    threading.excepthook = _say_nothing
    raise KeyboardInterrupt


def _say_nothing(_: Any) -> None:
    pass


def _end_in_time(reading: int) -> None:
    """End this process in time after a signal, whatever the main thread does."""
    while True:
        (number,) = os.read(reading, 1)
        if number in _SIGNALS and signal.getsignal(number) is _interrupt:
            break
    if not _said.wait(_CHILDREN_SECONDS):
        _kill_children()
        _said.wait(_END_SECONDS - _CHILDREN_SECONDS)
    if not _received:  # the main thread has not come to it
        _received.append(number)
    if not _said.is_set():
        _kill_children()
        os._exit(end_of_command())
    # The line is written. What is left are exit handlers, and threads that are waited for.
    threading.Event().wait(_END_SECONDS - _CHILDREN_SECONDS)
    _kill_children()
    os._exit(128 + _received[0])


def _kill_children() -> None:
    """Kill every process that this one, or one of them, started."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
