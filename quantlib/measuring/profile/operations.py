"""Count the operations of matrix products from the shapes that they ran on.

A product of (m, k) and (k, n) is 2·m·n·k operations, a multiplication and an addition each. Shapes come from
a trace of ONNX Runtime, which omits inputs that a kernel has packed when it was loaded, as most weights are.
So each count uses the activations and the output only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tensor:
    """type: as ONNX Runtime spells it, "float" or "uint8". shape: no dimensions for a scalar."""

    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operations:
    """float_ops: of products of floats. integer_ops: of products of 8-bit integers."""

    float_ops: int = 0
    integer_ops: int = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.float_ops + other.float_ops, self.integer_ops + other.integer_ops)

    @property
    def total(self) -> int:
        """All operations, of either kind."""
        return self.float_ops + self.integer_ops


Tensors = Sequence[Tensor]


def is_product(operator: str) -> bool:
    """Whether an operator is, or holds, a matrix product."""
    return operator in _COUNTS


def count(operator: str, inputs: Tensors, outputs: Tensors) -> Operations:
    """The operations of the matrix products in a node; none for an operator without one.

    Attention scores, and their product with the values, are float products in QAttention too. Past keys and
    values, which a classifier does not have, are not counted.

    Args:
        operator: its type, as the trace names it.
        inputs: in their order, without those that are packed.
        outputs: in their order.
    """
    counted = _COUNTS.get(operator)
    return counted(inputs, outputs) if counted else Operations()


def _product(inputs: Tensors, outputs: Tensors) -> int:
    """(..., m, k) · (k, n): the first factor is never packed, and ends in k."""
    return 2 * math.prod(outputs[0].shape) * inputs[0].shape[-1]


def _gemm(inputs: Tensors, outputs: Tensors) -> int:
    """(m, k), or (k, m) with transA, has m·k elements either way."""
    return 2 * math.prod(inputs[0].shape) * outputs[0].shape[-1]


def _transposed(inputs: Tensors, outputs: Tensors) -> int:
    """FusedMatMul, whose first factor may be transposed, its batch dimensions too.

    If it is, the first factor is assumed not to be broadcast over the batch.
    """
    first, out = inputs[0].shape, outputs[0].shape
    if len(first) < 2 or len(out) < 2 or first[-2] == out[-2]:
        return _product(inputs, outputs)
    return _gemm(inputs, outputs)


def _heads(inputs: Tensors, outputs: Tensors) -> int:
    """Scores and context of queries (batch, s, h), keys (batch, l, h) or (batch, heads, l, size), and values.

    2·batch·s·l·h for the scores, and as much for the context with the width of the values, whatever the
    number of heads.
    """
    length = inputs[1].shape[-2]
    return 2 * length * (math.prod(inputs[0].shape) + math.prod(outputs[0].shape))


def _fused_attention(inputs: Tensors, outputs: Tensors) -> tuple[int, int]:
    """(projection, heads) of an Attention of (batch, s, in), whose weight holds queries, keys and values.

    The weight, (in, widths), is packed; the bias, (widths,), tells how wide it is, else the output's width.
    """
    *batch, wide = inputs[0].shape
    tokens, length, value = math.prod(batch), batch[-1], outputs[0].shape[-1]
    width = 3 * value
    for tensor in inputs[1:]:
        matrix = len(tensor.shape) == 2 and tensor.shape[0] == wide and tensor.type != "int32"
        if matrix or (len(tensor.shape) == 1 and tensor.type.startswith("float")):
            width = tensor.shape[-1]
            break
    query = (width - value) // 2  # queries and keys are equally wide
    return 2 * tokens * wide * width, 2 * tokens * length * (query + value)


def _attention(inputs: Tensors, outputs: Tensors) -> Operations:
    # ONNX's own Attention, of opset 23, takes queries, keys and values.
    if len(inputs) > 2 and len(inputs[1].shape) == len(inputs[2].shape) == len(inputs[0].shape) > 2:
        return Operations(float_ops=_heads(inputs, outputs))
    return Operations(float_ops=sum(_fused_attention(inputs, outputs)))


def _qattention(inputs: Tensors, outputs: Tensors) -> Operations:
    projection, heads = _fused_attention(inputs, outputs)
    return Operations(float_ops=heads, integer_ops=projection)


Count = Callable[[Tensors, Tensors], int]


def _in_float(counted: Count) -> Callable[[Tensors, Tensors], Operations]:
    return lambda inputs, outputs: Operations(float_ops=counted(inputs, outputs))


def _in_integers(counted: Count) -> Callable[[Tensors, Tensors], Operations]:
    return lambda inputs, outputs: Operations(integer_ops=counted(inputs, outputs))


# ONNX's operator reference, and ONNX Runtime's ContribOperators.md for com.microsoft.
_COUNTS: dict[str, Callable[[Tensors, Tensors], Operations]] = {
    "MatMul": _in_float(_product),
    "Gemm": _in_float(_gemm),
    "FusedMatMul": _in_float(_transposed),
    "FusedGemm": _in_float(_gemm),
    "MatMulNBits": _in_float(_product),  # weights are widened, activations stay in float
    "MultiHeadAttention": _in_float(_heads),
    "Attention": _attention,
    "MatMulInteger": _in_integers(_product),
    "MatMulIntegerToFloat": _in_integers(_product),
    "DynamicQuantizeMatMul": _in_integers(_product),
    "QLinearMatMul": _in_integers(_product),
    "QGemm": _in_integers(_gemm),
    "QAttention": _qattention,
}
