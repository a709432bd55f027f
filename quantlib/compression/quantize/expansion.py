"""Plain operators that compute an int8 weight from 4 bits; a runtime does so once, when it loads a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from quantlib.compression.packing import BLOCK, Factors, Int8, pack, padded_to_pairs
from quantlib.compression.quantize.nodes import NodeWriter

if TYPE_CHECKING:
    import onnx_ir as ir


def expanded_weight(writer: NodeWriter, name: str, levels: Int8, factors: Factors) -> ir.Value:
    """An int8 weight (in, out), level times factor, of which the file holds the 4 bits of both.

    All operators are of opset 17 or below; INT4 tensors need opset 21.

    Args:
        writer: of the graph. name: of the packed constant, and the start of the nodes' names.
        levels: -7 to 7, (in, out). factors: of its blocks.
    """
    import onnx_ir as ir

    depth, width = levels.shape
    rows = padded_to_pairs(levels, BLOCK, 0)
    blocks = len(rows) // BLOCK
    numbers = _unpacked(writer, name, rows, lowest=-8)
    times = _unpacked(writer, f"{name}_factors", padded_to_pairs(factors.factors, 1, 1), lowest=1)
    parts = [
        _reshaped(writer, numbers, (blocks, BLOCK, width), f"{name}/blocks"),
        _reshaped(writer, times, (blocks, 1, width), f"{name}/factors"),
    ]
    product = writer.node("Mul", parts, f"{name}/Mul")
    whole = _reshaped(writer, product, (len(rows), width), f"{name}/rows")
    if depth < len(rows):
        ends = [writer.constant(f"expansion/row_{row}", np.array([row])) for row in (0, depth)]
        whole = writer.node("Slice", [whole, *ends], f"{name}/Slice")
    return writer.node("Cast", [whole], f"{name}/int8", to=ir.DataType.INT8)


def _unpacked(writer: NodeWriter, name: str, levels: Int8, lowest: int) -> ir.Value:
    """Whole numbers as int32, computed from two to a byte."""
    import onnx_ir as ir

    packed = writer.constant(name, pack(levels, lowest))
    low = writer.node("Mod", [packed, writer.constant("expansion/16", np.uint8(16))], f"{name}/low")
    four = writer.constant("expansion/4", np.uint8(4))
    high = writer.node("BitShift", [packed, four], f"{name}/high", direction="RIGHT")
    both = writer.node("Concat", [low, high], f"{name}/Concat", axis=0)
    stored = writer.node("Cast", [both], f"{name}/int32", to=ir.DataType.INT32)
    offset = writer.constant(f"expansion/lowest_{lowest}", np.int32(lowest))
    return writer.node("Add", [stored, offset], f"{name}/Add")


def _reshaped(writer: NodeWriter, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    wanted = writer.constant("expansion/shape_" + "_".join(map(str, shape)), np.array(shape))
    return writer.node("Reshape", [value, wanted], name)
