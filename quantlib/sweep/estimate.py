"""What a sweep would do, before it does it: how many cells, what is there already, and about how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from quantlib.compression.variants import TEACHER
from quantlib.experiment.inspecting import inspect
from quantlib.experiment.options import variant_names
from quantlib.machine.sessions import default_threads
from quantlib.support.cache import NotCached, only_looking
from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.support.progress import Steps
from quantlib.sweep.cells import Cell
from quantlib.sweep.graph import Job
from quantlib.sweep.work import Outcome, make_and_score

# Of what a run takes to calibrate and smooth, the share of a variant that finds the smoothed model made.
_CALIBRATION_SHARE = 1 / 8


@dataclass(frozen=True)
class Estimate:
    """What a sweep would do.

    cells: rows. jobs: by kind. done: jobs of an earlier run of this sweep. cached: others whose every step is
    in this machine's cache. seconds: about how long the rest takes one after the other, by kind. at_once:
    jobs at once. about_seconds: about how long the sweep takes. sources: what that rests on, jobs by source.
    problems: jobs and cells that cannot be done, and why.
    """

    cells: int
    jobs: Mapping[str, int]
    done: int
    cached: int
    seconds: Mapping[str, float]
    at_once: int
    about_seconds: float
    sources: Mapping[str, int]
    problems: Mapping[str, str]

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """For a person."""
        left = sum(self.jobs.values()) - self.done - self.cached
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.jobs.items())
        lines = [
            f"{self.cells} cells, {sum(self.jobs.values())} jobs ({kinds})",
            f"{self.done} jobs done, {self.cached} with every step in this machine's cache, {left} to do",
        ]
        if left:
            parts = ", ".join(f"{kind} {_minutes(seconds)}" for kind, seconds in self.seconds.items())
            sources = ", ".join(f"{count} by {source}" for source, count in self.sources.items())
            lines.append(
                f"about {_minutes(self.about_seconds)}, {self.at_once} at once; in sum {parts} ({sources})"
            )
        return lines + [f"! {name}: {problem}" for name, problem in self.problems.items()]


def estimate(
    cells: Sequence[Cell],
    jobs: Sequence[Job],
    refused: Mapping[Cell, str],
    done: Mapping[str, Outcome],
    cache_dir: Path | None,
    at_once: int,
    runs: Path,
) -> Estimate:
    """Look at what there is, and make nothing.

    Args:
        cells: the rows. jobs: that fill them. refused: rows that none fills, and why. done: what an earlier
            run left. cache_dir: of this machine. at_once: how many jobs run at once. runs: where results of
            earlier runs lie, for their durations.
    """
    cached: set[str] = set()
    seconds: dict[str, float] = {}
    sources: dict[str, int] = {}
    problems: dict[str, InputError] = {}
    known = _Durations(jobs, done, runs)
    for job in jobs:
        if job.key in done or any(key in problems for key in job.waits_for):
            continue
        try:
            if all(key in done or key in cached for key in job.waits_for) and _is_cached(job, cache_dir):
                cached.add(job.key)
                continue
            seconds[job.key], source = known.of(job)
            sources[source] = sources.get(source, 0) + 1
        except InputError as error:
            problems[job.key] = error
    kinds = dict.fromkeys(job.kind for job in jobs)
    return Estimate(
        cells=len(cells),
        jobs={kind: sum(job.kind == kind for job in jobs) for kind in kinds},
        done=sum(job.key in done for job in jobs),
        cached=len(cached),
        seconds={
            kind: round(sum(seconds.get(job.key, 0.0) for job in jobs if job.kind == kind), 1)
            for kind in kinds
        },
        at_once=at_once,
        about_seconds=round(_makespan(jobs, seconds, at_once), 1),
        sources=sources,
        problems={str(cell): reason for cell, reason in refused.items()}
        | {job.name: str(problems[job.key]) for job in jobs if job.key in problems},
    )


def _is_cached(job: Job, cache_dir: Path | None) -> bool:
    """Whether every step of a job is in the cache; times are never."""
    if job.kind == "latency":
        return False
    with only_looking():
        try:
            make_and_score(job, replace(job.options, cache_dir=cache_dir))
        except NotCached:
            return False
    return True


def _makespan(jobs: Sequence[Job], seconds: Mapping[str, float], at_once: int) -> float:
    """How long the jobs take: not less than the longest chain, nor than the sum over all that run at once."""
    ends: dict[str, float] = {}
    for job in jobs:
        before = max((ends.get(key, 0.0) for key in job.waits_for), default=0.0)
        ends[job.key] = before + seconds.get(job.key, 0.0)
    timed = [seconds.get(job.key, 0.0) for job in jobs if job.kind == "latency"]
    spread = sum(seconds.values()) - sum(timed)
    return max(max(ends.values(), default=0.0), spread / at_once + sum(timed))


@dataclass(frozen=True)
class _Durations:
    """What is known of how long jobs take: those of this sweep, then those of runs, then an estimate."""

    jobs: Sequence[Job]
    done: Mapping[str, Outcome]
    runs: Path
    _inspected: dict[tuple[str, str, str | None], Mapping[str, float]] = field(default_factory=dict)

    def of(self, job: Job) -> tuple[float, str]:
        """(seconds, what they rest on) of a job."""
        alike = [
            self.done[other.key].seconds
            for other in self.jobs
            if other.key in self.done and _kind(other) == _kind(job) and not _was_cached(self.done[other.key])
        ]
        if alike:
            return fmean(alike), "jobs of this sweep"
        steps = _steps_of_run(self.runs / job.cells[0].task / "run.json")
        measured = [steps.get(name) for name in _step_names(job)]
        if measured and None not in measured:
            return sum(value or 0.0 for value in measured), "run.json"
        return self._inspect(job), "this machine's speed"

    def _inspect(self, job: Job) -> float:
        first, options = job.cells[0], job.options
        place = (first.task, first.teacher, first.student)
        if place not in self._inspected:
            self._inspected[place] = inspect(options, Steps()).seconds
        seconds = self._inspected[place]
        if job.kind == "latency":
            return seconds["time"]
        evaluate = seconds["evaluate and check"] / len(variant_names(options))
        if job.kind == "variant":
            share = 1.0 if job.kept else _CALIBRATION_SHARE
            total = evaluate + share * seconds["calibrate and smooth"]
        else:
            trained = "fine-tune the teacher" if job.part.model == TEACHER else "train a student"
            total = len(job.cells) * evaluate + seconds.get(trained, 0.0)
        return total * max(1.0, default_threads() / job.worker_threads)


def _kind(job: Job) -> tuple[str, str, str | None]:
    return job.kind, job.cells[0].task, job.cells[0].student


def _was_cached(outcome: Outcome) -> bool:
    """Whether a job had nothing to do but to look."""
    return set(outcome.durations_s) - {"read rows"} <= set(outcome.cached)


def _step_names(job: Job) -> Iterable[str]:
    """The steps of a run that make up a job and take time there; none for those that a run does otherwise."""
    if job.kind == "latency" or job.part.recipes:
        return ()
    trained = ["fine-tune the teacher"] if job.options.teacher is None else []
    if job.part.model != TEACHER:
        trained = ["train the student"] if job.options.trains_student else []
    names = [cell.variant for cell in job.cells]
    return [*trained, f"export {job.part.model}", *(f"evaluate {name}" for name in names)]


@cache
def _steps_of_run(path: Path) -> Mapping[str, float]:
    """The durations of the steps that a run did not find in its cache; nothing where there is no run.json."""
    try:
        run = parse_json_text(read_utf8(path))
        cached = set(run["cached"])
        return {str(name): float(s) for name, s in run["durations_s"].items() if name not in cached}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
