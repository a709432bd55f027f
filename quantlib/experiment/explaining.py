"""Where the teacher's error comes from, on the calibration rows of a run."""

from __future__ import annotations

from pathlib import Path

from quantlib.compression import calibration
from quantlib.experiment import quantizing
from quantlib.experiment.work import Variant, Work, cached, file_hash, tokenize
from quantlib.measuring import explain
from quantlib.support.cache import versions_key
from quantlib.support.plotting import can_plot
from quantlib.support.progress import Step

# Ranges that clip nothing: advice then says where clipping would pay.
METHOD = "MinMax"


def explained(work: Work, fp32: Variant, checkpoint: Path) -> dict[str, Path]:
    """The files that say what 8 bits cost each layer of `fp32`, {name: path}."""
    rows = tokenize(work, "calibration", checkpoint)
    tensors = explain.linear_inputs(fp32.model)
    # A recipe that needs the same histograms finds them.
    path = quantizing.statistics(
        work, "calibrate with histograms", fp32.model, rows, tensors, histograms=True, padded=False
    )

    def make(directory: Path, step: Step) -> None:
        statistics = calibration.read_statistics(path)
        layers = explain.explain(fp32.path, statistics, calibration.derive(statistics, METHOD))
        explain.write_explanation(directory, layers)
        step.note = layers[0].summary if layers else ""

    key = {
        "model": fp32.model.sha256,
        "statistics": file_hash(path),
        "versions": versions_key("numpy", "onnx-ir", *(["matplotlib"] if can_plot() else [])),
    }
    directory = cached(work, "explain the teacher's error", "explained", key, make)
    return {name: directory / name for name in explain.NAMES if (directory / name).exists()}
