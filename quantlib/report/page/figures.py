"""The plots of a run's page: the front, ratios to the teacher, layers, operators, scaling."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from quantlib.compression.variants import TEACHER, VariantName
from quantlib.measuring.profile import Profile
from quantlib.report.page.files import TaskRun
from quantlib.report.page.svg import PAINTS, SERIES, inline_svg, settings
from quantlib.support.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRUNED = "pruned"
_MARKERS = ("o", "^", "s", "D", "P")
# Points of a page: a figure's inch is 72 of them, and a wide one is shown a little larger than that.
_WIDE, _NARROW = (10.0, 5.4), (4.9, 5.0)
_LIST_INCHES = 4.9
_ROW_POINTS, _LIST_MARGINS = 17.0, (30.0, 26.0)
_LETTER, _BOLD_LETTER, _LETTER_SIZE = (
    0.56,
    0.65,
    9.0,
)  # the width of a letter of a page's fonts as a part of its size
# Points² of the largest file's marker; the others in proportion of their bytes, but visible.
_LARGEST, _SMALLEST = 620.0, 22.0
# Variants that lose more points of the metric would press all others into a line.
FAR_DROP, _FAR_SHARE = 0.10, 0.34
_NICE = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200, 500)
_MOST_TICKS = 9
# Points that a pointer can rest on are drawn one by one, which takes milliseconds each.
_MOST_HINTED = 100
WORST_LAYERS = 15
_FINE_DB = 30.0


@dataclass(frozen=True)
class Point:
    """A variant on the front's plot; low, high: the ends of an interval."""

    variant: str
    kind: str
    ratio: tuple[float, float, float]
    metric: tuple[float, float, float]
    size_mb: float
    beaten: bool

    @property
    def words(self) -> str:
        """All of it in a line."""
        low, ratio, high = self.ratio
        speedup = f"{ratio:.2f}x [{low:.2f}, {high:.2f}]"
        return f"{self.variant}: {self.metric[1]:.4f}, {speedup}, {self.size_mb:.1f} MB"


class Box(NamedTuple):
    """A rectangle in points."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: Box) -> bool:
        """Whether two overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )


def kind_of(run: TaskRun, variant: str) -> str:
    """What a variant is drawn as: "teacher", "pruned", "student", "student_2"."""
    recipe = run.run.recipes.get(variant, {})
    model = VariantName.parse(variant).model
    return PRUNED if model == TEACHER and (recipe.get("prune") or recipe.get("widths")) else model


def kinds_of(run: TaskRun) -> list[str]:
    """The kinds of a run's variants, the teacher's first."""
    return list(dict.fromkeys(kind_of(run, variant) for variant in run.results))


def points_of(run: TaskRun) -> list[Point]:
    """Every variant for the plot of the front."""
    return [_point(run, variant) for variant in run.results]


def far_off(points: Sequence[Point]) -> list[Point]:
    """Those that lose so much that the plot leaves them out; none if they are many."""
    best = points[0].metric[1]
    far = [point for point in points if point.metric[1] < best - FAR_DROP]
    return far if len(far) <= _FAR_SHARE * len(points) else []


def _point(run: TaskRun, variant: str) -> Point:
    values = run.results[variant]
    metric = metric_names(run)[0]
    score, ratio = _float(values[metric]), _float(values["speedup"])
    best = _float(run.results[TEACHER][metric])
    low, high = (_float(values.get(key, ratio)) for key in ("speedup_low", "speedup_high"))
    drops = [_float(values.get(key, best - score)) for key in ("drop_high", "drop_low")]
    return Point(
        variant,
        kind_of(run, variant),
        (low, ratio, high),
        (min(best - drops[0], score), score, max(best - drops[1], score)),
        _float(values["model_size"]),
        bool(values.get("beaten_by")),
    )


def metric_names(run: TaskRun) -> list[str]:
    """The task's metrics, the primary one first: they are written before the loss."""
    keys = list(run.results[TEACHER])
    return keys[: keys.index("eval_loss")] if "eval_loss" in keys else keys[:1]


def _float(value: Any) -> float:
    return float(value)


def front(run: TaskRun, name: str, *, narrow: bool = False) -> Any:
    """The front of a run, see `front_of`; named are its first choices."""
    chosen = {choice.variant for choice in run.run.choices if choice.variant is not None}
    return front_of(points_of(run), metric_names(run)[0], chosen, name, narrow=narrow)


