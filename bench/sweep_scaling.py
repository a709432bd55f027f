"""What a sweep costs beside its cells, and how it grows with workers.

    python bench/sweep_scaling.py empty [--cells 1000] [--out FILE]
    python bench/sweep_scaling.py cluster [--workers 1,2] [--kill-seconds 0] [--rows 200] [--out FILE]
    python bench/sweep_scaling.py simulate MEASURED.json [--workers 1,2,64,1024] [--teachers 100]

`empty` runs cells that do nothing, through the processes of this machine and through a Dask cluster of two
worker processes. `cluster` scores variants of a BERT of MiniLM's shape with random weights on news articles,
on clusters of worker processes with a cache each and none in common; with --kill-seconds one worker after the
other is killed so often, but for the first cluster, whose rows the others' are compared with. It writes how
long each job took, in CPU time too: where other programs use the machine, elapsed time says little.
`simulate` replays such jobs on clusters of other sizes, with the client's time for each job and its link for
each byte, and says what limits them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import heapq
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from quantlib.data import tasks
from quantlib.experiment.options import ExperimentOptions
from quantlib.machine.hardware import describe
from quantlib.support.cache import ENVIRONMENT_VARIABLE, Cache
from quantlib.support.files import write_json
from quantlib.sweep import running
from quantlib.sweep.cells import Cell
from quantlib.sweep.cluster import ClusterPool
from quantlib.sweep.configuration import read_sweep
from quantlib.sweep.driving import Pool
from quantlib.sweep.graph import Job
from quantlib.sweep.local import LocalPool
from quantlib.sweep.options import SweepOptions
from quantlib.sweep.table import SweepTable, error_lines
from quantlib.sweep.work import Outcome

LABELS = tasks.get_task("BBC-News").labels


def empty(job: Job, options: ExperimentOptions) -> Outcome:
    """A cell that takes no time."""
    return Outcome(
        rows={cell.variant: {"accuracy": 1.0} for cell in job.cells},
        models={cell.variant: "0" * 64 for cell in job.cells},
    )


def measure_empty(count: int) -> dict[str, Any]:
    """Seconds of a sweep of cells that do nothing, from the jobs to the table, by pool."""
    measured: dict[str, Any] = {"cells": count}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        sweep = empty_sweep(directory, count)
        with LocalPool(2, 1, 1, None, empty) as local:
            measured["local"] = timed_run(sweep, local, directory / "local")
        with (
            dask_cluster(directory, 2) as (address, _),
            ClusterPool(address, 1, Cache(directory / "client"), (), empty) as cluster,
        ):
            cluster._client.wait_for_workers(2, timeout=120)
            measured["cluster"] = timed_run(sweep, cluster, directory / "cluster")
    for name in ("local", "cluster"):
        told = measured[name]
        print(
            f"{name}: {count} empty cells in {told['seconds']:.1f} s, "
            f"{1000 * told['seconds'] / count:.1f} ms each; "
            f"{told['cpu_seconds']:.1f} s of CPU time in the client",
            flush=True,
        )
    return measured


def empty_sweep(directory: Path, count: int) -> running.Sweep:
    """A sweep of one variant, many times under other names."""
    rows = [("text", "label"), *((f"words {number}", str(number % 2)) for number in range(40))]
    with (directory / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    (directory / "sweep.toml").write_text(
        '[sweep]\ntasks = [{name = "rows", evaluation = "rows.csv", label = "label"}]\n'
        'recipes = ["dynamic_u8s8"]\ncheckpoints = [{}]\n[task]\ntrain = "rows.csv"\n'
    )
    file_ = read_sweep(directory / "sweep.toml")
    planned = running.plan(file_, SweepOptions(output_dir=directory))
    job = replace(planned.jobs[-1], waits_for=())
    cells = tuple(Cell("rows", "teacher", None, f"variant_{number}") for number in range(count))
    jobs = tuple(replace(job, key=f"{number:064d}", cells=(cell,)) for number, cell in enumerate(cells))
    return replace(planned, cells=cells, jobs=jobs, refused={}, done={}, blocks=())


def timed_run(sweep: running.Sweep, pool: Pool, output_dir: Path) -> dict[str, float]:
    """Run a sweep once the pool's processes are there: seconds, and CPU seconds of this process."""
    first = replace(sweep, cells=sweep.cells[:4], jobs=sweep.jobs[:4])
    running.run(replace(first, options=SweepOptions(output_dir=output_dir / "first")), pool=pool)
    started, cpu_started = time.perf_counter(), time.process_time()
    running.run(replace(sweep, options=SweepOptions(output_dir=output_dir / "all")), pool=pool)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
    }


