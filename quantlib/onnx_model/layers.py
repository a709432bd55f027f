"""The layers worth quantizing: products with a constant weight matrix, and embedding tables.

In a BERT they hold nearly all bytes and nearly all time. Softmax, mask arithmetic, residual sums, GELU and
LayerNorm lose accuracy in 8 bits and win no time, and so do products of two activations, so no recipe of
quantlib's own touches them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from quantlib.machine.sessions import reading_onnx
from quantlib.onnx_model.roles import ROLES, group, groups, label, role
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "ROLES", "Embedding", "FloatArray", "Linear",
    "constant", "find_embeddings", "find_linears", "group", "groups", "initializer",
    "integer", "is_bias", "is_matrix", "label", "load_ir", "names", "role", "takers",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Linear:
    """A product of an activation and a constant matrix, with its bias if it has one.

    name: of the MatMul or Gemm. weight: (in, out), with the name of its initializer, which holds it as
    (out, in) if `transposed`. bias: the constant (out,), or None. node: the product. last: the node whose
    output is product + bias (the product itself, or an Add). A fused Attention is one too, with the weights
    of query, key and value side by side, (in, 3 * hidden): it is both `node` and `last`, and gives out what
    it makes of the product.
    """

    name: str
    weight: FloatArray
    weight_name: str
    transposed: bool
    bias: ir.Value | None
    node: ir.Node
    last: ir.Node

    @property
    def input(self) -> ir.Value:
        """The activation, (..., in), as the graph stands now: a layer before may have been rewritten."""
        value = self.node.inputs[0]
        assert value is not None
        return value


@dataclass(frozen=True, eq=False)
class Embedding:
    """A lookup in a constant table.

    name: of the Gather. table: (entries, width), with the name of its initializer. node: the Gather.
    """

    name: str
    table: FloatArray
    table_name: str
    node: ir.Node


def load_ir(onnx_path: Path) -> ir.Model:
    """A model as onnx_ir reads it, with its weights in memory.

    Raises:
        InputError: the file is missing or not an ONNX model.
    """
    import onnx_ir as ir

    with reading_onnx(onnx_path, ir.serde.SerdeError):
        model = ir.load(onnx_path)
    if not len(model.graph):
        raise InputError(f"{onnx_path}: not an ONNX file: it holds no graph")
    return model


def find_linears(model: ir.Model) -> list[Linear]:
    """Every MatMul, Gemm and Attention of an activation and a constant float matrix, in graph order.

    A Gemm is left out if it scales its factors, transposes the first one, or adds anything but a bias (out,).
    """
    kinds = ("MatMul", "Gemm", "Attention")
    found = (_linear(node) for node in model.graph if node.op_type in kinds)
    return [linear for linear in found if linear is not None]


def find_embeddings(model: ir.Model) -> list[Embedding]:
    """Every Gather of rows of a constant float matrix, in graph order."""
    found = []
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Gather" else None
        table = constant(source)
        if source is not None and is_matrix(table) and integer(node, "axis", 0) == 0:
            found.append(Embedding(_name(node), table, str(source.name), node))
    return found


def names(model: ir.Model) -> list[str]:
    """The names of all layers worth quantizing, embeddings first."""
    return [*(e.name for e in find_embeddings(model)), *(layer.name for layer in find_linears(model))]


def takers(layers: Sequence[Linear]) -> dict[str, list[Linear]]:
    """{activation: the layers that take it}, both in the order given; query, key and value share one."""
    found: dict[str, list[Linear]] = {}
    for layer in layers:
        found.setdefault(str(layer.input.name), []).append(layer)
    return found


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a constant tensor; None for any other."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An attribute of a node, or where it is not written what the operator takes for it."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
    """A new constant of a graph."""
    import onnx_ir as ir

    tensor = ir.tensor(np.asarray(array), name=name)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, const_value=tensor, shape=shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value


def _linear(node: ir.Node) -> Linear | None:
    first, second = node.inputs[:2]
    weight = constant(second)
    if not is_matrix(weight) or second is None or first is None or constant(first) is not None:
        return None
    transposed = node.op_type == "Gemm" and bool(integer(node, "transB", 0))
    weight = weight.T if transposed else weight
    if node.op_type == "MatMul":
        bias, last = _added(node, weight.shape[1])
    else:
        bias, last = node.inputs[2] if len(node.inputs) > 2 else None, node
        scaled = _number(node, "alpha") != 1.0 or _number(node, "beta") != 1.0
        if scaled or integer(node, "transA", 0) or (bias is not None and not is_bias(bias, weight.shape[1])):
            return None
    return Linear(_name(node), weight, str(second.name), transposed, bias, node, last)


def _added(node: ir.Node, width: int) -> tuple[ir.Value | None, ir.Node]:
    """The bias that is added to a product, and the Add; (None, the product) where there is none."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output() or uses[0].node.op_type != "Add":
        return None, node
    add = uses[0].node
    bias = add.inputs[1 - uses[0].idx]
    return (bias, add) if is_bias(bias, width) else (None, node)


def is_bias(value: ir.Value | None, width: int) -> bool:
    """Whether a constant holds one float for each output channel (and is not one that is broadcast)."""
    array = constant(value)
    return array is not None and array.shape == (width,) and array.dtype == np.float32


def is_matrix(array: npt.NDArray[Any] | None) -> TypeGuard[FloatArray]:
    """Whether a constant is a matrix of float32."""
    return array is not None and array.ndim == 2 and array.dtype == np.float32


def _name(node: ir.Node) -> str:
    """A node's name; that of its first output where it has none."""
    return str(node.name or node.outputs[0].name)


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.as_float())
