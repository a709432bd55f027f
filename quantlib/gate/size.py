"""Size and quantized share: exact figures, so any step back counts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from quantlib.compression.variants import TEACHER
from quantlib.gate.findings import Finding, apply_report_only, rounded
from quantlib.gate.limits import Limits, LimitTable
from quantlib.gate.record import GateRecord, VariantRecord
from quantlib.report.columns import BYTES_PER_MB

# Names and metadata in a file change its size a little from one version of a library to the next.
SIZE_TOLERANCE = 0.005
_SHARE_TOLERANCE = 1e-9


def judge_size(
    variant: str, current: GateRecord, baseline: GateRecord | None, limits: LimitTable
) -> list[Finding]:
    """Hold a variant's bytes, compression ratio and quantized share to their limits and to the baseline.

    A share below the baseline's is a violation whatever the limit: layers that silently stop being quantized
    are what this is for.

    Args:
        variant: a name in `current`; it may be missing from the baseline.
        current: this run.
        baseline: None where there is none; then only limits that need none are judged.
        limits: the table of limits.

    Raises:
        KeyError: `current` has no such variant.
    """
    ours, limit = current.variants[variant], limits.of(variant, current.task)
    before = baseline.variants.get(variant) if baseline else None
    findings = [] if variant == TEACHER else _against_limits(variant, ours, limit)
    if before is not None:
        findings += _bytes(variant, ours.size_bytes, before.size_bytes) + _share(variant, ours, before)
    return apply_report_only(findings, limit.report_only)


def _against_limits(variant: str, ours: VariantRecord, limits: Limits) -> list[Finding]:
    violation = partial(Finding, "violation", "size", variant)
    findings = []
    least, ratio = limits.min_compression_ratio, ours.compression_ratio
    if least is not None and ratio < least:
        text = f"{variant}: compression ratio {rounded(ratio, least)}, limit {least:.2f}"
        findings.append(violation("compression_ratio", None, text))
    least, share = limits.min_quantized_share, ours.quantized_share
    if least is not None and share is not None and share < least - _SHARE_TOLERANCE:
        text = f"{variant}: {rounded(100 * share, 100 * least, 1)} % of the nodes with weights are quantized"
        findings.append(violation("quantized_share", None, f"{text}, limit {100 * least:.1f} %"))
    return findings


def _bytes(variant: str, ours: int, before: int) -> list[Finding]:
    growth = ours / before - 1
    if abs(growth) <= SIZE_TOLERANCE:
        return []
    text = (
        f"{variant}: size {ours / BYTES_PER_MB:.2f} MB, baseline {before / BYTES_PER_MB:.2f} MB "
        f"({100 * growth:+.1f} %)"
    )
    if growth < 0:
        return [Finding("note", "size", variant, "size_bytes", None, text)]
    text += f", limit {100 * SIZE_TOLERANCE:+g} %"
    return [Finding("violation", "size", variant, "size_bytes", None, text)]


def _share(variant: str, ours: VariantRecord, before: VariantRecord) -> list[Finding]:
    # Of a variant without a recipe nothing is quantized, which is a step back if its namesake had one.
    share, wanted = ours.quantized_share or 0.0, before.quantized_share
    if wanted is None or share >= wanted - _SHARE_TOLERANCE:
        return []
    text = (
        f"{variant}: {rounded(100 * share, 100 * wanted, 1)} % of the nodes with weights are quantized, "
        f"baseline {100 * wanted:.1f} %; {_changed_counts(ours.op_counts, before.op_counts)}"
    )
    return [Finding("violation", "size", variant, "quantized_share", None, text)]


def _changed_counts(ours: Mapping[str, int], before: Mapping[str, int]) -> str:
    changes = [
        f"{op} {ours.get(op, 0)} (baseline {before.get(op, 0)})"
        for op in sorted({*ours, *before})
        if ours.get(op, 0) != before.get(op, 0)
    ]
    return ", ".join(changes) or "the number of nodes of each type is the same"
