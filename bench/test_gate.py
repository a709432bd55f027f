"""The gate, a test for each finding it can have. Collected with --gate and --gate-update only."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gate


def fail_on(findings, strict=False):
    """Fail with the words of the violations; with `strict`, of the undecided comparisons too."""
    kinds = ("violation", "undecided") if strict else ("violation",)
    texts = [finding.text for finding in findings if finding.kind in kinds]
    if texts:
        pytest.fail("\n".join(texts), pytrace=False)


def test_presence(verdict, gated):
    gated("presence")
    fail_on(verdict.of("presence"))


def test_accuracy(variant, verdict, gated):
    gated("accuracy")
    fail_on(verdict.of("accuracy", variant.name))


def test_size(variant, verdict, gated):
    gated("size")
    fail_on(verdict.of("size", variant.name))


def test_latency(candidate, shape, verdict, gated, harness_options, record_property):
    gated("latency")
    findings = verdict.of("latency", candidate.name, "{}x{}".format(*shape))
    for finding in findings:
        record_property(finding.metric, finding.text)
    fail_on(findings, strict=harness_options.gate_strict)
