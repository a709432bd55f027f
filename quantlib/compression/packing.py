"""4 bits on disk, 8 bits at work: weights whose int8 levels are products of two small whole numbers.

The level of a weight is n·f: n, from -7 to 7, is its own, and f, from 1 to 16, that of its block along the
input. Both take 4 bits in the file; one float scale for each output channel is as for 8 bits. A few plain
operators, which a runtime computes once when it loads the model, give back the int8 weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.compression.grid import SMALLEST_SCALE, FloatArray, highest
from quantlib.support.errors import InputError

BLOCK = 32
"""Weights along the input with the same factor: 4 + 4 / 32 bits a weight."""

BITS = 4
_FACTORS = 16

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Factors:
    """The grid of a weight (in, out): the level n of input i and output o stands for n·f·scale.

    factors: int8, (blocks, out), f of each block. scale: float32, (out,).
    """

    factors: Int8
    scale: FloatArray

    def steps(self, depth: int) -> FloatArray:
        """f·scale of each weight, float32, (in, out)."""
        return np.repeat(self.factors * self.scale, BLOCK, axis=0)[:depth]


def choose_factors(
    weight: FloatArray, importance: npt.NDArray[Any] | None = None, *, bits: int = 8
) -> Factors:
    """The factor of each block with the smallest squared error, its inputs weighted by importance.

    scale = max|w| / (7·F) of an output channel; F is the largest factor, 16, or 9 for levels in 7 bits.

    Args:
        weight: (in, out). importance: of each input, (in,), such as its second moment; by default all alike.
        bits: of the levels at work.

    Raises:
        InputError: the importance is not finite.
    """
    if importance is not None and not np.isfinite(importance).all():
        raise InputError("its Gram matrix is not finite, so its weight cannot be stored in 4 bits by it")
    depth, width = weight.shape
    top = highest(BITS)
    largest = min(_FACTORS, highest(bits) // top)
    peak = np.abs(weight).max(axis=0)
    scale = np.maximum(peak / np.float32(top * largest), SMALLEST_SCALE).astype(np.float32)
    blocks = math.ceil(depth / BLOCK)
    padded = np.zeros((blocks * BLOCK, width), np.float32)
    padded[:depth] = weight / scale
    parted = padded.reshape(blocks, BLOCK, width)
    weights = np.zeros(blocks * BLOCK, np.float32)
    weights[:depth] = 1 if importance is None else importance / max(float(np.max(importance)), SMALLEST_SCALE)
    errors = np.empty((largest, blocks, width), np.float32)
    for factor in range(1, largest + 1):
        off = np.clip(np.rint(parted / factor), -top, top) * factor - parted
        errors[factor - 1] = np.einsum("bio,bi->bo", off * off, weights.reshape(blocks, BLOCK))
    return Factors((np.argmin(errors, axis=0) + 1).astype(np.int8), scale)


def pack(levels: Int8, lowest: int) -> UInt8:
    """Whole numbers (rows, out) from `lowest` to `lowest` + 15, two to a byte: (rows / 2, out).

    The first half of the rows is in the low halves of the bytes. The number of rows must be even.
    """
    stored = (levels.astype(np.int16) - lowest).astype(np.uint8)
    low, high = stored[: len(stored) // 2], stored[len(stored) // 2 :]
    packed: UInt8 = low | np.left_shift(high, 4, dtype=np.uint8)
    return packed


def padded_to_pairs(levels: Int8, multiple: int, value: int) -> Int8:
    """Rows of `value` behind the last, up to a multiple of twice `multiple`."""
    missing = -len(levels) % (2 * multiple)
    return np.pad(levels, ((0, missing), (0, 0)), constant_values=value)
