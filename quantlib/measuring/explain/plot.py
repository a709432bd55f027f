"""explain.png: the noise of inputs and of weights along the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.measuring.explain.advice import FINE_DB
from quantlib.measuring.explain.layers import LayerNoise
from quantlib.onnx_model.roles import ROLES, role
from quantlib.support.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct with any colour vision; markers are distinct without colour.
_STYLES = (
    ("#0072B2", "o"),
    ("#56B4E9", "v"),
    ("#009E73", "^"),
    ("#CC79A7", "s"),
    ("#E69F00", "D"),
    ("#D55E00", "P"),
)
_OUTSIDE = ("#000000", "X")
_INCHES = (10.0, 7.0)
_JOINED = ", "
_IN_LAYER = re.compile(r"layer (\d+) (.+)")

# {what a layer is, as in "FFN output": [(its place, its ratio in dB)]}
Series = dict[str, list[tuple[int, float]]]


def draw(path: Path, layers: Sequence[LayerNoise]) -> None:
    """Write a PNG: a panel for inputs and one for weights, SQNR in dB over the layers, a line for each role.

    A tensor without noise has no point.
    """
    figure = new_figure(_INCHES)
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    layers = sorted(layers, key=_order)
    places = list(dict.fromkeys(_place(layer)[0] for layer in layers))
    kinds = [what for what in dict.fromkeys(_place(layer)[1] for layer in layers) if what]
    styles = dict(zip(kinds, cycle(_STYLES), strict=False))
    _panel(above, _inputs(layers, places), styles, "input of the layer: SQNR in dB")
    _panel(below, _weights(layers, places), styles, "weights of the layer: SQNR in dB")
    below.set_xticks(range(len(places)), places)
    for tick in below.get_xticklabels():
        if not tick.get_text().isdecimal():
            tick.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
    figure.savefig(path, format="png")


def _order(layer: LayerNoise) -> tuple[int, int, int, str]:
    """Along the network: embeddings, the numbered layers, what comes after them."""
    place, _ = _place(layer)
    index = ROLES.index(role(layer.name))
    if place.isdecimal():
        return 1, int(place), index, layer.label
    return (0 if index < ROLES.index("qkv") else 2), 0, index, layer.label


def _place(layer: LayerNoise) -> tuple[str, str]:
    """(place, what): ("4", "FFN output"), or ("pooler", "") for a layer without a number."""
    match = _IN_LAYER.fullmatch(layer.label)
    return (match[1], match[2]) if match else (layer.label, "")


def _inputs(layers: Sequence[LayerNoise], places: Sequence[str]) -> Series:
    """The points of the inputs; one that several products share (query, key and value) is one point."""
    layers_of: dict[str, list[LayerNoise]] = {}
    for layer in layers:
        if layer.input is not None:
            layers_of.setdefault(layer.input, []).append(layer)
    series: Series = {}
    for first, *others in layers_of.values():
        place, what = _place(first)
        if first.input_sqnr_db is not None:
            what = _JOINED.join([what, *(_place(other)[1] for other in others)])
            series.setdefault(what, []).append((places.index(place), first.input_sqnr_db))
    return series


def _weights(layers: Sequence[LayerNoise], places: Sequence[str]) -> Series:
    series: Series = {}
    for layer in layers:
        place, what = _place(layer)
        if layer.weight_sqnr_db is not None:
            series.setdefault(what, []).append((places.index(place), layer.weight_sqnr_db))
    return series


def _panel(axes: Axes, series: Series, styles: Mapping[str, tuple[str, str]], title: str) -> None:
    for what, points in series.items():
        # A point that several layers share has the colour of the first one.
        colour, marker = styles.get(what.split(_JOINED)[0], _OUTSIDE)
        line, legend = ("-", what) if what else ("", "outside of layers")
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, marker=marker, linestyle=line, linewidth=1, label=legend)
    axes.axhline(FINE_DB, color="0.5", linestyle="--", linewidth=1, label=f"{FINE_DB:.0f} dB")
    axes.set_title(title, loc="left")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
