"""A model as an ONNX file: exported, compiled, and read."""
