"""The history for a terminal: a table of where each variant stands, and what changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING

from quantlib.compression.variants import TEACHER
from quantlib.gate.history.history import History
from quantlib.gate.history.series import Machine, Point, Series, Source
from quantlib.gate.history.steps import Step
from quantlib.report.columns import BYTES_PER_MB
from quantlib.support.commits import Commit

if TYPE_CHECKING:
    from rich.table import Table

_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Group:
    """The series of one file on one machine, which compare with each other."""

    source: Source
    file: str
    task: str
    machine: Machine
    series: tuple[Series, ...]

    @property
    def commits(self) -> list[Commit]:
        """Those of all its points, the oldest first."""
        commits = {point.commit for series in self.series for point in series.points}
        return sorted(commits, key=lambda commit: commit.place)

    @property
    def title(self) -> str:
        """What it is of."""
        return f"{self.task or 'a task that was not recorded'}: {self.source} {self.file}, {self.machine}"


def groups_of(history: History) -> list[Group]:
    """The series by file and machine."""
    keys = dict.fromkeys((s.source, s.file, s.task, s.machine) for s in history.series)
    return [
        Group(
            *key,
            series=tuple(s for s in history.series if (s.source, s.file, s.task, s.machine) == key),
        )
        for key in keys
    ]


def table_of(group: Group) -> Table:
    """A row for each variant and shape: what its newest commit says, and its change since the first."""
    from rich.markup import escape

    from quantlib.support.console import plain_table

    table = plain_table()
    for heading in ("variant", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("commits", "speedup", "95 %", "since the first", "drop\npoints", "size\nMB"):
        table.add_column(heading, justify="right")
    table.add_column("newest")
    last = group.commits[-1]
    for series in group.series:
        newest = series.points[-1]
        ended = "" if newest.commit == last else f"{newest.commit.short}: none since"
        exact = [f"{100 * newest.drop:z.2f}", f"{newest.size_bytes / BYTES_PER_MB:.1f}", ended]
        for number, shape in enumerate(series.shapes or [""]):
            cells = [escape(series.variant), escape(shape), *_speedup_cells(series, shape)]
            table.add_row(*cells, *(exact if number == 0 else [""] * 3))
    return table


def _speedup_cells(series: Series, shape: str) -> list[str]:
    """The number of points, the newest speedup, its interval, and its change."""
    timings = [point.timings[shape] for point in series.points if shape in point.timings]
    if not timings:
        return [str(len(series.points)), "", "", ""]
    first, newest = timings[0], timings[-1]
    interval = f"{newest.low:.2f}-{newest.high:.2f}" if newest.low < newest.high else ""
    change = f"{100 * (newest.ratio / first.ratio - 1):+z.1f} %" if len(timings) > 1 else ""
    return [str(len(timings)), f"{newest.ratio:.2f}x", interval, change]


def lines_of(history: History, since: str | None) -> Iterator[str]:
    """What changed, the oldest first; what was left out; last the regressions, where the eye is."""
    steps = history.recent_steps
    when = "" if since is None else f" since {since}"
    yield f"{len(steps)} steps{when}" + (":" if steps else "")
    yield from _by_commit(steps)
    for note in history.notes:
        yield f"note: {note}"
    for problem in history.problems[:_PROBLEMS_SHOWN]:
        yield f"left out: {problem}"
    if history.problems:
        more = len(history.problems) - _PROBLEMS_SHOWN
        yield f"{len(history.problems)} files left out" + (f", {more} of them not shown" if more > 0 else "")
    regressions = history.regressions
    yield f"{len(regressions)} regressions{when}" + (":" if regressions else "")
    yield from _by_commit(regressions)


def _by_commit(steps: Sequence[Step]) -> Iterator[str]:
    """A line for each commit, and below it one for each of its steps."""
    for commit, there in groupby(steps, key=lambda step: step.at):
        yield f"  {day_of(commit)} {commit.short} {commit.subject}"
        for step in there:
            note = f"; {note_of(step)}" if note_of(step) else ""
            yield f"    {verdict_of(step):<7} {step.series.variant}: {step.words}{note}"


def note_of(step: Step) -> str:
    """What is to be said of a step beside its figures."""
    again = ["better again since"] if step.worse and not step.lasts else []
    return "; ".join(([step.note] if step.note else []) + again)


def verdict_of(step: Step) -> str:
    """A step in a word; with a question mark where it is not sure."""
    return ("worse" if step.worse else "better") + ("" if step.sure else "?")


def day_of(commit: Commit) -> str:
    """The day of a commit, in UTC."""
    return datetime.fromtimestamp(commit.seconds, UTC).date().isoformat()


def as_json(history: History) -> dict[str, object]:
    """All of it, for machines."""
    return {
        "commits": [
            {"sha": c.sha, "date": datetime.fromtimestamp(c.seconds, UTC).isoformat(), "subject": c.subject}
            for c in history.commits
        ],
        "series": [_series_as_json(series) for series in history.series],
        "steps": [_step_as_json(step) for step in history.recent_steps],
        "regressions": [_step_as_json(step) for step in history.regressions],
        "left_out": list(history.problems),
        "notes": list(history.notes),
    }


def _series_as_json(series: Series) -> dict[str, object]:
    return {
        "source": series.source,
        "file": series.file,
        "task": series.task,
        "variant": series.variant,
        "machine": {
            "cpu_model": series.machine.cpu_model,
            "instruction_sets": list(series.machine.instruction_sets),
            "threads": series.machine.threads,
        },
        "points": [_point_as_json(series, point) for point in series.points],
    }


def _point_as_json(series: Series, point: Point) -> dict[str, object]:
    return {
        "commit": point.commit.sha,
        "score": point.score,
        "accuracy_drop": 0.0 if series.variant == TEACHER else point.drop,
        "size_bytes": point.size_bytes,
        "speedup": {
            shape: {"speedup": timing.ratio, "low": timing.low, "high": timing.high, "busy": timing.busy}
            for shape, timing in point.timings.items()
        },
    }


def _step_as_json(step: Step) -> dict[str, object]:
    return {
        "file": step.series.file,
        "machine": str(step.series.machine),
        "variant": step.series.variant,
        "measure": step.measure,
        "shape": step.shape,
        "before": step.before.sha,
        "commit": step.at.sha,
        "old": step.old,
        "new": step.new,
        "change_low": step.low,
        "change_high": step.high,
        "worse": step.worse,
        "sure": step.sure,
        "lasts": step.lasts,
        "note": step.note,
    }
