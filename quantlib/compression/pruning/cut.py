"""Cut units out of a graph: their weights, and every shape and constant that counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantlib.compression.pruning.parts import Group, Part
from quantlib.compression.pruning.surgeon import FloatArray, IntArray
from quantlib.onnx_model.layers import Linear, constant, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

Places = Sequence[tuple["ir.Node", int]]


def cut(graph: ir.Graph, group: Group, kept: IntArray, weight: FloatArray, bias: FloatArray) -> None:
    """Leave parts that share their weights some units, in place.

    Args:
        kept: the units that stay, ascending. weight, bias: behind them, (kept * size, out) and (out,).
    """
    first, parts = group.first, group.parts
    for i, linear in enumerate(first.inputs):
        columns = _columns(first, linear, kept)
        alike = [part.inputs[i] for part in parts]
        narrow, shift = linear.weight[:, columns], constant(linear.bias)
        _set(graph, [(each.node, 1) for each in alike], narrow.T if linear.transposed else narrow)
        if shift is not None:
            _set(graph, [_bias_place(each) for each in alike], shift[columns])
    outputs = [part.output for part in parts]
    _set(graph, [(each.node, 1) for each in outputs], weight.T if first.output.transposed else weight)
    if first.output.bias is None:
        _add_bias(graph, outputs, bias)
    else:
        _set(graph, [_bias_place(each) for each in outputs], bias)
    for part in parts:
        _narrow(graph, part, kept)


def _columns(part: Part, linear: Linear, kept: IntArray) -> IntArray:
    """The output channels that stay of a product into the units."""
    channels = (kept[:, None] * part.size + np.arange(part.size)).reshape(-1)
    starts = np.arange(part.copies(linear)) * part.units * part.size
    columns: IntArray = (starts[:, None] + channels).reshape(-1)
    return columns


def _narrow(graph: ir.Graph, part: Part, kept: IntArray) -> None:
    """Let every tensor in between have as many units as are left."""
    import onnx_ir as ir

    for value, width in part.widths.items():
        if value.shape is not None and len(value.shape):
            sizes = list(value.shape)
            sizes[width.axis] = len(kept) * width.each
            value.shape = ir.Shape(sizes)
    for node in part.reshapes:
        # In the target, 0 stands for the size that was there: of batch and sequence.
        target = np.array([0, 0, *list(node.outputs[0].shape or ())[2:]], np.int64)
        node.replace_input_with(1, initializer(graph, f"{node.name}/shape", target))
        node.attributes.pop("allowzero", None)
    for node in part.splits:
        if len(node.inputs) > 1:
            halves = np.full(len(node.outputs), len(kept) * part.size, np.int64)
            node.replace_input_with(1, initializer(graph, f"{node.name}/sizes", halves))
    for node, place, axis in part.by_unit:
        node.replace_input_with(place, _some(graph, node, place, axis, kept))


def _some(graph: ir.Graph, node: ir.Node, place: int, axis: int, kept: IntArray) -> ir.Value:
    """An input of a node, for the units that are left."""
    import onnx_ir as ir

    value = _before_repeating(node.inputs[place], axis)
    index = initializer(graph, f"{node.name}/units_{place}", kept.astype(np.int64))
    gather = ir.node("Gather", [value, index], {"axis": axis}, name=f"{node.name}/Gather_{place}")
    (output,) = gather.outputs
    sizes = list(value.shape or ())
    sizes[axis] = len(kept)
    output.name, output.shape, output.type = f"{gather.name}:0", ir.Shape(sizes), value.type
    graph.insert_before(node, gather)
    return output


def _before_repeating(value: ir.Value | None, axis: int) -> ir.Value:
    """A value before it was repeated along axes that are broadcast anyway."""
    assert value is not None and value.shape is not None
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Expand" else None
    if source is None or source.shape is None or len(source.shape) != len(value.shape):
        return value
    same = source.shape[axis] == value.shape[axis]
    broadcast = all(a in (b, 1) for a, b in zip(source.shape, value.shape, strict=True))
    return source if same and broadcast else value


def _bias_place(layer: Linear) -> tuple[ir.Node, int]:
    """The node that adds a layer's bias, and which of its inputs the bias is."""
    return layer.last, list(layer.last.inputs).index(layer.bias)


def _set(graph: ir.Graph, places: Places, array: FloatArray) -> None:
    """Give inputs that share a constant a new one; other nodes that read the old one keep it."""
    import onnx_ir as ir

    node, place = places[0]
    value = node.inputs[place]
    assert value is not None
    array = np.ascontiguousarray(array)
    if len(list(value.uses())) == len(places):
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    new = initializer(graph, f"{value.name}/{node.name}", array)
    for each, place in places:
        each.replace_input_with(place, new)


def _add_bias(graph: ir.Graph, outputs: Sequence[Linear], bias: FloatArray) -> None:
    """Add a bias behind products that have none."""
    import onnx_ir as ir

    shift = initializer(graph, f"{outputs[0].weight_name.removesuffix('.weight')}.bias", bias)
    for linear in outputs:
        product = linear.node.outputs[0]
        add = ir.node("Add", [product, shift], name=f"{linear.name}_bias")
        (total,) = add.outputs
        total.name, total.shape, total.type = f"{add.name}:0", product.shape, product.type
        product.replace_all_uses_with(total)
        add.replace_input_with(0, product)
        graph.insert_after(linear.node, add)
