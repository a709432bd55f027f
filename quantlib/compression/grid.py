"""Formulas of the integer grids: scales, zero points, rounded weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
# A scale must stay a normal float32, also for a channel that is zero everywhere.
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Grid:
    """An 8-bit grid: a value x is stored as round(x / scale) + zero_point, clipped to the type.

    scale: float32. zero_point: uint8 or int8.
    """

    scale: np.float32
    zero_point: np.uint8 | np.int8


def activation_grid(low: float, high: float, *, signed: bool) -> Grid:
    """The asymmetric 8-bit grid of a range, widened to hold zero, which gets a level of its own.

    scale = (high - low) / 255; the signed grid is the unsigned one with 128 less, value for value.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255, _SMALLEST_SCALE))
    zero = int(np.clip(round(-low / float(scale)), 0, 255))
    return Grid(scale, np.int8(zero - 128) if signed else np.uint8(zero))


def quantize_weight(
    weight: FloatArray, *, per_channel: bool = True, bits: int = 8
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A weight (in, out) on a symmetric grid: int8 (in, out), and scales, (out,) or ().

    scale = max|w| / (2^(bits-1) - 1), over an output channel or over all.
    """
    top = 2 ** (bits - 1) - 1
    largest = np.abs(weight).max(axis=0 if per_channel else None)
    scale = np.maximum(largest / np.float32(top), _SMALLEST_SCALE).astype(np.float32)
    return np.clip(np.rint(weight / scale), -top, top).astype(np.int8), scale


def quantize_rows(table: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """An embedding table (entries, width) with a scale for each entry: int8 (entries, width), (entries, 1).

    A scale for the whole table would be that of its largest number: of the packaged MiniLM it costs four
    times the error in logits.
    """
    values, scale = quantize_weight(table.T)
    return np.ascontiguousarray(values.T), scale.reshape(-1, 1)


def quantize_blocks(
    weight: FloatArray, *, bits: int, block_size: int
) -> tuple[npt.NDArray[np.uint8], FloatArray]:
    """A weight (in, out) as MatMulNBits stores it, symmetric: with a scale for each block along the input.

    Returns:
        uint8 (out, blocks, block_size * bits / 8), two 4-bit numbers to a byte, the first in its low half;
        and scales, float32, (out, blocks). A value is stored plus 2^(bits-1). The last block is filled up.
    """
    depth, width = weight.shape
    blocks = math.ceil(depth / block_size)
    padded = np.zeros((width, blocks * block_size), np.float32)
    padded[:, :depth] = weight.T
    parted = padded.reshape(width, blocks, block_size)
    half = 2 ** (bits - 1)
    largest = np.abs(parted).max(axis=2, keepdims=True)
    scale = np.maximum(largest / np.float32(half - 1), _SMALLEST_SCALE).astype(np.float32)
    values = (np.clip(np.rint(parted / scale), 1 - half, half - 1) + half).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << 4)
    return values, scale[..., 0]


def quantize_row_blocks(
    table: FloatArray, *, block_size: int
) -> tuple[npt.NDArray[np.uint8], FloatArray, npt.NDArray[np.uint8]]:
    """An embedding table (entries, width) in 4 bits, as GatherBlockQuantized reads it.

    Each block of a row has a scale, (highest - lowest) / 15 over its numbers and zero, and a zero point,
    round(-lowest / scale). The width must be even.

    Returns:
        uint8 (entries, width / 2), two numbers to a byte, the first in its low half; scales, float32
        (entries, blocks); zero points, uint8 (entries, ceil(blocks / 2)), two to a byte as well.
    """
    entries, width = table.shape
    blocks = math.ceil(width / block_size)
    padded = np.zeros((entries, blocks * block_size), np.float32)
    padded[:, :width] = table
    parted = padded.reshape(entries, blocks, block_size)
    low = np.minimum(parted.min(axis=2, keepdims=True), 0)
    high = np.maximum(parted.max(axis=2, keepdims=True), 0)
    scale = np.maximum((high - low) / np.float32(15), _SMALLEST_SCALE).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    values = np.clip(np.rint(parted / scale) + zero, 0, 15).astype(np.uint8)
    values = values.reshape(entries, -1)[:, :width]
    return _pairs(values), scale[..., 0], _pairs(zero[..., 0].astype(np.uint8))


def _pairs(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """4-bit numbers (rows, count), two to a byte, the first in its low half; zero fills up an odd count."""
    packed = np.zeros((len(values), (values.shape[1] + 1) // 2), np.uint8)
    packed |= values[:, 0::2]
    packed[:, : values.shape[1] // 2] |= values[:, 1::2] << 4
    return packed


def levels(values: npt.NDArray[Any], grid: Grid) -> npt.NDArray[Any]:
    """What a float array becomes on a grid, as floats again: for simulation and for tests."""
    kind = np.iinfo(grid.zero_point.dtype)
    with np.errstate(over="ignore"):  # what is infinite is clipped like any other
        steps = np.rint(values / grid.scale) + int(grid.zero_point)
    rounded: npt.NDArray[Any] = (np.clip(steps, kind.min, kind.max) - int(grid.zero_point)) * grid.scale
    return rounded
