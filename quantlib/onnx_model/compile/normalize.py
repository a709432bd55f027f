"""Bring a graph that another exporter wrote into the form in which quantlib's own export writes it.

PyTorch's exporter by TorchScript, which optimum uses too, computes sizes in the graph, may scale query and
key apart, and names nodes by paths ("/bert/encoder/layer.0/..."). The fusions know one form, that of
`quantlib.onnx_model.export`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantlib.machine.sessions import shorten
from quantlib.onnx_model.compile.naming import MICROSOFT, name_after_modules
from quantlib.onnx_model.compile.observe import NotObservedError, observe_shapes
from quantlib.onnx_model.compile.sizes import fix_reshapes, read_sizes_from_input
from quantlib.onnx_model.layers import constant, find_embeddings, initializer, integer
from quantlib.onnx_model.model import PRODUCER
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

# Between this one and 17 no operator of a BERT changed its meaning (`quantlib.onnx_model.export.opset`).
_LOWEST_ALIKE = 13
_OPSET = 17
# Operators whose output has only elements of the first input.
_SELECTING = frozenset({"Expand", "Gather", "GatherElements", "Reshape", "Slice"})


def normalize(model: ir.Model) -> list[str]:
    """Rewrite a graph of another exporter, in place; quantlib's own stays as it is.

    The model then declares opset 17 at least, its values have shapes, its nodes are named after their
    modules, and sizes, scales, GELU and lookups are in the form that the fusions know.

    Returns:
        A sentence where the graph cannot be run to see its shapes: then only its opset is raised.

    Raises:
        InputError: its opset is too old to be raised.
    """
    import onnx_ir.passes.common as passes

    if model.producer_name == PRODUCER:
        return []
    passes.RemoveInitializersFromInputsPass()(model)
    lift = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    lift(model)
    try:
        observe_shapes(model)
    except NotObservedError as error:
        _raise_opset(model)
        return [f"the graph stays in the form of its exporter: {error}"]
    _raise_opset(model)  # below 13, shapes tell whether a Softmax is one over the last axis alone
    lift(model)
    passes.IdentityEliminationPass()(model)
    for rewrite in _REWRITES:
        rewrite(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    name_after_modules(model.graph)
    return []


def _raise_opset(model: ir.Model) -> None:
    import onnx
    import onnx_ir as ir

    imports = model.graph.opset_imports
    opset = imports.get("", _OPSET)
    if opset < _LOWEST_ALIKE:
        try:
            proto = onnx.version_converter.convert_version(ir.to_proto(model), _OPSET)
        except (onnx.version_converter.ConvertError, RuntimeError) as error:
            reason = shorten(str(error))
            raise InputError(f"opset {opset} cannot be raised to {_OPSET} to compile: {reason}") from error
        model.graph = ir.from_proto(proto).graph
    model.graph.opset_imports[""] = max(_OPSET, opset)


def _look_up_once(model: ir.Model) -> None:
    """Where every index into a table is the same constant, its row takes the place of the lookup.

    Token types are such indices in a graph without an input for them.
    """
    for embedding in find_embeddings(model):
        index, output = _only_number(embedding.node.inputs[1]), embedding.node.outputs[0]
        if index is None or output.shape is None or output.shape.has_unknown_dim():
            continue
        # Beside an addend of the same shape, a row gives the same sum.
        if all(_adds(use.node, use.idx, output.shape) for use in output.uses()):
            row = initializer(model.graph, f"{embedding.name}/row", embedding.table[index])
            output.replace_all_uses_with(row)


def _only_number(value: ir.Value | None) -> int | None:
    """The number that all elements of a value are; None where they may differ."""
    while value is not None and value.const_value is None:
        node = value.producer()
        if node is None or node.op_type not in _SELECTING:
            return None
        value = node.inputs[0]
    array = constant(value)
    if array is None or not array.size or (array != array.flat[0]).any():
        return None
    return int(array.flat[0])


def _adds(node: ir.Node, place: int, shape: ir.Shape) -> bool:
    """Whether a node adds its input at a place, 0 or 1, to another of a shape."""
    other = node.inputs[1 - place] if node.op_type == "Add" else None
    return other is not None and other.shape == shape


def _constant_second(model: ir.Model) -> None:
    """The constant of a sum or product stands second."""
    for node in model.graph:
        if node.op_type in ("Add", "Mul") and constant(node.inputs[1]) is None:
            first, second = node.inputs
            if constant(first) is not None:
                node.replace_input_with(0, second)
                node.replace_input_with(1, first)


def _scale_once(model: ir.Model) -> None:
    """Scores are scaled once, behind the product of query and key: (q * a)·(k * b) is q·k * (a * b)."""
    for node in list(model.graph):
        if node.op_type != "MatMul" or any(constant(value) is not None for value in node.inputs):
            continue
        factor, product = 1.0, node.outputs[0]
        for i, value in enumerate(node.inputs):
            plain, number = _unscaled(value)
            node.replace_input_with(i, plain)
            factor *= number
        uses = list(product.uses())
        scaled = uses[0].node.outputs[0] if len(uses) == 1 and uses[0].node.op_type == "Div" else product
        plain, number = _unscaled(scaled)
        if plain is not product:  # the product is the divisor
            scaled, number = product, 1.0
        if scaled is not product or factor != 1.0:
            _scale(model.graph, node, factor * number, scaled)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value without its constant factor, and the factor; (the value, 1) where it has none."""
    node = None if value is None else value.producer()
    number = constant(node.inputs[1]) if node is not None and node.op_type in ("Mul", "Div") else None
    if node is None or number is None or number.size != 1:
        return value, 1.0
    return node.inputs[0], float(number.item()) ** (1 if node.op_type == "Mul" else -1)


def _scale(graph: ir.Graph, node: ir.Node, factor: float, replaced: ir.Value) -> None:
    """Put what a node gives, times a factor, in the place of a value."""
    import onnx_ir as ir

    number = initializer(graph, f"{node.name}/factor", np.float32(factor))
    scale = ir.node("Mul", [node.outputs[0], number], name=f"{node.name}_scaled")
    (output,) = scale.outputs
    output.name, output.shape, output.type = f"{scale.name}:0", replaced.shape, replaced.type
    graph.insert_after(node, scale)
    replaced.replace_all_uses_with(output)
    scale.replace_input_with(0, node.outputs[0])


def _plain_operators(model: ir.Model) -> None:
    """Softmax counts its axis from the end; ONNX's own GELU by erf is that of com.microsoft."""
    import onnx_ir as ir

    for node in model.graph:
        if node.domain:
            continue
        shape = node.outputs[0].shape
        if node.op_type == "Softmax" and shape is not None and integer(node, "axis", -1) == len(shape) - 1:
            node.attributes.add(ir.AttrInt64("axis", -1))
        approximate = node.attributes.get("approximate")
        if node.op_type == "Gelu" and (approximate is None or approximate.as_string() == "none"):
            node.attributes.clear()
            node.domain = MICROSOFT
            model.graph.opset_imports.setdefault(MICROSOFT, 1)


_REWRITES = (
    _look_up_once, _constant_second, read_sizes_from_input, fix_reshapes, _scale_once, _plain_operators,
)  # fmt: skip
