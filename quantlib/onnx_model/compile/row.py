"""Compute the last layer only for the row that the classifier reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.onnx_model.compile.naming import MICROSOFT, module
from quantlib.onnx_model.compile.pointwise import fuse_gelu, fuse_layer_normalization
from quantlib.onnx_model.layers import FloatArray, constant, initializer, integer, is_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

# Operators whose output for a row depends on that row alone, if their inputs are rows and constants.
_ELEMENTWISE = frozenset(
    {"Add", "Div", "Erf", "FastGelu", "Gelu", "Identity", "Mul", "Pow", "Relu", "Sqrt", "Sub", "Tanh"}
)


def cut_to_row(model: ir.Model) -> tuple[int, list[str]]:
    """Compute the row that the classifier reads, and no others, as far back as possible, in place.

    The Gather of that row moves from the classifier towards the inputs, past everything that is computed row
    by row, and stops at attention, which mixes rows. The nodes it passes then work on (batch, 1, width).

    Returns:
        How many nodes it passed, and the reason if it passed none.
    """
    reader, inside, reason = _behind_the_row(model)
    if reader is None or reason:
        return 0, [f"the last layer is not cut: {reason}"]
    _gather_before(model.graph, inside, reader)
    return len(inside), []


def products_of_one_row(model: ir.Model) -> frozenset[str]:
    """The names of the products that a compiled model computes for one row, of the model before.

    The model given is changed in place, so it should be a copy.
    """
    fuse_gelu(model)
    fuse_layer_normalization(model)
    _, inside, _ = _behind_the_row(model)
    return frozenset(str(node.name) for node in inside if node.op_type == "MatMul")


def _behind_the_row(model: ir.Model) -> tuple[ir.Node | None, list[ir.Node], str]:
    """The node that reads a row, the nodes that are needed for that row alone; why there are none."""
    readers = [node for node in model.graph if _reads_a_row(node)]
    if not readers:
        return None, [], "no node reads a single row; a mean or maximum reads them all"
    if len(readers) != 1:
        return None, [], f"{len(readers)} nodes read a single row, not one"
    reader = readers[0]
    inside: list[ir.Node] = []
    for node in reversed(model.graph):
        users = {use.node for output in node.outputs for use in output.uses()}
        is_output = any(output.is_graph_output() for output in node.outputs)
        if users and users <= {reader, *inside} and not is_output and _is_row_wise(node):
            inside.append(node)
    reason = "" if inside else f"what {reader.name} reads is not computed row by row"
    return reader, inside, reason


def attend_from_row(model: ir.Model) -> int:
    """Replace an attention of which only one row is read by an attention with one query, in place.

    Keys and values are one product, (in, 2 * hidden), for all rows; the query is a product for one row;
    com.microsoft MultiHeadAttention joins them. Of a bias of the scores the row's part is taken.

    Returns:
        How many there were: 1, or 0 where the last layer was not cut, its attention not fused, or its weight
        is that of other layers too and would have to be there twice.
    """
    for node in model.graph:
        users = [use.node for use in node.outputs[0].uses()]
        if node.op_type != "Attention" or node.domain != MICROSOFT:
            continue
        if len(users) == 1 and is_cut(users[0]) and not _shares_its_weight(node):
            _split_attention(model.graph, node, users[0])
            return 1
    return 0


def _shares_its_weight(attention: ir.Node) -> bool:
    weight = attention.inputs[1]
    return weight is not None and len(list(weight.uses())) > 1


def is_cut(node: ir.Node) -> bool:
    """Whether a node gathers a row as `cut_to_row` does."""
    index = constant(node.inputs[1]) if node.op_type == "Gather" else None
    return index is not None and index.shape == (1,)


def _reads_a_row(node: ir.Node) -> bool:
    """Whether a node reads one position of the sequence: (batch, sequence, width) to (batch, width)."""
    axis = node.attributes.get("axis")
    if node.op_type != "Gather" or axis is None or axis.as_int() != 1:
        return False
    value, index = node.inputs[0], constant(node.inputs[1])
    if value is None or value.shape is None or index is None:
        return False
    return len(value.shape) == 3 and not isinstance(value.shape[1], int) and index.ndim == 0


def _is_row_wise(node: ir.Node) -> bool:
    """Whether the node computes (batch, sequence, width) row by row."""
    shape = node.outputs[0].shape
    if shape is None or len(shape) != 3:
        return False
    if node.op_type == "MatMul":
        return constant(node.inputs[0]) is None and is_matrix(node.inputs[1])
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get("axis")
        return len(node.outputs) == 1 and (axis is None or axis.as_int() == -1)
    if node.op_type == "Split":
        return integer(node, "axis", 0) in (-1, 2) and _by_row(node.inputs[0], shape)
    return node.op_type in _ELEMENTWISE and all(_by_row(value, shape) for value in node.inputs)


def _by_row(value: ir.Value | None, shape: ir.Shape) -> bool:
    """Whether a value is a constant for all rows, or has as many rows as `shape`."""
    array = constant(value)
    if array is not None:
        return array.ndim < 2
    value_shape = None if value is None else value.shape
    return value_shape is not None and len(value_shape) == 3 and list(value_shape)[:2] == list(shape)[:2]


def _gather_before(graph: ir.Graph, inside: Sequence[ir.Node], reader: ir.Node) -> None:
    """Gather the row of every input that nodes `inside` read from outside; the reader reads the only row."""
    index = np.asarray(constant(reader.inputs[1])).item()
    place = initializer(graph, f"{reader.name}/row", np.array([index]))
    made = {output for node in inside for output in node.outputs}
    for node in inside:
        for i, value in enumerate(node.inputs):
            if value is not None and value not in made and constant(value) is None:
                node.replace_input_with(i, row_of(graph, value, place))
        for output in node.outputs:
            output.shape = _shape(output, rows=1)
    reader.replace_input_with(1, initializer(graph, f"{reader.name}/only_row", np.array(0)))


def row_of(graph: ir.Graph, value: ir.Value, place: ir.Value) -> ir.Value:
    """One row of a value, (batch, 1, width); made once for each value."""
    for use in value.uses():
        if use.node.op_type == "Gather" and use.node.inputs[1] is place:
            return use.node.outputs[0]
    first = next(node for node in graph if value in node.inputs)
    writer = Writer(graph, before=first)
    (row,) = writer.node(
        "Gather", [value, place], f"{module(value)}/row", [_shape(value, rows=1)], {"axis": 1}
    )
    return row


def _split_attention(graph: ir.Graph, attention: ir.Node, reader: ir.Node) -> None:
    """Replace a fused attention by two products and an attention for the row that is read."""
    x, weight, bias, mask_index, *rest = attention.inputs
    place = reader.inputs[1]
    assert x is not None and place is not None
    weights, biases = np.asarray(constant(weight)), np.asarray(constant(bias))
    name, hidden = module(attention.outputs[0]), len(biases) // 3
    row = row_of(graph, x, place)
    writer = Writer(graph, before=attention)
    query = writer.product(row, f"{name}.query", weights[:, :hidden], biases[:hidden])
    pair = writer.product(x, f"{name}.key_value", weights[:, hidden:], biases[hidden:])
    halves = initializer(graph, f"{name}.key_value.widths", np.array([hidden, hidden]))
    shape = _shape(x, width=hidden)
    key, value = writer.node("Split", [pair, halves], f"{name}.key_value", [shape, shape], {"axis": 2})
    attributes = {each: attribute.value for each, attribute in attention.attributes.items()}
    inputs = [query, key, value, None, mask_index]
    added = rest[1] if len(rest) > 1 else None
    if added is not None:
        inputs.append(row_of_scores(writer, added, place, f"{name}.attention_bias"))
    (joined,) = writer.node(
        "MultiHeadAttention", inputs, name, [_shape(row, width=hidden)], attributes, MICROSOFT
    )
    reader.outputs[0].replace_all_uses_with(joined)
    graph.remove([reader, attention], safe=True)


def row_of_scores(writer: Writer, bias: ir.Value, place: ir.Value, name: str) -> ir.Value:
    """The part of a bias (batch, heads, rows, rows) that is added to the scores of one row."""
    import onnx_ir as ir

    assert bias.shape is not None
    batch, heads, _, rows = bias.shape
    (row,) = writer.node("Gather", [bias, place], name, [ir.Shape([batch, heads, 1, rows])], {"axis": 2})
    return row


def _shape(value: ir.Value, rows: int | None = None, width: int | None = None) -> ir.Shape:
    """The shape of a value, (batch, rows, width), with another number of rows or another width."""
    import onnx_ir as ir

    assert value.shape is not None
    batch, own_rows, own_width = value.shape
    return ir.Shape([batch, rows or own_rows, width or own_width])


@dataclass(frozen=True)
class Writer:
    """Adds float nodes to a graph, before a given node."""

    graph: ir.Graph
    before: ir.Node

    def product(self, x: ir.Value, name: str, weight: FloatArray, bias: FloatArray) -> ir.Value:
        """x · weight + bias, with a weight (in, out), named after a module."""
        constants = [
            initializer(self.graph, f"{name}.{part}", np.ascontiguousarray(array))
            for part, array in (("weight", weight), ("bias", bias))
        ]
        shapes = [_shape(x, width=len(bias))]
        (product,) = self.node("MatMul", [x, constants[0]], name, shapes)
        (shifted,) = self.node("Add", [product, constants[1]], name, shapes)
        return shifted

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        module: str,
        shapes: Sequence[ir.Shape],
        attributes: dict[str, Any] | None = None,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """The outputs of a new node, one for each shape."""
        import onnx_ir as ir

        name = f"{module}/{op_type}"
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(shapes), name=name)
        for i, (output, shape) in enumerate(zip(node.outputs, shapes, strict=True)):
            output.name, output.shape, output.type = f"{name}:{i}", shape, ir.TensorType(ir.DataType.FLOAT)
        self.graph.insert_before(self.before, node)
        return node.outputs
