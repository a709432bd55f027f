"""The feed-forward blocks of a float graph: which products they are, and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.compression.pruning.parts import FFN, Part, Width, rows_of
from quantlib.onnx_model.layers import Linear, constant, find_linears, integer, layer_number, role
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

# They act on each number by itself, so that a neuron can go without the others being touched.
_ELEMENTWISE = frozenset(
    {
        "Add",
        "BiasGelu",
        "Div",
        "Erf",
        "FastGelu",
        "Gelu",
        "Mul",
        "Pow",
        "QuickGelu",
        "Relu",
        "Sigmoid",
        "Tanh",
    }
)


def find_ffns(model: ir.Model, onnx_path: Path) -> list[Part]:
    """The feed-forward blocks of a graph, `output(activation(input(X)))`, in the order of their layers.

    Of a gated block (GeGLU) the input has two halves, one of which is multiplied by the activation of the
    other: both go together.

    Raises:
        InputError: there is none; or one is gated in another way, or has an activation that is not
            elementwise.
    """
    parts: dict[int, dict[str, list[Linear]]] = {}
    for layer in find_linears(model):
        number, kind = layer_number(layer.name), role(layer.name)
        if number is not None and kind in ("ffn_in", "ffn_out"):
            parts.setdefault(number, {}).setdefault(kind, []).append(layer)
    ffns = [
        ffn
        for number, part in sorted(parts.items())
        for ffn in _ffns(number, part.get("ffn_in", ()), part.get("ffn_out", ()), onnx_path)
    ]
    if not ffns:
        raise InputError(
            f"{onnx_path}: no feed-forward block of float32 weights is recognised in it, so nothing can be "
            "pruned"
        )
    return ffns


def _ffns(number: int, first: Sequence[Linear], second: Sequence[Linear], onnx_path: Path) -> list[Part]:
    """The blocks of a layer: one, or as many as there are uses of its weights."""
    name = f"layer.{number}.{FFN}"
    if len(first) != len(second):
        raise InputError(
            f"{onnx_path}: {name} has {len(first)} products into and {len(second)} out of its neurons; only "
            "a block with one each can be pruned"
        )
    return [
        _ffn(number, into, out_of, f"{onnx_path}: {name}") for into, out_of in zip(first, second, strict=True)
    ]


def _ffn(number: int, into: Linear, out_of: Linear, what: str) -> Part:
    neurons, halves, split = rows_of(out_of), into.last.outputs[0], None
    starts = {halves}
    if into.width != neurons:
        split = _halving(halves) if into.width == 2 * neurons else None
        if split is None:
            raise InputError(
                f"{what} is gated ({into.width} numbers into {neurons} neurons) in a way that is not "
                "recognised, so it cannot be pruned"
            )
        starts = set(split.outputs)
    widths = {value: Width(-1, into.width // neurons) for value in (into.node.outputs[0], halves)}
    inside = _between(starts, out_of, what)
    widths |= dict.fromkeys((*(split.outputs if split else ()), *inside), Width(-1))
    return Part(FFN, number, neurons, 1, (into,), out_of, widths, splits=(split,) if split else ())


def _halving(value: ir.Value) -> ir.Node | None:
    """The Split of a tensor's last axis into halves, if nothing else reads it."""
    uses = list(value.uses())
    node = uses[0].node if len(uses) == 1 else None
    if node is None or node.op_type != "Split" or len(node.outputs) != 2 or value.shape is None:
        return None
    last = integer(node, "axis", 0) in (-1, len(value.shape) - 1)
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return node if last and (sizes is None or len(set(sizes.tolist())) == 1) else None


def _between(starts: set[ir.Value], out_of: Linear, what: str) -> list[ir.Value]:
    """The tensors from the neurons' inputs to what the output product reads."""
    nodes: dict[ir.Node, None] = {}
    waiting = [out_of.input]
    while waiting:
        value = waiting.pop()
        if value in starts:
            continue
        node, tensor = value.producer(), value.const_value
        if node is None and tensor is not None and tensor.size == 1:
            continue
        if node is None or node.op_type not in _ELEMENTWISE:
            between = "a tensor" if node is None else node.op_type
            raise InputError(
                f"{what} has {between} between its products, so its neurons cannot be told apart"
            )
        if node not in nodes:
            nodes[node] = None
            waiting += [each for each in node.inputs if each is not None]
    return [output for node in nodes for output in node.outputs]
