"""Kill commands at random moments, and see that nothing is lost: 50 times each, or as often as you say.

    python bench/faults/kills.py --rounds 50 --seed 1 [--scenarios run,distil] [--world DIR]

A round disturbs a command (SIGKILL, SIGTERM and Ctrl-C in turn), looks at what is there, and runs it again
to its end. Every second moment is an operation on files, which repeats exactly for a seed; the others are
times. What has to hold:

- after the signal: Ctrl-C and SIGTERM end within 2 s, with one line and exit code 130 or 143; no process
  lives on; no file that a later command would read as good is broken;
- after the second run: the same models, metrics and results as of an undisturbed run, but for times; no
  scratch directory, lock file or temporary file is left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attempts import Ended, Strike, run
from world import (
    SCENARIOS,
    Scenario,
    artifacts,
    broken,
    differences,
    leftovers,
    main_of,
    make_world,
    new_place,
)

import quantlib

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
# Pytest has a way of its own to end: for Ctrl-C code 2, and SIGTERM kills it. While it closes, after
# the last test, it catches nothing: then Python shows where in pytest it was, with code 1.
_PYTEST_CODES = {signal.SIGKILL: -9, signal.SIGTERM: -15, signal.SIGINT: 2}
_END_SECONDS = 2.0
_PYTEST_END_SECONDS = 10.0  # it reads sources to show where it was


@dataclass(frozen=True)
class Good:
    """An undisturbed run of a scenario: what it ends with, and how long it takes.

    seconds: with processes that time models, which are disturbed at times. operations: without, where the
    moment is an operation.
    """

    artifacts: dict[str, str]
    seconds: float
    operations: int


@dataclass
class Tally:
    """What became of the rounds of a scenario. ends: how the disturbed commands ended. failures: in words."""

    rounds: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    slowest_end: float = 0.0
    failures: list[str] = field(default_factory=list)


def undisturbed(root: Path, name: str, timings: Sequence[bool] = (True, False)) -> Good:
    """Run a scenario to its end, in a place that later ones start from.

    timings: with processes that time models, and without; the first one gives the seconds.

    Raises:
        RuntimeError: it failed.
    """
    scenario = SCENARIOS[name]
    seconds: list[float] = []
    for processes in timings:
        place = new_place(root, f"good-{name}", scenario)
        ended = run(main_of(root, scenario, processes=processes), place)
        if ended.code or leftovers(place) or ended.left:
            raise RuntimeError(f"{name}: {ended}; left {leftovers(place)}")
        seconds.append(ended.seconds)
    return Good(artifacts(place), seconds[0], ended.operations)


def one_round(root: Path, name: str, good: Good, strike: Strike) -> tuple[str, list[str], float]:
    """Disturb a command, look, and run it again: how it ended, what is wrong, and the seconds to its end."""
    scenario = SCENARIOS[name]
    place = new_place(root, f"struck-{name}", scenario)
    ended = run(main_of(root, scenario, processes=strike.seconds is not None), place, strike)
    end, wrong = _judge(ended, strike, scenario)
    wrong += [f"broken: {each}" for each in broken(place)]
    again = run(main_of(root, scenario), place)
    if again.code or again.left:
        wrong.append(f"the second run: {again}")
    wrong += [f"left: {each}" for each in leftovers(place)]
    wrong += differences(good.artifacts, artifacts(place))
    return end, wrong, ended.after or 0.0


def _judge(ended: Ended, strike: Strike, scenario: Scenario) -> tuple[str, list[str]]:
    wrong = [f"lives on: {each}" for each in ended.left]
    if ended.after is None or ended.code == 0:
        return "had ended", wrong if ended.code == 0 else [*wrong, f"{ended}"]
    if scenario.pytest and strike.number == signal.SIGINT and _closing(ended):
        return f"code {ended.code}, while pytest closes", wrong
    expected = (_PYTEST_CODES if scenario.pytest else _CODES)[signal.Signals(strike.number)]
    if ended.code != expected:
        wrong.append(f"exit code {ended.code}, not {expected}: {ended.err}")
    if strike.number != signal.SIGKILL:
        if ended.after > (_PYTEST_END_SECONDS if scenario.pytest else _END_SECONDS):
            wrong.append(f"took {ended.after:.1f} s to end")
        lines = ended.err.splitlines()
        if not scenario.pytest and (len(lines) != 1 or "interrupted" not in lines[0]):
            wrong.append(f"said {ended.err!r}")
        if "Traceback" in ended.out + ended.err:
            wrong.append(f"a traceback: {ended.err}")
    return f"code {ended.code}", wrong


def _closing(ended: Ended) -> bool:
    """Whether Ctrl-C came while pytest closed its session: a traceback through that, and none of our code."""
    ours = str(Path(quantlib.__file__).parent)
    lines = ended.err.strip().splitlines()
    return (
        ended.code == 1
        and lines[-1:] == ["KeyboardInterrupt"]
        and any("in _ensure_unconfigure" in line for line in lines)
        and not any(line.strip().startswith(f'File "{ours}{os.sep}') for line in lines)
    )


def moments(good: Good, rounds: int, seed: str) -> list[Strike]:
    """A signal and a moment for each round; the same for the same seed, but for times."""
    draw = random.Random(seed)
    strikes = []
    for index in range(rounds):
        number = SIGNALS[index % len(SIGNALS)]
        if index // len(SIGNALS) % 2 == 0:
            strikes.append(Strike(number, operation=draw.randint(1, max(1, good.operations))))
        else:
            strikes.append(Strike(number, seconds=draw.uniform(0.0, good.seconds)))
    return strikes


def kill(root: Path, names: Sequence[str], rounds: int, seed: int) -> dict[str, Tally]:
    """All rounds of these scenarios; a line for each failure, and one for each scenario."""
    tallies: dict[str, Tally] = {}
    needed = dict.fromkeys([start for name in names if (start := SCENARIOS[name].start)] + list(names))
    good = {name: undisturbed(make_world(root), name) for name in needed}
    for name in names:
        tally = tallies[name] = Tally()
        started = time.monotonic()
        for strike in moments(good[name], rounds, f"{seed} {name}"):
            end, wrong, after = one_round(root, name, good[name], strike)
            tally.rounds += 1
            tally.ends[f"{signal.Signals(strike.number).name}: {end}"] += 1
            if strike.number != signal.SIGKILL:
                tally.slowest_end = max(tally.slowest_end, after)
            tally.failures += [f"{strike}: {each}" for each in wrong]
            for each in wrong:
                print(f"  FAILED {name}, round {tally.rounds}, {strike}: {each}", flush=True)
        print(
            f"{name}: {tally.rounds} rounds, {len(tally.failures)} failures, slowest end after Ctrl-C or "
            f"SIGTERM {tally.slowest_end:.2f} s; {good[name].operations} operations, undisturbed "
            f"{good[name].seconds:.1f} s; {dict(sorted(tally.ends.items()))}; "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50, help="of each scenario")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--world", type=Path, help="where it all happens; default: a temporary directory")
    args = parser.parse_args()
    names = args.scenarios.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        tallies = kill((args.world or Path(scratch)).absolute(), names, args.rounds, args.seed)
    return int(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
