"""What a worker does: a job's part, made, scored or timed with this process's cache."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from threadpoolctl import threadpool_limits

from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.parts import make, score, time_part
from quantlib.support.artifacts import Artifact, artifact_of
from quantlib.support.cache import recording
from quantlib.support.columns import Value
from quantlib.support.progress import Steps
from quantlib.sweep import environment, machine
from quantlib.sweep.graph import Job


@dataclass(frozen=True)
class Outcome:
    """What a job gave.

    rows: {variant: its columns}; those of times for latency. models: {variant: SHA-256 of its file}. hashes:
    of the checkpoints. artifacts: the entries of the cache that it found or made, if others wait for them.
    durations_s, cached: of its steps, as in run.json. where: the machine. seconds, cpu_seconds: that it took,
    without waiting for the machine, and that its process used.
    """

    rows: Mapping[str, Mapping[str, Value]]
    models: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    durations_s: Mapping[str, float] = field(default_factory=dict)
    cached: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0


def run(job: Job, options: ExperimentOptions) -> Outcome:
    """Do a job.

    Args:
        job: what to do. options: those of the job, with the places of files and of the cache here.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    if job.kind == "latency":
        with machine.alone():
            return _time(job, options)
    with machine.shared(), threadpool_limits(options.threads):
        return make_and_score(job, options)


def make_and_score(job: Job, options: ExperimentOptions) -> Outcome:
    """What a job gives that is not timed; all of it may come from the cache.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    started, cpu_started, steps = time.perf_counter(), time.process_time(), Steps()
    with recording() as entries:
        built = make(options, job.part, steps)
        results = score(built, job.part, options, steps)
    unique = {entry.path: entry for entry in entries}
    names = {result.name for result in results}
    return Outcome(
        rows={result.name: result.values() for result in results},
        models={v.name: v.model.sha256 for v in built.variants if v.name in names},
        hashes=dict(built.hashes),
        artifacts=tuple(artifact_of(path) for path in unique) if job.kept else (),
        durations_s=dict(steps.durations_s),
        cached=tuple(sorted(steps.cached)),
        where=environment.here() | {"threads": options.threads},
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu_started,
    )


def _time(job: Job, options: ExperimentOptions) -> Outcome:
    started, cpu_started, steps = time.perf_counter(), time.process_time(), Steps()
    threads = job.worker_threads  # other threads would be other keys: every model would be made again
    made_with = replace(options, threads=threads, training_threads=threads)
    rows = time_part(make(made_with, job.part, steps), options, steps)
    wanted = {cell.variant for cell in job.cells}
    return Outcome(
        rows={name: row for name, row in rows.items() if name in wanted},
        durations_s=dict(steps.durations_s),
        cached=tuple(sorted(steps.cached)),
        where=environment.here() | {"threads": options.threads},
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu_started,
    )
