"""Gram matrices: the second moments of an activation over positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Gram:
    """The second moments of an activation X, (positions, channels), over all real positions.

    count: the positions. total: the sum of X, float64, (channels,). products: Xᵀ·X, float64, (channels,
    channels), symmetric.
    """

    count: int
    total: Float64
    products: Float64

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.total)

    @property
    def mean(self) -> Float64:
        """The mean of each channel, (channels,)."""
        return self.total / self.count

    @property
    def centered(self) -> Float64:
        """The second moments about the mean, summed over positions, (channels, channels)."""
        return self.products - np.outer(self.total, self.total) / self.count


def moved(gram: Gram, point: npt.NDArray[np.float32]) -> Gram:
    """The Gram matrix of X + point from that of X, whose products are changed in place.

    X has to be summed about a point near its mean: of channels whose mean is far from zero, products in
    float32 leave nothing of the variance.

    Args:
        point: (channels,).
    """
    shift = point.astype(np.float64)
    half = np.outer(gram.total + gram.count * shift / 2, shift)
    np.add(gram.products, half + half.T, out=gram.products)
    return replace(gram, total=gram.total + gram.count * shift)


def accumulated(before: Gram | None, new: Gram) -> Gram:
    """A Gram matrix with further positions; the sums that came before are changed in place."""
    if before is None:
        return new
    np.add(before.total, new.total, out=before.total)
    np.add(before.products, new.products, out=before.products)
    return replace(before, count=before.count + new.count)


def add_grams(grams: Sequence[Gram]) -> Gram:
    """The Gram matrix of several activations of the same channels, as of one after the other."""
    if len(grams) == 1:
        return grams[0]
    return Gram(
        sum(gram.count for gram in grams),
        np.sum([gram.total for gram in grams], axis=0),
        np.sum([gram.products for gram in grams], axis=0),
    )
