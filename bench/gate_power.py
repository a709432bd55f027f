"""How often the gate is wrong: false alarms on identical code, and regressions it misses.

    python bench/gate_power.py simulate bench/traces/*.json [--runs 1000]
    python bench/gate_power.py pytest [--runs 60] [--out FILE]
    python bench/gate_power.py real [--runs 100] [--slowdown 0.1] [--out FILE]

`simulate` replays recorded launches of this machine through the gate's own sampling and decision. `pytest`
runs `pytest bench --gate` on identical code. `real` measures as the gate does, without pytest around it: the
teacher and one variant of the embedded default, which is made slower by real extra work (`bench/slower.py`).
Both take a new baseline every ten runs.
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from slower import make_slower

from quantlib.data import features
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.experiment.gate_timing import Shape, for_baseline, latency_record, start
from quantlib.gate import LatencyRecord, decide, estimate_slowdown
from quantlib.measuring.latency import Sampling, sample_ratios
from quantlib.measuring.latency.launches import Start
from quantlib.measuring.latency.others import Watch, watch_others
from quantlib.onnx_model.model import Model
from quantlib.support.files import write_json

LIMIT = 0.05
RUNS_PER_BASELINE = 10


class Replay:
    """Recorded launches of a teacher and a variant, drawn with replacement, as processes to be timed."""

    def __init__(self, launches: list[dict[str, Any]], rng: np.random.Generator, slowdown: float, turns: int):
        self.picks = [launches[i] for i in rng.integers(0, len(launches), 64)]
        self.offsets = [int(rng.integers(0, len(pick["teacher_ms"]) - turns + 1)) for pick in self.picks]
        self.factor = {"teacher_ms": 1.0, "variant_ms": 1 + slowdown}
        self.started = Counter[str]()

    def start(self, side: str) -> Start:
        """The `Start` of one side; each call of it is one more launch."""

        @contextlib.contextmanager
        def launch() -> Iterator[Any]:
            number = self.started[side]
            self.started[side] += 1
            yield _Replayed([t * self.factor[side] for t in self.picks[number][side][self.offsets[number] :]])

        return launch


class _Replayed:
    def __init__(self, blocks_ms: list[float]) -> None:
        self.blocks = iter(blocks_ms)

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = 0) -> list[float]:
        return [next(self.blocks)]


def undisturbed(_: object) -> Callable[[], float]:
    """Traces are replayed as they are, whatever else the machine did when they were recorded."""
    return lambda: 0.0


def gate_once(
    teacher: Start,
    variant: Start,
    baseline: LatencyRecord,
    sampling: Sampling,
    watch: Watch = undisturbed,
) -> str:
    """One gate run, by the gate's own means: pass, fail or undecided."""

    def outcome(launches: Any) -> str:
        if latency_record(launches).disturbed or baseline.disturbed:
            return "undecided"
        return decide(estimate_slowdown(latency_record(launches), baseline), LIMIT)

    found = sample_ratios(
        teacher,
        {"variant": variant},
        sampling,
        lambda _, launches: outcome(launches) != "undecided",
        watch=watch,
    )
    return outcome(found["variant"])


def measure_baseline(
    teacher: Start, variant: Start, sampling: Sampling, watch: Watch = undisturbed
) -> LatencyRecord:
    """A baseline, sampled as `--gate-update` samples it."""
    fixed = for_baseline(sampling)
    found = sample_ratios(teacher, {"variant": variant}, fixed, lambda *_: True, watch=watch)
    return latency_record(found["variant"])


def simulate(paths: list[Path], runs: int) -> dict[str, Any]:
    """Outcomes of simulated gate runs, by trace and slowdown."""
    sampling, results = Sampling(), {}
    for path in paths:
        launches = json.loads(path.read_text(encoding="utf-8"))["launches"]
        for slowdown in (0.0, 0.10, 0.15):
            rng, outcomes = np.random.default_rng(0), Counter[str]()
            for _ in range(runs):
                before, after = (
                    Replay(launches, rng, 0.0, sampling.turns),
                    Replay(launches, rng, slowdown, sampling.turns),
                )
                baseline = measure_baseline(before.start("teacher_ms"), before.start("variant_ms"), sampling)
                outcomes[
                    gate_once(after.start("teacher_ms"), after.start("variant_ms"), baseline, sampling)
                ] += 1
            results[f"{path.stem}, {slowdown:.0%} slower"] = report(
                f"{path.stem:<20} {slowdown:4.0%} slower", outcomes
            )
    return results


def report(label: str, outcomes: Counter[str]) -> dict[str, int]:
    """Print one line of outcomes."""
    total = sum(outcomes.values())
    shares = ", ".join(
        f"{name} {100 * outcomes[name] / total:.1f} %" for name in ("pass", "fail", "undecided")
    )
    print(f"{label}: {shares} of {total} runs", flush=True)
    return dict(outcomes)


