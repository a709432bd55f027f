"""The targets of a student: the teacher's logits and its layers' states, each computed once if it can be."""

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
from quantlib.training.forward import logits_of
from quantlib.training.student.device import autocast, feed_of
from quantlib.training.student.losses import States
from quantlib.training.student.options import DistillationOptions
from quantlib.training.student.states import run_with_products, scores

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    Index = npt.NDArray[np.int64]

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

    logits: float32 (rows, labels), NaN where they are not known yet. states: of the rows `index`, whose
    padded batch is `feed`.
    """

    teacher: Teacher
    logits: torch.Tensor
    states: Callable[[Index, dict[str, torch.Tensor]], States]
    on_disk: bool

    def logits_for(self, index: Index, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        """The logits of the rows `index`, whose padded batch is `feed`; computed if they are not known."""
        import torch

        rows = torch.from_numpy(index)
        if bool(self.logits[rows].isnan().any()):
            fill_unknown(self.logits, index, _teacher_logits(self.teacher, feed))
        return self.logits[rows].to(self.teacher.device)


def fill_unknown(known: torch.Tensor, index: Index, logits: torch.Tensor) -> None:
    """Write logits of the rows `index` where none are known: a row keeps those of its first batch.

    In another batch they differ by rounding, and an interrupted training would end with other weights.
    """
    import torch

    rows = torch.from_numpy(index)
    known[rows] = torch.where(known[rows].isnan(), logits.cpu(), known[rows])


@contextmanager
def teacher_targets(
    teacher: Teacher,
    features: Sequence[Feature],
    options: DistillationOptions,
    work_dir: Path,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Targets]:
    """What the teacher computes for the rows.

    States that are needed in several epochs are computed first and kept in a file in `work_dir` until the
    block ends: queries and keys instead of attention scores, since they are smaller for long rows. States
    that are needed once, or that would take more than `options.disk_bytes`, are computed when they are
    needed; the logits come with them.

    Args:
        teacher: what to run.
        features: the rows.
        options: see `DistillationOptions`.
        work_dir: a directory, created if it is missing.
        progress: called after each batch with (batches done, batches in all), where states are kept.
    """
    import torch

    logits = torch.full((len(features), teacher.model.config.num_labels), torch.nan)
    token_bytes = teacher.columns * _BYTES_PER_VALUE
    size = sum(map(len, features)) * token_bytes
    if options.transformer.epochs > 1 and teacher.mapping and size <= options.disk_bytes:
        with place_errors(make_dir(work_dir)), scratch_dir(work_dir) as scratch:
            starts = _write_states(teacher, features, logits, scratch / "states", progress)
            # Closed before the directory goes: Windows removes no file that is open.
            with (scratch / "states").open("rb") as file:

                def read(index: Index, feed: dict[str, torch.Tensor]) -> States:
                    packed = np.zeros((*feed["input_ids"].shape, teacher.columns), dtype=np.float32)
                    for number, row in enumerate(index):
                        file.seek(int(starts[row]) * token_bytes)
                        file.readinto(packed[number, : len(features[row])].data)
                    return teacher.states(torch.from_numpy(packed).to(teacher.device))

                yield Targets(teacher, logits, read, on_disk=True)
        return

    def compute(index: Index, feed: dict[str, torch.Tensor]) -> States:
        batch_logits, packed = teacher.run(feed)
        fill_unknown(logits, index, batch_logits)
        return teacher.states(packed)

    yield Targets(teacher, logits, compute, on_disk=False)


def _write_states(
    teacher: Teacher,
    features: Sequence[Feature],
    logits: torch.Tensor,
    path: Path,
    progress: Callable[[int, int], None],
) -> Index:
    """Run the teacher over all rows: logits into `logits`, states into a file.

    Returns:
        The first token of each row in the file, (rows,).
    """
    lengths = [len(feature) for feature in features]
    starts, parts = np.zeros(len(features), dtype=np.int64), list(by_length(lengths, _ROWS_AT_ONCE))
    end = 0
    with path.open("wb") as file:
        for batch_number, index in enumerate(parts, start=1):
            batch_logits, packed = teacher.run(feed_of(features, index, teacher.device))
            fill_unknown(logits, np.asarray(index), batch_logits)
            array = packed.cpu().numpy()
            for number, row in enumerate(index):
                starts[row], end = end, end + lengths[row]
                file.write(array[number, : lengths[row]].tobytes())
            progress(batch_number, len(parts))
    return starts


def _teacher_logits(teacher: Teacher, feed: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    teacher.model.eval()
    with torch.no_grad(), autocast(teacher.device, teacher.precision):
        return logits_of(teacher.model, feed).float()
