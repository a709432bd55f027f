"""The state of a training, in a file: an interrupted training goes on from it."""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlib.support.files import atomic_file

_DIGEST_BYTES = hashlib.sha256().digest_size

Score = tuple[float, float]
"""A score on held-out rows, higher is better; the second value decides between equal first ones."""


@dataclass
class TrainingState:
    """The state of a training: everything that decides how it goes on.

    phase, epoch, batch: what comes next. best, best_score: the phase's best weights so far and their score on
    held-out rows, None before the first score. stale: epochs since the best one. weights, optimizer: state
    dicts. random: states of torch's generators, the CPU's first. teacher_logits: `Targets.logits`. The order
    of the rows needs no state: it is drawn anew in each epoch, from the seed and the epoch's number.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    stale: int = 0
    best_score: Score | None = None
    best: dict[str, Any] | None = None
    weights: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    random: list[Any] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    teacher_logits: Any = None

    def next_phase(self) -> TrainingState:
        """The start of the next phase; the random state is kept."""
        return TrainingState(phase=self.phase + 1, losses=self.losses)


def random_state() -> list[Any]:
    """The state of torch's random generators: the CPU's, then that of each CUDA device in use."""
    import torch

    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def restore_random_state(state: list[Any]) -> None:
    """Set the state of torch's random generators to one from `random_state`."""
    import torch

    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])


def save_state(path: Path, job: str, state: TrainingState) -> None:
    """Write the state of the training `job`, whole or not at all, behind the SHA-256 of its bytes.

    Raises:
        InputError: the place cannot be written.
    """
    import torch

    fields = {name: getattr(state, name) for name in TrainingState.__dataclass_fields__}
    written = io.BytesIO()
    torch.save({"job": job, **fields}, written)
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        file.write(hashlib.sha256(written.getbuffer()).digest())
        file.write(written.getbuffer())


class DamagedError(Exception):
    """A file with the state of a training cannot be read."""


def load_state(path: Path, job: str) -> TrainingState | None:
    """The state of the training `job`; None if there is no file, or it is of another training.

    Read with `weights_only`: tensors and plain values, no code. torch does not notice a weight whose bytes
    have changed, so their hash is checked first.

    Raises:
        DamagedError: the file cannot be read, or holds something else.
    """
    import torch

    try:
        with path.open("rb") as file:
            digest, written = file.read(_DIGEST_BYTES), file.read()
        if hashlib.sha256(written).digest() != digest:
            raise ValueError("other bytes than were written")
        fields = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
        return TrainingState(**fields) if fields.pop("job") == job else None
    except FileNotFoundError:
        return None
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        zlib.error,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise DamagedError(path.name) from error