def front_of(
    points: Sequence[Point],
    metric: str,
    chosen: Collection[str],
    name: str,
    *,
    reference: str = "the teacher",
    called: str = "First choices",
    narrow: bool = False,
) -> Any:
    """A metric against the speedup, with their intervals; the area of a marker is the file's size.

    Filled is what no other variant beats.

    Args:
        points: what is drawn, each with a name of its own; the first is what ratios are to.
        metric: its name.
        chosen: those that are named, beside the first.
        name: of the figure, see `inline_svg`.
        reference, called: what the first, and those that are named, are called in a sentence.
        narrow: for a phone.
    """
    far = far_off(points)
    shown = [point for point in points if point not in far]
    named = {*chosen, points[0].variant}
    hinted = not narrow and len(shown) <= _MOST_HINTED
    gids = {point.variant: f"point-{number}" for number, point in enumerate(shown)} if hinted else {}
    inches = _NARROW if narrow else _WIDE
    with _figure(inches, left=58, bottom=40, right=10, top=24) as (figure, axes):
        _ratio_axis(axes, shown)
        lows, highs = [p.metric[0] for p in shown], [p.metric[2] for p in shown]
        margin = 0.08 * (max(highs) - min(lows)) or 0.01
        axes.set_ylim(min(lows) - margin, max(highs) + margin)
        axes.set_xlabel(f"speedup over {reference}, logarithmic: right is better", parse_math=False)
        axes.set_ylabel(f"{metric}: up is better", parse_math=False)
        kinds = list(dict.fromkeys(point.kind for point in points))
        for number, kind in enumerate(kinds):
            of_kind = [point for point in shown if point.kind == kind]
            _draw_kind(axes, of_kind, number, max(p.size_mb for p in points), gids)
        if len({point.kind for point in shown}) > 1:
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=SERIES,
                frameon=False,
                fontsize=_LETTER_SIZE,
                handletextpad=0.2,
                columnspacing=1.2,
                borderaxespad=0.2,
            )
        _write_names(axes, shown, [p for p in shown if p.variant in named])
    best = ", ".join(point.words for point in shown[1:] if point.variant in named)
    return inline_svg(
        figure,
        name,
        f"{metric} against speedup of {len(shown)} variants",
        f"{called}: {best or 'none'}. The table has every number.",
        {gids[point.variant]: point.words for point in shown} if hinted else {},
    )


def _draw_kind(
    axes: Axes, points: Sequence[Point], number: int, largest: float, gids: Mapping[str, str]
) -> None:
    """gids: of each point, where a pointer shows its words."""
    colour, marker = PAINTS[f"series-{number % SERIES + 1}"], _MARKERS[number % len(_MARKERS)]
    if not points:
        return
    low, ratio, high = zip(*(point.ratio for point in points), strict=True)
    bottom, metric, top = zip(*(point.metric for point in points), strict=True)
    axes.hlines(metric, low, high, color=colour, linewidth=1.4, alpha=0.8)
    axes.vlines(ratio, bottom, top, color=colour, linewidth=1.0, alpha=0.45)
    # A pointer needs an artist for each point.
    for group in [[point] for point in points] if gids else [points]:
        axes.scatter(
            [point.ratio[1] for point in group],
            [point.metric[1] for point in group],
            s=[max(_SMALLEST, _LARGEST * point.size_mb / largest) for point in group],
            marker=marker,
            facecolors=[PAINTS["paper"] if point.beaten else colour for point in group],
            edgecolors=colour,
            linewidths=1.4,
            alpha=0.85,
            gid=gids.get(group[0].variant),
            zorder=3,
        )
    axes.scatter([], [], s=50, marker=marker, color=colour, label=points[0].kind)


