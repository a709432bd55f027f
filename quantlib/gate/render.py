"""The verdict for people: Markdown for a pull request, lines for the console."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from quantlib.gate.comparison import CONFIDENCE, Comparison, Comparisons
from quantlib.gate.findings import Kind, Verdict
from quantlib.gate.latency import interval, percent
from quantlib.gate.record import GateRecord, LatencyRecord
from quantlib.gate.slowdown import estimate_paired_slowdown, estimate_slowdown, estimate_speedup
from quantlib.report.columns import BYTES_PER_MB
from quantlib.report.markdown import escape, row

# From worst to best, with the words of one finding and of several.
_KINDS: dict[Kind, tuple[str, str]] = {
    "violation": ("violation", "violations"),
    "undecided": ("undecided", "undecided"),
    "changed": ("changed", "changed"),
    "note": ("note", "notes"),
}


def markdown(
    verdict: Verdict,
    current: GateRecord,
    baseline: GateRecord | None,
    compared: Comparisons | None = None,
) -> str:
    """A summary in GitHub's Markdown: heading, a row per variant and shape, then all findings.

    Rows in which nothing has changed, and notes, are folded; environments are shown where they differ.
    """
    metric = current.judged_by.primary_metric
    columns = ["variant", "shape", metric, "drop, points", "size, MB", "compression", "speedup"]
    columns += ["baseline speedup", "slowdown", "compared", "verdict"]
    head = [row(columns), row(["---", "---", *["---:"] * (len(columns) - 4), "---", "---"])]
    rows = list(_table(verdict, current, baseline, compared or {}))
    shown = [row(cells) for cells, unchanged in rows if not unchanged]
    folded = [row(cells) for cells, unchanged in rows if unchanged]
    lines = [
        f"## Gate: {verdict.outcome} ({escape(current.task)})",
        "",
        f"{_counts(verdict)}. Intervals: {100 * (2 * CONFIDENCE - 1):.0f} % for speedups, 95 % for drops.",
        "",
        *(head if shown else []),
        *shown,
    ]
    if folded:
        lines += ["", *_folded(f"{len(folded)} unchanged", [*head, *folded])]
    if baseline is not None:
        lines += _environments(baseline, current)
    for kind, (_, heading) in _KINDS.items():
        findings = verdict.of_kind(kind)
        texts = [f"- {escape(finding.text)}" for finding in findings]
        if kind == "note" and findings:
            lines += ["", *_folded(f"{len(findings)} {heading}", texts)]
        elif findings:
            lines += ["", f"### {heading.capitalize()}", "", *texts]
    return "\n".join(lines) + "\n"


def _folded(summary: str, lines: list[str]) -> list[str]:
    return [f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"]


def _environments(baseline: GateRecord, current: GateRecord) -> list[str]:
    """A table of what differs between the machines of two records."""
    machines = baseline.machine, current.machine
    every = dict.fromkeys((*machines[0], *machines[1]))
    keys = [key for key in every if machines[0].get(key) != machines[1].get(key)]
    if not keys:
        return []
    facts = [row([escape(key), *(escape(_shown(machine.get(key))) for machine in machines)]) for key in keys]
    heading = row(["", "baseline", "this run"]), row(["---", "---", "---"])
    return ["", "### The environment differs", "", *heading, *facts]


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def console_lines(verdict: Verdict) -> list[str]:
    """A line per finding, the worst kind last, where the eye is; then the outcome."""
    lines = [
        f"{kind.upper() if kind == 'violation' else kind:<9}  {finding.text}"
        for kind in reversed(_KINDS)
        for finding in verdict.of_kind(kind)
    ]
    return [*lines, f"gate: {verdict.outcome} ({_counts(verdict)})"]


def _table(
    verdict: Verdict, current: GateRecord, baseline: GateRecord | None, compared: Comparisons
) -> Iterator[tuple[list[str], bool]]:
    """A row per variant and shape of either record, then one per variant that was not run.

    Each comes with whether nothing in it has changed since the baseline.
    """
    for name, variant in current.variants.items():
        exact = [
            f"{variant.score:z.4f}",
            f"{100 * variant.accuracy_drop:z.2f}",
            f"{variant.size_bytes / BYTES_PER_MB:.2f}",
            f"{variant.compression_ratio:.2f}",
        ]
        ours = current.latency.get(name, {})
        theirs, how = baseline.latency.get(name, {}) if baseline else {}, compared.get(name, {})
        for shape in dict.fromkeys((*ours, *theirs, *how)) or [""]:
            speedups = [_speedup(ours.get(shape)), _speedup(theirs.get(shape))]
            cells = [*exact, *speedups, *_compared(how.get(shape), ours.get(shape), theirs.get(shape))]
            worst = _worst(verdict, name, shape)
            timed_alike = shape not in how or how[shape].how == "unchanged"
            unchanged = worst == "pass" and timed_alike and _same_model(current, baseline, name)
            yield [escape(name), escape(shape), *cells, worst], unchanged
    for name in dict.fromkeys(finding.variant for finding in verdict.of("presence")):
        if name and name not in current.variants:
            yield [escape(name), *[""] * 9, _worst(verdict, name, "")], False


def _same_model(current: GateRecord, baseline: GateRecord | None, name: str) -> bool:
    """Whether the baseline has the same answers and the same size of a variant."""
    old = None if baseline is None else baseline.variants.get(name)
    new = current.variants[name]
    return old is not None and (old.predictions, old.size_bytes) == (new.predictions, new.size_bytes)


def _speedup(latency: LatencyRecord | None) -> str:
    return interval(estimate_speedup(latency)) if latency else ""


def _compared(
    comparison: Comparison | None, ours: LatencyRecord | None, theirs: LatencyRecord | None
) -> list[str]:
    """The slowdown with its interval, and what it was compared with."""
    if comparison is None:
        return ["", ""]
    if comparison.how == "not compared":
        return ["", "not compared"]
    if comparison.how == "unchanged":
        return ["0", "unchanged"]
    if comparison.how == "old model":
        slowdown = estimate_paired_slowdown(comparison.launches, confidence=comparison.confidence)
        return [percent(slowdown), escape(comparison.words)]
    if ours is None or theirs is None:
        return ["", "teacher (weaker)"]
    slowdown = estimate_slowdown(ours, theirs, confidence=comparison.confidence, spread=comparison.spread)
    return [percent(slowdown), "teacher (weaker)"]


def _worst(verdict: Verdict, variant: str, shape: str) -> str:
    """The worst finding about the variant as a whole or at the shape."""
    findings = [f for f in verdict.findings if f.variant == variant and f.shape in (None, shape)]
    kinds = {finding.kind for finding in findings}
    if "violation" in kinds:
        return "**fail**"
    if "undecided" in kinds:
        return "undecided"
    return "report only" if any(finding.report_only for finding in findings) else "pass"


def _counts(verdict: Verdict) -> str:
    counts = Counter(finding.kind for finding in verdict.findings)
    return ", ".join(f"{counts[kind]} {words[counts[kind] != 1]}" for kind, words in _KINDS.items())
