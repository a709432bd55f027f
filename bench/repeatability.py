"""Does the main job say the same again? Runs of the command from the cache, half of them beside a load.

    python bench/repeatability.py --runs 20 -- --teacher DIR        (what follows -- goes to the command)

A load that comes and goes on one core (bench/load.py) runs beside every second run. Shown are, for each
variant, the median speedup of the quiet runs, how far trusted speedups lie from it, and how many were
trusted; then how often each first choice was made, and how often the intervals of two variants of the same
graph (--same A,B) overlapped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from load import load

from quantlib.support.files import write_json

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.05


def one_run(arguments: list[str], beside_load: bool) -> dict[str, Any]:
    """The speedups, choices and seconds of one run of the command."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, load() if beside_load else contextlib.nullcontext():
        command = [sys.executable, str(ROOT / "quantization_experiments.py"), *arguments]
        subprocess.run([*command, "--output-dir", scratch], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (directory,) = (path.parent for path in Path(scratch).glob("*/results.json"))
        results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
        run = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    keys = ("speedup", "speedup_low", "speedup_high", "trusted", "others", "median_ms")
    return {
        "beside_load": beside_load,
        "seconds": time.perf_counter() - began,
        "durations_s": run["durations_s"],
        "variants": {name: {key: values[key] for key in keys} for name, values in results.items()},
        "choices": {choice["wish"]: choice["variant"] for choice in run["choices"]},
    }


def report(runs: list[dict[str, Any]], same: list[tuple[str, str]]) -> None:
    """Print the speedups and choices of the runs."""
    for name in runs[0]["variants"]:
        of_variant = [run["variants"][name] for run in runs]
        speedups = [values["speedup"] for values in of_variant]
        center = float(
            np.median([run["variants"][name]["speedup"] for run in runs if not run["beside_load"]])
        )
        gaps = [abs(values["speedup"] / center - 1) for values in of_variant if values["trusted"]]
        print(
            f"{name:<32} quiet {center:6.2f}x  all {min(speedups):.2f} to {max(speedups):.2f}  trusted "
            f"{len(gaps):>2} of {len(runs)}, {sum(share > TOLERANCE for share in gaps)} of them beyond 5 %, "
            f"furthest {max(gaps, default=0):.1%}"
        )
    for wish in runs[0]["choices"]:
        print(f"{wish}: {dict(Counter(run['choices'][wish] for run in runs))}")
    for first, second in same:
        hits = 0
        for run in runs:
            a, b = (run["variants"][name] for name in (first, second))
            hits += a["speedup_low"] <= b["speedup_high"] and b["speedup_low"] <= a["speedup_high"]
        print(f"{first} and {second}: intervals overlap in {hits} of {len(runs)}")
    print("seconds:", ", ".join(f"{run['seconds']:.0f}{' (load)' * run['beside_load']}" for run in runs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--same", action="append", default=[], help="A,B: variants of the same graph")
    parser.add_argument("--out", type=Path, help="write what was measured to this file")
    parser.add_argument("arguments", nargs="*", help="of the command, behind --")
    args = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for number in range(args.runs):
        runs.append(one_run(args.arguments, number % 2 == 1))
        print(f"run {number + 1}: {runs[-1]['seconds']:.0f} s, {runs[-1]['choices']}", flush=True)
        if args.out:
            write_json(args.out, {"runs": runs})
    report(runs, [tuple(pair.split(",", 1)) for pair in args.same])


if __name__ == "__main__":
    main()
