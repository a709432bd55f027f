"""The gate, a test for each finding it can have. Collected with --gate and --gate-update only."""

from __future__ import annotations


def test_presence(quant_verdict):
    quant_verdict.check("presence")


def test_accuracy(quant_model, quant_verdict):
    quant_verdict.check("accuracy", quant_model.name)


def test_size(quant_model, quant_verdict):
    quant_verdict.check("size", quant_model.name)


def test_latency(quant_variant, quant_shape, quant_verdict):
    quant_verdict.check("latency", quant_variant.name, str(quant_shape))
