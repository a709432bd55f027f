"""Divide an activation by a factor for each channel and multiply the weights that take it: the same sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantlib.onnx_model.layers import FloatArray, Linear, constant, initializer, integer

if TYPE_CHECKING:
    import onnx_ir as ir

_HEADS_FIRST = (0, 2, 1, 3)


def scale_input(
    graph: ir.Graph, takers: Sequence[Linear], layers: Sequence[Linear], factors: FloatArray
) -> None:
    """Divide the input of some layers by `factors`, (channels,), and make up for it in their weights.

    Args:
        graph: is changed in place.
        takers: the layers that take the activation, at least one.
        layers: every layer of the graph, one of which may compute what the activation is averaged from.
        factors: positive, float32.
    """
    inverse = np.reciprocal(factors)
    value = takers[0].input
    for layer in takers:
        _multiply(graph, layer.node, 1, factors[None, :] if layer.transposed else factors[:, None])
    producer, averaged = value.producer(), _averaged(value, takers, layers)
    if producer is not None and _is_norm(producer):
        _fold_into_norm(graph, producer, takers, factors)
    elif averaged is not None:
        _scale_outputs(graph, averaged, inverse)
    else:
        scaled = _mul(graph, value, inverse, f"{value.name}/smoothed", before=takers[0].node)
        _take(takers, scaled)


def _fold_into_norm(graph: ir.Graph, norm: ir.Node, takers: Sequence[Linear], factors: FloatArray) -> None:
    """Scale a LayerNormalization; whatever else takes its output gets it multiplied back."""
    for place in range(1, len(norm.inputs)):
        _multiply(graph, norm, place, np.reciprocal(factors))
    _give_back(graph, norm.outputs[0], {layer.node for layer in takers}, factors)


def _give_back(graph: ir.Graph, value: ir.Value, takers: set[ir.Node], factors: FloatArray) -> None:
    """Multiply a value for all but those who take it divided; of rows that are picked, only those."""
    others = []
    for use in [use for use in value.uses() if use.node not in takers]:
        if use.idx == 0 and _picks_rows(use.node):
            _give_back(graph, use.node.outputs[0], set(), factors)
        else:
            others.append(use)
    if others or value.is_graph_output():
        following = next(node for node in graph if value in node.inputs)
        original = _mul(graph, value, factors, f"{value.name}/original", before=following)
        for use in others:
            use.node.replace_input_with(use.idx, original)
        if value.is_graph_output():  # and keeps its name
            graph.outputs[list(graph.outputs).index(value)] = original
            original.name, value.name = value.name, f"{value.name}/smoothed"


def _picks_rows(node: ir.Node) -> bool:
    """Whether a node gives out some of the rows of (batch, rows, channels), whole."""
    value = node.inputs[0] if node.op_type == "Gather" else None
    if value is None or value.shape is None:
        return False
    return len(value.shape) == 3 and integer(node, "axis", 0) == 1


def _is_norm(node: ir.Node) -> bool:
    """Whether a node normalizes the last axis and scales it by constants."""
    return (
        node.op_type == "LayerNormalization"
        and integer(node, "axis", -1) == -1
        and all(constant(value) is not None for value in node.inputs[1:])
    )


def _averaged(value: ir.Value, takers: Sequence[Linear], layers: Sequence[Linear]) -> Linear | None:
    """The layer whose output's rows an attention averages to this activation, channel by channel.

    The last of its output channels are the values V, as many as the activation has. None if the activation
    came about in another way, or if it or V is used elsewhere too.
    """
    nodes = {layer.node for layer in takers}
    if value.is_graph_output() or any(use.node not in nodes for use in value.uses()):
        return None
    producer = value.producer()
    picked = producer is not None and _picks_rows(producer)
    product, parts = _values(_before(value, "Gather") if picked else value)
    found = next((layer for layer in layers if layer.last.outputs[0] is product), None)
    fits = found is not None and found.weight.shape[1] == parts * takers[0].weight.shape[0]
    return found if fits else None


def _values(value: ir.Value | None) -> tuple[ir.Value | None, int]:
    """What a layer gives out to an attention, and in how many parts of one width, the last of which is V.

    A fused Attention is a layer itself, of queries, keys and values. MultiHeadAttention takes V from a Split.
    Written out, attention is softmax(scores)·V with heads split and joined: Reshape, Transpose, MatMul, and
    on the side of V Transpose, Reshape.
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
    """Multiply the last output channels of a layer, as many as there are factors."""
    scales = np.ones(layer.weight.shape[1], np.float32)
    scales[-len(factors) :] = factors
    _multiply(graph, layer.node, 1, scales[:, None] if layer.transposed else scales)
    if layer.bias is not None:
        _multiply(graph, layer.last, list(layer.last.inputs).index(layer.bias), scales)


def _before(
    value: ir.Value | None, op_type: str, perm: Sequence[int] | None = None, place: int = 0
) -> ir.Value | None:
    """An input of the node that gives out a value, if it is of this type and nothing else takes the value."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != op_type:
        return None
    if perm is not None and ("perm" not in node.attributes or _ints(node, "perm") != tuple(perm)):
        return None
    given = node.inputs[place]
    if given is None or given.is_graph_output() or len(list(given.uses())) != 1:
        return None
    return given


def _ints(node: ir.Node, name: str) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints())


def _multiply(graph: ir.Graph, node: ir.Node, place: int, factors: FloatArray) -> None:
    """Multiply a constant input of a node; others that share the constant keep theirs."""
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


def _take(takers: Sequence[Linear], value: ir.Value) -> None:
    for layer in takers:
        layer.node.replace_input_with(0, value)
