"""A histogram whose bin width is a power of two, so that it can be widened exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.support.errors import InputError

FloatArray = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.int64]

BINS = 2048

# Values that are binned at once: their indices (8 bytes each) stay in a core's second-level cache.
_CHUNK = 1 << 15
# Below 2**-126 the reciprocal of a bin width is no float32.
_SMALLEST_EXPONENT = -126
_MANTISSA_BITS = 24


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many values fall into each bin: `counts[i]` in [(first + i) * width, (first + i + 1) * width).

    The width is `2**exponent` and bin edges are whole multiples of it, so a bin of twice the width is exactly
    two neighbours of this one: histograms of parts of the data add up to the histogram of all of it,
    whatever the order. Zero is always an edge of the grid.

    exponent: of the bin width. first: index of the first bin on the grid. counts: int64, (bins,).
    """

    exponent: int
    first: int
    counts: CountArray

    def __post_init__(self) -> None:
        if self.counts.ndim != 1 or not len(self.counts) or self.counts.dtype != np.int64:
            raise InputError(
                f"a histogram has int64 counts (bins,), not {self.counts.dtype} {self.counts.shape}"
            )
        if self.exponent < _SMALLEST_EXPONENT:
            raise InputError(f"a bin width of 2**{self.exponent} is too small for float32")
        if (self.counts < 0).any():
            raise InputError(f"histogram counts must not be negative: {self.counts.min()}")

    @property
    def width(self) -> float:
        """The width of a bin, in units of the values."""
        return math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """float64, (bins + 1,)."""
        steps = np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64)
        return steps * np.float64(self.width)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


def count(values: FloatArray, low: float, high: float, bins: int = BINS) -> Histogram:
    """The histogram of finite values, in the narrowest power of two that needs at most `bins` bins.

    Args:
        values: float32, (values,), contiguous.
        low, high: the smallest and the largest of them.
        bins: at most so many; at least 2.
    """
    exponent = _exponent_for(low, high, bins)
    first, last = _index(low, exponent), _index(high, exponent)
    counts = np.zeros(last - first + 1, np.int64)
    # Scaling up by a power of two is exact in float32, at half of float64's cost. Scaling down is not: a
    # value just below zero would become zero and change its bin.
    kind = np.float32 if exponent <= 0 else np.float64
    scale, offset = kind(math.ldexp(1.0, -exponent)), kind(first)
    scaled = np.empty(min(_CHUNK, len(values)), kind)
    indices = np.empty(len(scaled), np.int64)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        x, i = scaled[: len(part)], indices[: len(part)]
        np.multiply(part, scale, out=x)
        np.floor(x, out=x)
        np.subtract(x, offset, out=x)
        np.copyto(i, x, casting="unsafe")
        counts += np.bincount(i, minlength=len(counts))
    return Histogram(exponent, first, counts)


def widen(histogram: Histogram, exponent: int) -> Histogram:
    """The same values in bins of width `2**exponent`, at least the present width: neighbours are added."""
    doublings = exponent - histogram.exponent
    if doublings < 0:
        raise ValueError(f"bins of width 2**{histogram.exponent} cannot be parted")
    if doublings == 0:
        return histogram
    last = histogram.first + len(histogram.counts) - 1
    first, width = histogram.first >> doublings, 1 << doublings
    # The index among the old bins at which each new bin begins; the first may begin before them. Plain
    # integers: from a constant tensor's grid to that of large values takes more than 64 bits.
    begins = [max(0, i * width - histogram.first) for i in range(first, (last >> doublings) + 1)]
    return Histogram(exponent, first, np.add.reduceat(histogram.counts, begins))


def add(a: Histogram, b: Histogram, bins: int = BINS) -> Histogram:
    """The histogram of the values of both histograms."""
    exponent = max(a.exponent, b.exponent)
    while True:
        first = min(a.first >> (exponent - a.exponent), b.first >> (exponent - b.exponent))
        last = max(_last(a) >> (exponent - a.exponent), _last(b) >> (exponent - b.exponent))
        if last - first < bins:
            break
        exponent += 1
    counts = np.zeros(last - first + 1, np.int64)
    for part in (widen(a, exponent), widen(b, exponent)):
        counts[part.first - first : part.first - first + len(part.counts)] += part.counts
    return Histogram(exponent, first, counts)


def around_zero(histogram: Histogram, bins: int = BINS) -> Histogram:
    """The same values with empty bins added up to zero; in wider bins if these would be too many."""
    if histogram.first <= 0 <= _last(histogram) + 1:
        return histogram
    nearest = 0 if histogram.first > 0 else -1
    return add(histogram, Histogram(histogram.exponent, nearest, np.zeros(1, np.int64)), bins)


def magnitudes(histogram: Histogram) -> Histogram:
    """The histogram of the absolute values."""
    whole = around_zero(histogram)
    zero = -whole.first
    above, below = whole.counts[zero:], whole.counts[:zero][::-1]
    counts = np.zeros(max(len(above), len(below)), np.int64)
    counts[: len(above)] += above
    counts[: len(below)] += below
    return Histogram(whole.exponent, 0, counts)


def _last(histogram: Histogram) -> int:
    return histogram.first + len(histogram.counts) - 1


def _index(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _exponent_for(low: float, high: float, bins: int) -> int:
    """The smallest exponent at which `bins` bins hold low..high and float32 can distinguish neighbours.

    It depends on the two ends only and never falls as the range grows, so the order of rows cannot matter.
    """
    exponent, largest, span = _SMALLEST_EXPONENT, max(abs(low), abs(high)), high - low
    if largest > 0:
        exponent = max(exponent, math.frexp(largest)[1] - _MANTISSA_BITS)
    if span > 0:
        exponent = max(exponent, math.frexp(span / bins)[1] - 2)
    while _index(high, exponent) - _index(low, exponent) >= bins:
        exponent += 1
    return exponent


def as_json(histogram: Histogram) -> dict[str, Any]:
    """The histogram as a value for JSON."""
    return {"exponent": histogram.exponent, "first": histogram.first, "counts": histogram.counts.tolist()}


def from_json(value: dict[str, Any]) -> Histogram:
    """The inverse of `as_json`."""
    return Histogram(int(value["exponent"]), int(value["first"]), np.array(value["counts"], np.int64))
