"""Stream activations once, keep their statistics, derive their ranges by any method.

Batch after batch is folded into a few numbers and a histogram for each activation, so the memory in use does
not grow with the number of rows; ranges of every method come from that one pass.
"""

from quantlib.compression.calibration.channels import Channels, collect_channels, join_channels
from quantlib.compression.calibration.gram import GramFile, collect_grams, read_grams, write_grams
from quantlib.compression.calibration.graph import (
    activations,
    load_with_shapes,
    save,
    tensors_for,
    with_shapes,
)
from quantlib.compression.calibration.histogram import Histogram
from quantlib.compression.calibration.methods import CalibrationMethod, parse_method
from quantlib.compression.calibration.ranges import (
    Ranges,
    calibrate_min_max,
    derive,
    read_ranges,
    write_ranges,
)
from quantlib.compression.calibration.statistics import (
    Statistics,
    TensorStatistics,
    merge,
    observe,
    read_statistics,
    write_statistics,
)
from quantlib.compression.calibration.stream import collect
from quantlib.support.gram import Gram, add_grams

__all__ = [
    "CalibrationMethod",
    "Channels",
    "Gram",
    "GramFile",
    "Histogram",
    "Ranges",
    "Statistics",
    "TensorStatistics",
    "activations",
    "add_grams",
    "calibrate_min_max",
    "collect",
    "collect_channels",
    "collect_grams",
    "derive",
    "join_channels",
    "load_with_shapes",
    "merge",
    "observe",
    "parse_method",
    "read_grams",
    "read_ranges",
    "read_statistics",
    "save",
    "tensors_for",
    "with_shapes",
    "write_grams",
    "write_ranges",
    "write_statistics",
]
