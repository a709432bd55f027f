"""The loop of a sweep: jobs go to a pool when what they wait for is there, and what they give is kept."""

from __future__ import annotations

import heapq
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from quantlib.support.errors import InputError
from quantlib.sweep.graph import Job, without
from quantlib.sweep.work import Outcome


@dataclass(frozen=True)
class Failure:
    """Why a job gave nothing, in one line; trace: where, for a bug."""

    error: str
    trace: str = ""


Result = Outcome | Failure


class Pool(Protocol):
    """What runs jobs: the processes of this machine, or the workers of a cluster."""

    @property
    def room(self) -> int:
        """How many more jobs it takes now."""
        ...

    def submit(self, job: Job, needed: Sequence[Outcome]) -> None:
        """Start a job. needed: what the jobs gave that it waits for."""
        ...

    def finished(self) -> list[tuple[Job, Result]]:
        """The jobs that have ended, at least one: waits for it."""
        ...


def drive(
    jobs: Sequence[Job],
    pool: Pool,
    done: Mapping[str, Outcome],
    report: Callable[[Job, Result], object] = lambda job, result: None,
) -> dict[str, Result]:
    """Run all jobs that are not done, and return what each gave, by its key.

    A job that fails takes those with it that cannot do without: the variants of a float model, not those that
    merely start from the same smoothed one.

    Args:
        jobs: each behind those that it waits for.
        pool: what runs them.
        done: what is known of earlier runs.
        report: called with each job that ends here.
    """
    by_key = {job.key: job for job in jobs}
    results: dict[str, Result] = dict(done)
    open_jobs = {job.key: job for job in jobs if job.key not in results}
    unmet = {key: {other for other in job.waits_for if other in open_jobs} for key, job in open_jobs.items()}
    behind: dict[str, list[str]] = {}
    for key, others in unmet.items():
        for other in others:
            behind.setdefault(other, []).append(key)
    order = {key: number for number, key in enumerate(by_key)}
    ready = [(by_key[key].rank, order[key], key) for key, others in unmet.items() if not others]
    heapq.heapify(ready)
    running = 0

    def end(job: Job, result: Result) -> None:
        results[job.key] = result
        report(job, result)
        for key in behind.get(job.key, ()):
            unmet[key].discard(job.key)
            if not unmet[key]:
                heapq.heappush(ready, (by_key[key].rank, order[key], key))

    while ready or running:
        while ready and pool.room:
            job = by_key[heapq.heappop(ready)[2]]
            failed = [by_key[key] for key in job.waits_for if isinstance(results.get(key), Failure)]
            fatal = next((other for other in failed if other.kind == "models"), None)
            if fatal is not None:
                end(job, _because_of(fatal, results[fatal.key]))
                continue
            if job.kind == "latency":
                job = without(job, {cell.variant for other in failed for cell in other.cells})
            needed = [results[key] for key in job.waits_for if key in results]
            pool.submit(job, [each for each in needed if isinstance(each, Outcome)])
            running += 1
        if running:
            for job, result in pool.finished():
                running -= 1
                end(job, result)
    return results


def failure_of(error: BaseException) -> Failure:
    """What is kept of an error that a worker raised: its line, and for a bug where it was."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, InputError):
        return Failure(line)
    return Failure(f"{type(error).__name__}: {line}", "".join(traceback.format_exception(error)))


def _because_of(job: Job, result: Result) -> Failure:
    assert isinstance(result, Failure)
    return Failure(result.error if " failed: " in result.error else f"{job.name} failed: {result.error}")
