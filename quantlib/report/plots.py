"""results.png: score, speedup and size of every variant; those worth shipping stand out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.compression.variants import VariantName
from quantlib.report.columns import VariantResult
from quantlib.support.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

# Okabe and Ito's colours, told apart with any colour vision; markers say the same without colour.
_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "P"))
_INCHES = (9.0, 5.5)
# Points² of the largest file's marker; the others in proportion of their bytes, but visible.
_LARGEST, _SMALLEST, _IN_LEGEND = 900.0, 25.0, 60.0
# Pixels around a point that no name covers; where a name may stand, in points from it, the best place first.
_NEAR = 14
_PLACES = tuple(
    (far * dx, far * dy, ha, va)
    for far in (1, 2, 3, 4)
    for dx, dy, ha, va in (
        (20, 0, "left", "center"),
        (-20, 0, "right", "center"),
        (0, 18, "center", "bottom"),
        (0, -18, "center", "top"),
        (18, 16, "left", "bottom"),
        (18, -16, "left", "top"),
        (-18, 16, "right", "bottom"),
        (-18, -16, "right", "top"),
    )
)


def draw(path: Path, results: Sequence[VariantResult]) -> None:
    """Write a PNG: the speedup across, the primary metric upwards, the marker's area the file's size.

    The speedup is from turns with the teacher: medians of times that a busy machine took one after the other
    would move a variant by what else ran. A line through a marker is its 95 % interval.

    A filled marker with a name is on the front (no other variant beats it); a hollow one is beaten.
    """
    figure_of(results).savefig(path, format="png")


def figure_of(results: Sequence[VariantResult]) -> Figure:
    """What `draw` writes."""
    figure = new_figure(_INCHES)
    axes = figure.subplots()
    models = list(dict.fromkeys(model_of(result.name) for result in results))
    for number, model in enumerate(models):
        _points(axes, [r for r in results if model_of(r.name) == model], model, number, _largest(results))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("times as fast as the teacher, logarithmic: right is better")
    axes.set_ylabel(f"{results[0].primary_metric}: up is better")
    axes.set_title("Filled: no other is as accurate, fast and small. Area: size.", fontsize="medium")
    axes.margins(0.12, 0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    _names(figure, axes, results)
    return figure


def model_of(variant: str) -> str:
    """The model that a variant was made of: `teacher`, `student`, `student_2`."""
    return VariantName.parse(variant).model


def _largest(results: Sequence[VariantResult]) -> int:
    return max(result.size_bytes for result in results)


def _points(axes: Axes, results: Sequence[VariantResult], model: str, number: int, largest: int) -> None:
    from matplotlib.colors import to_rgba

    colour, marker = _STYLES[number % len(_STYLES)]
    for front in (False, True):
        shown = [result for result in results if result.on_front == front]
        axes.scatter(
            [result.speedup for result in shown],
            [result.metrics[result.primary_metric] for result in shown],
            s=[max(_SMALLEST, _LARGEST * result.size_bytes / largest) for result in shown],
            marker=marker,
            facecolors=to_rgba(colour, 0.7) if front else "none",
            edgecolors=colour,
        )
        for result in shown:
            ends = result.timing.low, result.timing.high
            axes.plot(ends, [result.metrics[result.primary_metric]] * 2, color=colour, linewidth=1)
    axes.scatter([], [], s=_IN_LEGEND, marker=marker, color=colour, label=model)


def _names(figure: Figure, axes: Axes, results: Sequence[VariantResult]) -> None:
    """Names beside the points of the front, each at the first place where it covers nothing."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles where the points are
    points = {r.name: (r.speedup, r.metrics[r.primary_metric]) for r in results}
    taken = [
        Bbox.from_bounds(x - _NEAR, y - _NEAR, 2 * _NEAR, 2 * _NEAR)
        for x, y in (axes.transData.transform(point) for point in points.values())
    ]
    for result in results:
        if not result.on_front:
            continue
        for number, (dx, dy, ha, va) in enumerate(_PLACES, start=1):
            name = axes.annotate(
                f"{result.name}\n{result.model_size_mb:.1f} MB",
                points[result.name],
                xytext=(dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                fontsize="small",
                arrowprops={"arrowstyle": "-", "alpha": 0.4},
            )
            name.set_in_layout(False)
            name.get_window_extent()  # settles where it stands
            box = Text.get_window_extent(name)  # without its line
            if number == len(_PLACES) or not (box.count_overlaps(taken) or _outside(axes, box)):
                taken.append(box)
                break
            name.remove()


def _outside(axes: Axes, box: Bbox) -> bool:
    frame = axes.get_window_extent()
    return bool(box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1)
