"""Model + recipe + ranges to a quantized model."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.calibration import Ranges, load_with_shapes, tensors_for
from quantlib.errors import InputError
from quantlib.files import atomic_file
from quantlib.recipes import Recipe

if TYPE_CHECKING:
    import onnx


def quantize_onnx(onnx_path: Path, out_path: Path, recipe: Recipe, ranges: Ranges | None = None) -> Path:
    """Write the variant of an FP32 model that a recipe describes; the model itself is left alone.

    Args:
        onnx_path: the FP32 model.
        out_path: the file to write; it is loaded once before it gets its name.
        recipe: a row of `RECIPES`, or one of your own.
        ranges: of the activations that nodes of the recipe's types take or give out; needed by static
            recipes, and by those only.

    Returns:
        out_path.

    Raises:
        InputError: no model, or none that can be read; ranges are missing, not needed, or of another model.
        RuntimeError: nothing was quantized.
    """
    from quantlib.runtime import open_session

    if (ranges is None) != (recipe.mode == "dynamic"):
        raise InputError(
            f"recipe {recipe.name} is {recipe.mode}: "
            f"{'it takes no ranges' if recipe.mode == 'dynamic' else 'it needs calibrated ranges'}"
        )
    # The model, not its path: given a path, the library writes a file of its own beside it.
    model = load_with_shapes(onnx_path)
    needed = tensors_for(model, recipe.op_types)
    lacking = [] if ranges is None else [name for name in needed if name not in ranges.of]
    if lacking:
        raise InputError(f"{onnx_path}: the ranges lack {lacking[0]}; they are those of another model")
    with atomic_file(out_path) as scratch:
        with _quiet():
            if ranges is None:
                _dynamic(model, scratch, recipe)
            else:
                _static(model, scratch, recipe, ranges)
        if not any("Linear" in op or "Integer" in op for op in op_counts(scratch)):
            raise RuntimeError(f"recipe {recipe.name} quantized no node of {onnx_path}")
        open_session(scratch)
    return out_path


def op_counts(onnx_path: Path) -> Counter[str]:
    """How many nodes of each operator type a model has."""
    import onnx

    model = onnx.load(onnx_path, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def _static(model: onnx.ModelProto, out_path: Path, recipe: Recipe, ranges: Ranges) -> None:
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        TensorsData,
        quantize_static,
        save_tensors_data,
    )

    # Ranges are handed over as a finished calibration, so that no method of the library's own is run.
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.of.items()}
    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / "ranges.json"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), table)
        quantize_static(
            model,
            out_path,
            calibration_data_reader=None,
            calibration_cache_path=table,
            calibrate_method=CalibrationMethod.MinMax,
            quant_format=QuantFormat[recipe.format],
            activation_type=QuantType[recipe.activation_type],
            weight_type=QuantType[recipe.weight_type],
            **_options(recipe),
        )


def _dynamic(model: onnx.ModelProto, out_path: Path, recipe: Recipe) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model,
        out_path,
        weight_type=QuantType[recipe.weight_type],
        # A product of two activations has no weight to store in 8 bits, and is faster in float.
        extra_options={"MatMulConstBOnly": True},
        **_options(recipe),
    )


def _options(recipe: Recipe) -> dict[str, Any]:
    return {
        "per_channel": recipe.per_channel,
        "op_types_to_quantize": list(recipe.op_types) if recipe.op_types else None,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The library advises its own pre-processing at each call; what it would do is done already."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
