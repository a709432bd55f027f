"""Accuracy, judged by the drop. Predictions are deterministic, so every changed one is reported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quantlib.compression.variants import TEACHER
from quantlib.data.metrics import METRICS, SCORE_MODES
from quantlib.data.scores import drop_interval_of_predictions
from quantlib.data.scoring import Scoring
from quantlib.gate.findings import Finding, Kind, apply_report_only, rounded
from quantlib.gate.limits import Limits, LimitTable
from quantlib.gate.record import GateRecord, Row, VariantRecord, check_comparable, recorded_array

# Scores are fractions of two machine words; a drop of exactly the limit is within it.
TOLERANCE = 1e-9
_ROWS_LISTED = 8

Rows = Sequence[Row]


def judge_accuracy(
    variant: str, current: GateRecord, baseline: GateRecord | None, limits: LimitTable
) -> list[Finding]:
    """Compare a variant's score with the teacher's, and its predictions with the baseline's.

    The teacher itself is compared with the baseline's teacher: a worse teacher would hide every drop.

    Args:
        variant: a name in `current`; it may be missing from the baseline.
        current: this run.
        baseline: None where there is none; then only limits that need none are judged.
        limits: the table of limits.

    Raises:
        KeyError: `current` has no such variant.
        InputError: the baseline is of another task or of other rows.
    """
    ours, limit = current.variants[variant], limits.of(variant, current.task)
    before = None
    if baseline is not None:
        check_comparable(current, baseline)
        before = baseline.variants.get(variant)
    findings = []
    if variant != TEACHER:
        findings += _against_teacher(variant, ours, current, limit)
    elif before is not None:
        findings += _teacher_against_baseline(ours, before, current, limit)
    if before is not None and ours.predictions != before.predictions:
        labels = current.labels if current.judged_by.labelled else None
        text = changed_predictions(current.judged_by, ours.predictions, before.predictions, labels)
        findings.append(Finding("changed", "accuracy", variant, "predictions", None, f"{variant}: {text}"))
    return apply_report_only(findings, limit.report_only)


def _against_teacher(variant: str, ours: VariantRecord, current: GateRecord, limits: Limits) -> list[Finding]:
    scoring, teacher = current.judged_by, current.variants[TEACHER]
    what, points = f"{variant}: {scoring.primary_metric}", 100 * (teacher.score - ours.score)
    findings = [_drop(variant, what, scoring, points, ours, teacher, current.truth, limits.max_drop_points)]
    if limits.min_relative_score is not None:
        share = limits.min_relative_score
        # Below 0, as errors are, a share of the teacher's score would be more than the teacher has.
        is_error = teacher.score < 0
        least = share * teacher.score
        if is_error:
            least = teacher.score / share if share else -math.inf
        reason = f"{100 * share:g} % of the teacher's {teacher.score:.4f}"
        if is_error:
            reason = f"the teacher's {teacher.score:.4f} over {100 * share:g} %"
        kind: Kind = "violation" if ours.score < least - TOLERANCE else "note"
        text = f"{what} {rounded(ours.score, least, 4)}, limit {least:.4f} ({reason})"
        findings.append(Finding(kind, "accuracy", variant, "relative_score", None, text))
    return findings


def _teacher_against_baseline(
    ours: VariantRecord, before: VariantRecord, current: GateRecord, limits: Limits
) -> list[Finding]:
    if ours.predictions == before.predictions:
        return []
    scoring, truth = current.judged_by, current.truth
    metric, score = scoring.primary_metric, ours.score
    if not scoring.labelled:
        # Each teacher agrees with itself, so the new one is judged by the one of the baseline.
        truth, pair = before.predictions, (before.predictions, ours.predictions)
        score = METRICS[scoring.output_mode][metric].function(*(recorded_array(scoring, r) for r in pair))
    what = f"{TEACHER}: {metric} {score:.4f}, baseline {before.score:.4f}:"
    points = 100 * (before.score - score)
    return [_drop(TEACHER, what, scoring, points, ours, before, truth, limits.max_drop_points)]


def _drop(
    variant: str,
    what: str,
    scoring: Scoring,
    points: float,
    ours: VariantRecord,
    reference: VariantRecord,
    truth: Rows,
    limit: float | None,
) -> Finding:
    low, high = _interval(scoring, ours.predictions, reference.predictions, truth)
    shown = f"{points:z.2f}" if limit is None else rounded(points, limit)
    text = f"{what} drop {shown} points [{low:z.2f}, {high:z.2f}]"
    text += ", no limit" if limit is None else f", limit {limit:.2f}"
    if scoring.output_mode not in SCORE_MODES and scoring.labelled:
        text += f"; McNemar p = {mcnemar_p(ours.predictions, reference.predictions, truth):.2g}"
    over = limit is not None and points > limit + 100 * TOLERANCE
    return Finding("violation" if over else "note", "accuracy", variant, "accuracy_drop", None, text)


def _interval(scoring: Scoring, ours: Rows, reference: Rows, truth: Rows) -> tuple[float, float]:
    """The paired bootstrap's 95 % interval of the drop, in points."""
    arrays = (recorded_array(scoring, rows) for rows in (ours, reference, truth))
    low, high = drop_interval_of_predictions(scoring, *arrays)
    return 100 * low, 100 * high


