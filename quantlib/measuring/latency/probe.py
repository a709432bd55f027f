"""A small fixed model that is timed in every turn: its time tells the machine's states apart.

Some machines have two states in which waking the other core costs more or less; models of many small parallel
operators lose most to it. The probe is a chain of products that are hardly worth sharing between two threads,
so that its time is mostly what sharing costs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantlib.support.files import atomic_file

PROBE = "(probe)"
"""Its name beside the variants'; no variant has parentheses."""

_SIZE = 64  # ONNX Runtime gives a product of 64 x 64 x 64 to two threads, some 5 us of work each
_PRODUCTS = 200


def write_probe(path: Path) -> Path:
    """Write the probe, an ONNX model of one float32 input (64, 64) named `input`; return its path."""
    import onnx
    from onnx import helper, numpy_helper

    weight = np.eye(_SIZE, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", [f"x{i}" if i else "input", "weight"], [f"x{i + 1}"])
        for i in range(_PRODUCTS)
    ]
    shape = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [_SIZE, _SIZE])
    last = helper.make_tensor_value_info(f"x{_PRODUCTS}", onnx.TensorProto.FLOAT, [_SIZE, _SIZE])
    graph = helper.make_graph(nodes, "probe", [shape], [last], [numpy_helper.from_array(weight, "weight")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with atomic_file(path) as scratch:
        scratch.write_bytes(model.SerializeToString())
    return path


def probe_feed() -> dict[str, npt.NDArray[np.float32]]:
    """What the probe is run on."""
    return {"input": np.ones((_SIZE, _SIZE), dtype=np.float32)}
