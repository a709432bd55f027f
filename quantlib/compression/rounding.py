"""Second-order rounding: what one weight loses by rounding is made up for by weights that are rounded later.

A layer computes X·W. Rounding W to Ŵ costs it tr((W - Ŵ)ᵀ·G·(W - Ŵ)) with G = Xᵀ·X. Input after input is
rounded to the nearest level, and its error is pushed into the inputs that are not rounded yet, as far as
these can make up for it: optimal brain surgeon with a grid instead of zero (Frantar et al., 2023, GPTQ).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quantlib.compression.grid import SMALLEST_SCALE, FloatArray, highest
from quantlib.support.errors import InputError
from quantlib.support.gram import Float64, Gram

DAMPING = 0.01
"""Of the mean of G's diagonal; it is added to each entry of that, so that few rows, or channels that are
always zero, do not move weights far."""

# Inputs whose errors reach those behind them in one product of matrices.
_BLOCK = 64


def round_second_order(
    weight: FloatArray, scale: FloatArray, gram: Gram, *, bits: int, damping: float = DAMPING
) -> npt.NDArray[np.int8]:
    """The levels of a weight on a symmetric grid that is given, int8 (in, out).

    Inputs are rounded in the order of their second moments, the largest first: while many are left to make
    up for them. A channel or block without any weight stays zero. The result does not depend on the number of
    threads.

    Args:
        weight: (in, out). scale: of each output channel, of all, or of each weight: broadcast to the weight.
        gram: of the layer's input. bits: levels are -(2^(bits-1) - 1) to 2^(bits-1) - 1.
        damping: see `DAMPING`.

    Raises:
        InputError: the Gram matrix is that of another input, or not finite.
    """
    from threadpoolctl import threadpool_limits

    if gram.channels != len(weight):
        raise InputError(f"a Gram matrix of {gram.channels} channels does not fit a weight of {len(weight)}")
    if not np.isfinite(gram.products).all():
        raise InputError("its Gram matrix is not finite, so its weight cannot be rounded by it")
    order = np.argsort(-np.diagonal(gram.products), kind="stable")
    steps = np.broadcast_to(scale, weight.shape)[order].astype(np.float64)
    with threadpool_limits(1):
        factor = _inverse_factor(gram.products[np.ix_(order, order)], damping)
        rounded = _rounded(weight[order].astype(np.float64), steps, factor, highest(bits))
    rounded[steps <= SMALLEST_SCALE] = 0
    values = np.empty(weight.shape, np.int8)
    values[order] = rounded
    return values


def _inverse_factor(moments: Float64, damping: float) -> Float64:
    """The upper triangular U with Uᵀ·U = H⁻¹, for H the moments with damping."""
    from scipy.linalg import cholesky, solve_triangular

    damped = moments.copy()
    mean = max(float(np.trace(moments)) / len(moments), float(np.finfo(np.float32).tiny))
    damped[np.diag_indices_from(damped)] += damping * mean
    # Of the reversed matrix, L·Lᵀ; reversed again, H = R·Rᵀ with R upper triangular, and U = R⁻¹.
    upper = cholesky(damped[::-1, ::-1], lower=True)[::-1, ::-1]
    inverse: Float64 = solve_triangular(upper, np.eye(len(upper)), lower=False)
    return inverse


def _rounded(left: Float64, steps: Float64, factor: Float64, top: int) -> npt.NDArray[np.int8]:
    """The levels, row after row; `left` is changed in place."""
    levels = np.empty(left.shape, np.int8)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]))
        for row in range(start, stop):
            levels[row] = np.clip(np.rint(left[row] / steps[row]), -top, top)
            error = (left[row] - levels[row] * steps[row]) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return levels
