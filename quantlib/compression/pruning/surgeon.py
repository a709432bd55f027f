"""Optimal brain surgeon: which inputs of a linear layer can go, and what the rest must become.

A layer computes X·W + b. With some channels of X gone, the remaining rows of W and the bias are refitted by
least squares to give the same on the calibration positions. All that takes is the second moments of X about
its mean, C (Hassibi and Stork, 1993; for groups of channels: Kurtic et al., 2023, ZipLM, eq. 2 and 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantlib.support.errors import InputError
from quantlib.support.gram import Float64, Gram

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]

DAMPING = 0.01
"""Of the mean variance of a channel; it is added to each, and holds a refitted weight near its old value."""

# Groups are removed in blocks: which of the `_CANDIDATES` cheapest ones go, one after the other, is exact
# among these; all others are told of a block at once.
_BLOCK, _CANDIDATES = 32, 96
# The share of places whose group is gone above which the rest is moved together.
_LOOSE = 0.2


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which groups of input channels go, the least needed first.

    order: the groups, (groups,), each once. errors: float64, (groups + 1,): the squared error of the layer's
    output, summed over the calibration positions, after the first 0, 1, ... groups are gone and the rest is
    refitted. group_size: channels in a group.
    """

    order: IntArray
    errors: Float64
    group_size: int = 1

    def kept(self, groups: int) -> IntArray:
        """The channels of the last `groups` groups to go, in ascending order."""
        last = np.sort(self.order[len(self.order) - groups :])
        channels: IntArray = (last[:, None] * self.group_size + np.arange(self.group_size)).reshape(-1)
        return channels

    def error(self, groups: int) -> float:
        """The squared error with `groups` groups kept."""
        return float(self.errors[len(self.order) - groups])


