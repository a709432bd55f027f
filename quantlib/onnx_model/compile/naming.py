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


def number_nodes(graph: ir.Graph) -> None:
    """Give nodes of the same name a number, as the exporter does; layers that are one module have such."""
    taken: dict[str, int] = {}
    for node in graph:
        name = str(node.name)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            node.name = f"{name}_{taken[name]}"
