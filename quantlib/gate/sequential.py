"""Bounds for a comparison that is looked at after each launch, so that looking often costs no error.

A decision at 99 % that may be made at any of ten looks is wrong more often than once in a hundred. The error
is therefore spent over the looks, by Lan and DeMets (1983) with the spending function of Pocock's type,
error ln(1 + (e - 1) t) at the fraction t of the launches that are planned. The boundary of each look follows
from the distribution of the sum so far among the paths that have not crossed yet, integrated numerically
from look to look (Armitage, McPherson and Rowe 1969). It is given as the confidence of a single look, for
which the caller takes Student's t with the degrees of freedom of its estimate (the significance level
approach of Jennison and Turnbull 2000, section 11.5).

The intervals with these confidences hold at all looks together (Jennison and Turnbull 1989), also when
measuring stops for another reason, such as its time.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

ERROR = 0.01
"""Of each decision over all looks: a false alarm at a slowdown of exactly the limit, and a false pass."""

_POINTS, _REACH = 401, 8.0  # of the grid, which reaches down to -8 standard deviations

Array = npt.NDArray[np.float64]


def spent(fraction: float, error: float = ERROR) -> float:
    """The error that may be spent by this fraction of all launches, 0 to 1."""
    return error * math.log(1 + (math.e - 1) * min(1.0, fraction))


def confidence_at(look: int, first: int, last: int, error: float = ERROR) -> float:
    """The confidence of each bound after `look` launches, when looks begin at `first` and end at `last`.

    Raises:
        ValueError: the look lies outside of first..last.
    """
    if not 1 <= first <= look <= last:
        raise ValueError(f"there is no look at {look} launches; looks go from {first} to {last}")
    return _confidences(first, last, error)[look - first]


@cache
def _confidences(first: int, last: int, error: float) -> tuple[float, ...]:
    """The confidence of each look at first, first + 1, ... last launches."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    levels: list[float] = []
    # The distribution of the sum so far: all of it at 0 before the first launch.
    grid, mass, before = np.zeros(1), np.ones(1), 0
    for look in range(first, last + 1):
        step, scale = math.sqrt(look - before), math.sqrt(look)
        share = spent(look / last, error) - (spent(before / last, error) if levels else 0.0)

        def excess(bound: float, grid: Array = grid, mass: Array = mass, step: float = step) -> float:
            return float(np.sum(mass * ndtr((grid - bound) / step)))

        bound = float(brentq(lambda b, f=excess, share=share: f(b) - share, 0.0, _REACH * scale))
        levels.append(float(ndtr(bound / scale)))
        new = np.linspace(-_REACH * scale, bound, _POINTS)
        kernel = np.exp(-0.5 * ((new[:, None] - grid) / step) ** 2) / (step * math.sqrt(2 * math.pi))
        grid, mass, before = new, (kernel @ mass) * _simpson(new), look
    return tuple(levels)


def _simpson(grid: Array) -> Array:
    """The weights of Simpson's rule on a uniform grid of an odd number of points."""
    weights = np.ones(len(grid))
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    return np.asarray(weights * (grid[1] - grid[0]) / 3)
