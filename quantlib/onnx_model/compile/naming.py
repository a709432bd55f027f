"""What the parts of a graph are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"


def module(value: ir.Value) -> str:
    """The module that computes a value: "bert.encoder.layer.0.output.dense" of ".../MatMul:0".

    A value that quantlib's export did not name is called by its own name.
    """
    name = str(value.name)
    return name.rpartition("/")[0] or name
