"""Divide an activation by a factor for each channel and multiply the weights that read it by the same.

The products stay the same, since (X / s)·(s·W) = X·W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantlib.onnx_model.layers import FloatArray, Linear, constant, initializer, integer

if TYPE_CHECKING:
    import onnx_ir as ir

_HEADS_FIRST = (0, 2, 1, 3)


def scale_input(
    graph: ir.Graph, consumers: Sequence[Linear], layers: Sequence[Linear], factors: FloatArray
) -> None:
    """Divide the input of some layers by `factors` and multiply their weights by them.

    Args:
        graph: is changed in place.
        consumers: the layers that read the activation, at least one.
        layers: every layer of the graph; one of them may compute the values that attention averages to the
            activation.
        factors: float32, (channels,), positive.
    """
    inverse = np.reciprocal(factors)
    value = consumers[0].input
    for layer in consumers:
        _multiply(graph, layer.node, 1, factors[None, :] if layer.transposed else factors[:, None])
    producer, averaged = value.producer(), _averaged(value, consumers, layers)
    if producer is not None and _is_norm(producer):
        _fold_into_norm(graph, producer, consumers, factors)
    elif averaged is not None:
        _scale_outputs(graph, averaged, inverse)
    else:
        scaled = _mul(graph, value, inverse, f"{value.name}/smoothed", before=consumers[0].node)
        _set_input(consumers, scaled)


def _fold_into_norm(graph: ir.Graph, norm: ir.Node, consumers: Sequence[Linear], factors: FloatArray) -> None:
    """Divide the output of a LayerNormalization, and undo that for its other consumers."""
    for place in range(1, len(norm.inputs)):
        _multiply(graph, norm, place, np.reciprocal(factors))
    _undo(graph, norm.outputs[0], {layer.node for layer in consumers}, factors)


def _undo(graph: ir.Graph, value: ir.Value, consumers: set[ir.Node], factors: FloatArray) -> None:
    """Undo the scaling for every other consumer; after a Gather, on the gathered rows only."""
    others = []
    for use in [use for use in value.uses() if use.node not in consumers]:
        if use.idx == 0 and _picks_rows(use.node):
            _undo(graph, use.node.outputs[0], set(), factors)
        else:
            others.append(use)
    if others or value.is_graph_output():
        following = next(node for node in graph if value in node.inputs)
        original = _mul(graph, value, factors, f"{value.name}/original", before=following)
        for use in others:
            use.node.replace_input_with(use.idx, original)
        if value.is_graph_output():  # its name stays with the unscaled value
            graph.outputs[list(graph.outputs).index(value)] = original
            original.name, value.name = value.name, f"{value.name}/smoothed"


def _picks_rows(node: ir.Node) -> bool:
    """Whether a node is a Gather of whole rows from (batch, rows, channels)."""
    value = node.inputs[0] if node.op_type == "Gather" else None
    if value is None or value.shape is None:
        return False
    return len(value.shape) == 3 and integer(node, "axis", 0) == 1


def _is_norm(node: ir.Node) -> bool:
    """Whether a node is a LayerNormalization of the last axis with constant scale and bias."""
    return (
        node.op_type == "LayerNormalization"
        and integer(node, "axis", -1) == -1
        and all(constant(value) is not None for value in node.inputs[1:])
    )


def _averaged(value: ir.Value, consumers: Sequence[Linear], layers: Sequence[Linear]) -> Linear | None:
    """The layer that computes V, if the activation is an attention's output, softmax(scores)·V.

    V is the last of the layer's output channels, as many as the activation has. None if the activation is
    something else, or if it or V has other consumers.
    """
    nodes = {layer.node for layer in consumers}
    if value.is_graph_output() or any(use.node not in nodes for use in value.uses()):
        return None
    producer = value.producer()
    picked = producer is not None and _picks_rows(producer)
    product, parts = _values(_before(value, "Gather") if picked else value)
    source = next((layer for layer in layers if layer.last.outputs[0] is product), None)
    fits = source is not None and source.weight.shape[1] == parts * consumers[0].weight.shape[0]
    return source if fits else None


def _values(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """The output of the layer that computes V, and how many parts of equal width it has (V is the last).

    A fused Attention is itself a layer of queries, keys and values. MultiHeadAttention takes V from a Split.
    Written out, the activation is softmax(scores)·V with its heads joined (MatMul, Transpose, Reshape), and V
    is the layer's output with its heads split (Reshape, Transpose).
    """
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Attention":
        return value, 3
    part = _before(value, "MultiHeadAttention", place=2)
    split = None if part is None else part.producer()
    if split is not None and part is split.outputs[-1]:
        return _before(part, "Split"), len(split.outputs)
    joined = _before(value, "Reshape")
    product = _before(_before(joined, "Transpose", _HEADS_FIRST), "MatMul", place=1)
    return _before(_before(product, "Transpose", _HEADS_FIRST), "Reshape"), 1


def _scale_outputs(graph: ir.Graph, layer: Linear, factors: FloatArray) -> None:
    """Multiply the last output channels of a layer by `factors`, one for each."""
    scales = np.ones(layer.weight.shape[1], np.float32)
    scales[-len(factors) :] = factors
    _multiply(graph, layer.node, 1, scales[:, None] if layer.transposed else scales)
    if layer.bias is not None:
        _multiply(graph, layer.last, list(layer.last.inputs).index(layer.bias), scales)


def _before(
    value: ir.Value | None, op_type: str, perm: Sequence[int] | None = None, place: int = 0
) -> ir.Value | None:
    """An input of the node that computes `value`, if that node has this type and the input no other use."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != op_type:
        return None
    if perm is not None and ("perm" not in node.attributes or _ints(node, "perm") != tuple(perm)):
        return None
    source = node.inputs[place]
    if source is None or source.is_graph_output() or len(list(source.uses())) != 1:
        return None
    return source


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints())


def _multiply(graph: ir.Graph, node: ir.Node, place: int, factors: FloatArray) -> None:
    """Multiply a constant input of a node; other nodes that share the constant keep the old values."""
    value = node.inputs[place]
    array = constant(value)
    assert value is not None and array is not None
    scaled = (array * factors).astype(np.float32)
    if len(list(value.uses())) > 1:
        node.replace_input_with(place, initializer(graph, f"{value.name}/{node.name}", scaled))
    else:
        import onnx_ir as ir

        value.const_value = ir.tensor(scaled, name=value.name)


def _mul(graph: ir.Graph, value: ir.Value, factors: FloatArray, name: str, before: ir.Node) -> ir.Value:
    """value * factors, as a new node."""
    import onnx_ir as ir

    scale = initializer(graph, f"{name}/factors", factors)
    node = ir.node("Mul", [value, scale], name=f"{name}/Mul")
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, value.type
    graph.insert_before(before, node)
    return node.outputs[0]


def _set_input(consumers: Sequence[Linear], value: ir.Value) -> None:
    for layer in consumers:
        layer.node.replace_input_with(0, value)
