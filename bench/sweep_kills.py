"""Interrupt and kill a sweep at random moments, and see that the same call then ends as an undisturbed one.

    python bench/sweep_kills.py [--times 20] [--seed 0] [--out FILE]

A sweep of a small BERT with random weights, with latency, in processes of this machine. Each time it starts
with an empty cache; at a random moment comes one of: Ctrl-C (SIGINT to all of its processes), SIGTERM or
SIGKILL to the command, SIGKILL to one of its workers. Then the command is called again, and its rows must be
those of a sweep that nobody disturbed, but for times. Shown are exit codes, how long the command took to end,
what it said, and whether a process was left a while later.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from sweep_scaling import write_demo

from quantlib.support.cache import ENVIRONMENT_VARIABLE
from quantlib.support.files import write_json
from quantlib.sweep.table import JSON, Row, read_table

WAYS = ("Ctrl-C", "SIGTERM", "SIGKILL", "SIGKILL to a worker")
TIMED = ("_ms", "per_s", "speedup", "throughput_", "others", "trusted")
# Processes see that their parent has gone within seconds.
_GRACE_SECONDS, _END_SECONDS = 3.0, 600.0


@dataclass(frozen=True)
class Outcome:
    """What one interruption did.

    after_s: from the start of the command to the signal. code: its exit code; None if it ended before.
    seconds: from the signal to its end. said: the lines on stderr. left: processes a while later. rerun: the
    exit code of the second call. same: whether its rows are those of the undisturbed sweep.
    """

    way: str
    after_s: float
    code: int | None
    seconds: float
    said: tuple[str, ...]
    left: int
    rerun: int
    same: bool


@dataclass(frozen=True)
class Place:
    """Where a sweep runs: its file, its cache and its output directory."""

    file: Path
    directory: Path

    def start(self) -> subprocess.Popen[str]:
        """Start the command as the leader of a session, so that its processes can be found."""
        words = ("sweep", str(self.file), "--output-dir", str(self.directory / "out"), "--jobs", "2")
        environment = os.environ | {ENVIRONMENT_VARIABLE: str(self.directory / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", "quantlib", *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def rows(self) -> list[Any]:
        """What the rows say that is the same whenever they are made."""
        return [_content(row) for row in read_table(self.directory / "out" / JSON).rows]


def _content(row: Row) -> Any:
    values = {key: value for key, value in row.values.items() if not any(part in key for part in TIMED)}
    return [str(row.cell), row.error, values, row.provenance.get("model_sha256")]


def interrupt(
    place: Place, way: str, after_s: float, expected: Sequence[Any], draw: random.Random
) -> Outcome:
    """Start a sweep, disturb it, look what is left, and call it again."""
    process = place.start()
    time.sleep(after_s)
    disturb(process, way, draw)
    began = time.perf_counter()
    ended = process.poll() is not None
    _, said = process.communicate(timeout=_END_SECONDS)
    seconds = time.perf_counter() - began
    time.sleep(_GRACE_SECONDS)
    left = members(process.pid)
    again = place.start()
    again.communicate(timeout=_END_SECONDS)
    return Outcome(
        way,
        after_s,
        None if ended else process.returncode,
        seconds,
        tuple(line for line in said.splitlines() if line.strip()),
        len(left),
        again.returncode,
        again.returncode == 0 and place.rows() == expected,
    )


def disturb(process: subprocess.Popen[str], way: str, draw: random.Random) -> None:
    """Send the signal; to a worker if there is one already."""
    if process.poll() is not None:
        return
    if way == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif way == "SIGTERM":
        process.terminate()
    elif way == "SIGKILL":
        process.kill()
    else:
        workers = [each for each in members(process.pid) if each.pid != process.pid]
        if workers:
            draw.choice(workers).kill()


def members(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def measure(times: int, seed: int) -> list[Outcome]:
    """So many interruptions, each way in turn, on sweeps that begin anew."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        file = write_demo(directory, rows=24, layers=1)
        with file.open("a", encoding="utf-8") as text:
            text.write(
                "[run]\nnum_runs = 2\nwarmup_runs = 0\ntiming_seconds = 0.0\nseq_len = 32\n"
                '[latency]\nmachines = ["localhost"]\n'
            )
        undisturbed = Place(file, directory / "undisturbed")
        began = time.perf_counter()
        process = undisturbed.start()
        _, said = process.communicate()
        whole_s = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"the undisturbed sweep failed: {said}")
        expected = undisturbed.rows()
        print(f"undisturbed: {whole_s:.1f} s, {len(expected)} rows", flush=True)
        outcomes = []
        for number in range(times):
            place = Place(file, directory / f"place-{number}")
            outcome = interrupt(place, WAYS[number % len(WAYS)], draw.uniform(0, whole_s), expected, draw)
            outcomes.append(outcome)
            shutil.rmtree(place.directory)
            code = "ended before" if outcome.code is None else f"exit code {outcome.code}"
            print(
                f"{outcome.way} after {outcome.after_s:.1f} s: {code} in {outcome.seconds:.1f} s, "
                f"{len(outcome.said)} lines, {outcome.left} processes left; again: {outcome.rerun}, "
                f"rows {'the same' if outcome.same else 'DIFFER'}",
                flush=True,
            )
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the outcomes to this file")
    args = parser.parse_args()
    # A shell's background job ignores Ctrl-C, and so would the sweeps that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outcomes = measure(args.times, args.seed)
    if args.out:
        write_json(args.out, [asdict(outcome) for outcome in outcomes])
    bad = [outcome for outcome in outcomes if outcome.left or not outcome.same]
    print(f"{len(outcomes) - len(bad)} of {len(outcomes)} ended as the undisturbed sweep, with nothing left")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
