"""Where a series changed: the rule, and how often it is wrong.

Each point is compared with the level of those before it, back to the last step. Of a speedup the level is the
mean of the log ratios, weighted by the inverse of their squared errors. The difference is divided by its
error,

    sqrt(e^2 + 1 / sum(1 / e_i^2))

and compared with Student's t, with the degrees of freedom of Welch and Satterthwaite. A series of n points
has n - 1 comparisons, each at a level of ERROR / (n - 1) (Bonferroni): a series that never changed, and whose
errors are what they say, has a step at most once in 1 / ERROR. A step also has to matter: 5 % of the speedup.

Errors do not say everything: a machine with two states moves the ratio to the teacher by up to 40 % without
any change. So a step is sure only if its interval stays beyond that spread, and if something that the speedup
depends on has changed. Drops and sizes are exact, and compared with the first point of the level: half a
point whose interval leaves out 0 is a step, and half a percent of the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from quantlib.compression.variants import TEACHER
from quantlib.data.scores import drop_interval_of_predictions
from quantlib.gate.history.series import Point, Series, Timing
from quantlib.gate.record import GateRecord, recorded_array
from quantlib.gate.size import SIZE_TOLERANCE
from quantlib.measuring.latency.estimate import LogRatio
from quantlib.report.columns import BYTES_PER_MB
from quantlib.report.front import CLEAR_SCORE, CLEAR_TIME
from quantlib.support.commits import Commit

ERROR = 0.01
"""The chance of a step in the speedups of a series that never changed."""
_ROUNDING = 1e-9

Measure = Literal["speedup", "score", "drop", "size"]


@dataclass(frozen=True)
class Step:
    """A change of level.

    Attributes:
        measure: of the teacher the score, since its drop is always 0; of others the drop.
        shape: of a speedup.
        before: the commit of the last point on the old level.
        at: that of the first one on the new level.
        old, new: the levels: ratios, fractions of the metric, or bytes.
        low, high: the 95 % interval of the change: of new over old minus 1, or of new minus old for score and
            drop; equal where the change is exact.
        worse: slower, less accurate or larger.
        sure: it is no chance, and not the machine's.
        note: why it is not sure, or what else has changed.
        lasts: the newest level is not better again.
    """

    series: Series
    measure: Measure
    shape: str | None
    before: Commit
    at: Commit
    old: float
    new: float
    low: float
    high: float
    worse: bool
    sure: bool
    note: str = ""
    lasts: bool = True

    @property
    def words(self) -> str:
        """The levels and the change: «speedup 2.48 -> 3.09 (+24.6 % [23.1, 26.0])»."""
        if self.measure == "speedup":
            levels, change = f"{self.old:.2f} -> {self.new:.2f}", self.new / self.old - 1
        elif self.measure == "size":
            levels = f"{self.old / BYTES_PER_MB:.1f} -> {self.new / BYTES_PER_MB:.1f} MB"
            change = self.new / self.old - 1
        else:
            levels = f"{100 * self.old:z.2f} -> {100 * self.new:z.2f}"
            change = self.new - self.old
        digits, unit = (2, "points") if self.measure in ("score", "drop") else (1, "%")
        low, middle, high = (f"{100 * value:+z.{digits}f}" for value in (self.low, change, self.high))
        interval = f" [{low}, {high}]" if self.low < self.high else ""
        what = self.measure if self.shape is None else f"{self.measure} at {self.shape}"
        return f"{what} {levels} ({middle} {unit}{interval})"


@dataclass(frozen=True)
class _Timed:
    """A point with its speedup at a shape."""

    point: Point
    timing: Timing
    log_ratio: LogRatio


def steps_of(series: Series, state_spread: float) -> list[Step]:
    """The steps of a series, the oldest first.

    Args:
        series: a variant over the commits.
        state_spread: by how much a ratio to the teacher may differ, on the log scale, because the machine has
            states. It does not count where the recorded interval covers them.

    Raises:
        ValueError: the spread is negative.
    """
    if not 0 <= state_spread < math.inf:
        raise ValueError(f"a spread of {state_spread} must be at least 0")
    steps = _of_size(series)
    if series.variant == TEACHER:  # its speedup is 1, and its drop 0
        steps += _of_score(series)
    else:
        steps += _of_drop(series)
        steps += [step for shape in series.shapes for step in _of_speedup(series, shape, state_spread)]
    return sorted(steps, key=lambda step: step.at.place)


def _of_speedup(series: Series, shape: str, state_spread: float) -> list[Step]:
    timings = [(point, point.timings[shape]) for point in series.points if shape in point.timings]
    timed = [_Timed(p, t, t.log_ratio) for p, t in timings if t.log_ratio is not None]
    steps: list[Step] = []
    start = 0
    for index in range(1, len(timed)):
        level, new = pooled([each.log_ratio for each in timed[start:index]]), timed[index]
        change = _change(level, new.log_ratio, len(timed) - 1)
        if change is None:
            continue
        low, high = change
        spread = 0.0 if new.timing.covers_states else state_spread
        beyond_states = math.log1p(low) > spread or math.log1p(high) < -spread
        note = _why_not_sure(timed[index - 1].point, new, beyond_states)
        steps.append(
            Step(
                *(series, "speedup", shape, timed[index - 1].point.commit, new.point.commit),
                *(math.exp(level.center), math.exp(new.log_ratio.center), low, high),
                worse=high < 0,
                sure=not note,
                note=note or _what_changed(timed[index - 1].point, new.point),
            )
        )
        start = index
    if not steps:
        return []
    newest = math.exp(pooled([each.log_ratio for each in timed[start:]]).center)
    return [
        replace(step, lasts=newest < step.old * (1 - CLEAR_TIME) if step.worse else newest > step.old)
        for step in steps
    ]


def pooled(ratios: Sequence[LogRatio]) -> LogRatio:
    """The mean of log ratios, weighted by the inverse of their squared errors."""
    weights = [ratio.error**-2 for ratio in ratios]
    shares = [weight / sum(weights) for weight in weights]
    variances = [(share * ratio.error) ** 2 for share, ratio in zip(shares, ratios, strict=True)]
    return LogRatio(
        center=sum(share * ratio.center for share, ratio in zip(shares, ratios, strict=True)),
        error=math.sqrt(sum(variances)),
        degrees=_degrees(variances, [ratio.degrees for ratio in ratios]),
        turns=sum(ratio.turns for ratio in ratios),
    )


def _degrees(variances: Sequence[float], degrees: Sequence[float]) -> float:
    """Of the sum of the variances (Welch and Satterthwaite)."""
    return sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))


def _change(level: LogRatio, new: LogRatio, comparisons: int) -> tuple[float, float] | None:
    """The 95 % interval of the new ratio over the old one, minus 1; None where that is no step."""
    from scipy.special import stdtrit

    difference, error = new.center - level.center, math.hypot(new.error, level.error)
    degrees = _degrees([new.error**2, level.error**2], [new.degrees, level.degrees])
    if abs(difference) <= float(stdtrit(degrees, 1 - ERROR / comparisons / 2)) * error:
        return None
    if abs(math.expm1(difference)) < CLEAR_TIME:
        return None
    half = float(stdtrit(degrees, 0.975)) * error
    return math.expm1(difference - half), math.expm1(difference + half)


def _why_not_sure(before: Point, new: _Timed, beyond_states: bool) -> str:
    """What else may have done it; empty if nothing."""
    if new.timing.busy:
        return "not sure: other programs used the machine"
    if new.point.program and new.point.program == before.program:
        return "the machine's: models, session and runtime are the same"
    if new.point.uncommitted:
        return "not sure: the code that ran was not the commit's"
    return "" if beyond_states else "not sure: the states of a machine may do as much"


def _what_changed(before: Point, point: Point) -> str:
    changed = [name for name, value in point.program.items() if before.program.get(name, value) != value]
    return f"changed: {', '.join(changed)}" if changed else ""


def _of_size(series: Series) -> list[Step]:
    def step(reference: Point, before: Point, point: Point) -> Step | None:
        change = point.size_bytes / reference.size_bytes - 1
        if abs(change) <= SIZE_TOLERANCE:
            return None
        old, new = float(reference.size_bytes), float(point.size_bytes)
        return Step(
            series, "size", None, before.commit, point.commit, old, new, change, change, change > 0, sure=True
        )

    return _exact(series.points, step, lambda point: float(point.size_bytes), SIZE_TOLERANCE, relative=True)


def _of_drop(series: Series) -> list[Step]:
    def step(reference: Point, before: Point, point: Point) -> Step | None:
        change = point.drop - reference.drop
        if abs(change) < CLEAR_SCORE - _ROUNDING:
            return None
        low, high, note = _interval_of_change(series.variant, reference, point)
        return Step(
            *(series, "drop", None, before.commit, point.commit, reference.drop, point.drop, low, high),
            worse=change > 0,
            sure=not note and not low <= 0 <= high,
            note=note or ("" if not low <= 0 <= high else "not sure: the interval holds 0"),
        )

    return _exact(series.points, step, lambda point: point.drop, CLEAR_SCORE)


def _of_score(series: Series) -> list[Step]:
    """Of the teacher: a worse one hides the drops of all others."""

    def step(reference: Point, before: Point, point: Point) -> Step | None:
        if reference.score is None or point.score is None:
            return None
        change = point.score - reference.score
        if abs(change) < CLEAR_SCORE - _ROUNDING:
            return None
        same = bool(point.rows) and point.rows == reference.rows
        low, high, note = change, change, "" if same else "not sure: other rows"
        if same and reference.record is not None and point.record is not None:
            low, high = _interval_of_teachers(reference.record, point.record)
        sure = same and not low <= 0 <= high
        return Step(
            *(series, "score", None, before.commit, point.commit, reference.score, point.score, low, high),
            worse=change < 0,
            sure=sure,
            note=note or ("" if sure else "not sure: the interval holds 0"),
        )

    return _exact(series.points, step, lambda point: -(point.score or 0.0), CLEAR_SCORE)


def _exact(
    points: Sequence[Point],
    step: Callable[[Point, Point, Point], Step | None],
    loss: Callable[[Point], float],
    least: float,
    *,
    relative: bool = False,
) -> list[Step]:
    """The steps of values without error; each point is compared with the first one of its level.

    Args:
        points: of the series.
        step: of the first point of the level, the point before, and the point; None where there is none.
        loss: a point's value, more is worse.
        least: what counts as a change.
        relative: it is a share of the value.
    """
    steps: list[tuple[Step, Point]] = []
    reference = points[0]
    for before, point in pairwise(points):
        made = step(reference, before, point)
        if made is not None:
            steps.append((made, reference))
            reference = point
    newest = loss(points[-1])

    def lasts(made: Step, old: Point) -> bool:
        enough = least * (loss(old) if relative else 1.0)
        return newest - loss(old) > enough - _ROUNDING if made.worse else newest < loss(old)

    return [replace(made, lasts=lasts(made, old)) for made, old in steps]


def _interval_of_change(variant: str, old: Point, new: Point) -> tuple[float, float, str]:
    """The 95 % interval of the new drop minus the old one, and why it is not sure."""
    change = new.drop - old.drop
    if old.rows != new.rows or not new.rows:
        return change, change, "not sure: other rows" if new.rows and old.rows else "not sure: rows unknown"
    if old.record is not None and new.record is not None:
        before, after = old.record, new.record
        theirs, ours = (record.variants[variant].predictions for record in (before, after))
        teachers = [record.variants[TEACHER].predictions for record in (before, after)]
        if teachers[0] == teachers[1]:
            scoring = after.judged_by
            arrays = (recorded_array(scoring, rows) for rows in (ours, theirs, after.truth))
            low, high = drop_interval_of_predictions(scoring, *arrays)
            return low, high, ""
    if old.drop_interval is None or new.drop_interval is None:
        return change, change, "not sure: another teacher" if new.record else "not sure: no interval"
    # Independent, which rows that are the same are not: wider than it need be.
    errors = [(high - low) / 2 for low, high in (old.drop_interval, new.drop_interval)]
    half = math.hypot(*errors)
    return change - half, change + half, ""


def _interval_of_teachers(old: GateRecord, new: GateRecord) -> tuple[float, float]:
    """The 95 % interval of the new teacher's score minus the old one's, on the same rows."""
    rows = (new.variants[TEACHER].predictions, old.variants[TEACHER].predictions, new.truth)
    low, high = drop_interval_of_predictions(
        new.judged_by, *(recorded_array(new.judged_by, each) for each in rows)
    )
    return -high, -low
