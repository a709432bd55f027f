"""What to do about a noisy layer, in the words of a recipe."""

from __future__ import annotations

import math
from dataclasses import replace

from quantlib.compression.calibration import Statistics, derive
from quantlib.measuring.explain.noise import FloatArray, Input, decibels

# At this ratio the noise has a thousandth of the signal's power, 3 % of its amplitude. Normally distributed
# values have some 40 dB in 8 bits.
FINE_DB = 30.0
# Half of the noise; a smaller gain is no reason for another recipe.
_WORTHWHILE_DB = 3.0
_METHODS = ("MinMax", "MSE", "Percentile:99.99")
_FAR = 2.0


def on_input(grid: Input, inner: tuple[float, float]) -> str:
    """What would help an activation; empty if it is fine.

    Another range is proposed if it halves the noise. Often none does, however far outliers reach: they carry
    the signal, and clipping them costs more than finer steps win.

    Args:
        inner: the range of the middle 99.99 % of the values.
    """
    if grid.constant:
        return "input is constant"
    sqnr_db = decibels(grid.noise())
    if sqnr_db is None or sqnr_db >= FINE_DB:
        return ""
    gain_db, method, other = max(_other(grid, method, sqnr_db) for method in _METHODS)
    if gain_db < _WORTHWHILE_DB:
        return f"{_outliers(grid, inner)}: smooth or int16"
    if other.high - other.low > grid.high - grid.low:
        return f"range clips too much: {method}, +{gain_db:.1f} dB"
    return f"{_outliers(grid, inner)}: clip ({method}), +{gain_db:.1f} dB"


def on_matrix(weight: FloatArray, per_channel_db: float | None) -> str:
    """What would help the weights of a product; empty if they are fine."""
    if weight.min() == weight.max():
        return "weights are constant"
    return "weights: weight_only" if _poor(per_channel_db) else ""


def on_table(table: FloatArray, per_row_db: float | None, per_tensor_db: float | None) -> str:
    """What would help an embedding table; empty if it is fine."""
    if table.min() == table.max():
        return "weights are constant"
    if _poor(per_row_db):
        return "keep in float"
    return "needs a scale for each row" if _poor(per_tensor_db) else ""


def _poor(sqnr_db: float | None) -> bool:
    return sqnr_db is not None and sqnr_db < FINE_DB


def _other(grid: Input, method: str, sqnr_db: float) -> tuple[float, str, Input]:
    """The gain of a calibration method's range in dB, the method, and its grid."""
    low, high = derive(Statistics({"": grid.tensor}), method, symmetric=grid.symmetric).of[""]
    other = replace(grid, low=low, high=high)
    other_db = decibels(other.noise())
    return (math.inf if other_db is None else other_db - sqnr_db), method, other


def _outliers(grid: Input, inner: tuple[float, float]) -> str:
    """How far outliers reach beyond the middle 99.99 %, or, if they are more than that, beyond the rms."""
    low, high = inner
    width = 2 * max(-low, high) if grid.symmetric else high - low
    times = (grid.high - grid.low) / width
    if times >= _FAR:
        return f"range is {times:.1f}x the middle"
    return f"peak is {max(-grid.tensor.low, grid.tensor.high) / grid.rms:.0f}x the rms"
