"""How often the gate is wrong: false alarms on identical code, and regressions it misses.

    python bench/gate_power.py simulate bench/traces/*.json [--runs 1000] [--weaker]
    python bench/gate_power.py real [--runs 60] [--slowdown 0.1] [--load] [--out FILE]
    python bench/gate_power.py pytest [--runs 60] [--load run] [--out FILE]
    python bench/gate_power.py unchanged [--runs 200] [--out FILE]

`simulate` replays launches through the gate's own sampling and decision: those that were recorded, and ones
that are drawn from a machine with two states. The old and the new model take turns there; with --weaker, a
baseline and a run have the teacher too. `real` lets a variant of the embedded default
take turns with a copy that has other bytes and the same work, or is slower by real extra work
(`bench/slower.py`). `pytest` runs all of `pytest bench --gate` on identical code; the baseline names a copy
of the variant with other bytes, so that the gate has to measure. `unchanged` leaves the baseline as it is.
With a load, one core is busy on and off (`bench/load.py`): while the baseline is made, while the gate runs,
or both.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from load import load
from slower import make_slower

from quantlib import gate
from quantlib.data import features
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.experiment.gate_timing import (
    confidence_of,
    for_baseline,
    latency_record,
    paired_comparison,
)
from quantlib.measuring.latency import Launches, Sampling, TimedProcess, sample_ratios
from quantlib.measuring.latency.others import Watch, watch_others
from quantlib.measuring.latency.paired import Start
from quantlib.support.files import sha256_file, write_json
from quantlib.support.store import FileStore

LIMIT = 0.05
RUNS_PER_BASELINE = 10
OUTCOMES = ("pass", "fail", "undecided")
ROOT = Path(__file__).resolve().parent.parent
# How much the log ratio to the teacher may differ between states, as --gate-state-spread.
SPREAD = 0.4

Times = Mapping[str, list[float]]
"""The block times of one launch, by side: "teacher_ms", "variant_ms", "same_ms"."""


# Traces


def recorded(path: Path) -> Callable[[np.random.Generator], Times]:
    """Draws launches from a trace, with replacement."""
    launches = json.loads(path.read_text(encoding="utf-8"))["launches"]
    if "same_ms" not in launches[0]:
        # Older traces have no second process of the variant: the teacher, scaled, stands for it. That is
        # harder than what the gate does, since unlike models move less alike.
        ratio = np.median(
            [np.median(np.divide(launch["variant_ms"], launch["teacher_ms"])) for launch in launches]
        )
        launches = [launch | {"same_ms": [ratio * t for t in launch["teacher_ms"]]} for launch in launches]
    turns = Sampling().turns

    def draw(rng: np.random.Generator) -> Times:
        launch = launches[int(rng.integers(len(launches)))]
        start = int(rng.integers(len(launch["teacher_ms"]) - turns + 1))
        return {side: launch[side][start : start + turns] for side in ("teacher_ms", "variant_ms", "same_ms")}

    return draw


def two_states(rng: np.random.Generator) -> Times:
    """A launch on a machine with two states, as DESIGN.md describes one.

    Every half minute or so the teacher takes 1.22 times as long, and the variant 1.48 times. A turn takes
    0.4 s, so a state may also change within a launch. Each process has a deviation of its own, of 1.2 %, each
    block one of 2 %, and one block in twenty a spike.
    """
    turns, slow = Sampling().turns, bool(rng.random() < 0.5)
    times: dict[str, list[float]] = {"teacher_ms": [], "variant_ms": [], "same_ms": []}
    of_process = {side: rng.normal(0, 0.012) for side in times}
    for _ in range(turns):
        for side, blocks in times.items():
            slow ^= bool(rng.random() < 0.4 / 30 / len(times))
            base, cost = (17.0, 1.22) if side == "teacher_ms" else (6.5, 1.48)
            spike = rng.exponential(0.3) if rng.random() < 0.05 else 0.0
            log = of_process[side] + rng.normal(0, 0.02) + spike
            blocks.append(base * (cost if slow else 1.0) * float(np.exp(log)))
    return times


class Replay:
    """Launches that are drawn, as processes to be timed; the sides of a launch belong together."""

    def __init__(self, draw: Callable[[np.random.Generator], Times], rng: np.random.Generator) -> None:
        self.draw, self.rng = draw, rng
        self.launches: list[Times] = []
        self.started = Counter[tuple[str, float]]()

    def start(self, side: str, slowdown: float = 0.0) -> Start:
        """The `Start` of one side; each call of it is one more launch."""

        @contextlib.contextmanager
        def launch() -> Iterator[Any]:
            number = self.started[side, slowdown]
            self.started[side, slowdown] += 1
            while len(self.launches) <= number:
                self.launches.append(self.draw(self.rng))
            yield _Replayed([t * (1 + slowdown) for t in self.launches[number][side]])

        return launch


class _Replayed:
    def __init__(self, blocks_ms: list[float]) -> None:
        self.blocks = iter(blocks_ms)

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = 0) -> list[float]:
        return [next(self.blocks)]


def undisturbed(_: object) -> Callable[[], float]:
    """Traces are replayed as they are, whatever else the machine did when they were recorded."""
    return lambda: 0.0


# One run


def in_turns(old: Start, new: Start, watch: Watch = undisturbed) -> tuple[str, int]:
    """An old and a new model in turns, by the gate's own means: the outcome, and the number of launches."""
    sampling = Sampling()

    def comparison(launches: Launches) -> gate.Comparison:
        return paired_comparison(launches, "old model", sampling)

    def decided(_: str, launches: Launches) -> bool:
        return gate.decide_pair(comparison(launches), LIMIT) != "undecided"

    launches = sample_ratios(old, {"new": new}, sampling, decided, watch=watch)["new"]
    return gate.decide_pair(comparison(launches), LIMIT), len(launches.log_ratios)


