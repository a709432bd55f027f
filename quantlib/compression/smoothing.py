"""SmoothQuant: move the outliers of activations into the weights, where a scale for each channel holds them.

X·W equals (X / s)·(s·W), with a factor s for each input channel (Xiao et al., 2023, eq. 3). If some channels
of X are much wider than others, one 8-bit scale is too coarse for the narrow ones. The channels of X / s are
more alike, and W has a scale for each output channel in any case. The model computes the same as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantlib.compression.calibration import Channels, collect_channels, join_channels
from quantlib.compression.grid import activation_grid, levels, quantize_weight
from quantlib.data.features import Feed
from quantlib.onnx_model.layers import FloatArray, Linear, find_linears, layers_by_input, load_ir
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file

if TYPE_CHECKING:
    import onnx_ir as ir

MARK = "quantlib.smoothed"
# Migration strengths to try; at 1 every channel of the activation gets the same width.
ALPHAS = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
# A smaller gain is not worth a node at run time.
WORTHWHILE_DB = 1.0
# The width of a channel narrower than this is not known from the calibration rows.
_SMALLEST_WIDTH = np.float32(1e-5)


@dataclass(frozen=True, eq=False)
class Smoothing:
    """The factors of one activation, and their gain.

    alpha: the chosen migration strength. gain_db: the error of the quantized products that read the
    activation, before over after, in decibels. factors: float32, (channels,), with a geometric mean of 1.
    """

    alpha: float
    gain_db: float
    factors: FloatArray


def search_smoothing(
    onnx_path: Path,
    feeds: Iterable[Feed],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Smoothing]:
    """The best smoothing of each input of the products with a weight, on calibration rows.

    For each of `ALPHAS` the factors are s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) (Xiao et al., 2023,
    eq. 4; W_j over all products that read X). The products are then computed from 8-bit activations and
    weights on a sample of positions, and the alpha with the smallest squared error is chosen. Activations
    that gain less than `WORTHWHILE_DB` are left out.

    Args:
        onnx_path: the FP32 model.
        feeds: calibration rows: arrays (rows, tokens).
        threads: of the session and of NumPy's products; by default the physical cores, and as many as NumPy
            takes. Another number gives other rounding in the last bits.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: as `quantlib.compression.calibration.collect`.
    """
    from threadpoolctl import threadpool_limits

    layers_of = layers_by_input(find_linears(load_ir(onnx_path)))
    if not layers_of:
        raise InputError(f"{onnx_path}: no MatMul or Gemm with a weight to smooth")
    channels = collect_channels(onnx_path, feeds, list(layers_of), threads=threads, progress=progress)
    with threadpool_limits(threads):
        searched = _searched(channels, layers_of)
    return {name: smoothing for name, smoothing in searched.items() if smoothing.gain_db >= WORTHWHILE_DB}


def _searched(
    channels: Mapping[str, Channels], layers_of: Mapping[str, Sequence[Linear]]
) -> dict[str, Smoothing]:
    """The best smoothing of each activation; those whose layers have the same weights get the same factors.

    Otherwise weights that an ALBERT's layers share would have to be there once for each layer.
    """
    sharing: dict[tuple[str, ...], list[str]] = {}
    for name, layers in layers_of.items():
        sharing.setdefault(tuple(layer.weight_name for layer in layers), []).append(name)
    searched: dict[str, Smoothing] = {}
    for names in sharing.values():
        best = _search(join_channels([channels[name] for name in names]), layers_of[names[0]])
        searched |= dict.fromkeys(names, best)
    return {name: searched[name] for name in layers_of}


def smooth_onnx(onnx_path: Path, out_path: Path, smoothing: Mapping[str, Smoothing]) -> Path:
    """Write a model that computes the same and whose activations are smooth; the model itself is left alone.

    Factors are folded into the LayerNormalization before the activation, or into the values that attention
    averages; where there is neither (after GELU), a Mul is added. For other consumers of a
    LayerNormalization's output (a residual sum) the scaling is undone.

    Returns:
        out_path.

    Raises:
        InputError: the model cannot be read, is smoothed already, or has no product that reads one of the
            activations.
    """
    import onnx_ir as ir
    from onnx_ir.passes.common import DeduplicateHashedInitializersPass

    from quantlib.compression.folding import scale_input

    model = load_ir(onnx_path)
    if is_smoothed(model):
        raise InputError(f"{onnx_path}: this model is smoothed already")
    layers = find_linears(model)
    layers_of = layers_by_input(layers)  # before any input is replaced
    for name, chosen in smoothing.items():
        if name not in layers_of:
            raise InputError(f"{onnx_path}: no product takes the activation {name!r}")
        scale_input(model.graph, layers_of[name], layers, chosen.factors)
    DeduplicateHashedInitializersPass()(model)  # weights that layers share were scaled once for each
    model.metadata_props[MARK] = "1"
    with atomic_file(out_path) as scratch:
        ir.save(model, scratch)
    return out_path


def is_smoothed(model: ir.Model) -> bool:
    """Whether `smooth_onnx` wrote this model."""
    return MARK in model.metadata_props


def _search(channels: Channels, layers: Sequence[Linear]) -> Smoothing:
    """The best alpha for an activation and the layers that read it."""
    weights = [layer.weight for layer in layers]
    width = _widths(np.maximum(np.abs(channels.low), np.abs(channels.high)))
    widest = _widths(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0))
    exact = [channels.sample @ weight for weight in weights]
    ones = np.ones_like(width)
    plain = best_error = _error(channels, weights, exact, ones)
    best = Smoothing(0.0, 0.0, ones)
    for alpha in ALPHAS:
        factors = width**alpha / widest ** (1 - alpha)
        factors = (factors / _geometric_mean(factors)).astype(np.float32)
        error = _error(channels, weights, exact, factors)
        if error < best_error:
            best, best_error = Smoothing(alpha, float(10 * np.log10(plain / error)), factors), error
    return best


def _widths(largest: FloatArray) -> FloatArray:
    """The width of each channel; a typical width for channels that are zero.

    After a ReLU some channels are zero on all calibration rows. Their factors would be so extreme that any
    other value in these channels is lost.
    """
    live = largest > _SMALLEST_WIDTH
    typical = _geometric_mean(largest[live]) if live.any() else 1.0
    return np.where(live, largest, typical).astype(np.float32)


def _geometric_mean(values: FloatArray) -> float:
    return float(np.exp(np.log(values).mean()))


def _error(
    channels: Channels, weights: Sequence[FloatArray], exact: Sequence[FloatArray], factors: FloatArray
) -> float:
    """The squared error of the products with activations and weights in 8 bits."""
    low, high = float((channels.low / factors).min()), float((channels.high / factors).max())
    activation = levels(channels.sample / factors, activation_grid(low, high, signed=False))
    total = 0.0
    for weight, product in zip(weights, exact, strict=True):
        values, scale = quantize_weight(weight * factors[:, None])
        total += float(np.square(activation @ (values * scale) - product).sum())
    return max(total, float(np.finfo(np.float32).tiny))
