"""Model + recipe + ranges to a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quantlib.compression import smoothing
from quantlib.compression.calibration import Gram, Ranges, load_with_shapes, tensors_for, with_shapes
from quantlib.compression.quantize.library import quantize_with_library
from quantlib.compression.quantize.rewrite import rewrite
from quantlib.compression.recipes.recipe import Recipe
from quantlib.onnx_model.layers import find_linears, layers_by_input, load_ir, names, skeleton_ir
from quantlib.onnx_model.model import Model, op_counts
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file

__all__ = ["quantize_onnx", "tensors_to_calibrate", "tensors_to_correlate"]


def quantize_onnx(
    model: Model | Path,
    out_path: Path,
    recipe: Recipe,
    ranges: Ranges | None = None,
    grams: Mapping[str, Gram] | None = None,
) -> Path:
    """Write the variant of an FP32 model that a recipe describes; the model itself is left alone.

    Args:
        model: the FP32 model, or its path; for a recipe with `smooth`, what `smooth_onnx` made of it.
        out_path: the file to write; it is loaded once before it gets its name.
        recipe: a row of `RECIPES`, or one of your own.
        ranges: of the activations that `tensors_to_calibrate` names; needed by static recipes, and by those
            only.
        grams: Gram matrices of the activations that `tensors_to_correlate` names, from `collect_grams` of the
            same model; needed by recipes with second-order rounding, and by those only.

    Returns:
        out_path.

    Raises:
        InputError: no model, or none that can be read; one that is smoothed where the recipe is not, or the
            other way round; a recipe that names a node which the model does not have, or that leaves all of
            them in float; ranges or Gram matrices that are missing, not needed, or of another model.
    """
    from quantlib.machine.sessions import open_session

    if (ranges is None) != (recipe.mode != "static"):
        raise InputError(
            f"recipe {recipe.name} is {recipe.mode}: "
            f"{'it needs calibrated ranges' if recipe.mode == 'static' else 'it takes no ranges'}"
        )
    if (grams is None) != (recipe.rounding == "nearest"):
        raise InputError(
            f"recipe {recipe.name} has {recipe.rounding} rounding: "
            f"{'it takes no' if recipe.rounding == 'nearest' else 'it needs'} Gram matrices"
        )
    model = Model.of(model)
    needed = tensors_to_calibrate(model, recipe)
    lacking = [] if ranges is None else [name for name in needed if name not in ranges.of]
    if lacking:
        raise InputError(f"{model.path}: the ranges lack {lacking[0]}; they are those of another model")
    needed = tensors_to_correlate(model, recipe)
    lacking = [] if grams is None else [name for name in needed if name not in grams]
    if lacking:
        raise InputError(
            f"{model.path}: the Gram matrices lack {lacking[0]}; they are those of another model"
        )
    with atomic_file(out_path) as scratch:
        if recipe.quantizer == "quantlib":
            quantized = _rewritten(model.path, scratch, recipe, ranges, grams)
        else:
            smoothed = any(entry.key == smoothing.MARK for entry in model.skeleton.metadata_props)
            _check_smoothed(model.path, recipe, smoothed)
            # Parsed, not its path: given a path, the library writes a file of its own beside it.
            try:
                quantize_with_library(load_with_shapes(model.path), scratch, recipe, ranges)
            except RuntimeError as error:  # of graphs that it gets wrong, such as DeBERTa's
                raise InputError(
                    f"{model.path}: recipe {recipe.name}: ONNX Runtime's own tool cannot quantize it: {error}"
                ) from error
            quantized = sum("Linear" in op or "Integer" in op for op in op_counts(scratch).elements())
        if not quantized:
            raise InputError(f"{model.path}: recipe {recipe.name} quantizes no node of it")
        open_session(scratch, threads=1)  # it is only loaded
    return out_path


def tensors_to_calibrate(model: Model | Path, recipe: Recipe) -> list[str]:
    """The activations that a recipe needs the ranges of, in graph order; none for one that is not static.

    For quantlib's own recipes these are the inputs of layers that get 8-bit activations: not those of layers
    that stay in float, or whose weights alone are quantized.

    Raises:
        InputError: the file is missing or not an ONNX model, or lacks a node that the recipe names.
    """
    model = Model.of(model)
    if recipe.quantizer == "onnxruntime":
        return tensors_for(with_shapes(model), recipe.op_types) if recipe.mode == "static" else []
    if recipe.mode != "static" and not recipe.nodes:
        return []
    graph = skeleton_ir(model)
    layers = find_linears(graph)
    precisions = recipe.precisions(names(graph))
    calibrated = [layer for layer in layers if precisions.get(layer.name) not in ("float", "weight_only")]
    return list(layers_by_input(calibrated)) if recipe.mode == "static" else []


def tensors_to_correlate(model: Model | Path, recipe: Recipe) -> list[str]:
    """The activations that a recipe needs the Gram matrices of, in graph order; none for nearest rounding.

    These are the inputs of all layers that are quantized.

    Raises:
        InputError: the file is missing or not an ONNX model, or lacks a node that the recipe names.
    """
    if recipe.rounding == "nearest":
        return []
    graph = skeleton_ir(Model.of(model))
    precisions = recipe.precisions(names(graph))
    return list(
        layers_by_input([layer for layer in find_linears(graph) if precisions.get(layer.name) != "float"])
    )


def _rewritten(
    onnx_path: Path,
    out_path: Path,
    recipe: Recipe,
    ranges: Ranges | None,
    grams: Mapping[str, Gram] | None,
) -> int:
    """How many layers were quantized."""
    import onnx_ir as ir

    model = load_ir(onnx_path)
    _check_smoothed(onnx_path, recipe, smoothing.is_smoothed(model))
    quantized = rewrite(model, recipe, {} if ranges is None else ranges.of, grams or {})
    ir.save(model, out_path)
    return quantized


def _check_smoothed(onnx_path: Path, recipe: Recipe, smoothed: bool) -> None:
    if smoothed != recipe.smooth:
        raise InputError(
            f"{onnx_path}: recipe {recipe.name} is for a model that is {'' if recipe.smooth else 'not '}"
            f"smoothed; this one is{'' if smoothed else ' not'} (quantlib.smooth_onnx)"
        )
