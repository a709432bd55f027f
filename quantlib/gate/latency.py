"""Judge latency: against the old model of this run, or as a ratio to the teacher's."""

from __future__ import annotations

from dataclasses import replace

from quantlib.gate.comparison import Comparison
from quantlib.gate.findings import Finding, Kind, apply_report_only
from quantlib.gate.limits import LimitTable
from quantlib.gate.record import GateRecord, LatencyRecord, machine_differences
from quantlib.gate.slowdown import (
    Slowdown,
    decide,
    estimate_paired_slowdown,
    estimate_slowdown,
    estimate_speedup,
)
from quantlib.measuring.latency.paired import PairedRatio

_KIND_OF: dict[str, Kind] = {"fail": "violation", "undecided": "undecided", "pass": "note"}


def judge_latency(
    variant: str,
    shape: str,
    current: GateRecord,
    baseline: GateRecord | None,
    limits: LimitTable,
    *,
    comparison: Comparison | None = None,
    across_machines: bool = False,
) -> list[Finding]:
    """Hold a variant's speedup at one shape to its limit, and its latency to the baseline's.

    Args:
        variant, shape: what is judged; they may be missing from the baseline.
        current: this run. Where the old model took turns, it may have no ratio to the teacher.
        baseline: None where there is none; then only limits that need none are judged.
        limits: the table of limits.
        comparison: how the latency was compared; None: by the ratios to the teacher, without another word.
        across_machines: compare such ratios also with a baseline that was measured on another machine.

    Raises:
        KeyError: `current` has no latency of that variant at that shape, and none was compared.
    """
    limit, ours = limits.of(variant, current.task), current.latency.get(variant, {}).get(shape)
    if ours is None and comparison is None:
        raise KeyError(f"{variant} {shape}")
    findings = []
    if limit.min_speedup is not None and ours is not None:
        finding = _against_least(variant, shape, ours, limit.min_speedup)
        findings.append(_as_undecided(finding, ours, "now"))
    if comparison is not None and comparison.how == "unchanged":
        findings.append(_unchanged(variant, shape, comparison, ours))
    elif comparison is not None and comparison.how == "old model":
        findings.append(_against_old_model(variant, shape, comparison, limit.max_slowdown))
    elif comparison is not None and comparison.how == "not compared":
        findings.append(_not_compared(variant, shape, comparison, ours))
    elif ours is not None and baseline is not None:
        before = baseline.latency.get(variant, {}).get(shape)
        if before is not None and (across_machines or not machine_differences(current, baseline)):
            findings.append(_against_baseline(variant, shape, ours, before, limit.max_slowdown, comparison))
    if not findings and ours is not None:
        text = f"{_what(variant, shape)} {interval(estimate_speedup(ours))}"
        findings.append(Finding("note", "latency", variant, "speedup", shape, text))
    return apply_report_only(findings, limit.report_only)


def _as_undecided(finding: Finding, measured: LatencyRecord | Comparison, when: str) -> Finding:
    """The finding, undecided if the machine was busy: times measured then prove nothing."""
    if not measured.disturbed or "other programs" in finding.text:
        return finding
    why = f", undecided: other programs used {100 * measured.others:.0f} % of the machine {when}"
    text = finding.text.removesuffix(_undecided("undecided")) + why
    return replace(finding, kind="undecided", text=text)


def _unchanged(variant: str, shape: str, comparison: Comparison, ours: LatencyRecord | None) -> Finding:
    text = f"{variant} {shape}: unchanged: {comparison.words}"
    if ours is not None:
        text += f"; speedup {interval(estimate_speedup(ours))}"
    return Finding("note", "latency", variant, "speedup", shape, text)


def _not_compared(variant: str, shape: str, comparison: Comparison, ours: LatencyRecord | None) -> Finding:
    text = f"{variant} {shape}: not compared with the baseline: {comparison.words}"
    if ours is not None:
        text += f"; speedup {interval(estimate_speedup(ours))}"
    return Finding("note", "latency", variant, "speedup", shape, text)


def _against_old_model(variant: str, shape: str, comparison: Comparison, limit: float | None) -> Finding:
    slowdown = estimate_paired_slowdown(comparison.launches, confidence=comparison.confidence)
    kind = "note" if limit is None else _KIND_OF[decide(slowdown, limit)]
    text = (
        f"{variant} {shape}: slowdown {percent(slowdown)}, {_limit(limit)}; in turns with the "
        f"{comparison.words}, {len(comparison.launches)} launches"
    )
    finding = Finding(kind, "latency", variant, "slowdown", shape, text + _undecided(kind))
    return _as_undecided(finding, comparison, "now")


def _against_least(variant: str, shape: str, ours: LatencyRecord, least: float) -> Finding:
    speedup = estimate_speedup(ours)
    kind: Kind = "violation" if speedup.high < least else "note" if speedup.low >= least else "undecided"
    text = f"{_what(variant, shape)} {interval(speedup)}, limit at least {least:.2f}"
    return Finding(kind, "latency", variant, "min_speedup", shape, text + _undecided(kind))


def _against_baseline(
    variant: str,
    shape: str,
    ours: LatencyRecord,
    before: LatencyRecord,
    limit: float | None,
    comparison: Comparison | None,
) -> Finding:
    weaker = Comparison("teacher", "") if comparison is None else comparison
    slowdown = estimate_slowdown(ours, before, confidence=weaker.confidence, spread=weaker.spread)
    kind = "note" if limit is None else _KIND_OF[decide(slowdown, limit)]
    text = (
        f"{_what(variant, shape)} {interval(estimate_speedup(ours))}, "
        f"baseline {interval(estimate_speedup(before))}, {_limit(limit)}; slowdown {percent(slowdown)}"
    )
    if weaker.words:
        text += f", by ratios to the teacher, the weaker comparison: {weaker.words}"
    finding = Finding(kind, "latency", variant, "speedup", shape, text + _undecided(kind))
    return _as_undecided(_as_undecided(finding, ours, "now"), before, "for the baseline")


def _limit(limit: float | None) -> str:
    return "no limit" if limit is None else f"limit -{100 * limit:g} %"


def _what(variant: str, shape: str) -> str:
    return f"{variant} {shape}: speedup"


def _undecided(kind: Kind) -> str:
    return ", undecided: the interval holds the limit" if kind == "undecided" else ""


def interval(speedup: PairedRatio) -> str:
    """A speedup and its interval, for example `1.31 [1.27, 1.36]`."""
    return f"{speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"


def percent(slowdown: Slowdown) -> str:
    """A slowdown and its interval, for example `10.4 % [8.0, 12.9]`."""
    values = (slowdown.slowdown, slowdown.low, slowdown.high)
    middle, low, high = (f"{100 * value:z.1f}" for value in values)
    return f"{middle} % [{low}, {high}]"
