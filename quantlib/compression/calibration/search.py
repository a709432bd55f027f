"""Ranges that clip: each function takes a histogram and returns (low, high), with low <= 0 <= high.

An asymmetric range has 256 levels, zero being one of them; a symmetric one, -t..t, has the 255 levels
-127..127. Whether the integers are signed does not matter: int8 with zero point z and uint8 with zero point
z + 128 are the same grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quantlib.compression.calibration.histogram import CountArray, Histogram, around_zero, magnitudes

DoubleArray = npt.NDArray[np.float64]
Pair = tuple[float, float]

LEVELS = 256
# Of |x|: the non-negative half of the signed integers, as in TensorRT's calibration.
MAGNITUDE_LEVELS = 128

# The count of an empty bin where the reference is not empty; as in MXNet's and onnxruntime's search.
_EPSILON = 1e-4
# Step of the entropy search in bins, below a hundredth of the range.
_STRIDE = 8
# Ranges that the MSE search tries: multiples of the whole range's ends, in steps of a hundredth.
FACTORS: DoubleArray = np.arange(1, 101) / 100
# The two ends of an asymmetric range are searched in turns; two or three turns settle.
_TURNS = 4


def percentile(histogram: Histogram, percent: float, symmetric: bool) -> Pair:
    """The range that keeps the middle `percent` of the values: each tail loses (100 - percent) / 2.

    A symmetric range keeps the `percent` smallest magnitudes. Within a bin the values count as evenly spread,
    so that the result is within one bin width of the percentile of the values themselves.
    """
    if symmetric:
        folded = magnitudes(histogram)
        high = -_quantile(_reversed(folded), _tail(folded, 1 - percent / 100))
        return -high, high
    tail = _tail(histogram, (1 - percent / 100) / 2)
    low, high = _quantile(histogram, tail), -_quantile(_reversed(histogram), tail)
    return min(low, 0.0), max(high, 0.0)


def _tail(histogram: Histogram, share: float) -> int:
    # 1 - 99.9 / 100 is not quite 0.001 in binary: without the rounding a whole value could be lost.
    return math.floor(round(share * histogram.total, 6))


def _reversed(histogram: Histogram) -> Histogram:
    """The histogram of -x."""
    first = -(histogram.first + len(histogram.counts))
    return Histogram(histogram.exponent, first, np.ascontiguousarray(histogram.counts[::-1]))


def _quantile(histogram: Histogram, tail: int) -> float:
    """The value that has `tail` values below it."""
    below = np.cumsum(histogram.counts)
    tail = min(tail, int(below[-1]) - 1)
    i = int(np.searchsorted(below, tail, side="right"))
    inside = (tail - (below[i] - histogram.counts[i])) / histogram.counts[i]
    return float((histogram.first + i + inside) * histogram.width)


def entropy(histogram: Histogram, symmetric: bool) -> Pair:
    """The range with the smallest KL divergence between the true and the quantized values.

    The search of Migacz, «8-bit Inference with TensorRT» (GTC 2017), over windows of bins. P is the histogram
    inside the window, with the values outside added to its outermost bins. Q is the histogram inside the
    window, merged into as many levels as the integers have, each spread evenly over its bins that are not
    empty. A symmetric range searches windows 0..t of the magnitudes, as Migacz does. An asymmetric window has
    two ends, searched in turns, starting at the whole range, until neither moves. No window has fewer bins
    than levels.
    """
    if symmetric:
        folded = magnitudes(histogram)
        windows = [(0, end) for end in _downwards(len(folded.counts), MAGNITUDE_LEVELS)]
        _, end = _least(folded.counts, windows, MAGNITUDE_LEVELS)
        return -end * folded.width, end * folded.width
    whole = around_zero(histogram)
    counts, zero = whole.counts, -whole.first
    start, end = 0, len(counts)
    for _ in range(_TURNS):
        before = start, end
        ends = _downwards(len(counts), max(zero, start + LEVELS))
        start, end = _least(counts, [(start, b) for b in ends], LEVELS)
        starts = range(0, min(zero, end - LEVELS) + 1, _STRIDE) or [start]
        start, end = _least(counts, [(a, end) for a in starts], LEVELS)
        if (start, end) == before:
            break
    return (whole.first + start) * whole.width, (whole.first + end) * whole.width


def _downwards(end: int, least: int) -> Sequence[int]:
    return range(end, least - 1, -_STRIDE) or [end]


def _least(counts: CountArray, windows: Sequence[tuple[int, int]], levels: int) -> tuple[int, int]:
    """The window with the smallest divergence; among equals the first, which is the widest."""
    costs = [divergence(counts, start, end, levels) for start, end in windows]
    return windows[int(np.argmin(costs))]


def divergence(counts: CountArray, start: int, end: int, levels: int) -> float:
    """KL(P || Q) in nats of the window counts[start:end] in `levels` levels; infinite for an empty window.

    The sum over bins of p log(p / q), with P and Q as in `entropy`, each scaled to sum 1. An outermost bin
    with no values but those from outside would make it infinite: there Q counts as `_EPSILON` values.
    """
    inside = counts[start:end].astype(np.float64)
    p = inside.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[end:].sum()
    filled = inside > 0
    if not filled.any():
        return math.inf
    level = np.arange(len(inside)) * levels // len(inside)
    begins = np.flatnonzero(np.diff(level, prepend=-1))
    sums, sizes = np.add.reduceat(inside, begins), np.add.reduceat(filled.astype(np.float64), begins)
    means = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    q = np.repeat(means, np.diff(begins, append=len(inside))) * filled
    nonempty = p > 0
    p, q = p[nonempty], np.maximum(q[nonempty], _EPSILON)
    p, q = p / p.sum(), q / q.sum()
    return float(p @ np.log(p / q))


def mse(histogram: Histogram, symmetric: bool) -> Pair:
    """The range with the smallest expected squared error of quantizing and back, clipping included.

    Searched among `FACTORS` of the whole range: first both ends together, then each end in turn while the
    other stays.
    """
    whole = around_zero(histogram)
    edges = whole.edges
    low, high = float(edges[0]), float(edges[-1])
    if symmetric:
        top = max(-low, high) * FACTORS
        best = top[int(np.argmin(squared_errors(whole, -top, top, symmetric=True)))]
        return -float(best), float(best)

    def cheapest(lows: DoubleArray, highs: DoubleArray) -> Pair:
        best = int(np.argmin(squared_errors(whole, lows, highs, symmetric=False)))
        return float(lows[best]), float(highs[best])

    pair = cheapest(low * FACTORS, high * FACTORS)
    for _ in range(_TURNS):
        before = pair
        if high > 0:
            pair = cheapest(np.full_like(FACTORS, pair[0]), high * FACTORS)
        if low < 0:
            pair = cheapest(low * FACTORS, np.full_like(FACTORS, pair[1]))
        if pair == before:
            break
    return pair


def squared_errors(
    histogram: Histogram,
    lows: DoubleArray,
    highs: DoubleArray,
    symmetric: bool,
    *,
    levels: int = LEVELS,
    extremes: Pair | None = None,
) -> DoubleArray:
    """The mean squared error of quantizing to each range: float64, (ranges,).

    Values count as evenly spread within a bin, over which the error is integrated exactly: with u = x / scale
    and n the nearest level, the antiderivative of (u - n)**2 is n / 12 + (u - n)**3 / 3, also beyond the
    outermost levels. So a bin may be wider than a level.

    Args:
        levels: 2^bits; a symmetric grid leaves the lowest one out.
        extremes: the smallest and the largest value. The outermost bins reach beyond them, which looks like
            clipping on a grid much finer than the bins.
    """
    top = levels // 2 - 1 if symmetric else levels - 1
    scale = (highs / top if symmetric else (highs - lows) / top)[:, None]
    bottom = np.full_like(scale, -top) if symmetric else np.rint(lows[:, None] / scale)
    edges = histogram.edges if extremes is None else _trimmed(histogram, extremes)
    u = edges / scale
    n = np.clip(np.rint(u), bottom, top if symmetric else bottom + top)
    area = np.diff(n / 12 + (u - n) ** 3 / 3, axis=1)
    errors: DoubleArray = (area @ (histogram.counts / np.diff(edges))) * scale[:, 0] ** 3 / histogram.total
    return errors


def _trimmed(histogram: Histogram, extremes: Pair) -> DoubleArray:
    """The edges, the outermost ones moved in to the extremes; every bin keeps some width."""
    edges, least = histogram.edges, histogram.width / 1024
    edges[0] = min(max(edges[0], extremes[0]), edges[1] - least)
    edges[-1] = max(min(edges[-1], extremes[1]), edges[-2] + least)
    return edges
