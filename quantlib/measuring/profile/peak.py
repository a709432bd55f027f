"""The peak of matrix products on this machine, with which a model is compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency.process import TimedProcess
from quantlib.measuring.profile.operations import Operations
from quantlib.support.directories import temporary_dir

if TYPE_CHECKING:
    import onnx

_WIDTH = 1024
# With few rows both factors stay in the caches, with many rows threads have more to share. Which is faster
# depends on the CPU, so the best one counts.
_ROWS = (128, 256, 1024)
# Rounds, so that another program that is busy for a moment does not spoil all runs of a size.
_ROUNDS = 3
_SECONDS = 0.04
_GUESS_RUNS = 3
_SEED = 0


@dataclass(frozen=True)
class Peak:
    """In 10^9 operations a second, at the given number of threads.

    float_gops: float32 · float32. integer_gops: u8 · s8, summed in 32 bits.
    """

    float_gops: float
    integer_gops: float
    threads: int

    def __post_init__(self) -> None:
        if not (self.float_gops > 0 and self.integer_gops > 0):
            raise ValueError(f"a peak must be above 0: {self.float_gops}, {self.integer_gops} Gop/s")

    def limit_ms(self, operations: Operations) -> float:
        """The time these operations take at the peak."""
        return operations.float_ops / self.float_gops / 1e6 + operations.integer_ops / self.integer_gops / 1e6


def measure_peak(config: SessionConfig, seconds: float = _SECONDS) -> Peak:
    """Time large square products with a constant weight in ONNX Runtime, which packs it, and take the best.

    The integer product is MatMulIntegerToFloat of u8 and s8, the fastest kernel that the runtime has for 8
    bits on the CPU at hand: AMX, VNNI, or AVX2's. Takes some 2 s on a machine that is not busy.

    Args:
        config: the session's options, those of the model that is compared with the peak.
        seconds: how long each product is timed in each of three rounds.
    """
    gops = {}
    for kind in ("float", "integer"):
        with temporary_dir() as directory:
            path = directory / "product.onnx"
            path.write_bytes(_model(kind).SerializeToString())
            gops[kind] = max(_measured(path, kind, config, seconds))
    return Peak(gops["float"], gops["integer"], config.threads)


def _measured(path: Path, kind: str, config: SessionConfig, seconds: float) -> Iterator[float]:
    """The fastest run of each product, in 10^9 operations a second."""
    factors = {rows: _factor(kind, rows) for rows in _ROWS}
    with TimedProcess(path, [{"x": factors[_ROWS[0]]}], config) as process:
        for rows, factor in list(factors.items()) * _ROUNDS:
            process.set_feeds([{"x": factor}])
            guess = process.time(_GUESS_RUNS, warmup_runs=1, wake_seconds=seconds / 2)
            times = process.time(max(_GUESS_RUNS, round(1e3 * seconds / median(guess))), wake_seconds=0)
            yield 2 * rows * _WIDTH**2 / min(*guess, *times) / 1e6


def _factor(kind: str, rows: int) -> npt.NDArray[Any]:
    draw = np.random.default_rng(_SEED)
    if kind == "float":
        return draw.standard_normal((rows, _WIDTH), dtype=np.float32)
    return draw.integers(0, 256, (rows, _WIDTH), dtype=np.uint8)


def _model(kind: str) -> onnx.ModelProto:
    """x · weight, with x (rows, width) and a square weight."""
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(_SEED)
    constants: dict[str, npt.NDArray[Any]]
    if kind == "float":
        constants = {"weight": draw.standard_normal((_WIDTH, _WIDTH), dtype=np.float32)}
        node, x_type = helper.make_node("MatMul", ["x", "weight"], ["y"]), TensorProto.FLOAT
    else:
        constants = {
            "weight": draw.integers(-127, 128, (_WIDTH, _WIDTH), dtype=np.int8),
            "x_scale": np.array(1e-2, np.float32),
            "weight_scale": np.full(_WIDTH, 1e-2, np.float32),
        }
        names = ["x", "weight", "x_scale", "weight_scale"]
        node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
        x_type = TensorProto.UINT8
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", x_type, ["rows", _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", _WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