def eliminate(
    gram: Gram, weight: FloatArray, *, group_size: int = 1, damping: float = DAMPING
) -> Elimination:
    """Remove one group of input channels after the other, always the one that costs the output least.

    The cost of a group g is tr(W_gᵀ·[(H⁻¹)_gg]⁻¹·W_g) with H = C + damping · mean(diag C) · I and the weights
    as refitted so far.

    Args:
        gram: of the layer's input X, (channels, channels).
        weight: (channels, outputs).
        group_size: neighbouring channels that go together: 1 for neurons, the size of a head for heads.
        damping: see `DAMPING`.

    Raises:
        InputError: a number is not finite, or the channels are no multiple of the group's size.
    """
    _check(gram, weight, group_size)
    inverse = _inverse(_damped(gram, damping))
    # A channel that never varies adds a constant, which the bias can add as well: its weights do not count.
    current = np.where(np.diag(gram.centered)[:, None] > _still(gram), weight.astype(np.float64), 0.0)
    # `names[i]` is the group in place i of `inverse` and `current`; it may be gone already.
    names = np.arange(gram.channels // group_size)
    gone = np.zeros(len(names), bool)
    order: list[int] = []
    errors = [0.0]
    while len(order) < gram.channels // group_size:
        cost = np.where(gone, np.inf, _costs(inverse, current, group_size))
        cheapest = np.argsort(cost, kind="stable")[: min(_CANDIDATES, len(names) - np.count_nonzero(gone))]
        places, costs = _one_by_one(inverse, current, cheapest, group_size)
        order += names[places].tolist()
        errors += costs
        _remove(inverse, current, places, group_size)
        gone[places] = True
        if np.count_nonzero(gone) > _LOOSE * len(gone):  # moving what is left costs more than a removal
            left = _channels(np.flatnonzero(~gone), group_size)
            inverse, current = inverse[np.ix_(left, left)], current[left]
            names, gone = names[~gone], gone[~gone]
    return Elimination(np.array(order, np.intp), np.cumsum(errors), group_size)


def refit(
    gram: Gram, weight: FloatArray, bias: FloatArray, kept: IntArray, *, damping: float = DAMPING
) -> tuple[FloatArray, FloatArray]:
    """The weight and bias of a layer that reads only some channels, closest to the whole layer's output.

    Args:
        gram: of the layer's whole input. weight: (channels, outputs). bias: (outputs,).
        kept: the channels that stay, ascending. damping: see `DAMPING`.

    Returns:
        The weight, (kept, outputs), and the bias, (outputs,); with every channel kept, the given ones.

    Raises:
        InputError: a number is not finite.
    """
    from scipy.linalg import cho_factor, cho_solve

    _check(gram, weight)
    gone = np.setdiff1d(np.arange(gram.channels), kept)
    if not len(gone):
        return weight, bias
    wide, moments = weight.astype(np.float64), _damped(gram, damping)
    missing = wide[gone]
    change = cho_solve(cho_factor(moments[np.ix_(kept, kept)]), moments[np.ix_(kept, gone)] @ missing)
    # Means are matched exactly: what the lost channels gave on average goes into the bias.
    shift = gram.mean[gone] @ missing - gram.mean[kept] @ change
    return (wide[kept] + change).astype(np.float32), (bias + shift).astype(np.float32)


def _check(gram: Gram, weight: FloatArray, group_size: int = 1) -> None:
    if not (np.isfinite(gram.products).all() and np.isfinite(gram.total).all()):
        channel = int(np.argmin(np.isfinite(gram.products).all(axis=1) & np.isfinite(gram.total)))
        raise InputError(f"its Gram matrix is not finite at channel {channel}, so it cannot be pruned")
    if not np.isfinite(weight).all():
        raise InputError("its weight is not finite, so it cannot be pruned")
    if weight.shape[0] != gram.channels or gram.channels % group_size:
        raise InputError(
            f"a Gram matrix of {gram.channels} channels does not fit a weight of {weight.shape[0]} "
            f"in groups of {group_size}"
        )


def _damped(gram: Gram, damping: float) -> Float64:
    """The second moments about the mean, positive definite: also where no channel varies but for rounding."""
    moments, precision = gram.centered, np.finfo(np.float32)
    variance, power = (float(np.trace(each)) / gram.channels for each in (moments, gram.products))
    damp = max(damping * variance, float(precision.eps) * power, float(precision.tiny))
    moments[np.diag_indices_from(moments)] += damp
    return moments


def _still(gram: Gram) -> Float64:
    """The variance of each channel below which it does not vary but for rounding, (channels, 1)."""
    still: Float64 = np.finfo(np.float32).eps * np.diag(gram.products)[:, None]
    return still


def _inverse(moments: Float64) -> Float64:
    """The inverse of a positive definite matrix, by its Cholesky factor."""
    from scipy.linalg import cho_factor
    from scipy.linalg.lapack import dpotri

    factor, lower = cho_factor(moments, lower=True)
    half, failed = dpotri(factor, lower=lower, overwrite_c=True)
    if failed:
        raise np.linalg.LinAlgError(f"dpotri: {failed}")
    triangle = np.tril(half)
    inverse: Float64 = triangle + np.tril(triangle, -1).T
    return inverse


def _costs(inverse: Float64, weight: Float64, size: int) -> Float64:
    """The cost of removing each group, (groups,)."""
    groups = len(weight) // size
    if size == 1:
        single: Float64 = np.einsum("gi,gi->g", weight, weight) / np.diag(inverse)
        return single
    each = np.arange(groups)
    blocks = inverse.reshape(groups, size, groups, size)[each, :, each, :]
    rows = weight.reshape(groups, size, -1)
    costs: Float64 = np.einsum("gio,gio->g", rows, np.linalg.solve(blocks, rows))
    return costs


def _one_by_one(
    inverse: Float64, weight: Float64, candidates: IntArray, size: int
) -> tuple[IntArray, list[float]]:
    """The places of up to `_BLOCK` candidates in the order in which they go, and the cost of each."""
    channels = _channels(candidates, size)
    inverse, weight = inverse[np.ix_(channels, channels)], weight[channels]
    left = candidates
    gone: list[int] = []
    costs: list[float] = []
    # So many go at once that the candidates left are enough for others to be told in time.
    for _ in range(min(_BLOCK, len(candidates))):
        cost = _costs(inverse, weight, size)
        first = int(np.argmin(cost))
        gone.append(int(left[first]))
        costs.append(max(0.0, float(cost[first])))
        inverse, weight = _without(inverse, weight, np.array([first]), size)
        left = np.delete(left, first)
    return np.array(gone, np.intp), costs


def _remove(inverse: Float64, weight: Float64, groups: IntArray, size: int) -> None:
    """As `_without`, in place: what is gone has weights of 0, and costs nothing to remove again."""
    from scipy.linalg.blas import dgemm

    gone = _channels(groups, size)
    across = inverse[:, gone]
    share = np.linalg.solve(inverse[np.ix_(gone, gone)], across.T).T
    # The matrix is symmetric: its transpose has the order in memory that BLAS changes in place.
    changed = dgemm(-1.0, share, across, beta=1.0, c=inverse.T, trans_b=True, overwrite_c=True)
    assert np.shares_memory(changed, inverse)
    weight -= share @ weight[gone]
    weight[gone], inverse[gone], inverse[:, gone] = 0.0, 0.0, 0.0
    inverse[gone, gone] = 1.0


def _without(inverse: Float64, weight: Float64, groups: IntArray, size: int) -> tuple[Float64, Float64]:
    """H⁻¹ and the refitted weights of the groups that are left when some go."""
    gone = _channels(groups, size)
    left = np.delete(np.arange(len(inverse)), gone)
    across = inverse[np.ix_(left, gone)]
    share = np.linalg.solve(inverse[np.ix_(gone, gone)], across.T).T
    return inverse[np.ix_(left, left)] - share @ across.T, weight[left] - share @ weight[gone]


def _channels(groups: IntArray, size: int) -> IntArray:
    channels: IntArray = (groups[:, None] * size + np.arange(size)).reshape(-1)
    return channels
