"""Sizes that a graph computes: where they come from, and what Reshape makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.onnx_model.layers import constant, initializer, integer

if TYPE_CHECKING:
    import onnx_ir as ir


def read_sizes_from_input(model: ir.Model) -> None:
    """Every single size that is read off a shape is a constant, or is read off `input_ids`, in place.

    So a size does not hold on to the value that it was read from, which a fusion may remove. The shapes of
    the values must be known.
    """
    graph = model.graph
    source = next(value for value in graph.inputs if value.name == "input_ids")
    assert source.shape is not None
    sizes = _Sizes(graph, source)
    for node in list(graph):
        size, index = _size_read(node)
        if index is None:
            continue
        if isinstance(size, int):
            number = initializer(graph, f"{node.name}/size", np.full(index.shape, size, np.int64))
            node.outputs[0].replace_all_uses_with(number)
            continue
        axis = next((i for i, known in enumerate(source.shape) if size == known), None)
        if axis is not None:
            sizes.replace(node, axis, scalar=not index.ndim)


def fix_reshapes(model: ir.Model) -> None:
    """The target of a Reshape is a constant where it can be one, in place; one that changes nothing goes.

    In the target, 0 stands for an axis that stays, -1 for one more of another size. The shapes must be known.
    """
    for node in list(model.graph):
        value, output = node.inputs[0] if node.op_type == "Reshape" else None, node.outputs[0]
        if value is None or value.shape is None or output.shape is None or integer(node, "allowzero", 0):
            continue
        if value.shape == output.shape and not value.shape.has_unknown_dim() and not output.is_graph_output():
            output.replace_all_uses_with(value)
            continue
        if constant(node.inputs[1]) is not None:
            continue
        target = [_target(size, i, value.shape) for i, size in enumerate(output.shape)]
        if target.count(-1) < 2:
            constant_shape = initializer(model.graph, f"{node.name}/shape", np.array(target, np.int64))
            node.replace_input_with(1, constant_shape)


def _size_read(node: ir.Node) -> tuple[Any, Any]:
    """The size that a Gather reads off a Shape, and the index, a scalar or (1,); (None, None) for others."""
    value = node.inputs[0] if node.op_type == "Gather" else None
    shape = None if value is None else value.producer()
    if shape is None or shape.op_type != "Shape" or shape.attributes:
        return None, None
    index, of = constant(node.inputs[1]), shape.inputs[0]
    if index is None or index.size != 1 or of is None or of.shape is None:
        return None, None
    return of.shape[int(index.item())], index


@dataclass(frozen=True)
class _Sizes:
    """Reads sizes off one input; vectors: {axis: its size, (1,)}, for those that were read."""

    graph: ir.Graph
    source: ir.Value
    vectors: dict[int, ir.Value] = field(default_factory=dict)

    def replace(self, node: ir.Node, axis: int, *, scalar: bool) -> None:
        """Read the size of an axis instead of what a node gives, for all who use it."""
        output = node.outputs[0]
        if not scalar:
            output.replace_all_uses_with(self._vector(axis))
            return
        for use in list(output.uses()):
            if use.node.op_type == "Unsqueeze":  # always to (1,)
                use.node.outputs[0].replace_all_uses_with(self._vector(axis))
        squeezed = self._node("Squeeze", f"{node.name}/Squeeze", self._vector(axis), [], node)
        output.replace_all_uses_with(squeezed)

    def _vector(self, axis: int) -> ir.Value:
        if axis not in self.vectors:
            name = f"{self.source.name}/Shape_{axis}"
            ends = {"start": axis, "end": axis + 1}
            self.vectors[axis] = self._node("Shape", name, self.source, [1], self.graph[0], ends)
        return self.vectors[axis]

    def _node(
        self,
        op_type: str,
        name: str,
        value: ir.Value,
        shape: list[int],
        before: ir.Node,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        import onnx_ir as ir

        node = ir.node(op_type, [value], attributes, name=name)
        (output,) = node.outputs
        output.name, output.shape = f"{name}:0", ir.Shape(shape)
        output.type = ir.TensorType(ir.DataType.INT64)
        self.graph.insert_before(before, node)
        return output


def _target(size: Any, axis: int, shape: ir.Shape) -> int:
    if isinstance(size, int):
        return size
    return 0 if axis < len(shape) and size.value is not None and shape[axis] == size else -1
