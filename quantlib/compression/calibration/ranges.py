"""The range of each activation, by any method, from one set of statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlib.compression.calibration import search
from quantlib.compression.calibration.methods import CalibrationMethod, parse_method
from quantlib.compression.calibration.statistics import Statistics, TensorStatistics
from quantlib.compression.calibration.stream import collect
from quantlib.data.features import Feed
from quantlib.support.errors import InputError
from quantlib.support.files import write_json

# Given to a tensor that is zero everywhere: any scale is exact there, but it enters that of a bias, which
# must fit into 32 bits.
_ZERO_RANGE = (-(2.0**-10), 2.0**-10)
_SMALLEST_WIDTH = 255 * float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Ranges:
    """The range of each activation: {tensor name: (lowest, highest)}, float32 values."""

    of: dict[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.of.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise InputError(f"range of {name}: {low}..{high} is not a range")


def derive(statistics: Statistics, method: str, *, symmetric: bool = False) -> Ranges:
    """The range of each activation by one method.

    A range always contains zero, so that zero is a level of the grid, and it is never empty: a tensor that is
    zero everywhere gets a tiny one.

    Args:
        statistics: of one pass over the calibration rows.
        method: "MinMax", "MovingAverage", "Percentile:99.99" (any percentile), "Entropy" or "MSE".
        symmetric: -t..t; for a grid whose zero point is its middle. Ranges of signed and of unsigned
            integers are the same.

    Raises:
        InputError: an unknown method, or one that needs histograms where none were kept.
    """
    parsed = parse_method(method)
    # Tensors with the same values share their statistics, and so the search.
    range_of: dict[int, tuple[float, float]] = {}
    for name, tensor in statistics.of.items():
        if id(tensor) not in range_of:
            if parsed.needs_histograms and tensor.histogram is None:
                raise InputError(f"{name}: {method} needs a histogram; the statistics were collected without")
            range_of[id(tensor)] = _valid(_derive(tensor, parsed, symmetric), symmetric)
    return Ranges({name: range_of[id(tensor)] for name, tensor in statistics.of.items()})


def _derive(tensor: TensorStatistics, method: CalibrationMethod, symmetric: bool) -> tuple[float, float]:
    if method.kind == "MinMax":
        return tensor.low, tensor.high
    if method.kind == "MovingAverage":
        return tensor.moving_low, tensor.moving_high
    assert tensor.histogram is not None
    if method.percentile is not None:
        low, high = search.percentile(tensor.histogram, method.percentile, symmetric)
    else:
        low, high = (search.entropy if method.kind == "Entropy" else search.mse)(tensor.histogram, symmetric)
    if symmetric:
        top = max(abs(tensor.low), abs(tensor.high))
        return max(low, -top), min(high, top) or top
    # The outermost bins reach beyond the values, and a percentile may clip everything except zeros.
    low, high = max(low, min(tensor.low, 0.0)), min(high, max(tensor.high, 0.0))
    return (low, high) if low < high else (tensor.low, tensor.high)


def _valid(pair: tuple[float, float], symmetric: bool) -> tuple[float, float]:
    """The range as float32 values that contain zero, wide enough for a scale that is a normal float32."""
    low, high = min(pair[0], 0.0), max(pair[1], 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    low, high = float(np.float32(low)), float(np.float32(high))
    return (low, high) if high - low > _SMALLEST_WIDTH else _ZERO_RANGE


def calibrate_min_max(
    onnx_path: Path,
    feeds: Iterable[Feed],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """The smallest and largest value that each float activation takes over all feeds, padding included.

    Args:
        onnx_path: the FP32 model.
        feeds: what to run, once each.
        threads: of the session; the physical cores by default.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: as `collect`.
    """
    statistics = collect(
        onnx_path, feeds, histograms=False, skip_padding=False, threads=threads, progress=progress
    )
    return Ranges({name: (tensor.low, tensor.high) for name, tensor in statistics.of.items()})


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges as JSON, whole or not at all."""
    write_json(path, {name: list(pair) for name, pair in ranges.of.items()})


def read_ranges(path: Path) -> Ranges:
    """Read ranges that `write_ranges` wrote."""
    pairs = json.loads(path.read_text(encoding="utf-8"))
    return Ranges({name: (low, high) for name, (low, high) in pairs.items()})