def by_teacher(baseline: Replay, run: Replay, slowdown: float) -> tuple[str, int]:
    """The weaker comparison: the ratio to the teacher in a run, and in a baseline."""
    sampling = Sampling()
    old_record = latency_record(
        sample_ratios(
            baseline.start("teacher_ms"),
            {"variant": baseline.start("variant_ms")},
            for_baseline(sampling),
            lambda *_: True,
            watch=undisturbed,
        )["variant"]
    )

    def outcome(launches: Launches) -> str:
        confidence = confidence_of(launches, sampling)
        slowdown = gate.estimate_slowdown(
            latency_record(launches), old_record, confidence=confidence, spread=SPREAD
        )
        return gate.decide(slowdown, LIMIT)

    launches = sample_ratios(
        run.start("teacher_ms"),
        {"variant": run.start("variant_ms", slowdown)},
        sampling,
        lambda _, launches: outcome(launches) != "undecided",
        watch=undisturbed,
    )["variant"]
    return outcome(launches), len(launches.log_ratios)


# Many runs


def simulate(paths: list[Path], runs: int, with_weaker: bool) -> dict[str, Any]:
    """Outcomes of simulated gate runs, by trace, way and slowdown."""
    results: dict[str, Any] = {}
    draws = {path.stem: recorded(path) for path in paths} | {"two states": two_states}
    for name, draw in draws.items():
        for slowdown in (0.0, LIMIT, 0.10):
            rng, outcomes, weaker, launches = np.random.default_rng(0), Counter[str](), Counter[str](), []
            for _ in range(runs):
                replay = Replay(draw, rng)
                outcome, count = in_turns(replay.start("same_ms"), replay.start("variant_ms", slowdown))
                outcomes[outcome] += 1
                launches.append(count)
                if with_weaker:
                    weaker[by_teacher(Replay(draw, rng), Replay(draw, rng), slowdown)[0]] += 1
            label = f"{name}, {slowdown:.0%} slower"
            results[label] = report(f"{label}, in turns with the old model", outcomes)
            results[label]["median_launches"] = int(np.median(launches))
            if with_weaker:
                results[f"{label}, by the teacher"] = report(f"{label}, by the teacher (weaker)", weaker)
    return results


def report(label: str, outcomes: Counter[str]) -> dict[str, Any]:
    """Print one line of outcomes."""
    total = sum(outcomes.values())
    shares = ", ".join(f"{name} {100 * outcomes[name] / total:.1f} %" for name in OUTCOMES)
    print(f"{label}: {shares} of {total} runs", flush=True)
    return {name: outcomes[name] for name in OUTCOMES}


def real(runs: int, slowdown: float, variant_name: str, loaded: bool, teacher: str | None) -> dict[str, Any]:
    """Outcomes of a variant in turns with a copy that has other bytes, or more work."""
    options = ExperimentOptions(no_student=True, recipes=(variant_name,), teacher=teacher)
    variant = next(v for v in build(options).variants if v.name == variant_name)
    feeds = list(features.fixed_shape_feeds(variant.rows, 1, options.seq_len, 8))
    with tempfile.TemporaryDirectory() as scratch:
        new, measured_slowdown = Path(scratch) / "new.onnx", 0.0
        if slowdown:
            measured_slowdown = make_slower(variant.path, new, slowdown, feeds)
            print(f"made {measured_slowdown:.1%} slower", flush=True)
        else:
            other_bytes(variant.path, new)
        outcomes, seconds, launches = Counter[str](), [], []
        with load() if loaded else contextlib.nullcontext():
            for run in range(runs):
                began = time.perf_counter()
                outcome, count = in_turns(
                    lambda: TimedProcess(variant.path, feeds, options.session),
                    lambda: TimedProcess(new, feeds, options.session),
                    watch_others,
                )
                seconds.append(time.perf_counter() - began)
                launches.append(count)
                outcomes[outcome] += 1
                print(f"run {run + 1}: {outcome} after {count} launches, {seconds[-1]:.1f} s", flush=True)
    return {
        "slowdown_wanted": slowdown,
        "slowdown_measured": measured_slowdown,
        "limit": LIMIT,
        "load": loaded,
        "outcomes": report(f"{slowdown:.0%} slower", outcomes),
        "median_launches": float(np.median(launches)),
        "median_seconds": float(np.median(seconds)),
    }


