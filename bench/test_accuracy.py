"""Tolerance tests: no variant loses more against the FP32 teacher than its limit allows."""

from __future__ import annotations


def test_drop_within_limit(quant_variant):
    quant_variant.check_accuracy()
