"""Model + recipe + ranges to a quantized model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from quantlib.compression import smoothing
from quantlib.compression.calibration import Ranges, load_with_shapes, tensors_for
from quantlib.compression.quantize.library import quantize_with_library
from quantlib.compression.quantize.rewrite import rewrite
from quantlib.compression.recipes.recipe import Recipe
from quantlib.onnx_model.layers import find_linears, load_ir, names, takers
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file

__all__ = ["op_counts", "quantize_onnx", "tensors_to_calibrate"]


def quantize_onnx(onnx_path: Path, out_path: Path, recipe: Recipe, ranges: Ranges | None = None) -> Path:
    """Write the variant of an FP32 model that a recipe describes; the model itself is left alone.

    Args:
        onnx_path: the FP32 model; for a recipe with `smooth`, what `smooth_onnx` made of it.
        out_path: the file to write; it is loaded once before it gets its name.
        recipe: a row of `RECIPES`, or one of your own.
        ranges: of the activations that `tensors_to_calibrate` names; needed by static recipes, and by those
            only.

    Returns:
        out_path.

    Raises:
        InputError: no model, or none that can be read; one that is smoothed where the recipe is not, or the
            other way round; a recipe that names a node which the model does not have, or that leaves all of
            them in float; ranges that are missing, not needed, or of another model.
    """
    from quantlib.machine.sessions import open_session

    if (ranges is None) != (recipe.mode != "static"):
        raise InputError(
            f"recipe {recipe.name} is {recipe.mode}: "
            f"{'it needs calibrated ranges' if recipe.mode == 'static' else 'it takes no ranges'}"
        )
    needed = tensors_to_calibrate(onnx_path, recipe)
    lacking = [] if ranges is None else [name for name in needed if name not in ranges.of]
    if lacking:
        raise InputError(f"{onnx_path}: the ranges lack {lacking[0]}; they are those of another model")
    with atomic_file(out_path) as scratch:
        if recipe.quantizer == "quantlib":
            quantized = _rewritten(onnx_path, scratch, recipe, ranges)
        else:
            # The model, not its path: given a path, the library writes a file of its own beside it.
            model = load_with_shapes(onnx_path)
            _check_smoothed(
                onnx_path, recipe, any(entry.key == smoothing.MARK for entry in model.metadata_props)
            )
            quantize_with_library(model, scratch, recipe, ranges)
            quantized = sum("Linear" in op or "Integer" in op for op in op_counts(scratch).elements())
        if not quantized:
            raise InputError(f"{onnx_path}: recipe {recipe.name} quantizes no node of it")
        open_session(scratch)
    return out_path


def tensors_to_calibrate(onnx_path: Path, recipe: Recipe) -> list[str]:
    """The activations that a recipe needs the ranges of, in graph order; none for one that is not static.

    Of quantlib's own recipes they are what layers take that get an 8-bit activation: not those which the
    recipe leaves in float or quantizes in their weights only.

    Raises:
        InputError: the file is missing or not an ONNX model, or lacks a node that the recipe names.
    """
    if recipe.quantizer == "onnxruntime":
        return tensors_for(load_with_shapes(onnx_path), recipe.op_types) if recipe.mode == "static" else []
    if recipe.mode != "static" and not recipe.nodes:
        return []
    model = load_ir(onnx_path)
    layers = find_linears(model)
    precisions = recipe.precisions(names(model))
    calibrated = [layer for layer in layers if precisions.get(layer.name) not in ("float", "weight_only")]
    return list(takers(calibrated)) if recipe.mode == "static" else []


def op_counts(onnx_path: Path) -> Counter[str]:
    """How many nodes of each operator type a model has."""
    import onnx

    model = onnx.load(onnx_path, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def _rewritten(onnx_path: Path, out_path: Path, recipe: Recipe, ranges: Ranges | None) -> int:
    """How many layers were quantized."""
    import onnx_ir as ir

    model = load_ir(onnx_path)
    _check_smoothed(onnx_path, recipe, smoothing.is_smoothed(model))
    quantized = rewrite(model, recipe, {} if ranges is None else ranges.of)
    ir.save(model, out_path)
    return quantized


def _check_smoothed(onnx_path: Path, recipe: Recipe, smoothed: bool) -> None:
    if smoothed != recipe.smooth:
        raise InputError(
            f"{onnx_path}: recipe {recipe.name} is for a model that is {'' if recipe.smooth else 'not '}"
            f"smoothed; this one is{'' if smoothed else ' not'} (quantlib.smooth_onnx)"
        )
