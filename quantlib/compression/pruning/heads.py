"""The attention of a float graph: which axis of each of its tensors counts heads.

Heads are told by following that axis from the Reshape behind query, key and value to the one before the
output product. What is met on the way has to treat each head by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from quantlib.compression.pruning.parts import ATTENTION, Part, Width, rows_of
from quantlib.onnx_model.layers import Linear, constant, find_linears, integer, layer_number, role

if TYPE_CHECKING:
    import onnx_ir as ir

_ELEMENTWISE = frozenset(
    {"Add", "Cast", "Div", "Identity", "IsNaN", "Mul", "Neg", "Not", "Sub", "Where"}
)  # fmt: skip


class NotSeparableError(Exception):
    """The heads of an attention cannot be told apart; the message says why."""


def find_attentions(model: ir.Model) -> tuple[list[Part], dict[int, str]]:
    """The attentions of a graph whose heads can go one by one, in the order of their layers.

    Returns:
        They, and for the number of each other layer the reason why its heads cannot.
    """
    parts: dict[int, dict[str, list[Linear]]] = {}
    for layer in find_linears(model):
        number, kind = layer_number(layer.name), role(layer.name)
        if number is not None and kind in ("qkv", "attention_output"):
            parts.setdefault(number, {}).setdefault(kind, []).append(layer)
    attentions: list[Part] = []
    reasons: dict[int, str] = {}
    for number, part in sorted(parts.items()):
        try:
            into, out_of = part.get("qkv", []), part.get("attention_output", [])
            uses = _uses(into, out_of)
            attentions += [_attention(model, number, projections, output) for projections, output in uses]
        except NotSeparableError as error:
            reasons[number] = str(error)
    return attentions, reasons


def _uses(into: Sequence[Linear], out_of: Sequence[Linear]) -> list[tuple[tuple[Linear, ...], Linear]]:
    """The products of each attention of a layer: more than one where its weights are used again."""
    each, rest = divmod(len(into), len(out_of)) if out_of else (0, 0)
    if rest or each not in (1, 3):
        raise NotSeparableError(f"it has {len(into)} products into and {len(out_of)} out of its heads")
    return [(tuple(into[each * i : each * (i + 1)]), output) for i, output in enumerate(out_of)]


def _attention(model: ir.Model, number: int, projections: tuple[Linear, ...], output: Linear) -> Part:
    opened = [_opened(linear) for linear in projections]
    shapes = {tuple(node.outputs[0].shape or ())[-2:] for node in opened}
    if len(shapes) > 1:
        raise NotSeparableError("query, key and value differ in their heads")
    heads, size = next(iter(shapes))
    copies = 3 // len(projections)
    if not (isinstance(heads, int) and isinstance(size, int)):
        raise NotSeparableError("the number of its heads is not known")
    if heads * size != rows_of(output) or {linear.width for linear in projections} != {copies * heads * size}:
        raise NotSeparableError("its products differ in width")
    if heads == 1:
        raise NotSeparableError("it has one head, which has to stay")
    trace = _Trace(heads, size)
    for node in opened:
        trace.axes[node.outputs[0]] = _rank(node.outputs[0]) - 2
    joined = trace.to_the_end(model)
    if joined.outputs[0] is not output.input or len(list(output.input.uses())) != 1:
        raise NotSeparableError("its heads are read by more than its output product")
    widths = {value: Width(axis) for value, axis in trace.axes.items()}
    for linear in projections:
        widths |= dict.fromkeys((linear.node.outputs[0], linear.last.outputs[0]), Width(-1, copies * size))
    widths[joined.outputs[0]] = Width(-1, size)
    reshapes, by_unit = (*opened, joined), tuple(trace.by_head)
    return Part(ATTENTION, number, heads, size, projections, output, widths, reshapes, by_unit=by_unit)


def _opened(linear: Linear) -> ir.Node:
    """The Reshape that gives a product's channels an axis of heads: (batch, sequence, ..., heads, size)."""
    if linear.node.op_type == "Attention":
        raise NotSeparableError("it is one node already; prune the model before it is compiled")
    value = linear.last.outputs[0]
    uses = list(value.uses())
    node = uses[0].node if len(uses) == 1 else None
    if node is None or node.op_type != "Reshape" or uses[0].idx:
        raise NotSeparableError(f"{linear.name} is read by more than the Reshape into heads")
    if _rank(value) != 3 or _rank(node.outputs[0]) < 4 or _starts(value) != _starts(node.outputs[0]):
        raise NotSeparableError(f"{node.name} does not divide channels into heads alone")
    return node