def mcnemar_p(ours: Rows, reference: Rows, labels: Rows) -> float:
    """The two-sided p-value of McNemar's exact test: could both be right equally often?

    If both are equally good, each is right on half of the rows on which only one of them is right
    (McNemar 1947; exact binomial form: Fagerland et al. 2013). Without such a row the answer is 1.

    Args:
        ours, reference: predicted class indices, or sets of them, for each row.
        labels: the true ones; a row is right if its set is exactly the true one.
    """
    from scipy.stats import binomtest

    right, reference_right = (
        np.array([answer == label for answer, label in zip(rows, labels, strict=True)], dtype=bool)
        for rows in (ours, reference)
    )
    alone = int(np.sum(right & ~reference_right))
    one_right = alone + int(np.sum(~right & reference_right))
    return float(binomtest(alone, one_right).pvalue) if one_right else 1.0


def changed_predictions(scoring: Scoring, ours: Rows, before: Rows, labels: Rows | None) -> str:
    """Which predictions differ from the baseline's, and for better or worse, in words.

    Rows are counted from 1, as in GLUE's files without their header. A class, or a set of labels, is better
    where it is right now, a score where it is nearer to the label; without labels nothing is said of that.
    """
    new, old = (recorded_array(scoring, rows) for rows in (ours, before))
    changed = (new != old).reshape(len(new), -1).any(axis=1)
    rows = np.flatnonzero(changed)
    listed = ", ".join(str(row + 1) for row in rows[:_ROWS_LISTED])
    listed += ", ..." if len(rows) > _ROWS_LISTED else ""
    regression = scoring.output_mode in SCORE_MODES
    by_at_most = f"by {np.max(abs(new - old)):.2g} at most" if regression else ""
    noun = "scores" if regression else "predictions"
    text = f"{len(rows)} of {len(new)} {noun} changed since the baseline (rows {listed})"
    if labels is None:
        return f"{text}, {by_at_most}" if regression else text
    truth = recorded_array(scoring, labels)
    if regression:
        gains = abs(old - truth) - abs(new - truth)
        better, worse = int(np.sum(gains > 0)), int(np.sum(gains < 0))
        rest = f", {by_at_most}"
    else:
        now, then = ((each == truth).reshape(len(each), -1).all(axis=1) for each in (new, old))
        better, worse = int(np.sum(now[rows])), int(np.sum(then[rows]))
        neither = len(rows) - better - worse
        rest = f", {neither} wrong before and now" if neither else ""
    return f"{text}: {better} better, {worse} worse{rest}"
