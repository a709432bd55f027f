"""The processes of this machine: joblib's loky, which notices when one dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from joblib.externals.loky import get_reusable_executor

from quantlib.experiment.options import ExperimentOptions
from quantlib.sweep.driving import Failure, Result, failure_of
from quantlib.sweep.graph import Job
from quantlib.sweep.work import Outcome, run

Work = Callable[[Job, ExperimentOptions], Outcome]

# What libraries read when they are loaded; a worker's own threads are told to each of them besides.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# How often a process looks whether the one that started it is still there.
_LOOK_SECONDS = 0.5


class LocalPool:
    """A process for each job that runs at once; one that dies is replaced, and its job done again."""

    def __init__(
        self, jobs: int, threads: int, attempts: int, cache_dir: Path | None, work: Work = run
    ) -> None:
        self._jobs, self._attempts, self._cache_dir, self._work = jobs, attempts, cache_dir, work
        self._environment = dict.fromkeys(_THREAD_VARIABLES, str(threads))
        self._running: dict[Future[Outcome], Job] = {}
        self._suspects: deque[Job] = deque()
        self._runs_alone = False
        self._executor: Any = None
        self._deaths: Counter[str] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; at once if something went wrong, or the user does not want to wait."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, kill_workers=error is not None)

    @property
    def room(self) -> int:
        """How many more jobs it takes now."""
        return 0 if self._suspects or self._runs_alone else self._jobs - len(self._running)

    def submit(self, job: Job, needed: Sequence[Outcome]) -> None:
        """Start a job; what it needs is in the cache."""
        options = replace(job.options, cache_dir=self._cache_dir)
        future: Future[Outcome] | None = None
        while future is None:
            # Others than before if one of the processes has died.
            self._executor = get_reusable_executor(
                max_workers=self._jobs, env=self._environment, initializer=_begin, initargs=(os.getpid(),)
            )
            with suppress(BrokenProcessPool):  # one has died just now
                future = self._executor.submit(self._work, job, options)
        self._running[future] = job

    def finished(self) -> list[tuple[Job, Result]]:
        """The jobs that have ended, at least one: waits for it."""
        ended: list[tuple[Job, Result]] = []
        while not ended:
            if not self._running:
                self._runs_alone = bool(self._suspects)
                self.submit(self._suspects.popleft(), ())
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                job, error = self._running.pop(future), future.exception()
                if isinstance(error, BrokenProcessPool):
                    ended += self._died(job, error)
                else:
                    ended.append((job, future.result() if error is None else failure_of(error)))
        self._runs_alone = self._runs_alone and bool(self._running)
        return ended

    def _died(self, job: Job, error: BaseException) -> list[tuple[Job, Result]]:
        """Do a job again whose worker, or one beside it, has died; its failure if that was often enough."""
        self._deaths[job.key] += 1
        count = self._deaths[job.key]
        if count >= self._attempts:
            reason = " ".join(str(error).split())
            return [(job, Failure(f"its worker died, {count} times: {reason}"))]
        if count == self._attempts - 1:  # alone, it is known whose fault it is
            self._suspects.append(job)
        else:
            self.submit(job, ())
        return []


def _begin(parent: int) -> None:
    """Make this a worker of `parent`: Ctrl-C is for that process, and this one ends when it has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)  # in the middle of a job: the next call does it again
