"""Names of nodes and values in a compiled graph."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"


def module(value: ir.Value) -> str:
    """The PyTorch module that computes a value: "bert.encoder.layer.0.output.dense" of ".../MatMul:0".

    The whole name for a value that quantlib's export did not name.
    """
    name = str(value.name)
    return name.rpartition("/")[0] or name


def number_nodes(graph: ir.Graph) -> None:
    """Give nodes of the same name a number, as the exporter does; layers that are one module have such."""
    taken: dict[str, int] = {}
    for node in graph:
        name = str(node.name)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            node.name = f"{name}_{taken[name]}"


def name_after_modules(graph: ir.Graph) -> None:
    """Name nodes, their outputs and weights as quantlib's export does, in place.

    A node "/bert/encoder/layer.0/output/dense/MatMul" of PyTorch's exporter by TorchScript becomes
    "bert.encoder.layer.0.output.dense/MatMul", what it computes the same with ":0", and its weight
    "onnx::MatMul_336" "bert.encoder.layer.0.output.dense.weight". Versions that give nodes no such names are
    told by their weights: a node belongs to the module whose weight or bias it, or the sum behind it, reads,
    and one without any to the module around the last one that was read. Other names stay, and so do those of
    inputs and outputs.
    """
    by_path = any(str(node.name).startswith("/") for node in graph)
    new = _from_paths(graph) if by_path else _from_parameters(graph)
    for node, name in new.items():
        node.name = name
        for i, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{name}:{i}"
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and str(weight.name).startswith("onnx::") and weight.is_initializer():
            weight_name = f"{name.rpartition('/')[0]}.weight"
            if weight_name not in graph.initializers:
                weight.name = weight_name
    for value in list(graph.initializers.values()):
        if str(value.name).startswith("/"):
            value.name = _from_path(str(value.name))


def _from_paths(graph: ir.Graph) -> dict[ir.Node, str]:
    return {node: _from_path(str(node.name)) for node in graph if str(node.name).startswith("/")}


def _from_path(name: str) -> str:
    """ "bert.pooler/Gather" of "/bert/pooler/Gather"; a module that only wraps the model is left out."""
    path, _, last = name[1:].rpartition("/")
    return f"{path.replace('/', '.').removeprefix('model.')}/{last}".lstrip("/")


def _from_parameters(graph: ir.Graph) -> dict[ir.Node, str]:
    names: dict[ir.Node, str] = {}
    taken: Counter[str] = Counter()
    around = ""
    for node in graph:
        place = _owner(node)
        users = [use.node for use in node.outputs[0].uses()]
        if not place and node.op_type == "MatMul" and len(users) == 1 and users[0].op_type == "Add":
            place = _owner(users[0])
        around = place.rpartition(".")[0] if place else around
        if place or around:
            name = f"{place or around}/{node.op_type}"
            taken[name] += 1
            names[node] = name if taken[name] == 1 else f"{name}_{taken[name]}"
    return names


def _owner(node: ir.Node) -> str:
    """The module whose weight or bias a node reads; "" if it reads none."""
    for value in node.inputs:
        owner, _, kind = str(value.name).rpartition(".") if value is not None else ("", "", "")
        if kind in ("weight", "bias") and value is not None and value.is_initializer():
            return owner.removeprefix("model.")
    return ""