def other_bytes(path: Path, out: Path) -> Path:
    """A copy of a model that computes the same and has other bytes."""
    model = onnx.load(path)
    model.metadata_props.add(key="copy_of", value=sha256_file(path))
    onnx.save(model, out)
    return out


def name_copies(baseline: Path, store: FileStore) -> None:
    """Let a baseline name copies of its models with other bytes, which are put into the store."""
    record = json.loads(baseline.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as scratch:
        for name in list(record["variants"])[1:]:
            variant = record["variants"][name]
            copy = other_bytes(store.get(variant["sha256"]), Path(scratch) / f"{name}.onnx")
            variant["sha256"] = sha256_file(copy)
            store.put(copy, variant["sha256"])
    write_json(baseline, record)


def new_baseline(command: list[str]) -> None:
    """Write a baseline; one that is refused because the machine was busy is tried again."""
    for attempt in range(10):
        process = subprocess.run([*command, "--gate-update"], cwd=ROOT, capture_output=True, text=True)
        if process.returncode == 0:
            return
        last = (process.stdout or process.stderr).splitlines()[-1:]
        print(f"baseline refused, attempt {attempt + 1}: {last}", flush=True)
    raise RuntimeError(f"no baseline in 10 attempts: {process.stdout}{process.stderr}")


def pytest_runs(
    runs: int, variant_name: str, loaded: str, teacher: str | None, *, unchanged: bool
) -> dict[str, Any]:
    """Outcomes of whole `pytest bench --gate` runs of the teacher and one variant, identical code."""
    outcomes, seconds = Counter[str](), []
    with tempfile.TemporaryDirectory() as scratch:
        baseline, verdict = Path(scratch) / "baseline.json", Path(scratch) / "verdict.md"
        store = FileStore(Path(scratch) / "store", ".onnx")
        command = [sys.executable, "-m", "pytest", "bench", "-q", "-k", "test_gate", f"--gate={baseline}"]
        command += ["--quant-recipes", variant_name, "--quant-no-student", f"--gate-store={store.directory}"]
        command += ["--quant-teacher", teacher] if teacher else []
        for run in range(runs):
            if run % RUNS_PER_BASELINE == 0 and not (unchanged and run):
                with load() if loaded in ("baseline", "both") else contextlib.nullcontext():
                    new_baseline(command)
                if not unchanged:
                    name_copies(baseline, store)
            began = time.perf_counter()
            with load() if loaded in ("run", "both") else contextlib.nullcontext():
                process = subprocess.run(
                    [*command, "--gate-markdown", verdict], cwd=ROOT, capture_output=True, text=True
                )
            seconds.append(time.perf_counter() - began)
            if process.returncode not in (0, 1):
                raise RuntimeError(
                    f"the gate ended with {process.returncode}: {process.stdout}{process.stderr}"
                )
            heading = verdict.read_text(encoding="utf-8").splitlines()[0]
            outcome = next(name for name in OUTCOMES if name in heading)
            outcomes[outcome] += 1
            print(f"run {run + 1}: {outcome} after {seconds[-1]:.1f} s", flush=True)
            if outcome != "pass":
                print(
                    "\n".join(line for line in process.stdout.splitlines() if "slowdown" in line), flush=True
                )
    return {
        "limit": LIMIT,
        "load": loaded,
        "unchanged": unchanged,
        "outcomes": report("identical code", outcomes),
        "median_seconds": float(np.median(seconds)),
        "longest_seconds": float(np.max(seconds)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    simulated = commands.add_parser("simulate")
    simulated.add_argument("traces", nargs="*", type=Path)
    simulated.add_argument("--runs", type=int, default=1000)
    simulated.add_argument("--weaker", action="store_true", help="also the comparison by the teacher")
    measured = commands.add_parser("real")
    measured.add_argument("--slowdown", type=float, default=0.0)
    measured.add_argument("--load", action="store_true")
    pytest_parser = commands.add_parser("pytest")
    pytest_parser.add_argument("--load", choices=("none", "baseline", "run", "both"), default="none")
    unchanged = commands.add_parser("unchanged")
    for command, runs in ((measured, 60), (pytest_parser, 60), (unchanged, 200)):
        command.add_argument("--runs", type=int, default=runs)
        command.add_argument("--variant", default="quant_2")
        command.add_argument("--teacher", help="a fine-tuned checkpoint; default: train one")
    for command in (simulated, measured, pytest_parser, unchanged):
        command.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.command == "simulate":
        outcome = simulate(args.traces, args.runs, args.weaker)
    elif args.command == "real":
        outcome = real(args.runs, args.slowdown, args.variant, args.load, args.teacher)
    else:
        loaded = args.load if args.command == "pytest" else "none"
        outcome = pytest_runs(
            args.runs, args.variant, loaded, args.teacher, unchanged=args.command == "unchanged"
        )
    if args.out:
        write_json(args.out, outcome)


if __name__ == "__main__":
    main()
