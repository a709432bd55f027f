"""Accuracy, judged by the drop. Predictions are deterministic, so every changed one is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.compression.variants import TEACHER
from quantlib.data.scores import drop_interval
from quantlib.data.tasks import TASKS, Task
from quantlib.gate.findings import Finding, Kind, apply_report_only, rounded
from quantlib.gate.limits import Limits, LimitTable
from quantlib.gate.record import GateRecord, VariantRecord, check_comparable

# Scores are fractions of two machine words; a drop of exactly the limit is within it.
TOLERANCE = 1e-9
_ROWS_LISTED = 8

Rows = Sequence[float]


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
        text = changed_predictions(TASKS[current.task], ours.predictions, before.predictions, current.labels)
        findings.append(Finding("changed", "accuracy", variant, "predictions", None, f"{variant}: {text}"))
    return apply_report_only(findings, limit.report_only)


def _against_teacher(variant: str, ours: VariantRecord, current: GateRecord, limits: Limits) -> list[Finding]:
    task, teacher = TASKS[current.task], current.variants[TEACHER]
    what = f"{variant}: {task.primary_metric}"
    findings = [_drop(variant, what, task, ours, teacher, current.labels, limits.max_drop_points)]
    if limits.min_relative_score is not None:
        least = limits.min_relative_score * teacher.score
        kind: Kind = "violation" if ours.score < least - TOLERANCE else "note"
        text = (
            f"{what} {rounded(ours.score, least, 4)}, limit {least:.4f} "
            f"({100 * limits.min_relative_score:g} % of the teacher's {teacher.score:.4f})"
        )
        findings.append(Finding(kind, "accuracy", variant, "relative_score", None, text))
    return findings


def _teacher_against_baseline(
    ours: VariantRecord, before: VariantRecord, current: GateRecord, limits: Limits
) -> list[Finding]:
    if ours.predictions == before.predictions:
        return []
    task = TASKS[current.task]
    what = f"{TEACHER}: {task.primary_metric} {ours.score:.4f}, baseline {before.score:.4f}:"
    return [_drop(TEACHER, what, task, ours, before, current.labels, limits.max_drop_points)]


def _drop(
    variant: str,
    what: str,
    task: Task,
    ours: VariantRecord,
    reference: VariantRecord,
    labels: Rows,
    limit: float | None,
) -> Finding:
    points = 100 * (reference.score - ours.score)
    low, high = _interval(task, ours.predictions, reference.predictions, labels)
    shown = f"{points:z.2f}" if limit is None else rounded(points, limit)
    text = f"{what} drop {shown} points [{low:z.2f}, {high:z.2f}]"
    text += ", no limit" if limit is None else f", limit {limit:.2f}"
    if task.output_mode == "classification":
        text += f"; McNemar p = {mcnemar_p(ours.predictions, reference.predictions, labels):.2g}"
    over = limit is not None and points > limit + 100 * TOLERANCE
    return Finding("violation" if over else "note", "accuracy", variant, "accuracy_drop", None, text)


def _interval(task: Task, ours: Rows, reference: Rows, labels: Rows) -> tuple[float, float]:
    """The paired bootstrap's 95 % interval of the drop, in points."""
    truth = np.asarray(labels, dtype=np.float64 if task.output_mode == "regression" else np.int64)
    low, high = drop_interval(task, _as_logits(task, ours), _as_logits(task, reference), truth)
    return 100 * low, 100 * high


def _as_logits(task: Task, predictions: Rows) -> npt.NDArray[Any]:
    """Logits that predict these classes, (examples, labels), or these scores, (examples, 1)."""
    if task.output_mode == "regression":
        return np.asarray(predictions)[:, None]
    return np.eye(task.num_labels)[np.asarray(predictions, dtype=np.int64)]


def mcnemar_p(ours: Rows, reference: Rows, labels: Rows) -> float:
    """The two-sided p-value of McNemar's exact test: could both be right equally often?

    If both are equally good, each is right on half of the rows on which only one of them is right
    (McNemar 1947; exact binomial form: Fagerland et al. 2013). Without such a row the answer is 1.

    Args:
        ours, reference: predicted class indices, (examples,).
        labels: the true ones.
    """
    from scipy.stats import binomtest

    truth = np.asarray(labels)
    right, reference_right = np.asarray(ours) == truth, np.asarray(reference) == truth
    alone = int(np.sum(right & ~reference_right))
    one_right = alone + int(np.sum(~right & reference_right))
    return float(binomtest(alone, one_right).pvalue) if one_right else 1.0


def changed_predictions(task: Task, ours: Rows, before: Rows, labels: Rows) -> str:
    """Which predictions differ from the baseline's, and for better or worse, in words.

    Rows are counted from 1, as in GLUE's files without their header. A class is better where it is right now,
    a score where it is nearer to the label.
    """
    new, old, truth = np.asarray(ours), np.asarray(before), np.asarray(labels)
    rows = np.flatnonzero(new != old)
    listed = ", ".join(str(row + 1) for row in rows[:_ROWS_LISTED])
    listed += ", ..." if len(rows) > _ROWS_LISTED else ""
    if task.output_mode == "regression":
        gains = abs(old - truth) - abs(new - truth)
        noun, better, worse = "scores", int(np.sum(gains > 0)), int(np.sum(gains < 0))
        rest = f", by {np.max(abs(new - old)):.2g} at most"
    else:
        better, worse = int(np.sum((new == truth)[rows])), int(np.sum((old == truth)[rows]))
        neither = len(rows) - better - worse
        noun, rest = "predictions", f", {neither} wrong before and now" if neither else ""
    return (
        f"{len(rows)} of {len(new)} {noun} changed since the baseline (rows {listed}): "
        f"{better} better, {worse} worse{rest}"
    )
