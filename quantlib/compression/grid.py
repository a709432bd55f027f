"""Formulas of the integer grids: scales, zero points, rounded weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
# A scale must stay a normal float32, also for a channel that is zero everywhere.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


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
    scale = np.float32(max((high - low) / 255, SMALLEST_SCALE))
    zero = int(np.clip(round(-low / float(scale)), 0, 255))
    return Grid(scale, np.int8(zero - 128) if signed else np.uint8(zero))


def quantize_weight(
    weight: FloatArray, *, per_channel: bool = True, bits: int = 8
) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A weight (in, out) on a symmetric grid: int8 (in, out), and scales, (out,) or ().

    scale = max|w| / (2^(bits-1) - 1), over an output channel or over all.
    """
    scale = weight_scale(weight, per_channel=per_channel, bits=bits)
    return round_weight(weight, scale, bits=bits), scale


def weight_scale(weight: FloatArray, *, per_channel: bool = True, bits: int = 8) -> FloatArray:
    """The scale of `quantize_weight`, (out,) or ()."""
    largest = np.abs(weight).max(axis=0 if per_channel else None)
    scale: FloatArray = np.maximum(largest / np.float32(highest(bits)), SMALLEST_SCALE).astype(np.float32)
    return scale


def round_weight(weight: FloatArray, scale: FloatArray, *, bits: int) -> npt.NDArray[np.int8]:
    """The nearest levels of a symmetric grid, int8, of a weight (in, out); the scale is broadcast to it."""
    top = highest(bits)
    levels: npt.NDArray[np.int8] = np.clip(np.rint(weight / scale), -top, top).astype(np.int8)
    return levels


def highest(bits: int) -> int:
    """The highest level of a symmetric grid; the lowest is its negative."""
    return (1 << (bits - 1)) - 1


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
        The packed values of `pack_blocks`, and the scales of `block_scales`.
    """
    scales = block_scales(weight, bits=bits, block_size=block_size)
    steps = steps_of_blocks(scales, block_size, len(weight))
    return pack_blocks(round_weight(weight, steps, bits=bits), bits=bits, block_size=block_size), scales


def block_scales(weight: FloatArray, *, bits: int, block_size: int) -> FloatArray:
    """max|w| / (2^(bits-1) - 1) of each block of a weight (in, out) along the input: (out, blocks)."""
    parted = _in_blocks(weight, block_size)
    largest = np.abs(parted).max(axis=2)
    scales: FloatArray = np.maximum(largest / np.float32(highest(bits)), SMALLEST_SCALE)
    return scales


def steps_of_blocks(scales: FloatArray, block_size: int, depth: int) -> FloatArray:
    """The scale of each weight, (in, out), from those of its blocks, (out, blocks)."""
    return np.repeat(scales.T, block_size, axis=0)[:depth]


def pack_blocks(values: npt.NDArray[np.int8], *, bits: int, block_size: int) -> npt.NDArray[np.uint8]:
    """Levels (in, out) as MatMulNBits reads them.

    Returns:
        uint8 (out, blocks, block_size * bits / 8), two 4-bit numbers to a byte, the first in its low half. A
        level is stored plus 2^(bits-1). The last block is filled up with zeros.
    """
    stored: npt.NDArray[np.uint8] = (
        _in_blocks(values, block_size).astype(np.int16) + (1 << (bits - 1))
    ).astype(np.uint8)
    if bits == 8:
        return stored
    packed: npt.NDArray[np.uint8] = stored[..., 0::2] | np.left_shift(stored[..., 1::2], 4, dtype=np.uint8)
    return packed


def _in_blocks(weight: npt.NDArray[Any], block_size: int) -> npt.NDArray[Any]:
    """A weight (in, out) as (out, blocks, block_size), the last block filled up with zeros."""
    depth, width = weight.shape
    blocks = math.ceil(depth / block_size)
    padded = np.zeros((width, blocks * block_size), weight.dtype)
    padded[:, :depth] = weight.T
    return padded.reshape(width, blocks, block_size)


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
    scale = np.maximum((high - low) / np.float32(15), SMALLEST_SCALE).astype(np.float32)
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
