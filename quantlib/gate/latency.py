"""Judge latency as a ratio to the teacher's, with the intervals of run and baseline."""

from __future__ import annotations

from dataclasses import replace

from quantlib.gate.findings import Finding, Kind, apply_report_only
from quantlib.gate.limits import LimitTable
from quantlib.gate.record import GateRecord, LatencyRecord, machine_differences
from quantlib.gate.slowdown import decide, estimate_slowdown, estimate_speedup
from quantlib.measuring.latency.paired import PairedRatio

_KIND_OF: dict[str, Kind] = {"fail": "violation", "undecided": "undecided", "pass": "note"}


def judge_latency(
    variant: str,
    shape: str,
    current: GateRecord,
    baseline: GateRecord | None,
    limits: LimitTable,
    *,
    across_machines: bool = False,
) -> list[Finding]:
    """Hold a variant's speedup at one shape to its limit, and to the baseline's speedup.

    Args:
        variant, shape: keys of `current.latency`; they may be missing from the baseline.
        current: this run.
        baseline: None where there is none; then only limits that need none are judged.
        limits: the table of limits.
        across_machines: compare with a baseline that was measured on another machine.

    Raises:
        KeyError: `current` has no latency of that variant at that shape.
    """
    ours, limit = current.latency[variant][shape], limits.of(variant, current.task)
    before = None
    if baseline is not None and (across_machines or not machine_differences(current, baseline)):
        before = baseline.latency.get(variant, {}).get(shape)
    findings = []
    if limit.min_speedup is not None:
        findings.append(_against_least(variant, shape, ours, limit.min_speedup))
    if before is not None:
        findings.append(_against_baseline(variant, shape, ours, before, limit.max_slowdown))
    busy = [record for record in (ours, before) if record is not None and record.disturbed]
    if busy:
        findings = [_as_undecided(finding, busy[0], busy[0] is ours) for finding in findings]
    if not findings:
        text = f"{_what(variant, shape)} {interval(estimate_speedup(ours))}"
        findings.append(Finding("note", "latency", variant, "speedup", shape, text))
    return apply_report_only(findings, limit.report_only)


def _as_undecided(finding: Finding, busy: LatencyRecord, now: bool) -> Finding:
    """The finding as undecided: times measured on a busy machine prove nothing."""
    when = "now" if now else "for the baseline"
    why = f", undecided: other programs used {100 * busy.others:.0f} % of the machine {when}"
    text = finding.text.removesuffix(_undecided("undecided")) + why
    return replace(finding, kind="undecided", text=text)


def _against_least(variant: str, shape: str, ours: LatencyRecord, least: float) -> Finding:
    speedup = estimate_speedup(ours)
    kind: Kind = "violation" if speedup.high < least else "note" if speedup.low >= least else "undecided"
    text = f"{_what(variant, shape)} {interval(speedup)}, limit at least {least:.2f}"
    return Finding(kind, "latency", variant, "min_speedup", shape, text + _undecided(kind))


def _against_baseline(
    variant: str, shape: str, ours: LatencyRecord, before: LatencyRecord, limit: float | None
) -> Finding:
    slowdown = estimate_slowdown(ours, before)
    kind = "note" if limit is None else _KIND_OF[decide(slowdown, limit)]
    text = (
        f"{_what(variant, shape)} {interval(estimate_speedup(ours))}, "
        f"baseline {interval(estimate_speedup(before))}, "
        f"{'no limit' if limit is None else f'limit -{100 * limit:g} %'}; slowdown "
        f"{100 * slowdown.slowdown:z.1f} % [{100 * slowdown.low:z.1f}, {100 * slowdown.high:z.1f}]"
    )
    return Finding(kind, "latency", variant, "speedup", shape, text + _undecided(kind))


def _what(variant: str, shape: str) -> str:
    return f"{variant} {shape}: speedup"


def _undecided(kind: Kind) -> str:
    return ", undecided: the interval holds the limit" if kind == "undecided" else ""


def interval(speedup: PairedRatio) -> str:
    """A speedup and its interval, for example `1.31 [1.27, 1.36]`."""
    return f"{speedup.ratio:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
