"""Many runs in one process: memory, threads, open files and the cache have to stay as they are after a few.

    python bench/faults/endurance.py --runs 20 [--world DIR]

Each run makes, measures and reports everything but the export anew, since its entries are removed from the
cache first. Ratios of later runs to the one after the warm-up are shown; exit code 1 if something grows.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import threading
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import psutil
from world import CACHE, RUNS, SCENARIOS, leftovers, main_of, make_world, new_place

_MB = 2**20
_KEPT = ("export",)
WARM_UP = 5
# Of the memory after the warm-up: allocators keep what they had at most.
_GROWTH = 0.02


@dataclass(frozen=True)
class State:
    """What a process and a cache take. rss_mb: resident memory. files: in the cache and the results."""

    rss_mb: float
    threads: int
    handles: int
    files: int
    size_bytes: int


def state(place: Path) -> State:
    """What is taken now."""
    gc.collect()
    paths = [path for part in (CACHE, RUNS) for path in (place / part).rglob("*") if path.is_file()]
    entries = [path for path in paths if path.parts[-3] not in ("machine",)]
    models = [path.stat().st_size for path in entries if path.suffix == ".onnx"]
    process = psutil.Process()
    return State(
        process.memory_info().rss / _MB,
        threading.active_count(),
        process.num_fds(),
        len([path for path in entries if not path.name.startswith(".quantlib-")]),
        sum(models),
    )


def endure(root: Path, runs: int) -> list[State]:
    """The state after each of so many runs in this process."""
    scenario = SCENARIOS["run"]
    place = new_place(root, "endurance", scenario)
    os.chdir(place)
    main = main_of(root, scenario, processes=True, signals=False)
    states = []
    for number in range(runs):
        for kind in (place / CACHE).glob("*/"):
            if kind.name not in _KEPT:
                shutil.rmtree(kind)
        code = main()
        if code:
            raise RuntimeError(f"run {number + 1} ended with code {code}")
        states.append(state(place))
    left = [name for name in leftovers(place) if name.count("/") > 1]  # the run's own lock is in use
    if left:
        raise RuntimeError(f"left: {left}")
    return states


def grown(states: list[State]) -> list[str]:
    """What is larger after the last run than after the warm-up."""
    before, after = states[WARM_UP - 1], states[-1]
    found = [
        f"{field.name} from {old} to {new}"
        for field, old, new in zip(fields(State), astuple(before), astuple(after), strict=True)
        if field.name != "rss_mb" and new > old
    ]
    if after.rss_mb > before.rss_mb * (1 + _GROWTH):
        found.append(f"rss_mb from {before.rss_mb:.1f} to {after.rss_mb:.1f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--world", type=Path, help="where it all happens; default: a temporary directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        states = endure(make_world((args.world or Path(scratch)).absolute()), args.runs)
    for number, each in enumerate(states, 1):
        print(f"run {number}: {each}", file=sys.stderr)
    growth = grown(states)
    print("; ".join(growth) or f"flat after {WARM_UP} of {args.runs} runs: {states[-1]}", file=sys.stderr)
    return int(bool(growth))


if __name__ == "__main__":
    sys.exit(main())
