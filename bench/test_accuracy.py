"""Tolerance tests: no variant loses more against the FP32 teacher than its limit allows."""

from __future__ import annotations

import pytest

from quantlib import gate


def test_drop_within_limit(candidate, accuracy_and_size, limits, record_property):
    record = accuracy_and_size.variants[candidate.name]
    record_property("accuracy_drop", record.accuracy_drop)
    findings = gate.judge_accuracy(candidate.name, accuracy_and_size, None, limits)
    violations = [finding.text for finding in findings if finding.kind == "violation"]
    if violations:
        pytest.fail("\n".join(violations), pytrace=False)
