"""The findings of the gate, each a whole sentence, and the verdict they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

Kind = Literal["violation", "undecided", "changed", "note"]
Area = Literal["presence", "machine", "accuracy", "size", "latency"]
Outcome = Literal["fail", "undecided", "pass"]


@dataclass(frozen=True)
class Finding:
    """One result of a comparison.

    kind: "violation" fails the gate; "undecided" means that more measuring could decide; "changed" and "note"
    only inform. area: the part of the gate it belongs to. variant: empty for the whole run. metric: what was
    judged. shape: None for all shapes. text: a whole sentence with variant, metric, value, limit, unit and
    interval. report_only: why a violation is only noted; empty for every other finding.
    """

    kind: Kind
    area: Area
    variant: str
    metric: str
    shape: str | None
    text: str
    report_only: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.area not in get_args(Area):
            raise ValueError(f"no finding is of kind {self.kind!r} and area {self.area!r}")
        if not self.text or not self.text.isprintable():
            raise ValueError(f"the text of a finding must be one line, not {self.text!r}")


@dataclass(frozen=True)
class Verdict:
    """All findings of a run."""

    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst kind of finding decides."""
        if self.violations:
            return "fail"
        return "undecided" if self.undecided else "pass"

    @property
    def passed(self) -> bool:
        """Whether there is no violation; something may still be undecided."""
        return not self.violations

    @property
    def violations(self) -> tuple[Finding, ...]:
        """The findings that fail the gate."""
        return self.of_kind("violation")

    @property
    def undecided(self) -> tuple[Finding, ...]:
        """The comparisons that the measurements could not decide."""
        return self.of_kind("undecided")

    def of_kind(self, kind: Kind) -> tuple[Finding, ...]:
        """The findings of one kind, in order."""
        return tuple(finding for finding in self.findings if finding.kind == kind)

    def of(self, area: Area, variant: str | None = None, shape: str | None = None) -> tuple[Finding, ...]:
        """The findings of one area, in order; of one variant and shape if they are named."""
        return tuple(
            finding
            for finding in self.findings
            if finding.area == area and variant in (None, finding.variant) and shape in (None, finding.shape)
        )


def apply_report_only(findings: Sequence[Finding], report_only: str | None) -> list[Finding]:
    """The findings; for a report-only variant, violations become notes with the reason."""
    if not report_only:
        return list(findings)
    return [
        replace(
            finding,
            kind="note",
            text=f"{finding.text} (report only: {report_only})",
            report_only=report_only,
        )
        if finding.kind in ("violation", "undecided")
        else finding
        for finding in findings
    ]


def rounded(value: float, limit: float, digits: int = 2) -> str:
    """The value with enough decimals that it does not look equal to a limit from which it differs."""
    while abs(value - limit) > 1e-9 and f"{value:.{digits}f}" == f"{limit:.{digits}f}":
        digits += 1
    return f"{value:z.{digits}f}"
