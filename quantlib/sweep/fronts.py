"""The front of a task in a sweep: the cells that no other one beats in accuracy and time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from quantlib.compression.recipes import PEERS, RECIPES
from quantlib.compression.variants import TEACHER, VariantName
from quantlib.report.front import CLEAR_SCORE
from quantlib.report.page.figures import Point
from quantlib.sweep.table import Row

# A plot with more names is read by nobody; the table under it has all.
_MOST_NAMED = 6


@dataclass(frozen=True)
class Placed:
    """A row among those of its task and machine.

    point: on the plot, with the ratio to the first teacher of the task. ms: the time that it stands for, with
    its interval: low, estimate, high.
    """

    row: Row
    point: Point
    ms: tuple[float, float, float]


@dataclass(frozen=True)
class TaskFront:
    """The rows of a task that were timed on a machine, the first teacher in front.

    id: of its section. metric: the primary one.
    """

    id: str
    task: str
    machine: str
    metric: str
    placed: tuple[Placed, ...]

    @property
    def points(self) -> list[Point]:
        """All of them, for the plot."""
        return [each.point for each in self.placed]

    @property
    def front(self) -> list[Placed]:
        """Those that no other beats, the fastest first."""
        return sorted((each for each in self.placed if not each.point.beaten), key=lambda each: each.ms[1])

    @property
    def named(self) -> list[str]:
        """The points of the front that the plot names: from the fastest to the most accurate."""
        names = [each.point.variant for each in self.front]
        step = max(1, -(-len(names) // _MOST_NAMED))
        return [*names[:-1:step], *names[-1:]]

    @property
    def reference(self) -> str:
        """What speedups on the plot are over."""
        teachers = {each.row.teacher for each in self.placed}
        return (
            "the teacher" if len(teachers) == 1 else f"the teacher of {printable(self.placed[0].row.teacher)}"
        )


def fronts_of(rows: Sequence[Row]) -> list[TaskFront]:
    """The tasks that were timed, each on each machine."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.score is not None and _is_timed(row):
            groups.setdefault((row.task, str(row.machine)), []).append(row)
    return [
        TaskFront(f"front-{number}", task, machine, str(of_task[0].metric), _placed(of_task))
        for number, ((task, machine), of_task) in enumerate(groups.items(), start=1)
    ]


def printable(text: str) -> str:
    """A text for a plot, whose format has no signs of control."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _number(row: Row, key: str) -> float | None:
    value = row.values.get(key)
    return None if isinstance(value, bool) or not isinstance(value, float | int) else float(value)


def _of(row: Row, key: str) -> float:
    number = _number(row, key)
    assert number is not None
    return number


def _is_timed(row: Row) -> bool:
    numbers = [_number(row, key) for key in ("median_ms", "speedup", "model_size")]
    return row.machine is not None and all(number is not None and number > 0 for number in numbers)


def _placed(rows: Sequence[Row]) -> tuple[Placed, ...]:
    """The rows of a task and machine, the first teacher in front.

    Milliseconds of two moments do not compare, so the time of a row is its teacher's over its speedup, which
    was measured in turns.
    """
    first = next((row for row in rows if row.variant == TEACHER), rows[0])
    ordered = [first, *(row for row in rows if row is not first)]
    teacher_ms: dict[str, float] = {}
    for row in sorted(ordered, key=lambda row: row.variant != TEACHER):
        teacher_ms.setdefault(row.teacher, _of(row, "median_ms") * _of(row, "speedup"))
    times = [_times(row, teacher_ms[row.teacher]) for row in ordered]
    unit_ms = times[0][1]
    return tuple(
        Placed(
            row,
            Point(
                name,
                kind,
                (unit_ms / high, unit_ms / ms, unit_ms / low),
                _scores(row),
                _of(row, "model_size"),
                beaten,
            ),
            (low, ms, high),
        )
        for row, name, kind, (low, ms, high), beaten in zip(
            ordered, _names(ordered), _kinds(ordered), times, _beaten(ordered, times), strict=True
        )
    )


def _times(row: Row, teacher_ms: float) -> tuple[float, float, float]:
    speedup = _of(row, "speedup")
    low, high = (_number(row, key) or speedup for key in ("speedup_low", "speedup_high"))
    return teacher_ms / max(high, speedup), teacher_ms / speedup, teacher_ms / min(low, speedup)


def _scores(row: Row) -> tuple[float, float, float]:
    """The score, with the interval of its drop around it."""
    score, drop = row.score, _number(row, "accuracy_drop")
    assert score is not None
    low, high = (_number(row, key) for key in ("drop_low", "drop_high"))
    if drop is None or low is None or high is None:
        return score, score, score
    return min(score, score + drop - high), score, max(score, score + drop - low)


def _beaten(rows: Sequence[Row], times: Sequence[tuple[float, float, float]]) -> list[bool]:
    """Of each row, whether another is as accurate and surely faster, or clearly more accurate and as fast.

    What is shown only to compare with beats none, and is never on the front.
    """
    scores = np.array([row.score for row in rows])
    low, ms, high = np.array(times).T
    peers = np.array([_is_report_only(row) for row in rows])
    beaten = []
    for score, its_low, its_ms in zip(scores, low, ms, strict=True):
        surely = (scores >= score) & (high < its_low)
        clearly = (scores - score >= CLEAR_SCORE - 1e-12) & (ms <= its_ms)
        beaten.append(bool(((surely | clearly) & ~peers).any()))
    return [bool(one or peer) for one, peer in zip(beaten, peers, strict=True)]


def _is_report_only(row: Row) -> bool:
    recipe = (RECIPES | PEERS).get(VariantName.parse(row.variant).step)
    return recipe is not None and bool(recipe.report_only)


def _kinds(rows: Sequence[Row]) -> Iterator[str]:
    """What each row is drawn as: its checkpoint where there are several, and its student."""
    several = len({row.teacher for row in rows}) > 1
    for row in rows:
        parts = (row.teacher if several else None, row.student or (None if several else TEACHER))
        yield printable(" / ".join(part for part in parts if part))


def _names(rows: Sequence[Row]) -> Iterator[str]:
    """A name for each row, unlike the others: its variant, behind what differs of checkpoint and student."""
    several = len({row.teacher for row in rows}) > 1
    for row in rows:
        parts = (row.teacher if several else None, row.student, row.variant)
        yield printable(" / ".join(part for part in parts if part))
