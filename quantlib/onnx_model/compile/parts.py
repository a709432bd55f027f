"""Attention that stays in parts, of ONNX's own operators: a plain mask, and one row in the last layer.

For engines that fuse such parts themselves and do not know com.microsoft's operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantlib.onnx_model.compile.mask import NotPaddingError, padding_value
from quantlib.onnx_model.compile.naming import MICROSOFT
from quantlib.onnx_model.compile.row import Writer, is_cut, row_of, row_of_scores
from quantlib.onnx_model.layers import constant, initializer, integer

if TYPE_CHECKING:
    import onnx_ir as ir

_HEADS_FIRST = [0, 2, 1, 3]
_WITH_GELU = 20  # the first opset with Gelu
_ELEMENTWISE = frozenset({"Add", "Div", "IsNaN", "Mul", "Where"})


def own_gelus(model: ir.Model) -> None:
    """Give GELU by erf, where the opset has it, the name that ONNX has for it, in place."""
    if model.graph.opset_imports.get("", 0) < _WITH_GELU:
        return
    for node in model.graph:
        if node.op_type == "Gelu" and node.domain == MICROSOFT:
            node.domain = ""


def simplify_masks(model: ir.Model) -> tuple[int, list[str]]:
    """Compute what is added to the scores of padding from the mask alone, (batch, 1, 1, sequence), in place.

    Exporters compute it for every query, by index arithmetic of dozens of nodes.

    Returns:
        How many masks were replaced, and a sentence for each that is something else than padding.
    """
    mask = next((value for value in model.graph.inputs if value.name == "attention_mask"), None)
    if mask is None:
        return 0, ["the mask stays as it is: the model has no input attention_mask"]
    left: list[str] = []
    plain: dict[float, ir.Value] = {}
    for bias, users in _score_biases(model).items():
        try:
            number = padding_value(bias, mask)
        except NotPaddingError as error:
            left.append(f"{bias.name}: the mask stays as it is: {error}")
            continue
        if number not in plain:
            plain[number] = _plain_mask(model.graph, mask, number, len(plain))
        for node, place in users:
            node.replace_input_with(place, plain[number])
    return len(plain), left


def _score_biases(model: ir.Model) -> dict[ir.Value, list[tuple[ir.Node, int]]]:
    """What is added to scores right before a Softmax, and where: {value: [(the Add, its input)]}."""
    biases: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
    for softmax in model.graph:
        if softmax.op_type != "Softmax" or softmax.inputs[0] is None:
            continue
        add = softmax.inputs[0].producer()
        if add is None or add.op_type != "Add":
            continue
        bias = add.inputs[1]
        if bias is not None and constant(bias) is None and bias.shape is not None and len(bias.shape) == 4:
            biases.setdefault(bias, []).append((add, 1))
    return biases


def _plain_mask(graph: ir.Graph, mask: ir.Value, number: float, count: int) -> ir.Value:
    """where(mask, 0, number), (batch, 1, 1, sequence)."""
    import onnx_ir as ir

    assert mask.shape is not None
    name = "attention_mask" if not count else f"attention_mask/{count + 1}"
    batch, sequence = mask.shape
    shape = ir.Shape([batch, 1, 1, sequence])
    zero = initializer(graph, f"{name}/zero", np.float32(0))
    padding = initializer(graph, f"{name}/padding", np.float32(number))
    axes = initializer(graph, f"{name}/axes", np.array([1, 2]))
    cast = ir.node("Cast", [mask], {"to": ir.DataType.BOOL}, name=f"{name}/Cast")
    spread = ir.node("Unsqueeze", [cast.outputs[0], axes], name=f"{name}/Unsqueeze")
    chosen = ir.node("Where", [spread.outputs[0], zero, padding], name=f"{name}/Where")
    kinds = ((mask.shape, ir.DataType.BOOL), (shape, ir.DataType.BOOL), (shape, ir.DataType.FLOAT))
    for node, (of, kind) in zip((cast, spread, chosen), kinds, strict=True):
        (output,) = node.outputs
        output.name, output.shape, output.type = f"{node.name}:0", of, ir.TensorType(kind)
    graph.insert_before(graph[0], [cast, spread, chosen])
    return chosen.outputs[0]


def attend_from_row_in_parts(model: ir.Model) -> int:
    """Ask for one row in the last attention, where one row of it is read, in place: one query a head.

    Returns:
        1; 0 where the last layer was not cut, or its attention is not of the form that is known.
    """
    for node in model.graph:
        attention = _Attention.of(node) if is_cut(node) else None
        if attention is not None:
            attention.ask_for_one_row(model.graph, node)
            return 1
    return 0


@dataclass(frozen=True)
class _Attention:
    """softmax(q·k ...)·v of which one row is read.

    joined: the Reshape that joins the heads. turned: the Transpose before it. averaged: the product with the
    values. middle: the nodes between the scores and that product, the last first. scores: the product of
    query and key. heads: the Transpose of the query's heads. split: its Reshape. shifted, product: the sum of
    the query's product and its bias, and the product.
    """

    joined: ir.Node
    turned: ir.Node
    averaged: ir.Node
    middle: Sequence[ir.Node]
    scores: ir.Node
    heads: ir.Node
    split: ir.Node
    shifted: ir.Node
    product: ir.Node

    @classmethod
    def of(cls, reader: ir.Node) -> _Attention | None:
        """The attention that a Gather reads a row of; None for another form."""
        behind = _makers(reader, "Reshape", "Transpose", "MatMul")
        middle = _middle(behind[-1]) if behind else None
        if not behind or middle is None:
            return None
        between, scores = middle
        before = _makers(scores, "Transpose", "Reshape", "Add", "MatMul")
        if not before or not all(map(_is_heads_first, (behind[1], before[0]))):
            return None
        (joined, turned, averaged), (heads, split, shifted, product) = behind, before
        attention = cls(joined, turned, averaged, between, scores, heads, split, shifted, product)
        alone = all(map(_used_once, (*behind, scores, *before)))
        return attention if alone and attention._has_known_sizes() else None

    def _has_known_sizes(self) -> bool:
        shape, width = self.split.outputs[0].shape, self.joined.outputs[0].shape
        return (
            shape is not None
            and len(shape) == 4
            and all(isinstance(size, int) for size in list(shape)[2:])
            and width is not None
            and len(width) == 3
        )

    def ask_for_one_row(self, graph: ir.Graph, reader: ir.Node) -> None:
        """One query instead of all; the Gather of its row goes."""
        place, x = reader.inputs[1], self.product.inputs[0]
        split, joined = self.split.outputs[0].shape, self.joined.outputs[0].shape
        assert place is not None and x is not None and split is not None and joined is not None
        self.product.replace_input_with(0, row_of(graph, x, place))
        for node in (node for node in self.middle if node.op_type == "Add"):
            for i, value in enumerate(node.inputs):
                if value is not None and _has_a_row_a_query(value) and not self._computes(value):
                    row = row_of_scores(Writer(graph, node), value, place, str(node.name))
                    node.replace_input_with(i, row)
        # -1 is the size of the batch; 0 is not everywhere, with allowzero.
        sizes = initializer(graph, f"{self.split.name}/one_row", np.array([-1, 1, split[2], split[3]]))
        width = initializer(graph, f"{self.joined.name}/one_row", np.array([-1, 1, joined[2]]))
        self.split.replace_input_with(1, sizes)
        self.joined.replace_input_with(1, width)
        for node, axis in ((self.product, 1), (self.shifted, 1), (self.split, 1), (self.heads, 2)):
            _set_axis(node, axis)
        for node in (self.scores, *self.middle, self.averaged):
            _set_axis(node, 2)
        for node in (self.turned, self.joined):
            _set_axis(node, 1)
        reader.outputs[0].replace_all_uses_with(self.joined.outputs[0])
        graph.remove(reader, safe=True)

    def _computes(self, value: ir.Value) -> bool:
        return value.producer() in (self.scores, *self.middle)


def _makers(node: ir.Node, *op_types: str) -> list[ir.Node]:
    """What computes the first input of a node, of the maker its first, and so on; empty for other types."""
    makers: list[ir.Node] = []
    for op_type in op_types:
        value = (makers[-1] if makers else node).inputs[0]
        maker = None if value is None else value.producer()
        if maker is None or maker.op_type != op_type or maker.domain:
            return []
        makers.append(maker)
    return makers


def _is_heads_first(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return order is not None and list(order.as_ints()) == _HEADS_FIRST


def _used_once(node: ir.Node) -> bool:
    output = node.outputs[0]
    return len(list(output.uses())) == 1 and not output.is_graph_output()


def _middle(averaged: ir.Node) -> tuple[list[ir.Node], ir.Node] | None:
    """The nodes between the scores and their product with the values, and the scores; None if unknown."""
    middle: list[ir.Node] = []
    waiting = [averaged.inputs[0]]
    scores: ir.Node | None = None
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if value is None or node is None or node in middle:
            continue
        if node.op_type == "MatMul":
            if scores not in (None, node):
                return None
            scores = node
        elif node.op_type == "Softmax" and integer(node, "axis", -1) == -1:
            middle.append(node)
            waiting.append(node.inputs[0])
        elif node.op_type in _ELEMENTWISE:
            middle.append(node)
            # What is added is taken as it is; anything else that is no number is of another form.
            parents = node.inputs[:1] if node.op_type == "Add" else node.inputs
            waiting += [each for each in parents if constant(each) is None]
        else:
            return None
    inside = {averaged, *middle}
    if scores is None or any(use.node not in inside for node in middle for use in node.outputs[0].uses()):
        return None
    return middle, scores


def _has_a_row_a_query(value: ir.Value) -> bool:
    """Whether a value that is added to scores, (batch, heads, queries, keys), differs from query to query."""
    return value.shape is not None and len(value.shape) == 4 and value.shape[2] != 1


def _set_axis(node: ir.Node, axis: int) -> None:
    """One row along an axis of a node's output."""
    import onnx_ir as ir

    shape = node.outputs[0].shape
    if shape is not None and len(shape) > axis:
        sizes = list(shape)
        sizes[axis] = 1
        node.outputs[0].shape = ir.Shape(sizes)
