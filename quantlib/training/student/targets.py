"""The targets of a student: the teacher's logits and its layers' states, computed once if they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, by_length
from quantlib.support.files import make_dir, place_errors
from quantlib.support.scratch import scratch_dir
from quantlib.training.student.device import autocast, feed_of
from quantlib.training.student.losses import States
from quantlib.training.student.options import DistillationOptions
from quantlib.training.student.states import run_with_products, scores

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Array = npt.NDArray[Any]

_ROWS_AT_ONCE = 16  # as in a batch of the student, so that memory is no larger
_BYTES_PER_VALUE = 4  # float32, so that nothing is lost


@dataclass(frozen=True)
class Teacher:
    """A teacher in evaluation mode, the layers to learn from, and how it runs.

    mapping: see `layer_mapping`; empty if no layer is learned from.
    """

    model: Any
    mapping: tuple[int, ...]
    device: torch.device
    precision: str

    @property
    def columns(self) -> int:
        """Values per token in `_products`."""
        layers = max(0, len(self.mapping) - 1)
        return int(self.model.config.hidden_size) * (len(self.mapping) + 2 * layers)

    def run(self, feed: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (rows, labels), and hidden states, queries and keys (rows, tokens, columns) side by side."""
        import torch

        self.model.eval()
        with torch.no_grad(), autocast(self.device, self.precision):
            logits, hidden, products = run_with_products(self.model, feed)
        parts = [hidden[layer] for layer in self.mapping]
        parts += [part for layer in self.mapping[1:] for part in products[layer - 1]]
        packed = torch.cat([part.float() for part in parts], dim=-1) if parts else logits.new_empty(0)
        return logits.float(), packed

    def states(self, packed: torch.Tensor) -> States:
        """The states of the layers to learn from, unpacked from `run`'s second result."""
        import torch

        parts = torch.split(packed, self.model.config.hidden_size, dim=-1)
        count, heads = len(self.mapping), self.model.config.num_attention_heads
        products = zip(parts[count::2], parts[count + 1 :: 2], strict=True)
        return States(tuple(parts[:count]), tuple(scores(query, key, heads) for query, key in products))


@dataclass(frozen=True)
class Targets:
    """The teacher's logits and states.

    logits: float32 (rows, labels). states: of the rows `index`, whose padded batch is `feed`.
    """

    logits: torch.Tensor
    states: Callable[[npt.NDArray[np.int64], dict[str, torch.Tensor]], States]
    on_disk: bool


@contextmanager
def teacher_targets(
    teacher: Teacher,
    features: Sequence[Feature],
    options: DistillationOptions,
    work_dir: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Targets]:
    """Run the teacher once over the rows. Its states are in a file in `work_dir` until the block ends.

    Queries and keys are stored instead of attention scores, since they are smaller for long rows. States that
    would take more than `options.disk_bytes` are computed when they are needed.

    Args:
        teacher: what to run.
        features: the rows.
        options: see `DistillationOptions`.
        work_dir: a directory, created if it is missing.
        progress: called after each batch with (batches done, batches in all).
    """
    import torch

    lengths = [len(feature) for feature in features]
    token_bytes = teacher.columns * _BYTES_PER_VALUE
    fits = bool(teacher.mapping) and sum(lengths) * token_bytes <= options.disk_bytes
    logits = torch.empty(len(features), teacher.model.config.num_labels)
    starts, parts = np.zeros(len(features), dtype=np.int64), list(by_length(lengths, _ROWS_AT_ONCE))
    with place_errors(make_dir(work_dir)), scratch_dir(work_dir) as scratch:
        path, end = scratch / "states", 0
        with path.open("wb") as file:
            for number, index in enumerate(parts, start=1):
                feed = feed_of(features, index, teacher.device)
                if fits:
                    logits[index], packed = teacher.run(feed)
                    array = packed.cpu().numpy()
                    for row, place in enumerate(index):
                        starts[place], end = end, end + lengths[place]
                        file.write(array[row, : lengths[place]].tobytes())
                else:
                    logits[index] = _logits(teacher, feed)
                progress(number, len(parts))
        if not fits:
            yield Targets(logits, lambda index, feed: teacher.states(teacher.run(feed)[1]), on_disk=False)
            return
        # Closed before the directory goes: Windows removes no file that is open.
        with path.open("rb") as stored:

            def read(index: npt.NDArray[np.int64], feed: dict[str, torch.Tensor]) -> States:
                packed = np.zeros((*feed["input_ids"].shape, teacher.columns), dtype=np.float32)
                for row, place in enumerate(index):
                    stored.seek(int(starts[place]) * token_bytes)
                    stored.readinto(packed[row, : lengths[place]].data)
                return teacher.states(torch.from_numpy(packed).to(teacher.device))

            yield Targets(logits, read, on_disk=True)


def _logits(teacher: Teacher, feed: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    teacher.model.eval()
    with torch.no_grad(), autocast(teacher.device, teacher.precision):
        logits: torch.Tensor = teacher.model(**feed).logits
    return logits.float().cpu()
