"""Check that the bias of attention scores is the padding mask and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

    Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]]

# (rows, tokens) on which a bias is computed; the exporter traces at 2x16.
_SHAPES = ((1, 1), (1, 7), (2, 16), (5, 12))


class NotPaddingError(ValueError):
    """A bias is not the padding mask; the message says why."""


def padding_value(bias: ir.Value, attention_mask: ir.Value) -> float:
    """The number that a bias adds to the scores of padded keys; it must add 0 to those of real tokens.

    Two checks: the bias depends on no data but `attention_mask` (and on the shape of any input), by its
    ancestors in the graph; and it equals where(mask, 0, number) for every query and head, by its values on
    masks of several shapes, with padding anywhere, rows without padding, and rows of padding only.

    -inf counts as the smallest float32. It hides padding as well; the two differ for a row of padding only.

    Args:
        bias: what is added to the scores, (batch, heads or 1, queries or 1, keys).
        attention_mask: the graph's input, (batch, sequence); 0 is padding.

    Raises:
        NotPaddingError: the bias is something else.
    """
    _check_ancestors(bias, attention_mask)
    compute = _subgraph(bias, attention_mask)
    numbers = set()
    for seed, (rows, tokens) in enumerate(_SHAPES):
        mask = _random_mask(rows, tokens, seed)
        values = compute(mask)
        if values.ndim != 4 or values.shape[0] != rows or values.shape[3] != tokens:
            raise NotPaddingError(f"its mask has the shape {values.shape} for {rows} rows of {tokens} tokens")
        padded = np.broadcast_to((mask == 0)[:, None, None, :], values.shape)
        if values[~padded].any():
            raise NotPaddingError("its mask changes the scores of real tokens")
        numbers |= set(values[padded].tolist())
    if len(numbers) != 1:
        raise NotPaddingError(f"its mask adds {len(numbers)} different numbers to the scores of padding")
    # -inf, which scaled_dot_product_attention adds, would leave a row of padding only without a number.
    return max(float(numbers.pop()), float(np.finfo(np.float32).min))


def _check_ancestors(bias: ir.Value, attention_mask: ir.Value) -> None:
    """Walk up from the bias; a Shape passes on sizes only, so its own inputs do not matter."""
    waiting, seen = [bias], {bias}
    while waiting:
        value = waiting.pop()
        if value.is_graph_input() and value is not attention_mask:
            raise NotPaddingError(f"its mask depends on {value.name}")
        producer = value.producer()
        if producer is None or producer.op_type == "Shape":
            continue
        if has_branches(producer):
            raise NotPaddingError(f"its mask is computed in branches, by {producer.op_type}")
        for parent in producer.inputs:
            if parent is not None and parent not in seen:
                seen.add(parent)
                waiting.append(parent)


def has_branches(node: ir.Node) -> bool:
    """Whether a node holds graphs of its own (If, Loop): what they read is not among its inputs."""
    import onnx_ir as ir

    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _subgraph(bias: ir.Value, attention_mask: ir.Value) -> Compute:
    """The part of the graph that computes the bias, as a function of the mask alone."""
    graph = attention_mask.graph
    assert graph is not None
    session = session_of(graph, graph.inputs, [bias])
    names = [value.name for value in session.get_inputs()]
    types = {value.name: value.dtype.numpy() for value in graph.inputs if value.dtype is not None}

    def compute(mask: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        # The data of the other inputs is not read, so zeros will do.
        feed = {
            name: (mask if name == attention_mask.name else np.zeros_like(mask)).astype(types[name])
            for name in names
        }
        return np.asarray(session.run(None, feed)[0])

    return compute


def session_of(
    graph: ir.Graph, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]
) -> onnxruntime.InferenceSession:
    """A session of the part of a graph that computes some values from others."""
    import onnx_ir as ir
    import onnxruntime

    part = ir.convenience.extract(graph, list(inputs), list(outputs))
    # The runtime knows IR versions up to the one of its own ONNX; nothing here needs more than 8.
    proto = ir.to_proto(ir.Model(part, ir_version=8))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _random_mask(rows: int, tokens: int, seed: int) -> npt.NDArray[np.int64]:
    """Random padding; the first row has none, and the last of several rows is all padding."""
    mask = np.random.default_rng(seed).integers(0, 2, (rows, tokens))
    mask[0] = 1
    if rows > 1:
        mask[-1] = 0
    return mask