def _ratio_axis(axes: Axes, points: Sequence[Point]) -> None:
    low = min(min(p.ratio[0] for p in points), 1.0) / 1.12
    high = max(max(p.ratio[2] for p in points), 1.0) * 1.12
    _log_axis(axes, low, high)
    axes.axvline(1.0, color=PAINTS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    axes.grid(color=PAINTS["grid"], linewidth=0.8)
    axes.set_axisbelow(True)


def _log_axis(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [nice for nice in _NICE if low <= nice <= high]
    while len(ticks) > _MOST_TICKS:
        ticks = ticks[::2]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.set_xticks([], minor=True)


def _write_names(axes: Axes, points: Sequence[Point], named: Sequence[Point]) -> None:
    """Names beside their points, each at the first place where it covers nothing."""
    at = {p.variant: axes.transData.transform((p.ratio[1], p.metric[1])) for p in points}
    frame = axes.get_window_extent()
    taken = [Box(x - 9, y - 9, x + 9, y + 9) for x, y in at.values()]
    for point in points:
        (left, y), (right, _) = axes.transData.transform([(end, point.metric[1]) for end in point.ratio[::2]])
        taken.append(Box(left, y - 2, right, y + 2))
    for point in named:
        x, y = at[point.variant]
        width, height = _BOLD_LETTER * 10 * len(point.variant) + 4, 13.0
        places = [
            (
                x + dx * far
                if align == "left"
                else x + dx * far - (width if align == "right" else width / 2),
                y + dy,
            )
            for far in (1.0, 1.6, 2.4)
            for dx, dy, align in (
                (16, -height / 2, "left"),
                (-16, -height / 2, "right"),
                (0, 15 * far, "center"),
                (0, -15 * far - height, "center"),
                (12, 10 * far, "left"),
                (12, -10 * far - height, "left"),
                (-12, 10 * far, "right"),
                (-12, -10 * far - height, "right"),
            )
        ]
        boxes = [Box(left, bottom, left + width, bottom + height) for left, bottom in places]
        inside = [
            box
            for box in boxes
            if box.left >= frame.x0
            and box.right <= frame.x1 + 6
            and box.bottom >= frame.y0
            and box.top <= frame.y1
        ]
        free = [box for box in inside if not any(box.meets(other) for other in taken)]
        box = (free or inside or boxes)[0]
        taken.append(box)
        axes.annotate(
            point.variant,
            (point.ratio[1], point.metric[1]),
            xytext=((box.left + box.right) / 2 - x, (box.bottom + box.top) / 2 - y),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="normal" if point is points[0] else "bold",
            zorder=4,
            bbox={"facecolor": PAINTS["paper"], "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            arrowprops=None
            if box in boxes[:4]
            else {"arrowstyle": "-", "color": PAINTS["muted"], "linewidth": 0.7, "shrinkB": 6},
        )


def ratios(run: TaskRun, name: str) -> Any:
    """Speedup and throughput of each variant over the teacher, with their intervals, the fastest first.

    A hollow circle is a speedup that is not trusted.
    """
    variants = [variant for variant in run.results if variant != TEACHER]
    variants.sort(key=lambda variant: -_float(run.results[variant]["speedup"]))
    points = [_point(run, variant) for variant in variants]
    kinds = kinds_of(run)

    def draw(axes: Axes) -> None:
        _ratio_axis(axes, points)
        paints = [PAINTS[f"series-{kinds.index(point.kind) % SERIES + 1}"] for point in points]
        lows, _, highs = zip(*(point.ratio for point in points), strict=True)
        above = [row - 0.14 for row in range(len(points))]
        axes.hlines(above, lows, highs, colors=paints, linewidth=1.6)
        timed = [row for row, point in enumerate(points) if "throughput_ratio" in run.results[point.variant]]
        if timed:
            of = [run.results[points[row].variant] for row in timed]
            low, ratio, high = (
                [_float(values[f"throughput_ratio{end}"]) for values in of] for end in ("_low", "", "_high")
            )
            below, colours = [row + 0.2 for row in timed], [paints[row] for row in timed]
            axes.hlines(below, low, high, colors=colours, linewidth=1.0, alpha=0.6)
            axes.scatter(ratio, below, s=10, marker="s", color=colours, alpha=0.75)
        trusted = [bool(run.results[point.variant].get("trusted", True)) for point in points]
        axes.scatter(
            [point.ratio[1] for point in points],
            above,
            s=30,
            facecolors=[c if sure else PAINTS["paper"] for c, sure in zip(paints, trusted, strict=True)],
            edgecolors=paints,
            zorder=3,
        )
        for row, point in enumerate(points):
            _beside(axes, row, f"{point.ratio[1]:.2f}x{'' if trusted[row] else ' ?'}")

    return _list(
        name,
        "Speedup and throughput over the teacher",
        "; ".join(point.words for point in points[:5]) + ". The table has every number.",
        [point.variant for point in points],
        draw,
        right=44,
    )


def layers(run: TaskRun, name: str) -> Any:
    """The signal-to-quantization-noise ratio of the layers that 8 bits cost most."""
    worst = [layer for layer in run.layers if layer.sqnr_db is not None][:WORST_LAYERS]

    def draw(axes: Axes) -> None:
        for row, layer in enumerate(worst):
            assert layer.sqnr_db is not None
            colour = PAINTS["bad" if layer.sqnr_db < _FINE_DB else "series-1"]
            axes.hlines(row, 0, layer.sqnr_db, color=colour, linewidth=1.2)
            axes.plot([layer.sqnr_db], [row], marker="o", markersize=5, color=colour)
            _beside(axes, row, f"{layer.sqnr_db:.1f} dB")
        axes.set_xlim(left=0)
        axes.axvline(_FINE_DB, color=PAINTS["muted"], linewidth=0.8, linestyle=(0, (4, 3)))

    summary = "; ".join(layer.summary for layer in worst[:3])
    return _list(
        name, "The layers that 8 bits cost most", summary, [each.label for each in worst], draw, right=50
    )


def operators(profile: Profile, name: str) -> Any:
    """The time of each operator of a variant; a mark shows what its products take at the machine's peak."""
    lines, small = profile.shown()
    bars = [
        (f"{line.name} ({line.count})", line.ms, line.limit_ms if line.operations.total else None)
        for line in lines
    ]
    if small:
        bars.append((f"{len(small)} other operators", sum(line.ms for line in small), None))
    bars.append(("outside kernels", profile.outside_ms, None))

    def draw(axes: Axes) -> None:
        for row, (_, ms, limit_ms) in enumerate(bars):
            axes.barh(
                row, ms, height=0.6, color=PAINTS["muted" if limit_ms is None else "series-1"], alpha=0.8
            )
            if limit_ms is not None:
                axes.plot(
                    [limit_ms], [row], marker="|", markersize=12, markeredgewidth=2.2, color=PAINTS["ink"]
                )
            _beside(axes, row, f"{ms:.2f} ms")
        axes.set_xlim(left=0)

    return _list(
        name,
        f"Time of {profile.variant} by operator",
        profile.summary,
        [bar[0] for bar in bars],
        draw,
        right=54,
    )


def scaling(run: TaskRun, name: str) -> Any:
    """The time of one row by its length, for each model and number of threads."""
    assert run.scaling is not None
    lone = [point for point in run.scaling.points if point.batch == min(p.batch for p in run.scaling.points)]
    series = list(dict.fromkeys((point.model, point.threads) for point in lone))[:SERIES]
    with _figure(_NARROW, left=58, bottom=40, right=12, top=10) as (figure, axes):
        for number, (model, threads) in enumerate(series):
            of = sorted((p.length, p.ms) for p in lone if (p.model, p.threads) == (model, threads))
            axes.plot(
                [length for length, _ in of],
                [ms for _, ms in of],
                color=PAINTS[f"series-{number + 1}"],
                marker=_MARKERS[number],
                markersize=5,
                label=f"{model}, {threads} thread{'s' if threads > 1 else ''}",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        lengths = sorted({point.length for point in lone})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("tokens of a row")
        axes.set_ylabel("ms, logarithmic")
        axes.grid(color=PAINTS["grid"], linewidth=0.8)
        axes.legend(frameon=False, fontsize=_LETTER_SIZE)
    return inline_svg(figure, name, "Time by length", f"{len(lone)} times of {len(series)} series.")


def _beside(axes: Axes, row: int, words: str) -> None:
    """Words to the right of a line of a list."""
    axes.text(1.02, row, words, transform=axes.get_yaxis_transform(), va="center", fontsize=_LETTER_SIZE)


@contextmanager
def _figure(
    inches: tuple[float, float], *, left: float, bottom: float, right: float, top: float
) -> Iterator[tuple[Any, Axes]]:
    """A figure and its axes, with margins in points: nothing is measured, which is what takes time."""
    width, height = (72 * inch for inch in inches)
    with settings():
        figure = new_figure(inches, 72)
        figure.set_layout_engine("none")
        axes = figure.add_axes(
            (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        )
        # Where no label of an axis is placed by what its ticks measure, nothing need be measured.
        axes.xaxis.set_label_coords(0.5, (17 - bottom) / (height - bottom - top))
        axes.yaxis.set_label_coords((12 - left) / (width - left - right), 0.5)
        yield figure, axes


def _list(
    name: str,
    title: str,
    description: str,
    rows: Sequence[str],
    draw: Callable[[Axes], None],
    *,
    right: float,
) -> Any:
    """A figure with a line for each of several things, their names on the left."""
    bottom, top = _LIST_MARGINS[0], 4.0
    height = (bottom + top + _ROW_POINTS * max(len(rows), 1)) / 72
    longest = max((len(row) for row in rows), default=0)
    left = min(_LETTER * _LETTER_SIZE * longest + 10, 170)
    with _figure((_LIST_INCHES, height), left=left, bottom=bottom, right=right, top=top) as (figure, axes):
        axes.grid(axis="x", color=PAINTS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows], fontsize=_LETTER_SIZE)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=_LETTER_SIZE)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
    return inline_svg(figure, name, title, description)


def _short(text: str) -> str:
    most = math.floor(165 / (_LETTER * _LETTER_SIZE))
    return text if len(text) <= most else f"{text[: most - 1]}…"
