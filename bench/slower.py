"""Make a model slower by real work: extra matrix products whose result is one more output of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.measuring.latency import TimedProcess, ratio_interval, take_turns

_SIDE = 64


def add_work(model_path: Path, out_path: Path, products: int) -> Path:
    """Write a copy of a model that computes `products` more matrix products of 64x64 in a chain."""
    model = onnx.load(model_path)
    graph = model.graph
    weight = np.linalg.qr(np.random.default_rng(0).normal(size=(_SIDE, _SIDE)))[0].astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(weight, "extra/weight"))
    # It starts from an input, so that it cannot be computed once when the model is loaded.
    zero = numpy_helper.from_array(np.array(0, dtype=np.int64), "extra/zero")
    graph.initializer.append(zero)
    nodes = [
        helper.make_node("Shape", [graph.input[0].name], ["extra/shape"]),
        helper.make_node("Gather", ["extra/shape", "extra/zero"], ["extra/rows"]),
        helper.make_node("Cast", ["extra/rows"], ["extra/rows_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["extra/weight", "extra/rows_float"], ["extra/0"]),
    ]
    for i in range(products):
        nodes.append(helper.make_node("MatMul", [f"extra/{i}", "extra/weight"], [f"extra/{i + 1}"]))
    nodes.append(helper.make_node("ReduceSum", [f"extra/{products}"], ["extra/result"], keepdims=0))
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info("extra/result", TensorProto.FLOAT, []))
    onnx.save(model, out_path)
    return out_path


def slowdown_of(
    model_path: Path, slower_path: Path, feeds: list[dict[str, np.ndarray]], turns: int = 60
) -> float:
    """How much slower the second model is, as a fraction, from turns in two launches of the processes."""
    config = SessionConfig(default_threads())
    ratios = []
    for _ in range(2):
        with TimedProcess(model_path, feeds, config) as a, TimedProcess(slower_path, feeds, config) as b:
            blocks = take_turns([b, a], turns // 2, 8, wake_seconds=0.05)
        ratios.append(ratio_interval(blocks[0], blocks[1]).ratio)
    return float(np.exp(np.mean(np.log(ratios)))) - 1


def make_slower(
    model_path: Path, out_path: Path, slowdown: float, feeds: list[dict[str, np.ndarray]]
) -> float:
    """Write a copy that is `slowdown` slower, as closely as can be measured; return the measured slowdown."""
    products = 200
    for _ in range(4):
        add_work(model_path, out_path, products)
        measured = slowdown_of(model_path, out_path, feeds)
        if abs(measured - slowdown) < 0.004:
            break
        products = max(1, round(products * slowdown / max(measured, 0.005)))
    return measured
