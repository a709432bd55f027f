"""The parts of a float graph whose units can go one by one: neurons, and attention heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlib.onnx_model.layers import FloatArray, Linear, constant, dimensions

if TYPE_CHECKING:
    import onnx_ir as ir

FFN, ATTENTION = "ffn", "attention"
UNITS = {FFN: "neuron", ATTENTION: "head"}
"""What a part of each kind is made of."""


@dataclass(frozen=True)
class Width:
    """An axis of a tensor that is as long as a part has units, times `each`."""

    axis: int
    each: int = 1


@dataclass(frozen=True, eq=False)
class Part:
    """Products into units, whatever these compute each by itself, and the product that reads them all.

    kind: `FFN` or `ATTENTION`. layer: its number. units: how many it has. size: channels of a unit in what
    `output` reads, (batch, sequence, units * size). inputs: the products; the weight of one may hold several
    of such width side by side (query, key and value; both halves of a gated block). widths: the axis of each
    tensor in between that goes with the units. reshapes: nodes whose target names the number of units.
    splits: nodes whose parts do. by_unit: inputs of nodes, from outside of the part, that hold a number for
    each unit, and the axis.
    """

    kind: str
    layer: int
    units: int
    size: int
    inputs: tuple[Linear, ...]
    output: Linear
    widths: Mapping[ir.Value, Width]
    reshapes: tuple[ir.Node, ...] = ()
    splits: tuple[ir.Node, ...] = ()
    by_unit: tuple[tuple[ir.Node, int, int], ...] = ()

    @property
    def activation(self) -> str:
        """The name of the tensor that the output product reads."""
        return str(self.output.input.name)

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of all weights; parts that share them are pruned together."""
        return *(linear.weight_name for linear in self.inputs), self.output.weight_name

    @property
    def bias(self) -> FloatArray | None:
        """The bias behind the output product; None if it has none."""
        return constant(self.output.bias)

    def copies(self, linear: Linear) -> int:
        """How many products of the part's width an input's weight holds side by side."""
        return linear.width // (self.units * self.size)


@dataclass(frozen=True, eq=False)
class Group:
    """Parts that share their weights, and so lose the same units: an ALBERT's layers; others are alone.

    name: of the first, "layer.3.ffn" or "layer.3.attention".
    """

    name: str
    parts: tuple[Part, ...]

    @property
    def first(self) -> Part:
        """The part that stands for all."""
        return self.parts[0]


def grouped(parts: Sequence[Part]) -> list[Group]:
    """Parts by their weights. A second set of weights in a layer has a number behind its name."""
    sharing: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        sharing.setdefault(part.weights, []).append(part)
    groups: dict[str, Group] = {}
    for same in sharing.values():
        name = place = f"layer.{same[0].layer}.{same[0].kind}"
        number = 1
        while name in groups:
            number += 1
            name = f"{place}_{number}"
        groups[name] = Group(name, tuple(same))
    return list(groups.values())


def rows_of(linear: Linear) -> int:
    """The number of input channels of a product."""
    return dimensions(linear.node.inputs[1])[1 if linear.transposed else 0]
