"""Names of nodes and values in a compiled graph."""

from __future__ import annotations

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


def name_after_modules(graph: ir.Graph) -> None:
    """Name nodes, their outputs and weights as quantlib's export does, in place.

    A node "/bert/encoder/layer.0/output/dense/MatMul" of PyTorch's exporter by TorchScript becomes
    "bert.encoder.layer.0.output.dense/MatMul", what it computes the same with ":0", and its weight
    "onnx::MatMul_336" "bert.encoder.layer.0.output.dense.weight". Other names stay, and so do those of inputs
    and outputs.
    """
    for node in graph:
        if not str(node.name).startswith("/"):
            continue
        node.name = _from_path(str(node.name))
        for i, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}:{i}"
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and str(weight.name).startswith("onnx::") and weight.is_initializer():
            name = f"{module(node.outputs[0])}.weight"
            if name not in graph.initializers:
                weight.name = name
    for value in list(graph.initializers.values()):
        if str(value.name).startswith("/"):
            value.name = _from_path(str(value.name))


def _from_path(name: str) -> str:
    """ "bert.pooler/Gather" of "/bert/pooler/Gather"; a module that only wraps the model is left out."""
    path, _, last = name[1:].rpartition("/")
    return f"{path.replace('/', '.').removeprefix('model.')}/{last}".lstrip("/")
