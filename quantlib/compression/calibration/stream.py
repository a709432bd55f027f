"""Run the model batch by batch and fold its activations into statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quantlib.compression.calibration import graph
from quantlib.compression.calibration.graph import BATCH, SEQUENCE, UNKNOWN, Axes
from quantlib.compression.calibration.histogram import BINS, FloatArray
from quantlib.compression.calibration.statistics import Statistics, TensorStatistics, merge, observe
from quantlib.data.features import Feed
from quantlib.machine.sessions import feed_for, open_session, run_session
from quantlib.onnx_model.mapped import mapped
from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError
from quantlib.support.files import place_errors

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Tokens in a batch, at most (or one row): the activations of a batch are in memory at once.
MAX_TOKENS = 512

Mask = npt.NDArray[np.bool_]


def collect(
    onnx_path: Path,
    feeds: Iterable[Feed],
    tensors: Sequence[str] | None = None,
    *,
    histograms: bool = True,
    skip_padding: bool = True,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """The statistics of activations over all feeds, in one pass and in constant memory.

    Padded positions (those where `attention_mask` is 0) do not count: they are left out along every sequence
    axis, so of attention scores, (batch, heads, sequence, sequence), along both. An activation without a
    batch axis counts once for each row, as if each row had been fed alone. Nodes are not fused, so that a
    tensor's values do not depend on which other tensors are outputs.

    Args:
        onnx_path: the FP32 model. Its first input has the shape (batch, sequence).
        feeds: what to run, once each: arrays (rows, tokens).
        tensors: activations by name; None is all of them. A recipe needs those that
            `quantlib.compression.quantize.tensors_to_calibrate` gives.
        histograms: False is quicker, and allows only MinMax and MovingAverage.
        skip_padding: False counts padded positions too, as the textbook does.
        threads: of the session; the physical cores by default.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: there is no feed, the model has no such activation or cannot run a feed, a row is all
            padding, or an activation is NaN or infinite (which tensor, which row; rows are counted from 0).
    """
    with mapped(onnx_path) as copy:
        model = graph.with_shapes(Model(copy))
        names = known(model, tensors, onnx_path)
        source = graph.sources(model, names)
        axes = graph.axes(model, dict.fromkeys(source.values()))
        session = session_for(copy, model, list(axes), threads)
    fold = _Fold(onnx_path, axes, BINS if histograms else None)
    folding: Future[None] | None = None
    batches = run_batches(session, onnx_path, list(axes), feeds, skip_padding=skip_padding, progress=progress)
    # A batch is folded on one core while the next one runs: at most two batches are in memory. With one
    # thread they take turns.
    with ThreadPoolExecutor(max_workers=1) as worker:
        for batch in batches:
            if folding:
                folding.result()
            folding = worker.submit(fold, batch)
            if threads == 1:
                folding.result()
        if folding:
            folding.result()
    return Statistics({name: fold.statistics[source[name]] for name in names})


@dataclass(frozen=True, eq=False)
class Batch:
    """The activations of one batch.

    outputs: an array for each activation, in the order of the names. Whoever folds them removes them from the
    list, so that each is freed as soon as it is folded. shape: of the feed, (rows, tokens). mask: from
    `padding_mask`; None if padded positions count too. first_row: how many rows came before.
    """

    outputs: list[FloatArray]
    shape: tuple[int, ...]
    mask: Mask | None
    first_row: int


def run_batches(
    session: onnxruntime.InferenceSession,
    onnx_path: Path,
    names: list[str],
    feeds: Iterable[Feed],
    *,
    skip_padding: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Batch]:
    """Run all feeds, `MAX_TOKENS` at once; arguments and errors are those of `collect`.

    Args:
        session: from `session_for`. onnx_path: the model's name in errors.
        names: the outputs to compute.
    """
    row = 0
    for feed in bounded(feeds):
        mask = padding_mask(feed, row) if skip_padding else None
        shape = next(iter(feed.values())).shape
        yield Batch(run_session(session, onnx_path, feed_for(session, feed), names), shape, mask, row)
        row += shape[0]
        if progress:
            progress(shape[0])
    if not row:
        raise InputError("no calibration rows: the calibration set is empty")


@dataclass
class _Fold:
    """Statistics so far, by tensor; called with each batch."""

    onnx_path: Path
    axes: dict[str, Axes]
    bins: int | None
    statistics: dict[str, TensorStatistics] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> None:
        for name, axes in self.axes.items():
            rows = _rows(batch.outputs.pop(0), axes, batch.shape, batch.mask)
            what = f"{self.onnx_path}: activation {name}"
            new = observe(rows, what=what, first_row=batch.first_row, bins=self.bins)
            before = self.statistics.get(name)
            self.statistics[name] = new if before is None else merge(before, new)


def observing(
    onnx_path: Path, tensors: Sequence[str] | None, threads: int | None
) -> tuple[list[str], onnxruntime.InferenceSession]:
    """The activations that are meant, see `known`, and a session with them as outputs."""
    with mapped(onnx_path) as copy:
        model = graph.with_shapes(Model(copy))
        names = known(model, tensors, onnx_path)
        return names, session_for(copy, model, names, threads)


def session_for(
    copy: Path, model: onnx.ModelProto, names: list[str], threads: int | None
) -> onnxruntime.InferenceSession:
    """A session with these tensors as outputs and no node fused.

    Args:
        copy: from `mapped`; a graph with these outputs is written beside it, to the same weights. model: its
            graph, which is changed in place. names, threads: as of `run_batches` and `collect`.
    """
    path = copy.with_name("augmented.onnx")
    with place_errors(path):
        graph.save(graph.with_outputs(model, names), path)
    # Without spinning: waiting threads would occupy the core that folds.
    return open_session(path, threads=threads, spinning=False, optimize=False)


def known(model: onnx.ModelProto, tensors: Sequence[str] | None, onnx_path: Path) -> list[str]:
    """The given names, checked to be activations of the model; all activations for None."""
    every = graph.activations(model)
    unknown = [] if tensors is None else [name for name in tensors if name not in set(every)]
    if unknown:
        raise InputError(f"{onnx_path}: the model has no float activation {unknown[0]!r}")
    names = every if tensors is None else list(tensors)
    if not names:
        raise InputError(f"{onnx_path}: the model has no float activation to calibrate")
    return names


def bounded(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """The feeds, split by rows where one holds more than MAX_TOKENS."""
    for feed in feeds:
        rows, *rest = next(iter(feed.values())).shape
        step = max(1, MAX_TOKENS // max(1, *rest)) if rest else rows
        for start in range(0, rows, step):
            yield {name: array[start : start + step] for name, array in feed.items()}


def padding_mask(feed: Feed, first_row: int) -> Mask | None:
    """The real positions, bool (rows, tokens); None if there is no padding.

    Raises:
        InputError: a row is all padding.
    """
    if "attention_mask" not in feed:
        return None
    mask: Mask = feed["attention_mask"] != 0
    if mask.all():
        return None
    empty = ~mask.any(axis=1)
    if empty.any():
        raise InputError(f"calibration row {first_row + int(np.argmax(empty))} is all padding")
    return mask


def _rows(
    values: FloatArray, axes: Axes, shape: tuple[int, ...], mask: Mask | None
) -> FloatArray | list[FloatArray]:
    """The values at real positions: (rows, values), or one array for each row of a padded batch.

    Args:
        values: an activation. axes: its axes, from `graph.axes`.
        shape: of the feed, (rows, tokens). mask: from `padding_mask`.
    """
    axes = _resolve(values.shape, axes, shape)
    if BATCH in axes:
        batch = axes.index(BATCH)
        values = np.moveaxis(values, batch, 0)
        axes = axes[:batch] + axes[batch + 1 :]
    else:
        values = np.broadcast_to(values, (shape[0], *values.shape))
    if mask is None or SEQUENCE not in axes:
        return values.reshape(shape[0], -1)
    rows = []
    for row, real in zip(values, mask, strict=True):
        for axis in (i for i, kind in enumerate(axes) if kind == SEQUENCE):
            row = np.compress(real, row, axis)
        rows.append(row.reshape(-1))
    return rows


def _resolve(sizes: tuple[int, ...], axes: Axes, shape: tuple[int, ...]) -> Axes:
    """Fill in axes that the graph does not name by their size: the first of size `rows`, then `tokens`."""
    if len(axes) != len(sizes):  # the graph knows nothing of the shape
        axes = (UNKNOWN,) * len(sizes)
    resolved = list(axes)
    for i, size in enumerate(sizes):
        if resolved[i] == UNKNOWN:
            if i == 0 and size == shape[0] and BATCH not in axes:
                resolved[i] = BATCH
            else:
                resolved[i] = SEQUENCE if shape[1:] == (size,) else ""
    return tuple(resolved)
