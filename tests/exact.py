"""Outputs of quantized graphs that are the same on every CPU, whatever its instructions for 8 bits.

u8·s8 products saturate at 16 bits on an x86 CPU without VNNI: logits of the tiny models are then off by up to
1.1, which says nothing about the graph. `quant_precision` would do, but ONNX Runtime 1.32 cannot load a model
with it in which a weight or a zero point is used twice. So weights are moved to u8 here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.machine.hardware import describe, has_vnni, on_x86
from quantlib.machine.sessions import open_session

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# Where the operators take a weight and its zero point.
_WEIGHT_AND_ZERO_POINT = {
    "MatMulIntegerToFloat": (1, 5),
    "MatMulInteger": (1, 3),
    "QLinearMatMul": (3, 5),
    "QGemm": (3, 5),
    "QAttention": (1, 7),
    "DequantizeLinear": (0, 2),
}

# What weights in 4 bits are computed with.
_OPERATORS: dict[str, Any] = {
    "Mod": np.mod,
    "BitShift": np.right_shift,
    "Add": np.add,
    "Mul": np.multiply,
    "Reshape": np.reshape,
    "Concat": lambda *parts: np.concatenate(parts),
    "Slice": lambda rows, start, end: rows[int(start[0]) : int(end[0])],
    "Cast": None,
}


def saturates() -> bool:
    """Whether u8·s8 products saturate at 16 bits on this machine."""
    return on_x86() and not has_vnni(describe())


def with_constants(path: Path, copy: Path) -> Path:
    """The same model with the weights that it computes from 4 bits as initializers, computed here."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    arrays = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type in _OPERATORS and all(name in arrays for name in node.input if name):
            arrays[node.output[0]] = _computed(node, [arrays[name] for name in node.input])
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(arrays[n], n) for n in arrays if n in used)
    onnx.save(model, copy)
    return copy


def _computed(node: onnx.NodeProto, inputs: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    from onnx import TensorProto, helper

    if node.op_type == "Cast":
        types = {TensorProto.INT32: np.int32, TensorProto.INT8: np.int8}
        return inputs[0].astype(types[helper.get_node_attr_value(node, "to")])
    return np.asarray(_OPERATORS[node.op_type](*inputs))


def exact_copy(path: Path, copy: Path) -> Path:
    """A copy that computes the same, summed in 32 bits on every CPU, as u8·u8 kernels do.

    s8 weights and their zero points are moved to u8: both plus 128.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(with_constants(path, copy))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    added: dict[str, onnx.TensorProto] = {}

    def moved(values: npt.NDArray[np.int8], name: str) -> str:
        unsigned = (values.astype(np.int16) + 128).astype(np.uint8)
        added[name] = numpy_helper.from_array(unsigned, name)
        return name

    for node in model.graph.node:
        weight_at, zero_at = _WEIGHT_AND_ZERO_POINT.get(node.op_type, (0, 0))
        weight = constants.get(node.input[weight_at]) if zero_at else None
        if weight is None or weight.dtype != np.int8:
            continue
        node.input.extend([""] * (zero_at + 1 - len(node.input)))
        if node.input[zero_at]:
            zero = constants[node.input[zero_at]]
        elif node.op_type == "DequantizeLinear":
            zero = np.zeros(constants[node.input[1]].shape, np.int8)
        else:
            zero = np.zeros((), np.int8)
        node.input[zero_at] = moved(zero, f"{node.input[weight_at]}_zero_point_as_u8")
        node.input[weight_at] = moved(weight, f"{node.input[weight_at]}_as_u8")
    model.graph.initializer.extend(added.values())
    onnx.save(model, copy)
    return copy


def exact_session(path: Path, **options: Any) -> onnxruntime.InferenceSession:
    """`open_session` on one thread for the `exact_copy` of a model."""
    with tempfile.TemporaryDirectory() as directory:
        return open_session(exact_copy(path, Path(directory) / path.name), threads=1, **options)
