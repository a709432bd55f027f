"""No variant grows, and none silently stops being quantized."""

from __future__ import annotations


def test_size_and_quantized_share(quant_variant):
    quant_variant.check_size()
