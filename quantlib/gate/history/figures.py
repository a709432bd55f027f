"""Speedup, drop and size of one variant over the commits, drawn; each point opens its commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantlib.compression.variants import TEACHER
from quantlib.gate.history.series import Point, Series
from quantlib.gate.history.steps import Measure, Step
from quantlib.gate.history.text import day_of
from quantlib.report.columns import BYTES_PER_MB
from quantlib.report.page.svg import PAINTS, SERIES, inline_svg, settings
from quantlib.support.commits import Commit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (3.7, 2.3)
_MARKERS = ("o", "s", "^", "D", "P")
_TICKS = 3
_AREA = 25.0  # of a mark, in points²


@dataclass(frozen=True)
class _Mark:
    """A point of a figure: its place among the commits, value, ends of its interval, and words."""

    point: Point
    place: int
    value: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class _Line:
    """Marks that are joined. label: what tells them from others, a shape."""

    label: str
    marks: tuple[_Mark, ...]


def figures_of(
    series: Series, anchor: str, commits: Sequence[Commit], steps: Sequence[Step], url: str | None
) -> tuple[list[Any], list[str]]:
    """The figures as SVG elements for a template: speedup, drop (of the teacher its score), size.

    What never changed is a sentence instead.

    Args:
        series: the variant.
        anchor: unlike that of any other variant of the page.
        commits: across, the oldest first; those of the whole file, so that figures compare.
        steps: of the variant.
        url: to which a commit's hash is added; None: points are no links.
    """
    places = {commit: place for place, commit in enumerate(commits)}

    def line(label: str, value: Callable[[Point], tuple[float, float, float] | None], unit: str) -> _Line:
        marks = []
        for point in series.points:
            values = value(point)
            if values is not None:
                middle, low, high = values
                interval = f" [{low:.2f}, {high:.2f}]" if low < high else ""
                words = f"{middle:z.2f}{unit}{interval}"
                marks.append(_Mark(point, places[point.commit], middle, low, high, words))
        return _Line(label, tuple(marks))

    drawn: list[tuple[Measure, str, list[_Line]]] = []
    if series.variant != TEACHER and series.shapes:
        drawn.append(("speedup", "speedup", [line(s, _speedup(s), "x") for s in series.shapes]))
    if series.variant == TEACHER:
        drawn.append(("score", "score, %", [line("", _score, " %")]))
    else:
        drawn.append(("drop", "drop, points", [line("", _drop, " points")]))
    drawn.append(("size", "size, MB", [line("", _size, " MB")]))
    figures, sentences = [], []
    for measure, label, lines in drawn:
        if all(map(_is_flat, lines)):
            sentences += [_sentence(measure, line) for line in lines if line.marks]
            continue
        own = [step for step in steps if step.measure == measure]
        with settings():
            figure = _draw(label, lines, commits, own, url)
        newest = max((mark for line in lines for mark in line.marks), key=lambda mark: mark.place)
        title = f"{series.variant}: {label} over the commits"
        described = f"At the newest commit {newest.words}. The table below has every number."
        links = {} if url is None else _links(lines, own, url)
        figures.append(inline_svg(figure, f"{anchor}-{measure}", title, described, links=links))
    return figures, sentences


def _is_flat(line: _Line) -> bool:
    """Whether all marks are the same, so that nothing is to be seen."""
    ends = [(mark.low, mark.value, mark.high) for mark in line.marks]
    return len(ends) < 2 or (len(set(ends)) == 1)


def _sentence(measure: Measure, line: _Line) -> str:
    """What a figure of a flat line would show."""
    count = len(line.marks)
    where = "at its one commit" if count == 1 else f"at each of its {count} commits"
    what = f"{measure} at {line.label}" if line.label else measure
    return f"{what}: {line.marks[0].words} {where}"


def _links(lines: Sequence[_Line], steps: Sequence[Step], url: str) -> dict[str, str]:
    """The words of each commit's link: what its points are, and its steps."""
    words: dict[Commit, list[str]] = {}
    for line in lines:
        for mark in line.marks:
            commit = mark.point.commit
            words.setdefault(commit, [f"{commit.short}, {day_of(commit)}"])
            words[commit].append(f"{line.label} {mark.words}".strip())
    for step in steps:
        words[step.at].append(step.words)
    return {f"{url}{commit.sha}": "; ".join(parts) for commit, parts in words.items()}


