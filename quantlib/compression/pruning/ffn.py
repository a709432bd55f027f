"""The feed-forward blocks of a float graph: which products they are, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantlib.onnx_model.layers import (
    Linear,
    constant,
    dimensions,
    find_linears,
    layer_number,
    role,
)
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


@dataclass(frozen=True, eq=False)
class FeedForward:
    """A feed-forward block: `output(activation(input(X)))`.

    name: of the block, "layer.3.ffn". between: the nodes of the activation, in no order.
    """

    name: str
    input: Linear
    output: Linear
    between: tuple[ir.Node, ...]

    @property
    def neurons(self) -> int:
        """The number of neurons."""
        return self.input.width

    @property
    def activation(self) -> str:
        """The name of the tensor that the output product reads, (batch, sequence, neurons)."""
        return str(self.output.input.name)

    @property
    def weights(self) -> tuple[str, str]:
        """The names of both weights; layers that share them are pruned together."""
        return self.input.weight_name, self.output.weight_name


def find_ffns(model: ir.Model, onnx_path: Path) -> list[FeedForward]:
    """The feed-forward blocks of a graph, in the order of their layers.

    Raises:
        InputError: there is none; or one is gated, or has an activation that is not elementwise.
    """
    parts: dict[int, dict[str, list[Linear]]] = {}
    for layer in find_linears(model):
        number, kind = layer_number(layer.name), role(layer.name)
        if number is not None and kind in ("ffn_in", "ffn_out"):
            parts.setdefault(number, {}).setdefault(kind, []).append(layer)
    ffns = [_ffn(number, part, onnx_path) for number, part in sorted(parts.items())]
    if not ffns:
        raise InputError(f"{onnx_path}: no feed-forward block is recognised in it, so nothing can be pruned")
    return ffns


def sharing(ffns: Sequence[FeedForward]) -> list[list[FeedForward]]:
    """The blocks by their weights: an ALBERT's layers are one group, others a group each."""
    groups: dict[tuple[str, str], list[FeedForward]] = {}
    for ffn in ffns:
        groups.setdefault(ffn.weights, []).append(ffn)
    return list(groups.values())


def _ffn(number: int, part: Mapping[str, Sequence[Linear]], onnx_path: Path) -> FeedForward:
    name = f"layer.{number}.ffn"
    first, second = part.get("ffn_in", ()), part.get("ffn_out", ())
    if len(first) != 1 or len(second) != 1:
        raise InputError(
            f"{onnx_path}: {name} has {len(first)} products into and {len(second)} out of its neurons; only "
            "a block with one each can be pruned"
        )
    (into,), (out_of,) = first, second
    neurons = dimensions(out_of.node.inputs[1])[1 if out_of.transposed else 0]
    if into.width != neurons:
        raise InputError(
            f"{onnx_path}: {name} is gated ({into.width} numbers into {neurons} neurons), which cannot be "
            "pruned yet"
        )
    if out_of.bias is None:
        raise InputError(f"{onnx_path}: {name} adds no bias behind its neurons, so it cannot be pruned yet")
    return FeedForward(name, into, out_of, tuple(_between(into, out_of, name, onnx_path)))


def _between(into: Linear, out_of: Linear, name: str, onnx_path: Path) -> set[ir.Node]:
    """The nodes from the neurons' inputs to what the output product reads."""
    start, nodes = into.last.outputs[0], set()
    waiting = [out_of.input]
    while waiting:
        value = waiting.pop()
        if value is start:
            continue
        node, number = value.producer(), constant(value)
        if node is None and number is not None and np.size(number) == 1:
            continue
        if node is None or node.op_type not in _ELEMENTWISE:
            what = "a tensor" if node is None else node.op_type
            raise InputError(
                f"{onnx_path}: {name} has {what} between its products, so its neurons cannot be told apart"
            )
        if node not in nodes:
            nodes.add(node)
            waiting += [each for each in node.inputs if each is not None]
    return nodes