def real(runs: int, slowdown: float, variant_name: str) -> dict[str, Any]:
    """Outcomes of real gate runs."""
    options = ExperimentOptions(no_student=True)
    built = build(options)
    teacher, variant = built.variants[0], next(v for v in built.variants if v.name == variant_name)
    with tempfile.TemporaryDirectory() as scratch:
        judged, found = variant, 0.0
        if slowdown:
            slower = Path(scratch) / "slower.onnx"
            feeds = list(features.fixed_shape_feeds(variant.rows, 1, options.seq_len, 8))
            found = make_slower(variant.path, slower, slowdown, feeds)
            judged = replace(variant, model=Model(slower))
            print(f"made {found:.1%} slower", flush=True)
        starts = [start(v, Shape(1, options.seq_len), options) for v in (teacher, variant, judged)]
        outcomes, seconds, sampling = Counter[str](), [], Sampling()
        for run in range(runs):
            if run % RUNS_PER_BASELINE == 0:
                baseline = measure_baseline(starts[0], starts[1], sampling, watch_others)
            began = time.perf_counter()
            outcome = gate_once(starts[0], starts[2], baseline, sampling, watch_others)
            seconds.append(time.perf_counter() - began)
            outcomes[outcome] += 1
            print(f"run {run + 1}: {outcome} after {seconds[-1]:.1f} s", flush=True)
        report(f"{slowdown:.0%} slower", outcomes)
    return {
        "slowdown_wanted": slowdown,
        "slowdown_measured": found,
        "limit": LIMIT,
        "outcomes": dict(outcomes),
        "median_seconds": float(np.median(seconds)),
    }


def new_baseline(command: list[str], root: Path) -> None:
    """Write a baseline; one that is refused because the machine was busy is tried again."""
    for attempt in range(10):
        done = subprocess.run([*command, "--gate-update"], cwd=root, capture_output=True, text=True)
        if done.returncode == 0:
            return
        print(f"baseline refused, attempt {attempt + 1}: {done.stdout.splitlines()[-1]}", flush=True)
    raise RuntimeError(f"no baseline in 10 attempts: {done.stdout}{done.stderr}")


def pytest_runs(runs: int, variant_name: str) -> dict[str, Any]:
    """Outcomes of whole `pytest bench --gate` runs of the teacher and one variant, identical code."""
    words = ["--recipes", variant_name, "--no-student", "-q"]
    root = Path(__file__).resolve().parent.parent
    outcomes, seconds = Counter[str](), []
    with tempfile.TemporaryDirectory() as scratch:
        baseline, verdict = Path(scratch) / "baseline.json", Path(scratch) / "verdict.md"
        command = [sys.executable, "-m", "pytest", "bench", f"--gate={baseline}", *words]
        for run in range(runs):
            if run % RUNS_PER_BASELINE == 0:
                new_baseline(command, root)
            began = time.perf_counter()
            done = subprocess.run(
                [*command, "--gate-markdown", verdict], cwd=root, capture_output=True, text=True
            )
            seconds.append(time.perf_counter() - began)
            if done.returncode not in (0, 1):
                raise RuntimeError(f"the gate ended with {done.returncode}: {done.stdout}{done.stderr}")
            heading = verdict.read_text(encoding="utf-8").splitlines()[0]
            outcome = next(name for name in ("pass", "fail", "undecided") if name in heading)
            outcomes[outcome] += 1
            print(f"run {run + 1}: {outcome} after {seconds[-1]:.1f} s", flush=True)
            if outcome == "fail":
                print(verdict.read_text(encoding="utf-8"), flush=True)
    return {
        "limit": LIMIT,
        "outcomes": report("identical code", outcomes),
        "median_seconds": float(np.median(seconds)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    simulated = commands.add_parser("simulate")
    simulated.add_argument("traces", nargs="+", type=Path)
    simulated.add_argument("--runs", type=int, default=1000)
    measured = commands.add_parser("real")
    measured.add_argument("--runs", type=int, default=60)
    measured.add_argument("--slowdown", type=float, default=0.0)
    measured.add_argument("--variant", default="quant_2")
    whole = commands.add_parser("pytest")
    whole.add_argument("--runs", type=int, default=60)
    whole.add_argument("--variant", default="quant_2")
    for command in (simulated, measured, whole):
        command.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.command == "simulate":
        found = simulate(args.traces, args.runs)
    elif args.command == "pytest":
        found = pytest_runs(args.runs, args.variant)
    else:
        found = real(args.runs, args.slowdown, args.variant)
    if args.out:
        write_json(args.out, found)


if __name__ == "__main__":
    main()
