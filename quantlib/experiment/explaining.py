"""Where the teacher's error comes from, on the calibration rows of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantlib.compression import calibration
from quantlib.data import features
from quantlib.experiment import quantizing
from quantlib.experiment.work import Variant, Work, cached
from quantlib.measuring import explain
from quantlib.support.cache import code_key, versions_key
from quantlib.support.files import sha256_file
from quantlib.support.progress import Step

# Ranges that clip nothing: advice then says where clipping would pay.
METHOD = "MinMax"


def explained(work: Work, fp32: Variant, checkpoint: Path) -> dict[str, Path]:
    """The files that say what 8 bits cost each layer of `fp32`, {name: path}."""
    statistics = _statistics(work, fp32.path, quantizing.calibration_rows(work, checkpoint))

    def make(directory: Path, step: Step) -> None:
        kept = calibration.read_statistics(statistics)
        found = explain.explain(fp32.path, kept, calibration.derive(kept, METHOD))
        explain.write_explanation(directory, found)
        step.note = found[0].summary if found else ""

    key = {
        "model": sha256_file(fp32.path),
        "statistics": sha256_file(statistics),
        "method": METHOD,
        "versions": versions_key("numpy", "onnx-ir", "matplotlib"),
        "code": code_key(
            "measuring.explain",
            "compression.calibration",
            "onnx_model.layers",
            "onnx_model.roles",
            "support.plotting",
        ),
    }
    directory = cached(work, "explain the teacher's error", "explained", key, make)
    return {name: directory / name for name in explain.NAMES}


def _statistics(work: Work, model: Path, rows: Sequence[features.Feature]) -> Path:
    """The file of statistics, with histograms, of what the model's products take."""
    tensors = explain.linear_inputs(model)
    reader = features.CalibrationReader(rows, batch_size=4)

    def collect(directory: Path, step: Step) -> None:
        found = calibration.collect(model, reader, tensors, progress=step.advance)
        calibration.write_statistics(directory / "statistics.json", found)

    # The key of `quantizing`, so that a recipe which needs the same histograms finds them here.
    key = {
        "model": sha256_file(model),
        "rows": features.features_hash(rows),
        "pad_to": None,
        "tensors": sorted(tensors),
        "histograms": True,
        "versions": versions_key("numpy", "onnx", "onnxruntime"),
        "code": code_key("compression.calibration", "data.features"),
    }
    path = cached(work, "calibrate with histograms", "statistics", key, collect, total=len(rows))
    return path / "statistics.json"
