"""Which int8 variant of a fine-tuned BERT can ship on a CPU: build it, measure it, hold it.

The public names load their modules when they are first used, so that `import quantlib` is quick and work on
ONNX files never brings in torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlib.compression.calibration import Ranges, calibrate_min_max
    from quantlib.compression.quantize import quantize_onnx
    from quantlib.compression.recipes.file import read_recipe, write_recipe
    from quantlib.compression.recipes.recipe import Recipe
    from quantlib.compression.recipes.table import RECIPES
    from quantlib.compression.smoothing import search_smoothing, smooth_onnx
    from quantlib.data.features import CalibrationReader, convert_examples_to_features, load_tokenizer
    from quantlib.data.tasks import TASKS, Example, Task, read_splits
    from quantlib.experiment import ExperimentOptions, run
    from quantlib.machine.sessions import feed_for, open_session
    from quantlib.measuring.accuracy import Evaluation, evaluate_onnx
    from quantlib.measuring.latency import LatencyStats, benchmark_onnx_model
    from quantlib.measuring.throughput import token_batches
    from quantlib.onnx_model.compile import Compiled, compile_onnx
    from quantlib.onnx_model.export import export_bert_to_onnx
    from quantlib.report.columns import VariantResult
    from quantlib.support.errors import InputError

__version__ = "0.1.0"

# Usage data that packages would send. ONNX Runtime reads its variable when it is first imported, so it is set
# before anything else of this package is; workers inherit it. Who has set one has decided.
for _variable in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_variable, "1")

_MODULE_OF = {
    "CalibrationReader": "data.features",
    "Compiled": "onnx_model.compile",
    "Evaluation": "measuring.accuracy",
    "Example": "data.tasks",
    "ExperimentOptions": "experiment",
    "InputError": "support.errors",
    "LatencyStats": "measuring.latency",
    "RECIPES": "compression.recipes.table",
    "Ranges": "compression.calibration",
    "Recipe": "compression.recipes.recipe",
    "TASKS": "data.tasks",
    "Task": "data.tasks",
    "VariantResult": "report.columns",
    "benchmark_onnx_model": "measuring.latency",
    "calibrate_min_max": "compression.calibration",
    "compile_onnx": "onnx_model.compile",
    "convert_examples_to_features": "data.features",
    "evaluate_onnx": "measuring.accuracy",
    "export_bert_to_onnx": "onnx_model.export",
    "feed_for": "machine.sessions",
    "load_tokenizer": "data.features",
    "open_session": "machine.sessions",
    "quantize_onnx": "compression.quantize",
    "read_recipe": "compression.recipes.file",
    "read_splits": "data.tasks",
    "run": "experiment",
    "search_smoothing": "compression.smoothing",
    "smooth_onnx": "compression.smoothing",
    "token_batches": "measuring.throughput",
    "write_recipe": "compression.recipes.file",
}

__all__ = [
    "RECIPES",
    "TASKS",
    "CalibrationReader",
    "Compiled",
    "Evaluation",
    "Example",
    "ExperimentOptions",
    "InputError",
    "LatencyStats",
    "Ranges",
    "Recipe",
    "Task",
    "VariantResult",
    "benchmark_onnx_model",
    "calibrate_min_max",
    "compile_onnx",
    "convert_examples_to_features",
    "evaluate_onnx",
    "export_bert_to_onnx",
    "feed_for",
    "load_tokenizer",
    "open_session",
    "quantize_onnx",
    "read_recipe",
    "read_splits",
    "run",
    "search_smoothing",
    "smooth_onnx",
    "token_batches",
    "write_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'quantlib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quantlib.{_MODULE_OF[name]}"), name)
