"""Latency of each variant at each shape: 5 warm-ups, 30 timed runs, beside the teacher's."""

from __future__ import annotations


def test_latency(benchmark, time_variant, variant, shape, accuracy_and_size):
    benchmark.group = "{}x{}".format(*shape)
    record = accuracy_and_size.variants[variant.name]
    benchmark.extra_info.update(
        {
            **{name: float(value) for name, value in record.metrics.items()},
            "accuracy_drop": float(record.accuracy_drop),
            "size_bytes": int(record.size_bytes),
            "compression_ratio": float(record.compression_ratio),
            "recipe": variant.recipe.name if variant.recipe else None,
            "op_counts": dict(record.op_counts),
        }
    )
    time_variant(variant, shape)
