"""The quantization noise of each layer, worst first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantlib.compression.calibration import Ranges, Statistics, TensorStatistics, derive
from quantlib.measuring.explain import advice
from quantlib.measuring.explain.noise import FloatArray, Input, decibels, share, weight_noise
from quantlib.onnx_model.layers import (
    Linear,
    find_embeddings,
    find_linears,
    group,
    label,
    layers_by_input,
    load_ir,
    skeleton_ir,
)  # fmt: skip
from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError

INNER_PERCENT = 99.99
_BITS = (2, 16)


@dataclass(frozen=True)
class LayerNoise:
    """The noise from rounding a layer's weights and input: signal-to-quantization-noise ratios in dB.

    A ratio is None if there is no noise, because all values are equal or lie on the grid.

    name: of the node. label: the name for people. group: the layers that a recipe treats alike.
    weight_bits, input_bits: of the grids.
    weight_sqnr_db: with a scale for each output channel; of an embedding table, for each row.
    weight_per_tensor_sqnr_db: with one scale for all weights.
    input: the activation. It and all that follow are None for an embedding table.
    input_sqnr_db: on the grid of low..high. low, high: the range, zero included.
    inner_low, inner_high: the range of the middle 99.99 % of the values, zero included.
    advice: what to do, or that a tensor is constant; empty if the layer is fine.
    """

    name: str
    label: str
    group: str
    weight_bits: int
    weight_sqnr_db: float | None
    weight_per_tensor_sqnr_db: float | None
    input: str | None = None
    input_bits: int | None = None
    input_sqnr_db: float | None = None
    low: float | None = None
    high: float | None = None
    inner_low: float | None = None
    inner_high: float | None = None
    advice: str = ""

    @property
    def noise(self) -> float:
        """Noise power over signal power, the shares of weights and input added.

        (W + dW)(x + dx) - Wx = dW x + W dx, up to the product of both errors. The errors are independent, so
        their powers add, each relative to its own factor.
        """
        return share(self.weight_sqnr_db) + share(self.input_sqnr_db)

    @property
    def sqnr_db(self) -> float | None:
        """`noise` as a ratio in dB."""
        return decibels(self.noise)

    @property
    def range(self) -> str:
        """The range of the input in words, "-31..18"; empty for an embedding table."""
        return _span(self.low, self.high)

    @property
    def inner(self) -> str:
        """The range of its middle 99.99 % in words."""
        return _span(self.inner_low, self.inner_high)

    @property
    def summary(self) -> str:
        """One line: "layer 4 FFN output: 11.2 dB, range -31..18, 99.99 % within -4..5"."""
        ratio = "no noise" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB"
        span = f", range {self.range}, {INNER_PERCENT} % within {self.inner}" if self.input else ""
        return f"{self.label}: {ratio}{span}"


def linear_inputs(model: Model | Path) -> list[str]:
    """The activations that `explain` needs statistics and ranges of, in graph order.

    Raises:
        InputError: the file is missing or not an ONNX model.
    """
    return list(layers_by_input(find_linears(skeleton_ir(Model.of(model)))))


def explain(
    onnx_path: Path,
    statistics: Statistics,
    ranges: Ranges,
    *,
    input_bits: int = 8,
    weight_bits: int = 8,
    symmetric: bool = False,
) -> list[LayerNoise]:
    """The noise of every product with a weight and of every embedding table, worst first.

    Args:
        onnx_path: the FP32 model.
        statistics: with histograms, of the activations that `linear_inputs` names.
        ranges: of the same activations, as `calibration.derive` gives them.
        input_bits, symmetric: of the grid of an activation: 2^bits levels from low to high, or from -t to t.
        weight_bits: of the symmetric grid of weights.

    Raises:
        InputError: no model, statistics or ranges of another one, statistics without histograms, or bits out
            of range.
    """
    for option, bits in (("input_bits", input_bits), ("weight_bits", weight_bits)):
        if not _BITS[0] <= bits <= _BITS[1]:
            raise InputError(f"{option} {bits} is out of range; it must be within {_BITS[0]}..{_BITS[1]}")
    model = load_ir(onnx_path)
    linears = find_linears(model)
    names = list(layers_by_input(linears))
    for what, known in (("statistics", statistics.of), ("ranges", ranges.of)):
        lacking = [name for name in names if name not in known]
        if lacking:
            raise InputError(f"{onnx_path}: the {what} lack {lacking[0]}; they are those of another model")
    # Query, key and value share an activation, which is examined once.
    inputs = {
        name: _input(name, statistics.of[name], ranges.of[name], input_bits, symmetric) for name in names
    }
    noises = [_table(table.name, table.table, weight_bits) for table in find_embeddings(model)]
    noises += [_linear(linear, inputs[str(linear.input.name)], weight_bits) for linear in linears]
    return sorted(noises, key=lambda layer: layer.noise, reverse=True)


def _input(
    name: str, tensor: TensorStatistics, pair: tuple[float, float], bits: int, symmetric: bool
) -> dict[str, Any]:
    """The fields of `LayerNoise` that depend on the input."""
    inner = derive(Statistics({name: tensor}), f"Percentile:{INNER_PERCENT}").of[name]
    grid = Input(tensor, *pair, bits, symmetric)
    return {
        "input": name,
        "input_bits": grid.bits,
        "input_sqnr_db": decibels(grid.noise()),
        "low": grid.low,
        "high": grid.high,
        "inner_low": inner[0],
        "inner_high": inner[1],
        "advice": advice.on_input(grid, inner),
    }


def _linear(linear: Linear, of_input: dict[str, Any], bits: int) -> LayerNoise:
    layer = _weights(linear.name, linear.weight.T, bits)
    both = of_input["advice"], advice.on_matrix(linear.weight, layer.weight_sqnr_db)
    return replace(layer, **of_input | {"advice": "; ".join(filter(None, both))})


def _table(name: str, table: FloatArray, bits: int) -> LayerNoise:
    layer = _weights(name, table, bits)
    on_table = advice.on_table(table, layer.weight_sqnr_db, layer.weight_per_tensor_sqnr_db)
    return replace(layer, advice=on_table)


def _weights(name: str, channels: FloatArray, bits: int) -> LayerNoise:
    """The noise of a layer's weights, (channels, values); the input is filled in later."""
    per_channel, per_tensor = (weight_noise(channels, bits, per_channel=each) for each in (True, False))
    return LayerNoise(name, label(name), group(name), bits, decibels(per_channel), decibels(per_tensor))


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g}..{high:.3g}"
