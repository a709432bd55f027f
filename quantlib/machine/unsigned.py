"""S8 activations as U8: the same numbers on the same grid, in the type that x86 multiplies fast.

x86 multiplies u8 by s8. ONNX Runtime turns S8 activations to U8 by itself in some graphs only: elsewhere
weights are dequantized at run time, and products are computed in float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_SHIFT = 128
# A node's op_type as protobuf writes it: field 4, 14 bytes. DynamicQuantizeLinear has another length.
_OP_TYPE_BYTES = b'"\x0eQuantizeLinear'
_UINT8, _INT8 = 2, 3  # onnx.TensorProto.DataType
_PART = 1 << 20  # bytes of a file that are searched at once


def unsigned_model(onnx_path: Path) -> onnx.ModelProto | None:
    """The model with its S8 activations as U8; None if it has none: then the file can be loaded as it is.

    A file that is no model, or lacks its external data, is left to the runtime to refuse.
    """
    model = _quantized_model(onnx_path)
    return model if model is not None and to_unsigned(model) else None


def count_signed(onnx_path: Path) -> int:
    """How many S8 activations of a model become U8 when it is loaded on x86."""
    model = _quantized_model(onnx_path)
    return 0 if model is None else to_unsigned(model)


def _quantized_model(onnx_path: Path) -> onnx.ModelProto | None:
    """The model, if it has a QuantizeLinear; most have none, and searching the bytes is cheap."""
    import onnx
    from google.protobuf.message import DecodeError

    if not _contains(onnx_path, _OP_TYPE_BYTES):
        return None
    try:
        return onnx.load(onnx_path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError):
        return None


def _contains(path: Path, words: bytes) -> bool:
    """Whether a file has these bytes in it; a part of it is in memory at a time."""
    before = b""
    with path.open("rb") as file:
        while part := file.read(_PART):
            if words in before + part:
                return True
            before = part[1 - len(words) :]
    return False


def to_unsigned(model: onnx.ModelProto) -> int:
    """Turn each S8 QuantizeLinear whose output is only dequantized into a U8 one, in place.

    clip(round(x / scale) + z, -128, 127) + 128 = clip(round(x / scale) + (z + 128), 0, 255), and the
    DequantizeLinear after it subtracts z + 128: the dequantized values are the same.

    Returns:
        The number of QuantizeLinear nodes that were changed.
    """
    graph = model.graph
    zero_points = _signed_constants(graph)
    used = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    used.update(name for node in graph.node for name in node.output)
    new_names: dict[str, str] = {}
    unsigned: set[str] = set()
    for node, readers in _qdq_pairs(graph, zero_points):
        for qdq_node in (node, *readers):
            name = qdq_node.input[2]
            if name not in new_names:
                new_names[name] = _unused_name(f"{name}_unsigned", used)
                graph.initializer.append(_shifted_zero_point(zero_points[name], new_names[name]))
            qdq_node.input[2] = new_names[name]
        unsigned.add(node.output[0])
        _declare_unsigned(node)
    for value in graph.value_info:
        if value.name in unsigned:
            value.type.tensor_type.elem_type = _UINT8
    return len(unsigned)


def _signed_constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The int8 initializers that a caller cannot replace by an input."""
    inputs = {value.name for value in graph.input}
    return {t.name: t for t in graph.initializer if t.data_type == _INT8 and t.name not in inputs}


def _unused_name(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    used.add(name)
    return name


def _shifted_zero_point(zero_point: onnx.TensorProto, name: str) -> onnx.TensorProto:
    from onnx import numpy_helper

    array = numpy_helper.to_array(zero_point).astype(np.int16) + _SHIFT
    return numpy_helper.from_array(array.astype(np.uint8), name)


def _declare_unsigned(node: onnx.NodeProto) -> None:
    """Set the output type to U8, which QuantizeLinear may have as an attribute since opset 21."""
    for attribute in node.attribute:
        if attribute.name == "output_dtype":
            attribute.i = _UINT8


def _qdq_pairs(
    graph: onnx.GraphProto, zero_points: Collection[str]
) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Each QuantizeLinear with its readers, if those are DequantizeLinear and all zero points are known.

    The zero points may differ: all of them are moved by the same 128.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    other_uses = {output.name for output in graph.output} | set(_names_in_bodies(graph))
    for node in graph.node:
        if not _matches(node, "QuantizeLinear", zero_points) or node.output[0] in other_uses:
            continue
        output_readers = readers.get(node.output[0], [])
        if output_readers and all(_matches(r, "DequantizeLinear", zero_points) for r in output_readers):
            yield node, output_readers


def _names_in_bodies(graph: onnx.GraphProto) -> Iterator[str]:
    """The tensors that bodies of If and Loop read; some may be of the graph around them."""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for body in (attribute.g, *attribute.graphs):
            yield from (name for node in body.node for name in node.input)
            yield from _names_in_bodies(body)


def _matches(node: onnx.NodeProto, op_type: str, zero_points: Collection[str]) -> bool:
    """Whether a node is of this type and has one of these zero points."""
    return node.op_type == op_type and len(node.input) > 2 and node.input[2] in zero_points
