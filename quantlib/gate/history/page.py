"""The history as a page for a browser: figures whose points open their commits, and all numbers in tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlib.compression.variants import TEACHER
from quantlib.gate.history.figures import figures_of
from quantlib.gate.history.history import History
from quantlib.gate.history.series import Series
from quantlib.gate.history.steps import ERROR, Step
from quantlib.gate.history.text import Group, day_of, groups_of, note_of, verdict_of
from quantlib.gate.size import SIZE_TOLERANCE
from quantlib.report.columns import BYTES_PER_MB
from quantlib.report.front import CLEAR_SCORE, CLEAR_TIME
from quantlib.report.page.html import render
from quantlib.support.commits import Commit
from quantlib.support.files import write_text
from quantlib.support.plotting import NO_PLOTS, can_plot


def write_page(path: Path, history: History, since: str | None, state_spread: float, version: str) -> None:
    """Write the page, whole or not at all.

    Args:
        path: of the file.
        history: what it shows.
        since: what the listed steps are limited to, in the user's words; None for all.
        state_spread: that the steps were found with.
        version: of quantlib.

    Raises:
        InputError: the file cannot be written.
    """
    steps = {id(step): _shown(step) for step in history.steps}
    write_text(
        path,
        render(
            "history.html.j2",
            name=history.name,
            url=history.url,
            since=since,
            commits=[{"day": day_of(commit)} for commit in history.commits],
            regressions=[steps[id(step)] for step in history.regressions],
            recent=[steps[id(step)] for step in history.recent_steps],
            groups=[
                _group(number, group, history) for number, group in enumerate(groups_of(history), start=1)
            ],
            problems=history.problems,
            notes=history.notes,
            can_plot=can_plot(),
            no_plots=NO_PLOTS,
            rule={
                "time": f"{100 * CLEAR_TIME:g}",
                "once": f"{1 / ERROR:.0f}",
                "score": f"{100 * CLEAR_SCORE:g}",
                "size": f"{100 * SIZE_TOLERANCE:g}",
                "spread": f"{100 * math.expm1(state_spread):.0f}",
            },
            version=version,
        ),
    )


def _shown(step: Step) -> Mapping[str, Any]:
    return {
        "at": step.at,
        "day": day_of(step.at),
        "variant": step.series.variant,
        "words": step.words,
        "worse": step.worse,
        "verdict": verdict_of(step),
        "note": note_of(step),
    }


def _group(number: int, group: Group, history: History) -> Mapping[str, Any]:
    anchors = {id(series): f"variant-{number}-{place}" for place, series in enumerate(group.series, start=1)}
    commits = group.commits
    return {
        "task": group.task or "A task that was not recorded",
        "short": f"{group.task or group.file} ({group.source})",
        "source": group.source,
        "file": group.file,
        "machine": str(group.machine),
        "rows": [row for series in group.series for row in _rows(series, anchors[id(series)], commits[-1])],
        "variants": [_variant(series, anchors[id(series)], commits, history) for series in group.series],
    }


def _rows(series: Series, anchor: str, last: Commit) -> Iterator[Mapping[str, Any]]:
    """A row of the overview for each shape."""
    newest = series.points[-1]
    for shape in series.shapes or [""]:
        timings = [point.timings[shape] for point in series.points if shape in point.timings]
        shown = timings[-1] if timings else None
        yield {
            "anchor": anchor,
            "variant": series.variant,
            "shape": shape,
            "count": len(timings) or len(series.points),
            "speedup": "" if shown is None else shown.ratio,
            "low": "" if shown is None else shown.low,
            "high": "" if shown is None else shown.high,
            "change": 100 * (timings[-1].ratio / timings[0].ratio - 1) if len(timings) > 1 else "",
            "drop": _points(newest.drop),
            "size": newest.size_bytes / BYTES_PER_MB,
            "newest": newest.commit,
            "ended": newest.commit != last,
        }


def _points(fraction: float) -> float:
    """In points; a zero without its sign."""
    return round(100 * fraction, 10) + 0.0


def _variant(series: Series, anchor: str, commits: Sequence[Commit], history: History) -> Mapping[str, Any]:
    own = [step for step in history.steps if step.series is series]
    figures, sentences = figures_of(series, anchor, commits, own, history.url) if can_plot() else ([], [])
    return {
        "anchor": anchor,
        "name": series.variant,
        "shapes": series.shapes,
        "score": series.variant == TEACHER,
        "figures": figures,
        "sentences": sentences,
        "points": [
            {
                "at": point.commit,
                "day": day_of(point.commit),
                "timings": [point.timings.get(shape) for shape in series.shapes],
                "score": point.score,
                "drop": _points(point.drop),
                "size": point.size_bytes / BYTES_PER_MB,
                "steps": [_shown(step) for step in own if step.at == point.commit],
            }
            for point in reversed(series.points)
        ],
    }
