"""From a run and its baseline to a verdict; whatever is missing from either is a violation."""

from __future__ import annotations

from quantlib.compression.variants import TEACHER
from quantlib.gate.accuracy import judge_accuracy
from quantlib.gate.comparison import Comparisons
from quantlib.gate.findings import Finding, Verdict, apply_report_only
from quantlib.gate.latency import judge_latency
from quantlib.gate.limits import LimitTable
from quantlib.gate.record import GateRecord, check_comparable, machine_differences, settings_differences
from quantlib.gate.size import judge_size
from quantlib.support.errors import as_line

_UPDATE = "--gate-update"


def judge(
    current: GateRecord,
    baseline: GateRecord | None,
    limits: LimitTable,
    *,
    compared: Comparisons | None = None,
    across_machines: bool = False,
) -> Verdict:
    """Judge presence, accuracy, size and latency of every variant.

    Args:
        current: this run.
        baseline: what the run is compared with; without one only limits that need none are judged.
        limits: the table of limits.
        compared: how each latency was compared; what is missing there is judged by its ratio to the teacher.
        across_machines: compare ratios to the teacher even if the machines differ; accuracy and size are
            always compared.

    Raises:
        InputError: the baseline is of another task or of other rows.
    """
    if baseline is not None:
        check_comparable(current, baseline)
    compared = compared or {}
    findings = judge_presence(current, baseline, limits, compared)
    if baseline is not None:
        findings += _judge_machine(current, baseline, across_machines, compared)
    for variant in current.variants:
        findings += judge_accuracy(variant, current, baseline, limits)
        findings += judge_size(variant, current, baseline, limits)
        for shape in _shapes(variant, current, compared):
            findings += judge_latency(
                variant,
                shape,
                current,
                baseline,
                limits,
                comparison=compared.get(variant, {}).get(shape),
                across_machines=across_machines,
            )
    return Verdict(tuple(findings))


def judge_presence(
    current: GateRecord, baseline: GateRecord | None, limits: LimitTable, compared: Comparisons | None = None
) -> list[Finding]:
    """Find what was left out: a variant or shape that only the run or only the baseline has, or all variants.

    A limit on latency is a promise to measure, so a variant with one and without a measured shape is a
    violation, baseline or not.

    Args:
        current: this run.
        baseline: None where there is none.
        limits: the table of limits; report-only variants may be absent.
        compared: shapes that were compared without the teacher.
    """
    compared = compared or {}
    findings = []
    if not set(current.variants) - {TEACHER}:
        only = "only the teacher" if current.variants else "nothing"
        text = f"{only} was run, so nothing was gated; name recipes, and select the gate's tests"
        findings.append(Finding("violation", "presence", "", "presence", None, text))
    before = baseline or current
    for variant in dict.fromkeys((*before.variants, *current.variants)):
        limit = limits.of(variant, current.task)
        missing = _missing_variant(variant, current, before) or _missing_shapes(
            variant, current, before, compared
        )
        timed = _shapes(variant, current, compared) or variant == TEACHER or variant not in current.variants
        if not missing and not timed and (limit.min_speedup is not None or limit.max_slowdown is not None):
            text = f"{variant}: there is a limit on its latency, but no shape of it was timed"
            missing = [Finding("violation", "presence", variant, "presence", None, text)]
        findings += apply_report_only(missing, limit.report_only)
    return findings


def _missing_variant(variant: str, current: GateRecord, baseline: GateRecord) -> list[Finding]:
    if variant in current.variants and variant in baseline.variants:
        return []
    return [_missing(variant, None, variant in baseline.variants)]


def _shapes(variant: str, current: GateRecord, compared: Comparisons) -> list[str]:
    """The shapes at which a variant was timed or compared in this run."""
    return list(dict.fromkeys((*current.latency.get(variant, {}), *compared.get(variant, {}))))


def _missing_shapes(
    variant: str, current: GateRecord, baseline: GateRecord, compared: Comparisons
) -> list[Finding]:
    ours = _shapes(variant, current, compared)
    theirs = ours if baseline is current else list(baseline.latency.get(variant, {}))
    return [
        _missing(variant, shape, shape in theirs)
        for shape in dict.fromkeys((*theirs, *ours))
        if (shape in ours) != (shape in theirs)
    ]


def _missing(variant: str, shape: str | None, in_baseline: bool) -> Finding:
    what = f"{variant} {shape}" if shape else variant
    if in_baseline:
        text = f"{what}: in the baseline, but not in this run; run it too, or take it out with {_UPDATE}"
    else:
        text = f"{what}: in this run, but not in the baseline; put it in with {_UPDATE}"
    return Finding("violation", "presence", variant, "presence", shape, text)


def _judge_machine(
    current: GateRecord, baseline: GateRecord, across_machines: bool, compared: Comparisons
) -> list[Finding]:
    """Notes on what makes the two runs hard to compare."""
    texts = []
    differences = "; ".join(machine_differences(current, baseline))
    by_ratio = [
        f"{variant} {shape}"
        for variant in current.variants
        for shape in _shapes(variant, current, compared)
        if (how := compared.get(variant, {}).get(shape)) is None or how.how in ("teacher", "not compared")
    ]
    if not by_ratio:
        pass
    elif differences and across_machines:
        texts.append(f"latency is compared across machines ({differences})")
    elif differences:
        texts.append(
            f"latency is not compared with the baseline's, which is from another machine ({differences})"
            f"{_some(by_ratio, compared)}; "
            "--gate-across-machines compares it anyway"
        )
    settings = "; ".join(settings_differences(current, baseline))
    if settings:
        texts.append(f"the baseline was made with other settings ({settings})")
    return [Finding("note", "machine", "", "machine", None, as_line(text)) for text in texts]


def _some(names: list[str], compared: Comparisons) -> str:
    """Which latencies are meant, where they are not all."""
    return f", for {', '.join(names)}" if any(compared.values()) else ""
