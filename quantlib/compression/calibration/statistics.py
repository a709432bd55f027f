"""Statistics of an activation: a few numbers and a histogram, however many rows there are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.compression.calibration import histogram as histograms
from quantlib.compression.calibration.histogram import BINS, FloatArray, Histogram
from quantlib.support.errors import InputError
from quantlib.support.files import reading_json, write_text

# The share of a new row in the moving average; onnxruntime's `averaging_constant`.
AVERAGING = 0.01
SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """One activation over all rows so far.

    rows, count: how many rows and how many values.
    low, high: the smallest and the largest value.
    moving_low, moving_high: the moving average of each row's smallest and largest value, in the order of
        the rows: m = m + 0.01 (row - m), starting with the first row.
    first_low, first_high: of the first row; needed to continue one moving average with another.
    total, squares: the sum of the values and of their squares, in float64.
    histogram: all values, or None where only extremes were asked for.
    """

    rows: int
    count: int
    low: float
    high: float
    moving_low: float
    moving_high: float
    first_low: float
    first_high: float
    total: float
    squares: float
    histogram: Histogram | None = None

    def __post_init__(self) -> None:
        if self.rows < 1 or self.count < 1:
            raise InputError(f"statistics of {self.rows} rows and {self.count} values: there must be some")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise InputError(f"statistics with extremes {self.low}..{self.high}: not a range")
        if self.histogram is not None and self.histogram.total != self.count:
            raise InputError(f"a histogram of {self.histogram.total} values, not of {self.count}")

    @property
    def mean(self) -> float:
        """The mean of all values."""
        return self.total / self.count

    @property
    def variance(self) -> float:
        """The population variance of all values."""
        return max(0.0, self.squares / self.count - self.mean**2)


@dataclass(frozen=True)
class Statistics:
    """The statistics of each activation, by tensor name. Tensors that hold the same values share theirs."""

    of: Mapping[str, TensorStatistics]


def observe(
    rows: FloatArray | Sequence[FloatArray],
    *,
    what: str = "a tensor",
    first_row: int = 0,
    bins: int | None = BINS,
) -> TensorStatistics:
    """The statistics of one tensor over one batch.

    Args:
        rows: float32, (rows, values), or one array (values,) for each row where their lengths differ.
        what: the name of the tensor, for the message.
        first_row: the number of the first row among all, for the message.
        bins: of the histogram, at most; None leaves it out.

    Raises:
        InputError: a value is NaN or infinite (in which row).
    """
    # NumPy's min and max propagate NaN, so finite extremes mean that every value is finite.
    lows = np.array([row.min() for row in rows], np.float32)
    highs = np.array([row.max() for row in rows], np.float32)
    bad = ~(np.isfinite(lows) & np.isfinite(highs))
    if bad.any():
        raise InputError(f"{what} is NaN or infinite at calibration row {first_row + int(np.argmax(bad))}")
    values = rows.reshape(-1) if isinstance(rows, np.ndarray) else np.concatenate(rows)
    low, high = float(lows.min()), float(highs.max())
    total, squares = _sums(values)
    return TensorStatistics(
        rows=len(lows),
        count=len(values),
        low=low,
        high=high,
        moving_low=_moving_average(lows),
        moving_high=_moving_average(highs),
        first_low=float(lows[0]),
        first_high=float(highs[0]),
        total=total,
        squares=squares,
        histogram=None if bins is None else histograms.count(values, low, high, bins),
    )


def merge(a: TensorStatistics, b: TensorStatistics, bins: int = BINS) -> TensorStatistics:
    """The statistics of a's rows followed by b's.

    All but the moving averages is independent of the order (sums: up to rounding in float64).
    """
    # b's average started from its own first row; had it started from a's average, the difference of the
    # two starting points would by now weigh (1 - c)**rows.
    weight = (1 - AVERAGING) ** b.rows
    merged = None
    if a.histogram is not None and b.histogram is not None:
        merged = histograms.add(a.histogram, b.histogram, bins)
    return TensorStatistics(
        rows=a.rows + b.rows,
        count=a.count + b.count,
        low=min(a.low, b.low),
        high=max(a.high, b.high),
        moving_low=b.moving_low + weight * (a.moving_low - b.first_low),
        moving_high=b.moving_high + weight * (a.moving_high - b.first_high),
        first_low=a.first_low,
        first_high=a.first_high,
        total=a.total + b.total,
        squares=a.squares + b.squares,
        histogram=merged,
    )


def _moving_average(values: FloatArray) -> float:
    average = float(values[0])
    for value in values[1:].tolist():
        average += AVERAGING * (value - average)
    return average


def _sums(values: FloatArray, chunk: int = 1 << 15) -> tuple[float, float]:
    """The sum and the sum of squares; float64, since the square of an additive mask has no float32."""
    total = squares = 0.0
    wide = np.empty(min(chunk, len(values)), np.float64)
    for start in range(0, len(values), chunk):
        part = values[start : start + chunk]
        x = wide[: len(part)]
        np.copyto(x, part)
        total += float(x.sum())
        squares += float(np.einsum("i,i->", x, x))
    return total, squares


_FIELDS = tuple(field.name for field in fields(TensorStatistics) if field.name != "histogram")


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics as JSON, whole or not at all."""
    tensors = {}
    for name, tensor in statistics.of.items():
        kept = None if tensor.histogram is None else histograms.as_json(tensor.histogram)
        tensors[name] = {field: getattr(tensor, field) for field in _FIELDS} | {"histogram": kept}
    value = {"schema_version": SCHEMA_VERSION, "tensors": tensors}
    write_text(path, json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n")


def read_statistics(path: Path) -> Statistics:
    """Read what `write_statistics` wrote.

    Raises:
        InputError: the file is missing, damaged, or of another version.
    """
    missing = "no such file of statistics"
    with reading_json(path, SCHEMA_VERSION, "a file of statistics", missing) as value:
        return Statistics({name: _tensor(kept) for name, kept in value["tensors"].items()})


def _tensor(kept: dict[str, Any]) -> TensorStatistics:
    histogram = kept["histogram"]
    return TensorStatistics(
        **{name: kept[name] for name in _FIELDS},
        histogram=None if histogram is None else histograms.from_json(histogram),
    )
