"""profile_<VARIANT>.png: the time of each operator, and what its products would take at the peak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.measuring.profile.result import OUTSIDE, Profile
from quantlib.support.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct with any colour vision.
_PRODUCT, _OTHER, _OUTSIDE, _LIMIT = "#0072B2", "#BBBBBB", "#E69F00", "#D55E00"
_WIDTH_INCHES = 9.0
_INCHES_A_BAR = 0.3
_MARGIN_INCHES = 1.4

Bar = tuple[str, float, str, float | None]
"""Label, ms, colour, and the limit in ms of a product."""


def draw(path: Path, profile: Profile) -> None:
    """Write a PNG: a bar for each operator, the longest on top, products marked with their limit."""
    bars = _bars(profile)
    height = _MARGIN_INCHES + _INCHES_A_BAR * len(bars)
    figure = new_figure((_WIDTH_INCHES, height))
    axes = figure.subplots()
    _draw_bars(axes, bars)
    batch, length = profile.shape
    title = f"{profile.variant}, {batch}x{length}, {profile.peak.threads} threads: {profile.median_ms:.2f} ms"
    if profile.operations.total:
        title += f" a run, the limit is {profile.limit_ms:.2f} ms ({100 * profile.share:.0f} %)"
    axes.set_title(title, loc="left", parse_math=False)
    axes.set_xlabel("ms a run, tracing included")
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _bars(profile: Profile) -> list[Bar]:
    lines, small = profile.shown()
    bars: list[Bar] = [
        (f"{line.name} ({line.count})", line.ms, _PRODUCT, line.limit_ms)
        if line.operations.total
        else (f"{line.name} ({line.count})", line.ms, _OTHER, None)
        for line in lines
    ]
    if small:
        bars.append((f"{len(small)} other operators", sum(line.ms for line in small), _OTHER, None))
    return [*bars, (OUTSIDE, profile.outside_ms, _OUTSIDE, None)]


def _draw_bars(axes: Axes, bars: list[Bar]) -> None:
    names = {_PRODUCT: "holds a matrix product", _OTHER: "holds none", _OUTSIDE: OUTSIDE}
    for colour, name in names.items():
        places = [place for place, bar in enumerate(bars) if bar[2] == colour]
        if places:
            axes.barh(places, [bars[place][1] for place in places], color=colour, label=name)
    limits = [(place, bar[3]) for place, bar in enumerate(bars) if bar[3] is not None]
    if limits:
        places_y, at = zip(*limits, strict=True)
        axes.scatter(
            at, places_y, marker="|", s=160, linewidths=2.5, color=_LIMIT, zorder=3,
            label="its products at the machine's peak",
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], parse_math=False)
    axes.invert_yaxis()
    axes.legend(loc="lower right", frameon=False)
