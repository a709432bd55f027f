"""Which layers lose accuracy: the signal-to-quantization-noise ratio of each layer's weights and input.

Nothing is quantized: the ratios come from the weights and from the histograms of calibration.
"""

from quantlib.measuring.explain.files import JSON, NAMES, read_explanation, table, write_explanation
from quantlib.measuring.explain.layers import LayerNoise, explain, linear_inputs

__all__ = [
    "JSON", "NAMES", "LayerNoise", "explain", "linear_inputs", "read_explanation", "table",
    "write_explanation",
]  # fmt: skip