@dataclass(eq=False)
class _Trace:
    """axes: of each tensor, which one counts heads. by_head: inputs with a number for each head."""

    heads: int
    size: int
    axes: dict[ir.Value, int] = field(default_factory=dict)
    by_head: list[tuple[ir.Node, int, int]] = field(default_factory=list)

    def to_the_end(self, model: ir.Model) -> ir.Node:
        """Follow the heads through all nodes that read them; the Reshape that joins them again."""
        joined: ir.Node | None = None
        for node in model.graph:
            if not any(value in self.axes for value in node.inputs if value is not None):
                continue
            if node.op_type == "Reshape":
                if joined is not None or not self._joins(node):
                    raise NotSeparableError(f"{node.name} mixes its heads with another axis")
                joined = node
                continue
            axis = self._axis_behind(node)
            for output in node.outputs:
                if output.is_graph_output():
                    raise NotSeparableError(f"{output.name} is an output of the model")
                self.axes[output] = axis
        if joined is None:
            raise NotSeparableError("its heads are not joined again")
        return joined

    def _joins(self, node: ir.Node) -> bool:
        """(batch, sequence, heads, size) to (batch, sequence, heads * size)."""
        value, output = node.inputs[0], node.outputs[0]
        assert value is not None
        ranks = _rank(value) == 4 and _rank(output) == 3
        if not ranks or self.axes.get(value) != 2 or _starts(value) != _starts(output):
            return False
        return output.shape is not None and output.shape[-1] == self.heads * self.size

    def _axis_behind(self, node: ir.Node) -> int:
        """The axis of heads in what a node gives."""
        first = node.inputs[0]
        assert first is not None
        if node.op_type in _ELEMENTWISE:
            return self._elementwise(node)
        if node.op_type == "MatMul":
            places = [self._place(value) for value in node.inputs]
            if len(set(places)) == 1 and places[0] is not None and places[0] < _rank(first) - 2:
                return places[0]
        axis, rank = self.axes.get(first), _rank(first)
        if axis is None:
            raise NotSeparableError(f"{node.name} mixes its heads")
        if node.op_type == "Transpose":
            return list(node.attributes["perm"].as_ints()).index(axis)
        own = integer(node, "axis", -1 if node.op_type == "Softmax" else 0) % rank
        if node.op_type in ("Softmax", "Split") and own != axis:
            return axis
        if node.op_type == "Concat" and own != axis and {self._place(each) for each in node.inputs} == {axis}:
            return axis
        if node.op_type in ("Slice", "Squeeze", "Unsqueeze"):
            changed = _axes_of(node, rank + (node.op_type == "Unsqueeze"))
            if node.op_type == "Slice" and axis not in changed:
                return axis
            if node.op_type == "Squeeze" and axis not in changed:
                return axis - sum(each < axis for each in changed)
            if node.op_type == "Unsqueeze":
                return [i for i in range(rank + len(changed)) if i not in changed][axis]
        raise NotSeparableError(f"{node.name} mixes its heads")

    def _place(self, value: ir.Value | None) -> int | None:
        return None if value is None else self.axes.get(value)

    def _elementwise(self, node: ir.Node) -> int:
        """Shapes are aligned at their ends. An addend may have a number for each head, or one for all."""
        rank = _rank(node.outputs[0])
        axes = {axis + rank - _rank(v) for v in node.inputs if v and (axis := self.axes.get(v)) is not None}
        if len(axes) != 1:
            raise NotSeparableError(f"{node.name} mixes its heads with another axis")
        (axis,) = axes
        for i, value in enumerate(node.inputs):
            if value is None or value in self.axes:
                continue
            own = axis - rank + _rank(value)
            length = 1 if own < 0 or value.shape is None else value.shape[own]
            if length == self.heads:
                self.by_head.append((node, i, own))
            elif length != 1:
                raise NotSeparableError(f"{node.name} has an input of another number of heads")
        return axis


def _axes_of(node: ir.Node, rank: int) -> list[int]:
    """The axes that a Slice, Squeeze or Unsqueeze changes."""
    place = 3 if node.op_type == "Slice" else 1
    axes = constant(node.inputs[place]) if len(node.inputs) > place else None
    if axes is None:
        raise NotSeparableError(f"{node.name} has axes that are not constant")
    return sorted(int(axis) % rank for axis in np.atleast_1d(axes))


def _rank(value: ir.Value) -> int:
    if value.shape is None:
        array = constant(value)
        if array is None:
            raise NotSeparableError(f"the shape of {value.name} is not known")
        return array.ndim
    return len(value.shape)


def _starts(value: ir.Value) -> Sequence[object]:
    """The first two sizes, batch and sequence."""
    return list(value.shape or ())[:2]
