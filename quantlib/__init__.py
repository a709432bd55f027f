"""Which int8 variant of a fine-tuned BERT can ship on a CPU: build it, measure it, hold it.

The public names load their modules when they are first used, so that `import quantlib` is quick and work on
ONNX files never brings in torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlib.accuracy import Evaluation, evaluate_onnx
    from quantlib.calibration import Ranges, calibrate_min_max
    from quantlib.errors import InputError
    from quantlib.experiment import ExperimentOptions, run
    from quantlib.export import export_bert_to_onnx
    from quantlib.features import CalibrationReader, convert_examples_to_features, load_tokenizer
    from quantlib.graph import Compiled, compile_onnx
    from quantlib.latency import LatencyStats, benchmark_onnx_model
    from quantlib.quantize import quantize_onnx
    from quantlib.recipe_file import read_recipe, write_recipe
    from quantlib.recipes import RECIPES, Recipe
    from quantlib.results import VariantResult
    from quantlib.smoothing import search_smoothing, smooth_onnx
    from quantlib.tasks import TASKS, Example, Task, read_splits

__version__ = "0.1.0"

_MODULE_OF = {
    "CalibrationReader": "features",
    "Compiled": "graph",
    "Evaluation": "accuracy",
    "Example": "tasks",
    "ExperimentOptions": "experiment",
    "InputError": "errors",
    "LatencyStats": "latency",
    "RECIPES": "recipes",
    "Ranges": "calibration",
    "Recipe": "recipes",
    "TASKS": "tasks",
    "Task": "tasks",
    "VariantResult": "results",
    "benchmark_onnx_model": "latency",
    "calibrate_min_max": "calibration",
    "compile_onnx": "graph",
    "convert_examples_to_features": "features",
    "evaluate_onnx": "accuracy",
    "export_bert_to_onnx": "export",
    "load_tokenizer": "features",
    "quantize_onnx": "quantize",
    "read_recipe": "recipe_file",
    "read_splits": "tasks",
    "run": "experiment",
    "search_smoothing": "smoothing",
    "smooth_onnx": "smoothing",
    "write_recipe": "recipe_file",
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
    "load_tokenizer",
    "quantize_onnx",
    "read_recipe",
    "read_splits",
    "run",
    "search_smoothing",
    "smooth_onnx",
    "write_recipe",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'quantlib' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quantlib.{_MODULE_OF[name]}"), name)