def _speedup(shape: str) -> Callable[[Point], tuple[float, float, float] | None]:
    def value(point: Point) -> tuple[float, float, float] | None:
        timing = point.timings.get(shape)
        return None if timing is None else (timing.ratio, timing.low, timing.high)

    return value


def _score(point: Point) -> tuple[float, float, float] | None:
    return None if point.score is None else (100 * point.score,) * 3


def _drop(point: Point) -> tuple[float, float, float]:
    low, high = point.drop_interval or (point.drop, point.drop)
    return 100 * point.drop, 100 * low, 100 * high


def _size(point: Point) -> tuple[float, float, float]:
    return (point.size_bytes / BYTES_PER_MB,) * 3


def _draw(
    label: str,
    lines: Sequence[_Line],
    commits: Sequence[Commit],
    steps: Sequence[Step],
    url: str | None,
) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES)
    figure.subplots_adjust(left=0.16, right=0.93, bottom=0.21, top=0.88)
    axes = figure.subplots()
    for number, line in enumerate(lines):
        _draw_line(axes, number, line, steps, url)
    axes.set_title(label, loc="left", fontsize="medium")
    axes.set_xlim(-0.5, max(len(commits) - 0.5, 0.5))
    ticks = sorted({round(k * (len(commits) - 1) / (_TICKS - 1)) for k in range(_TICKS)})
    axes.set_xticks(ticks, [f"{commits[k].short}\n{day_of(commits[k])}" for k in ticks], fontsize="small")
    values = [end for line in lines for mark in line.marks for end in (mark.low, mark.high)]
    if values:
        # A level that does not change is a line in the middle, and not noise at a scale of its own.
        least = 1.0 if label.startswith(("score", "drop")) else 0.1 * max(values)
        room = max(0.15 * (max(values) - min(values)), least)
        axes.set_ylim(min(values) - room, max(values) + room)
    axes.yaxis.set_major_locator(_locator())
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if len(lines) > 1:
        axes.legend(loc="best", frameon=False, fontsize="small")
    return figure


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _draw_line(axes: Axes, number: int, line: _Line, steps: Sequence[Step], url: str | None) -> None:
    """The marks, their intervals, and the steps among them: filled if sure, hollow if not."""
    paint, marker = PAINTS[f"series-{number % SERIES + 1}"], _MARKERS[number % len(_MARKERS)]
    places = [mark.place for mark in line.marks]
    axes.plot(places, [mark.value for mark in line.marks], color=paint, linewidth=1.2)
    axes.scatter([], [], s=_AREA, marker=marker, color=paint, label=line.label)
    axes.vlines(
        places,
        [mark.low for mark in line.marks],
        [mark.high for mark in line.marks],
        color=paint,
        linewidth=1,
    )
    step_at = {step.at: step for step in steps if (step.shape or "") == line.label}
    level = [mark for mark in line.marks if mark.point.commit not in step_at]
    _scatter(axes, level, url, s=_AREA, marker=marker, color=paint)
    for mark in line.marks:
        step = step_at.get(mark.point.commit)
        if step is not None:
            edge = PAINTS["bad" if step.worse else "good"]
            face = edge if step.sure else PAINTS["paper"]
            turned = "^" if step.new > step.old else "v"
            _scatter(axes, [mark], url, s=3 * _AREA, marker=turned, facecolors=face, edgecolors=edge)


def _scatter(axes: Axes, marks: Sequence[_Mark], url: str | None, **style: Any) -> None:
    drawn = axes.scatter([mark.place for mark in marks], [mark.value for mark in marks], zorder=3, **style)
    if url is not None:
        drawn.set_urls([f"{url}{mark.point.commit.sha}" for mark in marks])
