"""Latency of each variant at each shape: 5 warm-ups, 30 timed runs, beside the teacher's."""

from __future__ import annotations


def test_latency(benchmark, quant_model, quant_shape):
    quant_model.time(benchmark, quant_shape)
