"""The shapes of all values of a graph, seen when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.machine.sessions import runtime_errors, shorten

if TYPE_CHECKING:
    import onnx_ir as ir

# Two pairs of (rows, tokens): an axis that has both numbers of rows is the batch, and so on. All differ, and
# are short enough for every model.
_SHAPES = ((2, 5), (3, 7))


class NotObservedError(ValueError):
    """The shapes of a graph cannot be seen; the message says why."""


def observe_shapes(model: ir.Model) -> None:
    """Give every value the type and the shape that it has when the model runs, in place.

    The model runs on two shapes of inputs. An axis is named like that of `input_ids` whose size it has both
    times; one of the same size both times has this size; any other is unknown. All inputs get the same names
    of axes, "batch" and "sequence" where `input_ids` has none.

    Shape inference is not enough here: sizes that an exporter computes in the graph, and hands to Reshape,
    are unknown to it, and so is all that comes after.

    Raises:
        NotObservedError: an input is not of (rows, tokens), both free, or the model cannot be run.
    """
    import onnx_ir as ir

    names = _name_axes(model.graph)
    values = [value for node in model.graph for value in node.outputs if value.name]
    for value, first, second in zip(values, *_run(model, values), strict=True):
        if not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
            continue  # a sequence, or an optional value
        value.type = ir.TensorType(ir.DataType.from_numpy(first.dtype))
        if first.ndim == second.ndim and not value.is_graph_output():
            sizes = zip(first.shape, second.shape, strict=True)
            value.shape = ir.Shape([_axis(pair, names) for pair in sizes])


def _name_axes(graph: ir.Graph) -> tuple[str, str]:
    """Give the axes of all inputs the same two names, and return them."""
    import onnx_ir as ir

    shapes = {str(value.name): value.shape for value in graph.inputs}
    for name, shape in shapes.items():
        if shape is None or len(shape) != 2 or any(isinstance(size, int) for size in shape):
            raise NotObservedError(f"its input {name} is not of (rows, tokens), both free")
    ids = shapes.get("input_ids")
    if ids is None:
        raise NotObservedError("it has no input input_ids")
    given = [axis.value for axis in ids if not isinstance(axis, int)]
    rows, tokens = str(given[0] or "batch"), str(given[1] or "sequence")
    for value in graph.inputs:
        value.shape = ir.Shape([rows, tokens])
    return rows, tokens


def _axis(sizes: tuple[int, int], names: tuple[str, str]) -> int | str | None:
    if sizes[0] == sizes[1]:
        return sizes[0]
    for name, known in zip(names, zip(*_SHAPES, strict=True), strict=True):
        if sizes == known:
            return name
    return None


def _run(model: ir.Model, values: Sequence[ir.Value]) -> list[list[npt.NDArray[Any]]]:
    """All values for each of the two shapes."""
    import onnx
    import onnx_ir as ir
    import onnxruntime

    proto = ir.to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in values)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # the exception says what is wrong
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return [session.run(None, _feed(model.graph, shape)) for shape in _SHAPES]
    except runtime_errors() as error:
        raise NotObservedError(f"it cannot be run: {shorten(str(error))}") from error


def _feed(graph: ir.Graph, shape: tuple[int, int]) -> dict[str, npt.NDArray[Any]]:
    """No padding, and the id 0, which every table has."""
    return {
        str(value.name): np.full(shape, value.name == "attention_mask", value.dtype.numpy())
        for value in graph.inputs
        if value.dtype is not None
    }
