"""ONNX Runtime's own quantizers, with our ranges."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.compression.calibration import Ranges
from quantlib.compression.recipes.recipe import Recipe
from quantlib.support.directories import temporary_dir

if TYPE_CHECKING:
    import onnx


def quantize_with_library(
    model: onnx.ModelProto, out_path: Path, recipe: Recipe, ranges: Ranges | None
) -> None:
    """Quantize a model, with the types of its tensors filled in, with ONNX Runtime's own tool."""
    with _quiet():
        if ranges is None:
            _dynamic(model, out_path, recipe)
        else:
            _static(model, out_path, recipe, ranges)


def _static(model: onnx.ModelProto, out_path: Path, recipe: Recipe, ranges: Ranges) -> None:
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        TensorsData,
        quantize_static,
        save_tensors_data,
    )

    # Ranges are passed as a finished calibration, so that the library does not calibrate itself.
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.of.items()}
    with temporary_dir() as scratch:
        table = scratch / "ranges.json"
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
        "reduce_range": recipe.reduce_range,
        "op_types_to_quantize": list(recipe.op_types) if recipe.op_types else None,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library, which at each call advises a pre-processing that has been done already."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
