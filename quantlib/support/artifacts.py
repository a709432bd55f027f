"""Entries of a cache, and other files, that travel to other machines by what they hold, not by their path."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from quantlib.support.cache import Cache
from quantlib.support.directories import atomic_dir
from quantlib.support.errors import InputError, Unavailable
from quantlib.support.eviction import lock_of, shrink
from quantlib.support.files import RECORD, make_dir, place_errors, sha256_file, sha256_json
from quantlib.support.locks import locked

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Artifact:
    """Files that belong together: where they go in any cache, and what each of them holds.

    kind, name: of the entry, ROOT/kind/name. files: {relative name: (SHA-256, bytes)}. record: the text of
    its entry.json.

    Raises:
        InputError: a name leads out of the cache.
    """

    kind: str
    name: str
    files: Mapping[str, tuple[str, int]]
    record: str

    def __post_init__(self) -> None:
        for part in (self.kind, self.name, *self.files):
            path = PurePosixPath(part)
            if path.is_absolute() or not path.parts or ".." in path.parts:
                raise InputError(f"an artifact's file {part!r} leads out of the cache")

    @property
    def sha256(self) -> str:
        """The SHA-256 of all that it holds, in hexadecimal."""
        return sha256_json([self.kind, self.name, {name: digest for name, (digest, _) in self.files.items()}])

    @property
    def size_bytes(self) -> int:
        """The bytes of its files."""
        return sum(size for _, size in self.files.values())

    def path(self, root: Path) -> Path:
        """Its directory in a cache."""
        return root / self.kind / self.name

    def is_in(self, root: Path) -> bool:
        """Whether a cache has it, by its record and the sizes; the bytes are checked when they are used."""
        directory = self.path(root)
        try:
            return (directory / RECORD).read_text(encoding="utf-8") == self.record and all(
                (directory / name).stat().st_size == size for name, (_, size) in self.files.items()
            )
        except OSError:
            return False


def artifact_of(entry: Path) -> Artifact:
    """The artifact that a finished entry of a cache is.

    Raises:
        Unavailable: it is not there any more.
    """
    try:
        record = (entry / RECORD).read_text(encoding="utf-8")
        files = json.loads(record)["files"]
        sizes = {name: (digest, (entry / name).stat().st_size) for name, digest in files.items()}
    except OSError as error:
        raise Unavailable(f"the cache lost {entry.parent.name}/{entry.name}") from error
    return Artifact(entry.parent.name, entry.name, sizes, record)


def pack(kind: str, directory: Path, names: Sequence[str]) -> Artifact:
    """The artifact of some files of a directory, which stay where they are.

    Args:
        kind: the kind of entry that they become in another cache.
        directory: where they are.
        names: relative to it.

    Raises:
        InputError: one cannot be read.
    """
    try:
        files = {
            name: (sha256_file(directory / name), (directory / name).stat().st_size) for name in sorted(names)
        }
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    digests = {name: digest for name, (digest, _) in files.items()}
    key = {"files": digests}
    record = json.dumps({"key": key, "files": digests}, indent=2, ensure_ascii=False) + "\n"
    return Artifact(kind, sha256_json({"kind": kind, "key": key})[:24], files, record)


def chunks_of(artifact: Artifact, size: int = CHUNK_BYTES) -> Iterator[tuple[str, int, int]]:
    """(file, offset, bytes) of the pieces in which it travels; an empty file is one piece of no bytes."""
    for name, (_, length) in artifact.files.items():
        for offset in range(0, max(length, 1), size):
            yield name, offset, min(size, length - offset)


def read_chunk(directory: Path, name: str, offset: int, size: int) -> bytes:
    """A piece of a file.

    Raises:
        Unavailable: the file is not there any more, or is shorter.
    """
    try:
        with (directory / name).open("rb") as stream:
            stream.seek(offset)
            piece = stream.read(size)
    except OSError as error:
        raise Unavailable(f"{directory / name}: {error.strerror}") from error
    if len(piece) != size:
        raise Unavailable(f"{directory / name}: shorter than it was")
    return piece


def write_chunk(cache: Cache, token: str, name: str, offset: int, piece: bytes) -> None:
    """Keep a piece of a file that is on its way; `token` names the transfer.

    Raises:
        InputError: the cache cannot be written.
    """
    path = _incoming(cache, token) / name
    with place_errors(cache.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "w+b") as stream:
            stream.seek(offset)
            stream.write(piece)


def finish(cache: Cache, token: str, artifact: Artifact) -> None:
    """Check the bytes of an artifact that has arrived, and make it an entry of the cache.

    Raises:
        InputError: the cache cannot be written.
        Unavailable: a file has other bytes than it should have.
    """
    incoming, path = _incoming(cache, token), artifact.path(cache.root)
    make_dir(path.parent)
    with place_errors(path, scratch=incoming), locked(lock_of(path)):
        if not artifact.is_in(cache.root):
            _check(incoming, artifact)
            with atomic_dir(path) as new:
                for name in artifact.files:
                    (new / name).parent.mkdir(parents=True, exist_ok=True)
                    (incoming / name).rename(new / name)
                (new / RECORD).write_text(artifact.record, encoding="utf-8", newline="")
        shutil.rmtree(incoming, ignore_errors=True)
    if cache.limit_bytes < math.inf:
        shrink(cache.root, cache.limit_bytes)


def _check(incoming: Path, artifact: Artifact) -> None:
    for name, (digest, _) in artifact.files.items():
        if not (incoming / name).is_file() or sha256_file(incoming / name) != digest:
            raise Unavailable(f"{artifact.kind}/{artifact.name}/{name} arrived with other bytes")


def _incoming(cache: Cache, token: str) -> Path:
    """Where the pieces of a transfer wait. One that never ends is removed with the least used entries."""
    return cache.root / "incoming" / token
