"""What runs in the processes of a cluster's workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from quantlib.support.artifacts import Artifact, finish, read_chunk, write_chunk
from quantlib.support.cache import Cache, open_cache
from quantlib.sweep.environment import check_code
from quantlib.sweep.graph import Job
from quantlib.sweep.inputs import moved, place_of
from quantlib.sweep.local import Work
from quantlib.sweep.work import Outcome


@dataclass(frozen=True)
class Request:
    """A job for a worker. artifacts: what it needs. code: what it has to run. work: what does it."""

    job: Job
    artifacts: tuple[Artifact, ...]
    code: Mapping[str, Any]
    work: Work


@dataclass(frozen=True)
class Answer:
    """What became of a request: what the job gave, or what this worker lacks to do it."""

    worker: str
    outcome: Outcome | None = None
    missing: tuple[Artifact, ...] = ()


def run(request: Request) -> Answer:
    """Do a job with this worker's cache, if that has all that the job needs.

    Raises:
        InputError: this worker runs other code, or something that the user gave cannot be used.
    """
    from distributed import get_worker

    check_code(dict(request.code))
    worker: str = get_worker().address
    missing = missing_of(request.artifacts)
    if missing:
        return Answer(worker, missing=missing)
    root = _cache().root
    job, options = request.job, moved(request.job.options, request.job.inputs, root)
    places = {entry.text: place_of(entry, root) for entry in job.inputs if entry.option == "recipes"}
    recipes = tuple((places.get(given, given), engine) for given, engine in job.part.recipes)
    job = replace(job, options=options, part=replace(job.part, recipes=recipes))
    return Answer(worker, request.work(job, options))


def missing_of(artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """Those that this worker's cache lacks."""
    root = _cache().root
    return tuple(artifact for artifact in artifacts if not artifact.is_in(root))


def receive(token: str, name: str, offset: int, piece: bytes) -> None:
    """Keep a piece of a file that is on its way to this worker."""
    write_chunk(_cache(), token, name, offset, piece)


def accept(token: str, artifact: Artifact) -> None:
    """Make an entry of this worker's cache of an artifact that has arrived."""
    finish(_cache(), token, artifact)


def send(artifact: Artifact, name: str, offset: int, size: int) -> bytes:
    """A piece of an entry of this worker's cache."""
    return read_chunk(artifact.path(_cache().root), name, offset, size)


@cache
def _cache() -> Cache:
    return open_cache(None)
