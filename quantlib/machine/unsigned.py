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
# A node's op_type as protobuf writes it: field 4, 14 bytes. DynamicQuantizeLinear is not meant.
_AS_OPERATOR = b'"\x0eQuantizeLinear'
_UINT8, _INT8 = 2, 3  # onnx.TensorProto.DataType


def unsigned_model(onnx_path: Path) -> onnx.ModelProto | None:
    """The model with its S8 activations as U8; None if it has none, and can be loaded as it is.

    A file that is no model, or lacks its external data, is left to the runtime to refuse.
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

    if _AS_OPERATOR not in onnx_path.read_bytes():
        return None
    try:
        return onnx.load(onnx_path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError):
        return None


def to_unsigned(model: onnx.ModelProto) -> int:
    """Turn each S8 QuantizeLinear whose output is only dequantized into a U8 one, in place.

    clip(round(x / scale) + z, -128, 127) + 128 = clip(round(x / scale) + (z + 128), 0, 255), and the
    DequantizeLinear behind it takes z + 128 off again: every number stays what it was.

    Returns:
        How many there were.
    """
    graph = model.graph
    zeros = _signed_constants(graph)
    taken = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    taken.update(name for node in graph.node for name in node.output)
    made: dict[str, str] = {}
    turned: set[str] = set()
    for node, readers in _quantized_pairs(graph, zeros):
        for each in (node, *readers):
            name = each.input[2]
            if name not in made:
                made[name] = _unused(f"{name}_unsigned", taken)
                graph.initializer.append(_shifted(zeros[name], made[name]))
            each.input[2] = made[name]
        turned.add(node.output[0])
        _declare_unsigned(node)
    for value in graph.value_info:
        if value.name in turned:
            value.type.tensor_type.elem_type = _UINT8
    return len(turned)


def _signed_constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The int8 initializers that a caller cannot replace by an input."""
    given = {value.name for value in graph.input}
    return {t.name: t for t in graph.initializer if t.data_type == _INT8 and t.name not in given}


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _shifted(zero: onnx.TensorProto, name: str) -> onnx.TensorProto:
    from onnx import numpy_helper

    array = numpy_helper.to_array(zero).astype(np.int16) + _SHIFT
    return numpy_helper.from_array(array.astype(np.uint8), name)


def _declare_unsigned(node: onnx.NodeProto) -> None:
    """Opset 21 lets a QuantizeLinear say its type, beside that of its zero point."""
    for attribute in node.attribute:
        if attribute.name == "output_dtype":
            attribute.i = _UINT8


def _quantized_pairs(
    graph: onnx.GraphProto, zeros: Collection[str]
) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Each QuantizeLinear with its readers, where all of those dequantize, and all zero points are known.

    The zero points may differ: all of them are moved by the same 128.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    elsewhere = {output.name for output in graph.output} | set(_captured(graph))
    for node in graph.node:
        if not _is(node, "QuantizeLinear", zeros) or node.output[0] in elsewhere:
            continue
        of_output = readers.get(node.output[0], [])
        if of_output and all(_is(reader, "DequantizeLinear", zeros) for reader in of_output):
            yield node, of_output


def _captured(graph: onnx.GraphProto) -> Iterator[str]:
    """What the bodies of If and Loop read, of which some may come from the graph around them."""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for body in (attribute.g, *attribute.graphs):
            yield from (name for node in body.node for name in node.input)
            yield from _captured(body)


def _is(node: onnx.NodeProto, op_type: str, zeros: Collection[str]) -> bool:
    """Whether it is such a node, with one of these zero points."""
    return node.op_type == op_type and len(node.input) > 2 and node.input[2] in zeros
