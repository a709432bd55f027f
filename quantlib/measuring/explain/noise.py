"""Formulas for the noise of rounding to a grid, as noise power over signal power."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantlib.compression.calibration import TensorStatistics
from quantlib.compression.calibration.search import squared_errors

FloatArray = npt.NDArray[np.float32]

# -120 dB, where float32's own rounding begins; 16 bits reach -98 dB.
_NO_NOISE = 2.0**-40
# Values converted to float64 at once: all word embeddings of BERT-base would take half a gigabyte.
_BLOCK = 1 << 20


def decibels(noise: float) -> float | None:
    """The signal-to-quantization-noise ratio of a noise share, 10 log10(1 / noise); None if there is none."""
    return -10 * math.log10(noise) if noise > _NO_NOISE else None


def share(sqnr_db: float | None) -> float:
    """The noise share of a ratio in dB, the inverse of `decibels`."""
    return 0.0 if sqnr_db is None else 10 ** (-sqnr_db / 10)


def weight_noise(channels: FloatArray, bits: int, *, per_channel: bool) -> float:
    """sum (w - Q(w))^2 / sum w^2 of weights on a symmetric grid; 0 for weights that are zero everywhere.

    Q(w) = scale * round(w / scale), scale = max|w| / (2^(bits-1) - 1), with the maximum of a channel or of
    all.

    Args:
        channels: (channels, values): the columns of a matrix (in, out), or the rows of a table.
        bits: at least 2.
    """
    top = 2 ** (bits - 1) - 1
    largest = np.abs(channels).max(axis=1, keepdims=True).astype(np.float64)
    if not per_channel:
        largest[:] = largest.max()
    noise = signal = 0.0
    for rows in _blocks(*channels.shape):
        scale = np.where(largest[rows] > 0, largest[rows], 1.0) / top
        values = channels[rows].astype(np.float64)
        error = values - np.rint(values / scale) * scale
        noise, signal = noise + float(np.vdot(error, error)), signal + float(np.vdot(values, values))
    return noise / signal if signal else 0.0


def _blocks(channels: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // width)
    return (slice(start, start + step) for start in range(0, channels, step))


@dataclass(frozen=True)
class Input:
    """An activation and the grid to round it to.

    tensor: with a histogram.
    low, high: the range; it is widened to contain zero, and if symmetric to -t..t.
    bits: the grid has 2^bits levels, a symmetric grid one less.
    """

    tensor: TensorStatistics
    low: float
    high: float
    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if self.symmetric:
            low, high = -max(-low, high), max(-low, high)
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def constant(self) -> bool:
        """Whether all values are equal."""
        return self.tensor.low == self.tensor.high

    @property
    def rms(self) -> float:
        """The root of the mean square of all values."""
        return math.sqrt(self.tensor.squares / self.tensor.count)

    def noise(self) -> float:
        """E[(x - Q(x))^2] / E[x^2], rounding and clipping; 0 for a constant.

        The error comes from `calibration.search.squared_errors`, which is right whether bins of the histogram
        are wider or narrower than a step; the power comes from the values themselves. A constant is an end of
        its own range and so on the grid, but its only bin has a width, hence the special case.

        Like any ratio of powers it is dominated by large values: if a few outliers have nearly all of the
        power, it is small even if all other values are rounded to zero.
        """
        if self.constant:
            return 0.0
        if self.low == self.high:
            return 1.0  # everything is clipped to zero
        assert self.tensor.histogram is not None
        (error,) = squared_errors(
            self.tensor.histogram,
            np.array([self.low]),
            np.array([self.high]),
            self.symmetric,
            levels=2**self.bits,
            extremes=(self.tensor.low, self.tensor.high),
        )
        # Zero is a level, so rounding to zero bounds the error; the width of a bin may suggest more.
        return min(float(error) * self.tensor.count / self.tensor.squares, 1.0)
