"""From the operator set that the exporter traces to the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx

    Parts = Callable[[onnx.NodeProto, onnx.GraphProto], list[onnx.NodeProto]]

MIN_OPSET, MAX_OPSET = 13, 18
TRACED_OPSET = 18  # the lowest that the exporter writes without a converter that drops the names of nodes


def check_opset(opset: int) -> None:
    """Raise `InputError`, with the reason, for an operator set that cannot be exported to."""
    if not MIN_OPSET <= opset <= MAX_OPSET:
        reason = "per-channel QuantizeLinear came with 13" if opset < MIN_OPSET else "not supported yet"
        raise InputError(
            f"opset {opset} is out of range; it must be within {MIN_OPSET}..{MAX_OPSET}: {reason}"
        )


def declare_opset(proto: onnx.ModelProto, opset: int) -> None:
    """Turn a model of opset 18 into one of `opset`, in place.

    A BERT uses no operator whose meaning changed between 13 and 18, so the nodes stay as they are. Two came
    in between and are written out below it: LayerNormalization (17) and Shape with a start and end (15).
    The reductions that pool and normalize embeddings have their axes as an attribute below 18.

    Raises:
        InputError: the model has an operator that this version of the set lacks.
    """
    import onnx

    if opset < 18:
        for reduction in ("ReduceMax", "ReduceL2"):
            _replace(proto.graph, reduction, _reduction)
    if opset < 17:
        _replace(proto.graph, "LayerNormalization", _layer_normalization)
    if opset < 18:
        for node in proto.graph.node:
            if node.op_type == "Split" and len(node.input) == 1:
                _split_evenly(node)
    if opset < 15:
        _replace(proto.graph, "Shape", _shape)
    if opset < 14:
        for node in proto.graph.node:
            if node.op_type == "Reshape":
                del node.attribute[:]  # allowzero: what a zero in a shape means; no dimension here is zero
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = opset
    try:
        onnx.checker.check_model(_without_weights(proto))
    except onnx.checker.ValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"opset {opset} cannot express this model: {reason}") from error


def _split_evenly(node: onnx.NodeProto) -> None:
    """Drop the number of parts, which came with 18: without it there are as many, all equal."""
    kept = [attribute for attribute in node.attribute if attribute.name != "num_outputs"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same nodes, the weights as inputs: the checker copies a model, and weights fit any operator set."""
    from onnx.helper import make_tensor_value_info

    bare = type(proto)(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.graph.name = proto.graph.name
    bare.graph.node.extend(proto.graph.node)
    bare.graph.input.extend(proto.graph.input)
    bare.graph.input.extend(
        make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in proto.graph.initializer
    )
    bare.graph.output.extend(proto.graph.output)
    return bare


def _replace(graph: onnx.GraphProto, op_type: str, parts: Parts) -> None:
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += parts(node, graph) if node.op_type == op_type else [node]
    del graph.node[:]
    graph.node.extend(nodes)


def _constant(graph: onnx.GraphProto, name: str, value: Any) -> str:
    import onnx

    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return name


def _layer_normalization(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis (Ba et al. 2016)."""
    from onnx.helper import get_node_attr_value, make_node

    epsilon = np.float32(get_node_attr_value(node, "epsilon"))
    x, weight, bias = node.input
    at = node.name

    def step(op_type: str, name: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
        return make_node(op_type, inputs, [f"{at}/{name}:0"], name=f"{at}/{name}", **attributes)

    small = _constant(graph, f"epsilon_{epsilon:g}", epsilon)
    two = _constant(graph, "two", np.float32(2))
    steps = [
        step("ReduceMean", "mean", x, axes=[-1]),
        step("Sub", "centred", x, f"{at}/mean:0"),
        step("Pow", "squared", f"{at}/centred:0", two),
        step("ReduceMean", "variance", f"{at}/squared:0", axes=[-1]),
        step("Add", "with_epsilon", f"{at}/variance:0", small),
        step("Sqrt", "deviation", f"{at}/with_epsilon:0"),
        step("Div", "normalized", f"{at}/centred:0", f"{at}/deviation:0"),
        step("Mul", "scaled", f"{at}/normalized:0", weight),
    ]
    return [*steps, make_node("Add", [f"{at}/scaled:0", bias], [node.output[0]], name=f"{at}/shifted")]


def _shape(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The shape, then the slice of it."""
    from onnx.helper import make_node

    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if not attributes:
        return [node]
    start, end = attributes.get("start", 0), attributes.get("end", np.iinfo(np.int64).max)
    whole = f"{node.name}/whole"
    bounds = [
        _constant(graph, f"bound_{value}", np.array([value], dtype=np.int64)) for value in (start, end, 0)
    ]
    return [
        make_node("Shape", list(node.input), [f"{whole}:0"], name=whole),
        make_node("Slice", [f"{whole}:0", *bounds], list(node.output), name=node.name),
    ]


def _reduction(node: onnx.NodeProto, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The same node with its axes, a constant, as an attribute."""
    import onnx

    value, axes = node.input
    tensor = next(tensor for tensor in graph.initializer if tensor.name == axes)
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    return [
        onnx.helper.make_node(
            node.op_type,
            [value],
            list(node.output),
            name=node.name,
            axes=onnx.numpy_helper.to_array(tensor).tolist(),
            keepdims=attributes.get("keepdims", 1),
        )
    ]
