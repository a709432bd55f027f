"""Activations channel by channel: extremes over all rows, and a sample of positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlib.compression.calibration.histogram import FloatArray
from quantlib.compression.calibration.stream import Mask, observing, run_batches
from quantlib.data.features import Feed
from quantlib.support.errors import InputError

# Positions kept of each activation: at 512 a layer's squared error is known to a few percent.
SAMPLES = 512


@dataclass(frozen=True, eq=False)
class Channels:
    """An activation by channel, its last axis.

    low, high: float32, (channels,), over every real position. sample: float32, (positions, channels), drawn
    evenly from them.
    """

    low: FloatArray
    high: FloatArray
    sample: FloatArray


def join_channels(several: Sequence[Channels]) -> Channels:
    """Activations of the same channels as one."""
    return Channels(
        np.min([channels.low for channels in several], axis=0),
        np.max([channels.high for channels in several], axis=0),
        np.concatenate([channels.sample for channels in several]),
    )


def collect_channels(
    onnx_path: Path,
    feeds: Iterable[Feed],
    tensors: Sequence[str],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Channels]:
    """Extremes and a sample of each activation, in one pass and in memory that does not grow with the rows.

    Padded positions (those where `attention_mask` is 0) do not count. Each position gets a random key, and
    a sample holds those with the smallest keys, so every position is equally likely.

    Args:
        onnx_path: the FP32 model.
        feeds: what to run, once each: arrays (rows, tokens).
        tensors: activations (rows, ..., channels), by name; at least one.
        samples: positions kept, at most. seed: of their choice.
        threads: of the session; the physical cores by default.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: as `quantlib.compression.calibration.collect` does.
    """
    names, session = observing(onnx_path, tensors, threads)
    rng = np.random.default_rng(seed)
    channels: dict[str, Channels] = {}
    keys: dict[str, FloatArray] = {}
    for batch in run_batches(session, onnx_path, names, feeds, progress=progress):
        for name in names:
            what = f"{onnx_path}: activation {name}"
            real = real_positions(batch.outputs.pop(0), batch.mask, what, batch.first_row)
            new = rng.random(len(real), np.float32)
            channels[name], keys[name] = _merge(channels.get(name), keys.get(name), real, new, samples)
    return channels


def real_positions(values: FloatArray, mask: Mask | None, what: str, first_row: int) -> FloatArray:
    """The values at real positions, (positions, channels), of an activation, (rows, ..., channels)."""
    row = np.broadcast_to(np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 2)), values.shape[:-1])
    # An activation (rows, channels) with as many channels as tokens has the mask's shape, but no positions.
    if mask is not None and values.ndim > 2 and values.shape[:2] == mask.shape:
        values, row = values[mask], row[mask]
    real = values.reshape(-1, values.shape[-1])
    bad = ~np.isfinite(real).all(axis=1)
    if bad.any():
        at = first_row + int(row.reshape(-1)[np.argmax(bad)])
        raise InputError(f"{what} is NaN or infinite at calibration row {at}")
    return real


def _merge(
    before: Channels | None, keys: FloatArray | None, values: FloatArray, new_keys: FloatArray, samples: int
) -> tuple[Channels, FloatArray]:
    low, high, sample = values.min(axis=0), values.max(axis=0), values
    if before is not None and keys is not None:
        low, high = np.minimum(low, before.low), np.maximum(high, before.high)
        sample, new_keys = np.concatenate([before.sample, values]), np.concatenate([keys, new_keys])
    if len(sample) > samples:
        kept = np.argpartition(new_keys, samples)[:samples]
        sample, new_keys = sample[kept], new_keys[kept]
    return Channels(low, high, np.array(sample)), new_keys
