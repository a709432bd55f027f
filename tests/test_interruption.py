"""Commands that are interrupted: how they end, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import default_signals

from quantlib.support import interruption

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")

COMMAND = """
import subprocess, sys, threading, time
from quantlib.support.interruption import main_process

def waits():
    print("there", flush=True)
    time.sleep(60)

def cleans_up():
    try:
        waits()
    finally:
        print("cleaned up", flush=True)

def swallows():
    class Swallows:
        def __del__(self):
            waits()
    Swallows()
    time.sleep(60)

def waits_for_a_thread():
    threading.Thread(target=time.sleep, args=(60,)).start()
    waits()

def waits_for_a_process():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        waits()
    finally:
        child.wait()

def ends():
    print("there", flush=True)
    return 3

sys.exit(main_process(globals()[sys.argv[1]]))
"""


def test_a_machine_without_threads_is_one_line() -> None:
    code = """
import sys, threading
from quantlib.support.interruption import main_process

def lacks(_):
    raise RuntimeError("can't start new thread")

threading.Thread.start = lacks
sys.exit(main_process(lambda: print("began") or 0))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: too little threads or processes")
    assert process.stderr.count("\n") == 1


def interrupt(what: str, number: int) -> tuple[int, str, str, float]:
    """The exit code, what it says, and the seconds to its end, of a command that is interrupted."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        children = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    return process.returncode, out, err, seconds


@pytest.mark.parametrize("what", ["cleans_up", "swallows", "waits_for_a_thread", "waits_for_a_process"])
def test_ctrl_c_ends_a_command_with_one_line(what: str) -> None:
    code, out, err, _ = interrupt(what, signal.SIGINT)
    assert code == 130
    assert err == "interrupted by SIGINT; what is finished is kept, so the same command goes on from there\n"
    assert out == ("cleaned up\n" if what == "cleans_up" else "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_other_signals_end_it_in_the_same_way(number: signal.Signals, code: int) -> None:
    ended, out, err, _ = interrupt("cleans_up", number)
    assert (ended, out) == (code, "cleaned up\n")
    assert err.startswith(f"interrupted by {number.name};")
    assert err.count("\n") == 1


def test_a_command_that_is_not_interrupted() -> None:
    process = subprocess.run([sys.executable, "-c", COMMAND, "ends"], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (3, "")


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{COMMAND}"
    code = code.replace("time.sleep(60)", "sys.stdin.readline(); return 4")
    with subprocess.Popen(
        [sys.executable, "-c", code, "waits"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        process.communicate("\n", timeout=30)
    assert process.returncode == 4


def test_ctrl_c_while_a_command_loads(tmp_path: Path) -> None:
    """The handlers are there before the packages are imported."""
    (tmp_path / "typer.py").write_text("import time; print('there', flush=True); time.sleep(60)\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    command = [sys.executable, "-m", "quantlib", "run"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=default_signals,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.startswith("interrupted by SIGINT")
    assert err.count("\n") == 1


def test_nothing_changes_for_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not interruption.interrupted()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
