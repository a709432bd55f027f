"""No variant grows, and none silently stops being candidate."""

from __future__ import annotations

import pytest

from quantlib import gate


def test_size_and_quantized_share(candidate, accuracy_and_size, limits, record_property):
    record = accuracy_and_size.variants[candidate.name]
    record_property("compression_ratio", record.compression_ratio)
    record_property("quantized_share", record.quantized_share)
    findings = gate.judge_size(candidate.name, accuracy_and_size, None, limits)
    violations = [finding.text for finding in findings if finding.kind == "violation"]
    if violations:
        pytest.fail("\n".join(violations), pytrace=False)
