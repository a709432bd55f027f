"""The layers worth quantizing: products with a constant weight matrix, and embedding tables.

In a BERT these take nearly all bytes and nearly all time. Softmax, mask arithmetic, residual sums, GELU,
LayerNorm and products of two activations lose accuracy in 8 bits and win no time, so quantlib's own recipes
leave them in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.onnx_model.model import Model, check_external_data, check_graph, reading_onnx
from quantlib.onnx_model.roles import ROLES, group, groups, label, layer_number, role
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "ROLES", "Embedding", "FloatArray", "Linear",
    "constant", "dimensions", "find_embeddings", "find_linears", "group", "groups", "initializer",
    "integer", "is_bias", "is_matrix", "label", "layer_number", "layers_by_input",
    "load_ir", "names", "role", "skeleton_ir",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Linear:
    """A product of an activation and a constant matrix, with its bias if it has one.

    name: of the MatMul or Gemm. weight_name: of the initializer, which holds the weight (in, out) as (out,
    in) if `transposed`. bias: the constant (out,), or None. node: the product. last: the node whose output is
    product + bias (the product itself, or an Add). A fused Attention is a Linear too, with the weights of
    query, key and value side by side, (in, 3 * hidden): it is both `node` and `last`, and its output is that
    of the attention, not of the product.
    """

    name: str
    weight_name: str
    transposed: bool
    bias: ir.Value | None
    node: ir.Node
    last: ir.Node

    @property
    def input(self) -> ir.Value:
        """The activation, (..., in), in the present graph: a layer before may have been rewritten."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> FloatArray:
        """The constant matrix, (in, out)."""
        weight = constant(self.node.inputs[1])
        assert weight is not None
        return weight.T if self.transposed else weight

    @property
    def width(self) -> int:
        """The number of output channels."""
        return dimensions(self.node.inputs[1])[0 if self.transposed else 1]


@dataclass(frozen=True, eq=False)
class Embedding:
    """A lookup in a constant table.

    name: of the Gather. table_name: of the initializer. node: the Gather.
    """

    name: str
    table_name: str
    node: ir.Node

    @property
    def table(self) -> FloatArray:
        """The constant table, (entries, width)."""
        table = constant(self.node.inputs[0])
        assert table is not None
        return table


def load_ir(onnx_path: Path, *, mapped: bool = False) -> ir.Model:
    """A model as onnx_ir reads it, with its weights in memory.

    Args:
        onnx_path: the file.
        mapped: whether external data stays in its files, which are mapped when its numbers are asked for. The
            model can then be saved in its own directory alone.

    Raises:
        InputError: the file or its external data is missing, or it is not an ONNX model.
    """
    import onnx
    import onnx_ir as ir

    with reading_onnx(onnx_path, ir.serde.SerdeError, OSError):
        proto = onnx.load(onnx_path, load_external_data=False)
        check_external_data(proto, onnx_path)
        check_graph(proto.graph, onnx_path)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, onnx_path.parent)
        return _with_graph(model if mapped else ir.external_data.load_to_model(model), onnx_path)


def skeleton_ir(model: Model) -> ir.Model:
    """A copy of a model's graph as onnx_ir reads it, without the numbers of its weights.

    Raises:
        InputError: the file is missing or not an ONNX model.
    """
    import onnx_ir as ir

    with reading_onnx(model.path, ir.serde.SerdeError):
        return _with_graph(ir.from_proto(model.skeleton), model.path)


def _with_graph(model: ir.Model, onnx_path: Path) -> ir.Model:
    if not len(model.graph):
        raise InputError(f"{onnx_path}: not an ONNX file: it holds no graph")
    if not _is_sorted(model.graph):  # ONNX Runtime takes any order, onnx_ir does not
        try:
            model.graph.sort()
        except ValueError as error:
            raise InputError(f"{onnx_path}: its nodes read each other's outputs in a circle") from error
    return model


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether each node stands behind those whose outputs it reads."""
    seen: set[ir.Node] = set()
    for node in graph:
        producers = (value.producer() for value in node.inputs if value is not None)
        if any(producer is not None and producer not in seen for producer in producers):
            return False
        seen.add(node)
    return True


def find_linears(model: ir.Model) -> list[Linear]:
    """Every MatMul, Gemm and Attention of an activation and a constant float matrix, in graph order.

    A Gemm is left out if it scales its factors, transposes the first one, or adds anything but a bias (out,).
    """
    kinds = ("MatMul", "Gemm", "Attention")
    linears = (_linear(node) for node in model.graph if node.op_type in kinds)
    return [linear for linear in linears if linear is not None]


def find_embeddings(model: ir.Model) -> list[Embedding]:
    """Every Gather of rows of a constant float matrix, in graph order.

    A table of what is added to attention scores is left out: it has a few hundred numbers.
    """
    embeddings = []
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Gather" else None
        if source is None or role(_name(node)) == "position_bias":
            continue
        if is_matrix(source) and integer(node, "axis", 0) == 0:
            embeddings.append(Embedding(_name(node), str(source.name), node))
    return embeddings


def names(model: ir.Model) -> list[str]:
    """The names of all layers worth quantizing, embeddings first."""
    return [*(e.name for e in find_embeddings(model)), *(layer.name for layer in find_linears(model))]


def layers_by_input(layers: Sequence[Linear]) -> dict[str, list[Linear]]:
    """{activation: the layers that read it}, in the order of `layers`; query, key and value share one."""
    by_input: dict[str, list[Linear]] = {}
    for layer in layers:
        by_input.setdefault(str(layer.input.name), []).append(layer)
    return by_input


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array of a constant tensor; None for any other."""
    if value is None or value.const_value is None:
        return None
    return np.asarray(value.const_value.numpy())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node, or the operator's default if it is not set."""
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
    if second is None or first is None or not is_matrix(second) or first.const_value is not None:
        return None
    transposed = node.op_type == "Gemm" and bool(integer(node, "transB", 0))
    width = dimensions(second)[0 if transposed else 1]
    if node.op_type == "MatMul":
        bias, last = _added(node, width)
    else:
        bias, last = node.inputs[2] if len(node.inputs) > 2 else None, node
        scaled = _number(node, "alpha") != 1.0 or _number(node, "beta") != 1.0
        if scaled or integer(node, "transA", 0) or (bias is not None and not is_bias(bias, width)):
            return None
    return Linear(_name(node), str(second.name), transposed, bias, node, last)


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
    """Whether a value is a constant with one float for each output channel, not one that is broadcast."""
    return _is_float(value) and dimensions(value) == (width,)


def is_matrix(value: ir.Value | None) -> bool:
    """Whether a value is a constant matrix of float32."""
    return _is_float(value) and len(dimensions(value)) == 2


def _is_float(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    return tensor is not None and tensor.dtype.name == "FLOAT"


def dimensions(value: ir.Value | None) -> tuple[int, ...]:
    """The dimensions of a constant, known without its numbers."""
    assert value is not None and value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def _name(node: ir.Node) -> str:
    """A node's name; that of its first output where it has none."""
    return str(node.name or node.outputs[0].name)


def _number(node: ir.Node, name: str) -> float:
    attribute = node.attributes.get(name)
    return 1.0 if attribute is None else float(attribute.as_float())
