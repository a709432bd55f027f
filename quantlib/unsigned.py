"""S8 activations as U8: the same numbers on the same grid, in the type that x86 multiplies fast.

x86 multiplies u8 by s8. ONNX Runtime turns S8 activations to U8 by itself in some graphs only: elsewhere
weights are dequantized at run time, and products are computed in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_SHIFT = 128


def unsigned_model(onnx_path: Path) -> onnx.ModelProto | None:
    """The model with its S8 activations as U8; None if it has none, and can be loaded as it is.

    A file that is no model is left to the runtime to refuse.
    """
    model = _quantized_model(onnx_path)
    return model if model is not None and to_unsigned(model) else None


def count_signed(onnx_path: Path) -> int:
    """How many S8 activations of a model are turned to U8 when it is loaded on x86."""
    model = _quantized_model(onnx_path)
    return 0 if model is None else to_unsigned(model)


def _quantized_model(onnx_path: Path) -> onnx.ModelProto | None:
    """The model, if it has a QuantizeLinear; most have none, and searching the bytes is cheap."""
    import onnx
    from google.protobuf.message import DecodeError

    if b"QuantizeLinear" not in onnx_path.read_bytes():
        return None
    try:
        return onnx.load(onnx_path)
    except DecodeError:
        return None


def to_unsigned(model: onnx.ModelProto) -> int:
    """Turn each S8 QuantizeLinear whose output is only dequantized into a U8 one, in place.

    clip(round(x / scale) + z, -128, 127) + 128 = clip(round(x / scale) + (z + 128), 0, 255), and the
    DequantizeLinear behind it takes z + 128 off again: every number stays what it was.

    Returns:
        How many there were.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made: dict[str, str] = {}
    changed = 0
    for node, readers in _quantized_pairs(model.graph):
        zero = constants.get(node.input[2])
        array = None if zero is None else numpy_helper.to_array(zero)
        if zero is None or array is None or array.dtype != np.int8:
            continue
        if zero.name not in made:
            name = f"{zero.name}_unsigned"
            shifted = (array.astype(np.int16) + _SHIFT).astype(np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(shifted, name))
            made[zero.name] = name
        for each in (node, *readers):
            each.input[2] = made[zero.name]
        changed += 1
    return changed


def _quantized_pairs(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Each QuantizeLinear with its readers, where all of those dequantize with its zero point."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3 or node.output[0] in outputs:
            continue
        found = readers.get(node.output[0], [])
        if found and all(_dequantizes(reader, node.input[2]) for reader in found):
            yield node, found


def _dequantizes(node: onnx.NodeProto, zero_point: str) -> bool:
    return node.op_type == "DequantizeLinear" and len(node.input) > 2 and node.input[2] == zero_point
