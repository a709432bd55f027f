"""The workers of a Dask cluster, which share neither a cache nor a path with this machine.

A job that finds something missing in its worker's cache ends at once and says what. It is sent there, in
chunks, by way of the scheduler, and the job is done again. What others wait for comes back in the same way
when a job is done, so that it is still there when the worker is not.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from quantlib.support.artifacts import Artifact, chunks_of, finish, read_chunk, write_chunk
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError
from quantlib.sweep import environment, remote
from quantlib.sweep.driving import Failure, Result, failure_of
from quantlib.sweep.graph import Job
from quantlib.sweep.local import Work
from quantlib.sweep.options import LOCALHOST
from quantlib.sweep.work import Outcome, run

_CONNECT_SECONDS = 20
# How often it is looked whether the workers that a job may run on are still there.
_LOOK_SECONDS = 2.0
_TRANSFERS = 4  # at once
_JOBS_A_THREAD = 8  # the scheduler keeps those that no worker has room for


@dataclass
class _Flight:
    """A job that is at the cluster. places: the directories of its inputs here, by artifact."""

    job: Job
    artifacts: tuple[Artifact, ...]
    places: dict[str, Path]
    workers: tuple[str, ...] = ()
    future: Any = None
    number: int = 0


@dataclass(frozen=True)
class _Event:
    """What has happened to a job: its future ended, or a transfer for it did."""

    kind: str
    flight: _Flight
    value: Any
    number: int


@dataclass
class Traffic:
    """The bytes that went to workers, and came from them."""

    sent: int = 0
    received: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, sent: int = 0, received: int = 0) -> None:
        """Count some more."""
        with self.lock:
            self.sent += sent
            self.received += received


class ClusterPool:
    """The workers of a Dask scheduler. traffic: what was moved so far.

    Raises:
        InputError: no scheduler answers, or dask is not installed.
    """

    def __init__(
        self, address: str, attempts: int, cache: Cache, machines: Sequence[str] = (), work: Work = run
    ) -> None:
        self._client, self._address = _connect(address), address
        self._attempts, self._cache, self._work = attempts, cache, work
        self._flights: dict[str, _Flight] = {}
        self._refused: list[tuple[Job, Result]] = []
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._transfers = ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="transfer")
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._deaths: Counter[str] = Counter()
        self._threads, self._counted = 0, 0.0
        self.traffic = Traffic()
        try:
            for machine in machines if self._client.nthreads() else ():  # workers may be yet to come
                self._on(machine)
        except InputError:
            self._client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take back what has not ended, and leave the cluster."""
        for flight in self._flights.values():
            if flight.future is not None:
                flight.future.cancel()
        self._transfers.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    @property
    def room(self) -> int:
        """How many more jobs it takes now; workers that come later count from the next second on."""
        if time.monotonic() - self._counted > 1:
            self._threads = sum(self._client.nthreads().values())
            self._counted = time.monotonic()
        return max(1, _JOBS_A_THREAD * self._threads) - len(self._flights)

    def submit(self, job: Job, needed: Sequence[Outcome]) -> None:
        """Start a job where there is room; one of latency on its machine."""
        places = {entry.artifact.sha256: entry.directory for entry in job.inputs}
        entries = [artifact for outcome in needed for artifact in outcome.artifacts]
        unique = {artifact.sha256: artifact for artifact in [*(e.artifact for e in job.inputs), *entries]}
        flight = _Flight(job, tuple(unique.values()), places)
        self._flights[job.key] = flight
        self._send(flight, ())

    def finished(self) -> list[tuple[Job, Result]]:
        """The jobs that have ended, at least one: waits for it."""
        ended: list[tuple[Job, Result]] = []
        while not ended or self._refused or not self._events.empty():
            if self._refused:
                ended.append(self._refused.pop())
                continue
            try:
                event = self._events.get(timeout=_LOOK_SECONDS)
            except Empty:
                self._look()
                continue
            if (
                self._flights.get(event.flight.job.key) is event.flight
                and event.number == event.flight.number
            ):
                result = self._after(event)
                if result is not None:
                    ended.append(self._end(event.flight, result))
        return ended

    def _end(self, flight: _Flight, result: Result) -> tuple[Job, Result]:
        del self._flights[flight.job.key]
        return flight.job, result

    def _send(self, flight: _Flight, preferred: tuple[str, ...]) -> None:
        """Give a job to the scheduler. preferred: a worker that has been sent what the job needs."""
        job = flight.job
        flight.number += 1
        try:
            flight.workers = () if job.machine is None else self._on(job.machine)
        except InputError as error:  # its machine has gone
            self._refused.append(self._end(flight, failure_of(error)))
            return
        number = flight.number
        request = remote.Request(job, flight.artifacts, environment.code(), self._work)
        flight.future = self._client.submit(
            remote.run,
            request,
            key=f"quantlib-{job.key[:24]}-{secrets.token_hex(4)}",
            workers=list(flight.workers or preferred) or None,
            allow_other_workers=not flight.workers and bool(preferred),
            priority=-job.rank,
            pure=False,
        )
        flight.future.add_done_callback(
            lambda future: self._events.put(_Event("future", flight, future, number))
        )

    def _after(self, event: _Event) -> Result | None:
        """What follows from an event: the result of the job, or None if it goes on."""
        flight = event.flight
        if event.kind == "future":
            return self._after_future(flight, event.value)
        error = event.value.exception()
        if isinstance(error, InputError) and event.kind == "pulled":
            raise error  # this machine's disk is full, say: no other job would fare better
        if isinstance(error, InputError):
            return failure_of(error)
        if error is not None:  # the worker is gone, or a file is not what it was
            return self._again(flight, "was given up", error)
        if event.kind == "pushed":
            self._send(flight, (event.value.result(),))
            return None
        result: Result = event.value.result()
        return result

    def _after_future(self, flight: _Flight, future: Any) -> Result | None:
        from distributed import KilledWorker

        if future.status == "error":
            error = future.exception()
            died = isinstance(error, KilledWorker)
            return self._again(flight, "its worker died", error) if died else failure_of(error)
        if future.status != "finished":
            self._check_scheduler()
            return self._again(flight, "was given up", InputError(f"its future is {future.status}"))
        answer: remote.Answer = future.result()
        if answer.missing:
            self._transfer("pushed", flight, self._push, answer.worker, answer.missing, flight.places)
            return None
        assert answer.outcome is not None
        if flight.job.kept:
            self._transfer("pulled", flight, self._pull, answer.worker, answer.outcome)
            return None
        return answer.outcome

    def _again(self, flight: _Flight, what: str, error: BaseException) -> Result | None:
        """Do a job again; its failure if that was often enough. what: has happened to it."""
        self._deaths[flight.job.key] += 1
        count = self._deaths[flight.job.key]
        if count >= self._attempts:
            return Failure(f"{what}, {count} times: {failure_of(error).error}")
        self._send(flight, ())
        return None

    def _check_scheduler(self) -> None:
        """Check that the scheduler is there.

        Raises:
            InputError: it has gone.
        """
        if self._client.status != "running":
            raise InputError(
                f"the scheduler {self._address} has gone; what is done is kept, and the same call goes on"
            )

    def _look(self) -> None:
        """Send jobs again that wait for workers which are gone: the scheduler would wait for ever."""
        self._check_scheduler()
        bound = [flight for flight in self._flights.values() if flight.workers]
        alive = self._client.nthreads() if bound else {}
        for flight in bound:
            if not set(flight.workers) & set(alive):
                flight.future.cancel()
                self._send(flight, ())

    def _on(self, machine: str) -> tuple[str, ...]:
        """The addresses of the workers on a machine, by its host name or by their own.

        Raises:
            InputError: there are none.
        """
        hosts: dict[str, str] = self._client.run(environment.host)
        names = {
            address: str(worker.get("id", ""))
            for address, worker in self._client.scheduler_info(n_workers=-1)["workers"].items()
        }
        wanted = environment.host() if machine == LOCALHOST else machine
        found = tuple(
            address for address, host in sorted(hosts.items()) if wanted in (host, names.get(address))
        )
        if not found:
            known = ", ".join(sorted(set(hosts.values()))) or "none"
            raise InputError(f"--machines {machine}: no worker is on it; workers are on: {known}")
        return found

    # Transfers

    def _transfer(self, kind: str, flight: _Flight, move: Callable[..., Any], *arguments: Any) -> None:
        number = flight.number

        def put(done: Future[Any]) -> None:
            self._events.put(_Event(kind, flight, done, number))

        self._transfers.submit(move, *arguments).add_done_callback(put)

    def _push(self, worker: str, artifacts: Sequence[Artifact], places: dict[str, Path]) -> str:
        """Send artifacts to a worker, and return its address."""
        with self._locks[worker]:  # another job may miss the same there
            for artifact in self._ask(worker, remote.missing_of, tuple(artifacts)):
                token = secrets.token_hex(8)
                directory = places.get(artifact.sha256) or artifact.path(self._cache.root)
                for name, offset, size in chunks_of(artifact):
                    piece = read_chunk(directory, name, offset, size)
                    self._ask(worker, remote.receive, token, name, offset, piece)
                    self.traffic.add(sent=len(piece))
                self._ask(worker, remote.accept, token, artifact)
        return worker

    def _pull(self, worker: str, outcome: Outcome) -> Outcome:
        """Fetch what a job has made, as far as it is not here, and return its outcome."""
        for artifact in _missing(outcome.artifacts, self._cache):
            token = secrets.token_hex(8)
            for name, offset, size in chunks_of(artifact):
                piece: bytes = self._ask(worker, remote.send, artifact, name, offset, size)
                write_chunk(self._cache, token, name, offset, piece)
                self.traffic.add(received=len(piece))
            finish(self._cache, token, artifact)
        return outcome

    def _ask(self, worker: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a worker's process, beside its jobs."""
        return self._client.run(function, *arguments, workers=[worker])[worker]


def _missing(artifacts: Iterable[Artifact], cache: Cache) -> list[Artifact]:
    return [artifact for artifact in artifacts if not artifact.is_in(cache.root)]


def _connect(address: str) -> Any:  # distributed has no types for most of what it is asked here
    """A client of a scheduler."""
    try:
        from distributed import Client
    except ImportError as error:
        raise InputError("--scheduler needs dask: pip install 'bert-quantlib[dask]'") from error
    # A lost connection is said in one line, see `_check_scheduler`.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client: Any = Client
        return client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {address}: no Dask scheduler answers there: {error}") from error


def threads_of(address: str) -> int:
    """How many jobs the workers of a scheduler run at once.

    Raises:
        InputError: no scheduler answers.
    """
    with _connect(address) as client:
        return sum(client.nthreads().values())