# A cluster


@contextlib.contextmanager
def dask_cluster(directory: Path, count: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """(address, worker processes) of a scheduler whose workers have a directory and a cache each."""
    file = directory / f"scheduler-{count}.json"
    file.unlink(missing_ok=True)
    options = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
    with contextlib.ExitStack() as processes:

        def start(*words: str, name: str) -> subprocess.Popen[bytes]:
            place = directory / f"{name}-of-{count}"
            place.mkdir(parents=True, exist_ok=True)
            environment = os.environ | {ENVIRONMENT_VARIABLE: str(place / "cache"), "OMP_NUM_THREADS": "1"}
            log = processes.enter_context((place / "log").open("wb"))
            command = [sys.executable, "-m", "dask", *words, *options]
            process = subprocess.Popen(command, env=environment, cwd=place, stdout=log, stderr=log)
            processes.callback(process.wait)
            processes.callback(process.terminate)
            return process

        start("scheduler", "--port", "0", name="scheduler")
        words = ("worker", "--nthreads", "1", "--nworkers", "1", "--death-timeout", "300")
        workers = [start(*words, name=f"worker{number}") for number in range(count)]
        while not file.exists():
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"], workers


@contextlib.contextmanager
def killing(workers: Sequence[subprocess.Popen[bytes]], seconds: float) -> Iterator[list[int]]:
    """Kill the process that does the work of one worker after the other; its nanny starts another."""
    killed: list[int] = []
    stop = threading.Event()

    def kill() -> None:
        for nanny in itertools.cycle(workers):
            if stop.wait(seconds):
                return
            children = [c for c in psutil.Process(nanny.pid).children() if "spawn" in " ".join(c.cmdline())]
            for child in children:
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.send_signal(signal.SIGKILL)
                    killed.append(child.pid)

    thread = threading.Thread(target=kill)
    if seconds:
        thread.start()
    try:
        yield killed
    finally:
        stop.set()
        if seconds:
            thread.join()


def write_demo(directory: Path, rows: int, layers: int = 6) -> Path:
    """A sweep.toml with a BERT of MiniLM's shape, random weights, and news articles; returns its path.

    layers: of the model; a model of fewer is made sooner.
    """
    import torch
    import transformers

    from quantlib.onnx_model.export import export_bert_to_onnx
    from quantlib.training.checkpoints import packaged_minilm

    base = packaged_minilm()
    config = transformers.AutoConfig.from_pretrained(
        base,
        num_hidden_layers=layers,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    torch.manual_seed(0)
    checkpoint = directory / "checkpoint"
    transformers.AutoModelForSequenceClassification.from_config(config).eval().save_pretrained(checkpoint)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        if (base / name).is_file():
            shutil.copy(base / name, checkpoint / name)
    (directory / "teacher").mkdir()
    export_bert_to_onnx(checkpoint, directory / "teacher" / "model.onnx", seq_len=128)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(checkpoint / name, directory / "teacher" / name)
    splits = tasks.read_splits(tasks.get_task("BBC-News"), None)
    with (directory / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row.text_a, row.label) for row in splits.evaluation[:rows])
    path = directory / "sweep.toml"
    path.write_text(
        '[sweep]\ntasks = [{name = "news", evaluation = "rows.csv", label = "label"}]\n'
        f'checkpoints = ["teacher/model.onnx"]\nrecipes = {json.dumps(list(recipes()))}\n'
    )
    return path


def recipes() -> tuple[str, ...]:
    """Those without calibration, so that almost all of a cell's time is that of its accuracy."""
    from quantlib.compression.recipes.table import RECIPES

    return tuple(
        name
        for name, recipe in RECIPES.items()
        if recipe.mode != "static" and not recipe.smooth and recipe.rounding == "nearest"
    )


def measure_cluster(counts: Sequence[int], kill_seconds: float, rows: int) -> dict[str, Any]:
    """The same sweep on clusters of so many workers: seconds, CPU seconds, bytes, and whether rows agree."""
    measured: dict[str, Any] = {"cpu": describe().cpu_model, "rows": rows, "workers": {}}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        file = read_sweep(write_demo(directory, rows))
        first: SweepTable | None = None
        for count in counts:
            output_dir = directory / f"out-{count}"
            sweep = running.plan(file, SweepOptions(output_dir=output_dir, attempts=100))
            with (
                dask_cluster(directory, count) as (address, workers),
                ClusterPool(address, 100, Cache(directory / f"client-{count}")) as pool,
            ):
                pool._client.wait_for_workers(count, timeout=600)
                started = time.perf_counter()
                with killing(workers, 0.0 if first is None else kill_seconds) as killed:
                    table = running.run(sweep, pool=pool)
                seconds = time.perf_counter() - started
            done = running.plan(file, sweep.options).done
            told = {
                "seconds": seconds,
                "killed": len(killed),
                "sent": pool.traffic.sent,
                "received": pool.traffic.received,
                "failed": len(table.failed),
                "jobs": [
                    {
                        "kind": job.kind,
                        "seconds": done[job.key].seconds,
                        "cpu_seconds": done[job.key].cpu_seconds,
                        "bytes": sum(artifact.size_bytes for artifact in done[job.key].artifacts),
                        "inputs": sum(entry.artifact.size_bytes for entry in job.inputs),
                    }
                    for job in sweep.jobs
                    if job.key in done
                ],
            }
            first = first or table
            told["same"] = [row.values for row in table.rows] == [row.values for row in first.rows]
            measured["workers"][str(count)] = told
            _print_cluster(count, told)
            for line in error_lines(table.rows):
                print(line)
    return measured


def _print_cluster(count: int, told: Mapping[str, Any]) -> None:
    cells = [job for job in told["jobs"] if job["kind"] == "variant"]
    cpu = sum(job["cpu_seconds"] for job in cells)
    elapsed = sum(job["seconds"] for job in cells)
    print(
        f"{count} workers: {told['seconds']:.0f} s; {len(cells)} accuracy cells, {elapsed:.0f} s in sum, "
        f"{cpu:.0f} s of CPU; sent {told['sent'] / 2**20:.0f} MB, "
        f"received {told['received'] / 2**20:.0f} MB; "
        f"{told['killed']} killed, {told['failed']} failed, rows {'the same' if told['same'] else 'DIFFER'}",
        flush=True,
    )


# Simulation


@dataclass(frozen=True)
class Costs:
    """What a sweep is made of: seconds of a job of each kind, bytes that it needs and makes.

    models_s, variant_s: of a worker. models_bytes: what every variant of a model needs; it comes back from
    the worker that made it. input_bytes: of the checkpoint. client_s: of the client, for each job.
    bytes_per_s: of the client's link.
    """

    models_s: float
    variant_s: float
    models_bytes: float
    input_bytes: float
    client_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Simulated:
    """How a sweep went: seconds, and the shares of work in the workers' time and the client's.

    link, client: the shares of time in which its link and its process are busy. gigabytes: that were moved.
    """

    workers: int
    seconds: float
    efficiency: float
    link: float
    client: float
    gigabytes: float


def simulate(costs: Costs, workers: int, teachers: int, recipe_count: int) -> Simulated:
    """Teachers with so many recipes each, on so many workers, as `ClusterPool` runs them.

    The link serves one transfer after the other, and so does the client its jobs. A worker gets the next job
    that is ready, whatever it has already.
    """
    ready = [(0, teacher, -1) for teacher in range(teachers)]
    heapq.heapify(ready)
    free = list(range(workers))
    has: list[set[int]] = [set() for _ in range(workers)]
    events: list[tuple[float, int, str, int, int]] = []
    numbers = itertools.count()
    link_free = client_free = link_busy = client_busy = moved = now = work = 0.0

    def transfer(start: float, size: float) -> float:
        nonlocal link_free, link_busy, moved
        seconds = size / costs.bytes_per_s
        link_free = max(start, link_free) + seconds
        link_busy += seconds
        moved += size
        return link_free

    while ready or events:
        while ready and free:
            worker, (_, teacher, recipe) = free.pop(), heapq.heappop(ready)
            client_free = max(client_free, now) + costs.client_s
            client_busy += costs.client_s
            start = client_free
            if teacher not in has[worker]:
                start = transfer(start, costs.input_bytes + (costs.models_bytes if recipe >= 0 else 0))
                has[worker].add(teacher)
            seconds = costs.models_s if recipe < 0 else costs.variant_s
            work += seconds
            kind = "made" if recipe < 0 else "scored"
            heapq.heappush(events, (start + seconds, next(numbers), kind, worker, teacher))
        now, _, kind, worker, teacher = heapq.heappop(events)
        if kind == "there":
            for number in range(recipe_count):
                heapq.heappush(ready, (1, teacher, number))
            continue
        free.append(worker)
        if kind == "made":
            there = transfer(now, costs.models_bytes)
            heapq.heappush(events, (there, next(numbers), "there", worker, teacher))
    busy = workers * now
    return Simulated(workers, now, work / busy, link_busy / now, client_busy / now, moved / 2**30)


def costs_of(measured: Mapping[str, Any], client_s: float, bytes_per_s: float) -> Costs:
    """What jobs took with the fewest workers, by their CPU time."""
    told = measured["workers"][min(measured["workers"], key=int)]
    models = next(job for job in told["jobs"] if job["kind"] == "models")
    variants = [job for job in told["jobs"] if job["kind"] == "variant"]
    return Costs(
        models_s=models["cpu_seconds"],
        variant_s=sum(job["cpu_seconds"] for job in variants) / len(variants),
        models_bytes=models["bytes"],
        input_bytes=models["inputs"],
        client_s=client_s,
        bytes_per_s=bytes_per_s,
    )


def simulated(costs: Costs, counts: Sequence[int], teachers: int, recipe_count: int) -> list[dict[str, Any]]:
    """A line for each number of workers."""
    print(
        f"{teachers} teachers x {recipe_count} recipes; float models {costs.models_s:.1f} s and "
        f"{costs.models_bytes / 2**20:.0f} MB, a variant {costs.variant_s:.1f} s, the client "
        f"{1000 * costs.client_s:.1f} ms a job and {costs.bytes_per_s / 2**20:.0f} MB/s"
    )
    results = []
    for count in counts:
        result = simulate(costs, count, teachers, recipe_count)
        results.append(asdict(result))
        print(
            f"{count:5d} workers: {result.seconds:8.0f} s, efficiency {100 * result.efficiency:5.1f} %, link "
            f"busy {100 * result.link:5.1f} %, client {100 * result.client:5.1f} %, "
            f"{result.gigabytes:6.1f} GB moved",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    nothing = commands.add_parser("empty")
    nothing.add_argument("--cells", type=int, default=1000)
    real = commands.add_parser("cluster")
    real.add_argument("--workers", default="1,2")
    real.add_argument("--kill-seconds", type=float, default=0.0, help="kill a worker so often; 0: never")
    real.add_argument("--rows", type=int, default=200)
    replay = commands.add_parser("simulate")
    replay.add_argument("measured", type=Path)
    replay.add_argument("--workers", default="1,2,16,64,256,1024")
    replay.add_argument("--teachers", type=int, default=100)
    replay.add_argument("--recipes", type=int, default=30)
    replay.add_argument("--client-ms", type=float, default=10.0, help="of the client, for each job")
    replay.add_argument("--megabytes-per-s", type=float, default=100.0, help="of the client's link")
    for command in (nothing, real, replay):
        command.add_argument("--out", type=Path)
    args = parser.parse_args()
    outcome: Any
    if args.command == "empty":
        outcome = measure_empty(args.cells)
    elif args.command == "cluster":
        outcome = measure_cluster(_numbers(args.workers), args.kill_seconds, args.rows)
    else:
        measured = json.loads(args.measured.read_text(encoding="utf-8"))
        costs = costs_of(measured, args.client_ms / 1000, args.megabytes_per_s * 2**20)
        outcome = simulated(costs, _numbers(args.workers), args.teachers, args.recipes)
    if args.out:
        write_json(args.out, outcome)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
