"""Float model to smaller model: recipes, calibration, smoothing, quantization."""
