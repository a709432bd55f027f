"""What calibration reads off a graph: its activations, which of them are the same values, their axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.onnx_model.model import Model, reading_onnx
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx

BATCH, SEQUENCE, UNKNOWN = "batch", "sequence", "?"
Axes = tuple[str, ...]

# They only rearrange: what they give out holds the values of their first input, row by row.
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def load_with_shapes(onnx_path: Path) -> onnx.ModelProto:
    """A model with the types of its intermediate tensors filled in.

    Raises:
        InputError: the file is missing or not an ONNX model.
    """
    import onnx

    with reading_onnx(onnx_path, onnx.checker.ValidationError):
        model = onnx.load(onnx_path)
    return _inferred(model, onnx_path)


def with_shapes(model: Model) -> onnx.ModelProto:
    """A copy of a model's graph, without the numbers of its weights, with the types of its tensors."""
    return _inferred(model.skeleton, model.path)


def _inferred(model: onnx.ModelProto, onnx_path: Path) -> onnx.ModelProto:
    import onnx

    with reading_onnx(onnx_path, onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        inferred = onnx.shape_inference.infer_shapes(model)
    if not inferred.graph.node:
        raise InputError(f"{onnx_path}: not an ONNX file: it holds no graph")
    return inferred


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model in one file (a protobuf ends at 2 GiB, beyond BERT-large)."""
    import onnx

    onnx.save(model, path)


def activations(model: onnx.ModelProto) -> list[str]:
    """The float tensors that nodes compute, in graph order."""
    import onnx

    known = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    outputs = [name for node in model.graph.node for name in node.output]
    return [name for name in outputs if known.get(name) == onnx.TensorProto.FLOAT]


def tensors_for(model: onnx.ModelProto, op_types: Iterable[str] | None) -> list[str]:
    """The activations that nodes of these types take or give out, in graph order; None is every activation.

    They are what a recipe with these `op_types` needs ranges of.
    """
    every = activations(model)
    if op_types is None:
        return every
    wanted = set(op_types)
    touched = {
        name for node in model.graph.node if node.op_type in wanted for name in (*node.input, *node.output)
    }
    return [name for name in every if name in touched]


def sources(model: onnx.ModelProto, tensors: Sequence[str]) -> dict[str, str]:
    """{tensor: the activation that it rearranges}, itself where it rearranges none."""
    known = set(activations(model))
    views = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type in _VIEWS and node.input[0] in known
    }
    found = {}
    for name in tensors:
        source = name
        while source in views:
            source = views[source]
        found[name] = source
    return found


def axes(model: onnx.ModelProto, tensors: Iterable[str]) -> dict[str, Axes]:
    """For each tensor and each of its axes: BATCH, SEQUENCE, "" (neither), or UNKNOWN (decided by size).

    Axes are told by the names that the first input, (batch, sequence), gives its own: shape inference
    carries them through the graph. An axis is unknown if the graph names neither it nor its size.
    """
    first = model.graph.input[0].type.tensor_type.shape.dim
    names = {}
    if len(first) == 2 and first[0].dim_param and first[1].dim_param:
        names = {first[0].dim_param: BATCH, first[1].dim_param: SEQUENCE}
    infos = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    return {
        name: tuple(_axis(dim, names) for dim in infos[name].type.tensor_type.shape.dim) for name in tensors
    }


def _axis(dim: onnx.TensorShapeProto.Dimension, names: dict[str, str]) -> str:
    if dim.dim_param in names:
        return names[dim.dim_param]
    # In a graph exported for one fixed shape the sizes are all there is to go by.
    return "" if names and dim.HasField("dim_value") else UNKNOWN


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The model itself, whose outputs now are these tensors and no others."""
    import onnx

    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    return model
