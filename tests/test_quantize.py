from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
from exact import exact_session, saturates, with_constants
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.calibration import (
    Gram,
    Ranges,
    Statistics,
    calibrate_min_max,
    collect,
    collect_grams,
    derive,
    write_grams,
    write_ranges,
)
from quantlib.compression.grid import (
    activation_grid,
    levels,
    quantize_blocks,
    quantize_row_blocks,
    quantize_rows,
    quantize_weight,
)
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate, tensors_to_correlate
from quantlib.compression.recipes import RECIPES, Precision, Recipe
from quantlib.compression.smoothing import search_smoothing, smooth_onnx
from quantlib.data.features import CalibrationReader, Feature
from quantlib.machine.sessions import open_session
from quantlib.onnx_model.layers import find_linears, load_ir
from quantlib.onnx_model.model import op_counts, size_bytes
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file

ROOT = Path(__file__).parents[1]
OWN = [name for name, recipe in RECIPES.items() if recipe.quantizer == "quantlib"]
LIBRARY = [name for name in RECIPES if name not in OWN]
MICROSOFT = "com.microsoft"
node = helper.make_node

# What each recipe makes of the tiny BERT: 2 layers, so 12 MatMuls with weights, 4 of two activations, 2
# Gemms and 4 Gathers (3 embeddings and the first token). Layers take 10 activations; 12 Adds are biases.
# Operators that are not named here are as in FP32.
KEPT = {"MatMul": 4, "Gather": 7, "Cast": 4, "Add": 10, "Mul": 9, "Softmax": 2}  # 3 for each embedding
STATIC = KEPT | {"MatMulIntegerToFloat": 14, "QuantizeLinear": 10}
# A second term: its product and the sum; what rounding left, its scale, and QuantizeLinear.
TERMS = {"MatMulIntegerToFloat": 28, "Add": 24, "DequantizeLinear": 10, "Sub": 10, "Mul": 19}
# Smoothing multiplies 2 GELUs, the pooler's input and its output, and gives 4 residual sums theirs back.
SMOOTH = STATIC | {"Mul": 17}
# The words are one node instead of four.
EMBED4 = {"Gather": 5, "Cast": 3, "GatherBlockQuantized": 1}
WEIGHTS = KEPT | {"MatMulNBits": 14, "Add": 24}
GOLDEN = {
    "fp32": {"MatMul": 16, "Gemm": 2, "Gather": 4, "Cast": 1, "Add": 22, "Mul": 6, "Softmax": 2},
    "quant_1": KEPT | {"MatMul": 18, "Add": 24, "QuantizeLinear": 10, "DequantizeLinear": 28},
    "quant_2": STATIC,
    "static_u8s8_smooth": SMOOTH,
    "static_u8s8_percentile": STATIC,
    "static_u8s8_entropy": STATIC,
    "static_u8s8_mse": STATIC,
    "static_mixed": SMOOTH | {
        "MatMulIntegerToFloat": 18, "QuantizeLinear": 14, "DequantizeLinear": 4, "Add": 14, "Sub": 4,
        "Mul": 21,
    },  # a second term for 4 of the layers and 4 of the activations
    "static_u16s8": STATIC | TERMS | {"QuantizeLinear": 20},
    "static_u8s7_smooth": SMOOTH,
    "static_u8s8_embed4": SMOOTH | EMBED4 | {"Mul": 16},
    "dynamic_u8s8_embed4": KEPT | EMBED4 | {
        "MatMulIntegerToFloat": 14, "DynamicQuantizeLinear": 10, "Mul": 8,
    },
    "dynamic_u8s8_disk4": KEPT | EMBED4 | {
        "MatMulIntegerToFloat": 14, "DynamicQuantizeLinear": 10, "Mul": 8,
    },
    "static_u8s8_disk4": STATIC | EMBED4 | {"Mul": 8},
    "dynamic_u8s8": KEPT | {"MatMulIntegerToFloat": 14, "DynamicQuantizeLinear": 10},
    "dynamic_per_tensor": KEPT | {"MatMulIntegerToFloat": 14, "DynamicQuantizeLinear": 10},
    "dynamic_u16s8": KEPT | TERMS | {"DynamicQuantizeLinear": 10, "QuantizeLinear": 10},
    "weight_only_int8": WEIGHTS,
    "weight_only_int4": WEIGHTS,
    "weight_only_int4_second_order": WEIGHTS,
    "quant_1_defaults": {
        "MatMul": 16, "Gemm": 2, "Gather": 4, "Cast": 1, "Add": 22, "Mul": 6, "Softmax": 2,
        "QuantizeLinear": 77, "DequantizeLinear": 121,
    },
    "quant_2_defaults": {
        "QLinearMatMul": 16, "QGemm": 2, "Gather": 4, "Cast": 1, "QLinearAdd": 22, "QLinearMul": 6,
        "QLinearSoftmax": 2, "QuantizeLinear": 9, "DequantizeLinear": 9,
    },
}  # fmt: skip
STORED_IN_4_BITS = [name for name, recipe in RECIPES.items() if recipe.storage == "int4"]
COUNTED = {op for counts in GOLDEN.values() for op in counts}


def smoothed_model(model: Path, rows: list[Feature], path: Path) -> Path:
    return smooth_onnx(model, path, search_smoothing(model, CalibrationReader(rows, 8), threads=1))


def ranges_for(model: Path, rows: list[Feature], recipe: Recipe) -> Ranges | None:
    if recipe.mode != "static":
        return None
    reader = CalibrationReader(rows, 8, 64 if recipe.pad_calibration else None)
    statistics = collect(
        model, reader, tensors_to_calibrate(model, recipe), skip_padding=not recipe.pad_calibration
    )
    return derive(statistics, recipe.calibration_method or "")


@pytest.fixture(scope="module")
def sources(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """By `smooth`: the FP32 model that a recipe starts from."""
    smooth = tmp_path_factory.mktemp("smooth") / "model.onnx"
    return {False: tiny_onnx, True: smoothed_model(tiny_onnx, tiny_rows, smooth)}


@pytest.fixture(scope="module")
def ranges(sources: dict[bool, Path], tiny_rows: list[Feature]) -> dict[str, Ranges | None]:
    """By the name of the recipe."""
    kept: dict[tuple[bool, bool], Statistics] = {}
    for smooth, padded in ((False, False), (True, False), (False, True)):
        reader = CalibrationReader(tiny_rows, 8, 64 if padded else None)
        kept[smooth, padded] = collect(sources[smooth], reader, skip_padding=not padded)
    return {
        name: derive(kept[recipe.smooth, recipe.pad_calibration], recipe.calibration_method)
        if recipe.calibration_method
        else None
        for name, recipe in RECIPES.items()
    }


@pytest.fixture(scope="module")
def grams(sources: dict[bool, Path], tiny_rows: list[Feature]) -> dict[str, dict[str, Gram] | None]:
    """By the name of the recipe."""
    everything = replace(RECIPES["dynamic_u8s8"], rounding="second_order")
    kept = {
        smooth: collect_grams(
            source, CalibrationReader(tiny_rows, 8), tensors_to_correlate(source, everything)
        )
        for smooth, source in sources.items()
    }
    return {
        name: kept[recipe.smooth] if recipe.rounding == "second_order" else None
        for name, recipe in RECIPES.items()
    }


@pytest.fixture(scope="module")
def models(
    sources: dict[bool, Path],
    ranges: dict[str, Ranges | None],
    grams: dict[str, dict[str, Gram] | None],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The model of each recipe, and the FP32 one."""
    directory = tmp_path_factory.mktemp("quantized")
    quantized_models = {
        name: quantize_onnx(
            sources[recipe.smooth], directory / f"model_{name}.onnx", recipe, ranges[name], grams[name]
        )
        for name, recipe in RECIPES.items()
    }
    return {"fp32": sources[False], **quantized_models}


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def nodes(path: Path, *op_types: str) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path).graph.node if n.op_type in op_types]


# What is made of the tiny BERT


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_op_counts(models: dict[str, Path], name: str, tmp_path: Path) -> None:
    counts = op_counts(models[name])
    if name in STORED_IN_4_BITS:  # counted as they are when the model is loaded
        counts = op_counts(with_constants(models[name], tmp_path / "model.onnx"))
    assert {op: n for op, n in counts.items() if op in COUNTED} == GOLDEN[name]
    fp32 = op_counts(models["fp32"])
    others = set(counts) - COUNTED
    assert {op: counts[op] for op in others} == {op: fp32[op] for op in others}
    assert set(GOLDEN) == {"fp32", *RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_interface_and_opset_stay(models: dict[str, Path], name: str) -> None:
    model, fp32 = onnx.load(models[name]), onnx.load(models["fp32"])
    assert [(v.name, v.type) for v in model.graph.input] == [(v.name, v.type) for v in fp32.graph.input]
    assert [(v.name, v.type) for v in model.graph.output] == [(v.name, v.type) for v in fp32.graph.output]
    assert {e.version for e in model.opset_import if e.domain == ""} == {17}
    onnx.checker.check_model(model)


@pytest.mark.parametrize("name", OWN)
def test_nodes_keep_the_names_they_have_in_fp32(models: dict[str, Path], name: str) -> None:
    """So that a profile, a table of layers or a recipe file speaks of the same thing in every variant."""
    before = {n.name: n.op_type for n in onnx.load(models["fp32"]).graph.node}
    nodes_after = onnx.load(models[name]).graph.node
    after = {n.name: n.op_type for n in nodes_after}
    assert len(after) == len(nodes_after), "each name once"
    removed = {before[n] for n in set(before) - set(after)}
    assert removed <= {"Add"}, "a bias, which the product adds, or which is added under another name"
    changed = {(before[n], after[n]) for n in set(before) & set(after) if before[n] != after[n]}
    product = {"QDQ": "MatMul", "QOperator": "MatMulIntegerToFloat"}[RECIPES[name].format]
    product = "MatMulNBits" if RECIPES[name].mode == "weight_only" else product
    lookup = {"int4": {("Gather", "GatherBlockQuantized")}}.get(RECIPES[name].embeddings, set())
    assert changed == {("MatMul", product), ("Gemm", product), *lookup} - {("MatMul", "MatMul")}
    assert all(n.output[0] for n in nodes_after)


@pytest.mark.parametrize("name", OWN)
def test_what_layers_give_out_keeps_its_name(
    models: dict[str, Path], sources: dict[bool, Path], name: str
) -> None:
    """What follows a layer is as it was, up to the smoothing."""
    source = onnx.load(sources[RECIPES[name].smooth]).graph
    layers = {layer.last.name for layer in find_linears(load_ir(sources[RECIPES[name].smooth]))}
    outputs = {output for n in onnx.load(models[name]).graph.node for output in n.output}
    assert {n.output[0] for n in source.node if n.name in layers} <= outputs
    quantized_nodes = {n.name: n for n in onnx.load(models[name]).graph.node}
    for n in source.node:
        if n.op_type in ("LayerNormalization", "Softmax", "Erf", "Tanh", "Reshape", "Where"):
            assert list(quantized_nodes[n.name].input) == list(n.input)


@pytest.mark.parametrize("name", RECIPES)
def test_logits_stay_close(models: dict[str, Path], tiny_rows: list[Feature], name: str) -> None:
    expected, logits = tiny.logits(models["fp32"], tiny_rows), tiny.logits(models[name], tiny_rows)
    assert np.isfinite(logits).all()
    assert np.abs(expected - logits).max() > 1e-4, "it is another model"
    limit = 0.5 if "int4" in name or name in STORED_IN_4_BITS else 0.1
    if not RECIPES[name].report_only:
        assert np.abs(expected - logits).max() < limit, "logits spread over more than 3"
        assert np.corrcoef(expected[:, 0] - expected[:, 1], logits[:, 0] - logits[:, 1])[0, 1] > 0.9


@pytest.mark.parametrize("name", ["quant_1", "quant_2", "dynamic_u8s8", "static_u8s7_smooth"])
def test_products_saturate_only_without_vnni(
    models: dict[str, Path], tiny_rows: list[Feature], name: str
) -> None:
    """The session that a user gets computes what the graph says, but for 8-bit weights on some CPUs."""
    usual, exact = (tiny.logits(models[name], tiny_rows, exact=on) for on in (False, True))
    assert (np.abs(usual - exact).max() > 0.01) == (saturates() and name != "static_u8s7_smooth")


def test_more_bits_are_closer(models: dict[str, Path], tiny_rows: list[Feature]) -> None:
    expected = tiny.logits(models["fp32"], tiny_rows)
    error = {name: np.abs(tiny.logits(path, tiny_rows) - expected).mean() for name, path in models.items()}
    assert error["static_u16s8"] < error["quant_2"]
    assert error["dynamic_u16s8"] < error["dynamic_u8s8"] < error["dynamic_per_tensor"]
    assert error["static_u8s8_smooth"] < error["static_u8s7_smooth"]
    assert error["static_mixed"] < error["static_u8s8_smooth"] < error["quant_2"]
    assert error["weight_only_int8"] < error["weight_only_int4_second_order"] < error["weight_only_int4"]
    assert error["quant_1"] == pytest.approx(error["quant_2"], rel=0.1), "S8 and U8 are the same grid"
    assert error["quant_2"] < error["quant_2_defaults"] / 4


def test_what_is_left_of_the_error_at_16_bits_is_that_of_the_weights(
    models: dict[str, Path], tiny_rows: list[Feature]
) -> None:
    """The same weights with activations in float give the same logits, 40 times closer than 8 bits do."""
    float_activations = tiny.logits(models["weight_only_int8"], tiny_rows)
    for eight, sixteen in (("quant_2", "static_u16s8"), ("dynamic_u8s8", "dynamic_u16s8")):
        far, near = (
            np.abs(tiny.logits(models[name], tiny_rows) - float_activations).max()
            for name in (eight, sixteen)
        )
        assert near < far / 40


@pytest.mark.parametrize(
    "name",
    [
        "quant_1",
        "quant_2",
        "static_u8s8_smooth",
        "static_mixed",
        "dynamic_u8s8",
        "dynamic_u16s8",
        "weight_only_int8",
    ],
)
def test_every_architecture(exported: tiny.Exported, name: str, tmp_path: Path) -> None:
    """Also ELECTRA, in which one layer's output is the next one's input."""
    recipe, source = RECIPES[name], exported.model
    if recipe.smooth:
        source = smoothed_model(source, exported.rows, tmp_path / "smooth.onnx")
    path = quantize_onnx(source, tmp_path / "q.onnx", recipe, ranges_for(source, exported.rows, recipe))
    expected, logits = tiny.logits(exported.model, exported.rows), tiny.logits(path, exported.rows)
    assert 1e-4 < np.abs(expected - logits).max() < 0.2
    assert find_linears(load_ir(path)) == [], "no layer is left in float"


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_becomes_smaller(models: dict[str, Path], name: str) -> None:
    kept = tensors(models[name])
    assert "bert.embeddings.word_embeddings.weight" not in kept
    how = "_rows_quantized" if name in OWN else "_quantized"
    how = "_4_bit_blocks_of_64" if RECIPES[name].embeddings == "int4" else how
    table = kept[f"bert.embeddings.word_embeddings.weight{how}"]
    assert table.dtype in (np.int8, np.uint8)
    assert not [
        n for n, array in kept.items() if array.dtype == np.float32 and array.ndim == 2 and array.size > 200
    ]
    assert size_bytes(models[name]) < 1.1 * size_bytes(models["fp32"]), "the tiny BERT is mostly graph"


# Types


def test_what_the_library_cannot_quantize_is_one_line(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of DeBERTa its QOperator form loses tensors."""

    def invalid(*_: object) -> None:
        raise RuntimeError("Invalid model with unknown initializers/tensors.")

    monkeypatch.setattr("quantlib.compression.quantize.quantize_with_library", invalid)
    recipe = RECIPES["quant_2_defaults"]
    ranges = ranges_for(tiny_onnx, tiny_rows, recipe)
    words = "recipe quant_2_defaults: ONNX Runtime's own tool cannot quantize it: Invalid model with unknown"
    with pytest.raises(InputError, match=words):
        quantize_onnx(tiny_onnx, tmp_path / "out.onnx", recipe, ranges)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["quant_1", "quant_1_defaults"])
def test_quant_1_is_qdq_with_signed_activations_and_weights(models: dict[str, Path], name: str) -> None:
    values = tensors(models[name])
    quantized = nodes(models[name], "QuantizeLinear")
    assert {values[n.input[2]].dtype for n in quantized} == {np.dtype(np.int8)}
    assert all(values[n.input[2]].ndim == 0 for n in quantized), "a scale for each activation"
    weights = [n for n in nodes(models[name], "DequantizeLinear") if n.input[0] in values]
    kinds = {values[n.input[0]].dtype for n in weights}
    assert kinds <= {np.dtype(np.int8), np.dtype(np.int32)}, "the library's biases are 32 bits"
    products = [n for n in weights if re.search(r"encoder.*(?<!LayerNorm)\.weight_quantized", n.input[0])]
    assert len(products) == 12
    assert not any(values[n.input[2]].any() for n in products), "weights are symmetric"
    assert not nodes(models[name], "QLinearMatMul", "QGemm", "MatMulInteger", "MatMulIntegerToFloat")


def test_quant_2_multiplies_unsigned_activations_by_signed_weights(models: dict[str, Path]) -> None:
    values = tensors(models["quant_2"])
    for n in nodes(models["quant_2"], "MatMulIntegerToFloat"):
        activation, weight, step, scale, zero, weight_zero, bias = n.input
        assert activation not in values
        assert (values[weight].dtype, values[zero].dtype) == (np.int8, np.uint8)
        assert values[step].dtype == values[scale].dtype == values[bias].dtype == np.float32
        assert values[step].shape == values[zero].shape == ()
        assert weight_zero == "", "weights are symmetric"
        assert n.domain == MICROSOFT


def test_the_library_makes_quant_2_of_unsigned_integer_operators(models: dict[str, Path]) -> None:
    values = tensors(models["quant_2_defaults"])
    quantized = nodes(models["quant_2_defaults"], "QuantizeLinear")
    assert {values[n.input[2]].dtype for n in quantized} == {np.dtype(np.uint8)}
    for n in nodes(models["quant_2_defaults"], "QLinearMatMul"):
        a_zero, b_zero, y_zero = (values[n.input[i]].dtype for i in (2, 5, 7))
        assert (a_zero, y_zero) == (np.uint8, np.uint8)
        assert b_zero == (np.int8 if n.input[3] in values else np.uint8), "weights, or activations"


@pytest.mark.parametrize("name", ["dynamic_u8s8", "dynamic_per_tensor"])
def test_dynamic_has_signed_weights_and_ranges_at_run_time(models: dict[str, Path], name: str) -> None:
    values = tensors(models[name])
    for n in nodes(models[name], "MatMulIntegerToFloat"):
        assert values[n.input[1]].dtype == np.int8
        assert not {n.input[0], n.input[2], n.input[4]} & set(values)


@pytest.mark.parametrize("name", [n for n in OWN if RECIPES[n].mode != "weight_only"])
def test_scales_of_weights(models: dict[str, Path], name: str) -> None:
    scale = tensors(models[name])["bert.encoder.layer.0.intermediate.dense.weight_scale"]
    assert scale.shape == ((64,) if RECIPES[name].per_channel else ())
    assert len(np.unique(scale)) > 32 or not RECIPES[name].per_channel


@pytest.mark.parametrize("name", LIBRARY)
def test_the_defaults_have_a_scale_for_each_tensor(models: dict[str, Path], name: str) -> None:
    assert tensors(models[name])["bert.encoder.layer.0.intermediate.dense.weight_scale"].size == 1


@pytest.mark.parametrize(("name", "top"), [("quant_1", 127), ("quant_2", 127), ("static_u8s7_smooth", 63)])
def test_weights_are_rounded_to_their_grid(
    models: dict[str, Path], sources: dict[bool, Path], name: str, top: int
) -> None:
    values, fp32 = tensors(models[name]), tensors(sources[RECIPES[name].smooth])
    for layer in ("bert.encoder.layer.1.output.dense", "bert.encoder.layer.0.attention.self.query"):
        scale, rounded = values[f"{layer}.weight_scale"], values[f"{layer}.weight_quantized"]
        assert (np.abs(rounded * scale - fp32[f"{layer}.weight"]) <= scale / 2 + 1e-6).all()
        np.testing.assert_allclose(scale, np.abs(fp32[f"{layer}.weight"]).max(axis=0) / top, rtol=1e-5)
        assert np.abs(rounded.astype(int)).max() == top


def test_every_weight_of_7_bits_is_within_63(models: dict[str, Path]) -> None:
    values = tensors(models["static_u8s7_smooth"])
    for n in nodes(models["static_u8s7_smooth"], "MatMulIntegerToFloat"):
        assert np.abs(values[n.input[1]].astype(int)).max() == 63


@pytest.mark.parametrize(
    ("name", "signed"), [("quant_1", True), ("quant_2", False), ("static_u8s8_percentile", False)]
)
def test_scales_of_activations_come_from_the_ranges(
    models: dict[str, Path], ranges: dict[str, Ranges], name: str, signed: bool
) -> None:
    values, count = tensors(models[name]), 0
    for n in nodes(models[name], "QuantizeLinear"):
        low, high = ranges[name].of[n.input[0]]
        assert low < 0 < high
        assert float(values[n.input[1]]) == pytest.approx((high - low) / 255, rel=1e-5)
        assert int(values[n.input[2]]) == round(-low / ((high - low) / 255)) - 128 * signed
        count += 1
    assert count == 10


def test_embeddings_have_a_scale_for_each_row(models: dict[str, Path], tiny_onnx: Path) -> None:
    kept, fp32 = tensors(models["quant_2"]), tensors(tiny_onnx)
    for name in ("word", "position", "token_type"):
        table = fp32[f"bert.embeddings.{name}_embeddings.weight"]
        values = kept[f"bert.embeddings.{name}_embeddings.weight_rows_quantized"]
        scales = kept[f"bert.embeddings.{name}_embeddings.weight_rows_scale"]
        assert (values.dtype, values.shape, scales.shape) == (np.int8, table.shape, (len(table), 1))
        assert (np.abs(values * scales - table) <= scales / 2 + 1e-6).all()
        np.testing.assert_allclose(scales[:, 0], np.abs(table).max(axis=1) / 127, rtol=1e-5, atol=1e-30)


def test_words_in_4_bits(models: dict[str, Path], tiny_onnx: Path) -> None:
    """Blocks of 64 are wider than the tiny BERT: one for each row. Other tables stay in 8 bits."""
    kept, fp32 = tensors(models["static_u8s8_embed4"]), tensors(tiny_onnx)
    words, name = fp32["bert.embeddings.word_embeddings.weight"], "bert.embeddings.word_embeddings.weight"
    values, scales, zeros = (
        kept[f"{name}_4_bit_blocks_of_64{part}"] for part in ("", "_scale", "_zero_point")
    )
    assert (values.dtype, values.shape) == (np.uint8, (len(words), words.shape[1] // 2))
    assert (scales.shape, zeros.shape) == ((len(words), 1), (len(words), 1))
    for table in ("position", "token_type"):
        assert kept[f"bert.embeddings.{table}_embeddings.weight_rows_quantized"].dtype == np.int8
    for recipe, wider in (
        ("static_u8s8_embed4", "static_u8s8_smooth"),
        ("dynamic_u8s8_embed4", "dynamic_u8s8"),
    ):
        assert size_bytes(models[recipe]) < size_bytes(models[wider])


@pytest.mark.parametrize("width", [16, 64, 66, 200, 312])
def test_the_runtime_reads_blocks_of_4_bits_as_they_were_written(width: int) -> None:
    """Also a last block that is not full, and an odd number of blocks."""
    rng = np.random.default_rng(width)
    table = (
        rng.normal(size=(50, width)).astype(np.float32) + np.linspace(-2, 2, 50, dtype=np.float32)[:, None]
    )
    values, scales, zeros = quantize_row_blocks(table, block_size=64)
    lookup = node(
        "GatherBlockQuantized", ["values", "row", "scale", "zero"], ["y"], domain=MICROSOFT,
        bits=4, block_size=64, gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    constants = {"values": values, "scale": scales, "zero": zeros}
    graph = helper.make_graph(
        [lookup],
        "lookup",
        [helper.make_tensor_value_info("row", TensorProto.INT64, ["rows", "tokens"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "tokens", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (rows_read,) = session.run(None, {"row": np.arange(50).reshape(2, 25)})
    steps = np.repeat(scales, 64, axis=1)[:, :width]
    assert (np.abs(rows_read.reshape(50, width) - table) <= 0.501 * steps).all()


# Ranges


@pytest.mark.parametrize("name", ["quant_1", "quant_2"])
def test_only_the_ranges_of_layers_matter(
    tiny_onnx: Path, tiny_rows: list[Feature], models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The plain extremes of every activation, with or without zero, give the same bytes."""
    all_ranges = calibrate_min_max(tiny_onnx, CalibrationReader(tiny_rows, 8))
    names = tensors_to_calibrate(tiny_onnx, RECIPES[name])
    needed_ranges = derive(
        collect(tiny_onnx, CalibrationReader(tiny_rows, 8), names, histograms=False), "MinMax"
    )
    assert len(needed_ranges.of) == 10
    for number, ranges_given in enumerate((all_ranges, needed_ranges)):
        path = quantize_onnx(tiny_onnx, tmp_path / f"{number}.onnx", RECIPES[name], ranges_given)
        assert sha256_file(path) == sha256_file(models[name])


def test_tensors_to_calibrate(tiny_onnx: Path) -> None:
    """Those that get 8 bits, in the order of the graph."""
    all_names = tensors_to_calibrate(tiny_onnx, RECIPES["quant_2"])
    assert len(all_names) == 10
    assert all_names[0] == "bert.embeddings.LayerNorm/LayerNormalization:0"
    assert all_names == list(
        dict.fromkeys(str(layer.input.name) for layer in find_linears(load_ir(tiny_onnx)))
    )
    for precision, fewer in (("int16", 0), ("float", 2), ("weight_only", 2)):
        recipe = replace(RECIPES["quant_2"], nodes=(("ffn_out", precision),))
        names = tensors_to_calibrate(tiny_onnx, recipe)
        assert names == [name for name in all_names if "intermediate" not in name or not fewer]
        assert len(names) == 10 - fewer
    one_of_three = replace(
        RECIPES["quant_2"], nodes=(("bert.encoder.layer.0.attention.self.key/MatMul", "float"),)
    )
    assert tensors_to_calibrate(tiny_onnx, one_of_three) == all_names, "query and value take it too"
    assert tensors_to_calibrate(tiny_onnx, RECIPES["dynamic_u8s8"]) == []
    assert tensors_to_calibrate(tiny_onnx, RECIPES["weight_only_int4"]) == []
    assert len(tensors_to_calibrate(tiny_onnx, RECIPES["quant_2_defaults"])) > 70


# The same again


def test_the_same_bytes_in_other_processes(
    sources: dict[bool, Path],
    ranges: dict[str, Ranges],
    grams: dict[str, dict[str, Gram] | None],
    models: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Whatever the hash seed: the library keeps operator types in a set."""
    for name, recipe_grams in grams.items():
        if recipe_grams is not None:
            write_grams(tmp_path / f"{name}.npz", recipe_grams)
    for name, variant_ranges in ranges.items():
        if variant_ranges is not None:
            write_ranges(tmp_path / f"{name}.json", variant_ranges)
    code = """if True:
        import sys
        from pathlib import Path
        from quantlib.compression.calibration import read_grams, read_ranges
        from quantlib.compression.quantize import quantize_onnx
        from quantlib.compression.recipes import RECIPES
        model, smooth, here = map(Path, sys.argv[1:])
        for name, recipe in RECIPES.items():
            ranges = read_ranges(here / f"{name}.json") if recipe.mode == "static" else None
            grams = read_grams(here / f"{name}.npz") if recipe.rounding == "second_order" else None
            quantize_onnx(smooth if recipe.smooth else model, here / f"{name}.onnx", recipe, ranges, grams)
    """
    for seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", code, str(sources[False]), str(sources[True]), str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (process.returncode, process.stdout, process.stderr) == (0, "", ""), "it says nothing"
        for name in RECIPES:
            assert sha256_file(tmp_path / f"{name}.onnx") == sha256_file(models[name]), name


def test_the_model_and_its_directory_are_left_alone(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source" / "model.onnx"
    source.parent.mkdir()
    source.write_bytes(tiny_onnx.read_bytes())
    names = ["quant_1", "dynamic_u8s8", "quant_1_defaults"]
    monkeypatch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # temporary files would stay
    for name in names:
        quantize_onnx(source, tmp_path / "out" / f"{name}.onnx", RECIPES[name], ranges.get(name))
    assert source.read_bytes() == tiny_onnx.read_bytes()
    assert [path.name for path in source.parent.iterdir()] == ["model.onnx"], "not even for a moment"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {name for name in written if not name.endswith(".lock")} == {f"{name}.onnx" for name in names}


@pytest.mark.parametrize("name", RECIPES)
def test_the_file_holds_no_path(models: dict[str, Path], name: str) -> None:
    data = models[name].read_bytes()
    for word in (str(models[name].parent), str(ROOT), "/tmp", "site-packages"):
        assert word.encode() not in data


# Exceptions


def kinds(path: Path, fp32: Path) -> dict[str, str]:
    """{layer: the operator that it became, or "int16"}."""
    op_types = {n.name: n.op_type for n in onnx.load(path).graph.node}
    names = [layer.name for layer in find_linears(load_ir(fp32))]
    return {name: "int16" if f"{name}/second_term" in op_types else op_types[name] for name in names}


OUT = "bert.encoder.layer.{}.output.dense/MatMul"


def excepted(
    tiny_onnx: Path,
    ranges: dict[str, Ranges],
    path: Path,
    recipe: Recipe,
    exceptions: Mapping[str, Precision],
) -> Path:
    changed = replace(recipe, name="mine", nodes=tuple(exceptions.items()))
    return quantize_onnx(tiny_onnx, path, changed, ranges[recipe.name])


@pytest.mark.parametrize("name", ["quant_2", "dynamic_u8s8"])
def test_exceptions_by_role_group_and_name(
    tiny_onnx: Path, ranges: dict[str, Ranges], tiny_rows: list[Feature], tmp_path: Path, name: str
) -> None:
    exceptions: dict[str, Precision] = {
        OUT.format(1): "int16",
        "layer.0.ffn_out": "weight_only",
        "ffn_out": "float",
        "layer.0.ffn_in": "float",
        "pooler": "weight_only",
        "qkv": "int16",
    }
    path = excepted(tiny_onnx, ranges, tmp_path / "model.onnx", RECIPES[name], exceptions)
    kind_of = kinds(path, tiny_onnx)
    assert (kind_of[OUT.format(0)], kind_of[OUT.format(1)]) == ("MatMulNBits", "int16")
    for layer, kind in kind_of.items():
        if "self" in layer:
            assert kind == "int16"
        elif layer.startswith("bert.encoder.layer.0.intermediate"):
            assert kind == "MatMul"
        elif "pooler" in layer:
            assert kind == "MatMulNBits"
        elif "output.dense" not in layer or "attention" in layer:
            assert kind == "MatMulIntegerToFloat"
    expected = tiny.logits(tiny_onnx, tiny_rows)
    assert 1e-4 < np.abs(tiny.logits(path, tiny_rows) - expected).max() < 0.1


@pytest.mark.parametrize("key", ["embeddings", "bert.embeddings.word_embeddings/Gather"])
def test_embeddings_in_float(tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path, key: str) -> None:
    path = excepted(tiny_onnx, ranges, tmp_path / "m.onnx", RECIPES["quant_2"], {key: "float"})
    kept = {name for name, array in tensors(path).items() if "embeddings.weight" in name}
    words = {name for name in kept if "word" in name}
    assert words == {"bert.embeddings.word_embeddings.weight"}
    assert (kept == {n for n in kept if not n.endswith("quantized")}) == (key == "embeddings")
    recipe = replace(RECIPES["quant_2"], name="mine", embeddings="float")
    whole = quantize_onnx(tiny_onnx, tmp_path / "whole.onnx", recipe, ranges["quant_2"])
    assert op_counts(whole)["Gather"] == op_counts(tiny_onnx)["Gather"] == 4
    assert (sha256_file(whole) == sha256_file(path)) == (key == "embeddings")


def test_qdq_with_layers_in_float_and_weights_only(
    tiny_onnx: Path, ranges: dict[str, Ranges], tiny_rows: list[Feature], tmp_path: Path
) -> None:
    exceptions: dict[str, Precision] = {"classifier": "float", "ffn_in": "weight_only"}
    path = excepted(tiny_onnx, ranges, tmp_path / "model.onnx", RECIPES["quant_1"], exceptions)
    counts = op_counts(path)
    assert (counts["Gemm"], counts["MatMulNBits"], counts["MatMul"]) == (1, 2, 15)
    assert np.abs(tiny.logits(path, tiny_rows) - tiny.logits(tiny_onnx, tiny_rows)).max() < 0.1


def test_four_bits_but_for_some(tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path) -> None:
    """An exception in a weight-only recipe is 8 bits in blocks of 128, whatever the recipe's own are."""
    recipe = replace(RECIPES["weight_only_int4"], block_size=32)
    exceptions: dict[str, Precision] = {"classifier": "weight_only", "pooler": "float"}
    path = excepted(tiny_onnx, ranges | {recipe.name: None}, tmp_path / "model.onnx", recipe, exceptions)
    bits_and_block = {
        n.name: tuple(helper.get_node_attr_value(n, a) for a in ("bits", "block_size"))
        for n in nodes(path, "MatMulNBits")
    }
    assert bits_and_block.pop("classifier/Gemm") == (8, 128)
    assert set(bits_and_block.values()) == {(4, 32)}
    assert len(bits_and_block) == 12
    assert [n.name for n in nodes(path, "Gemm")] == ["bert.pooler.dense/Gemm"]


# Graphs by hand


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# Twice as wide above zero as the values: on a CPU without VNNI sums of two products then fit into 16 bits.
X = np.clip(normal(2, 3, 4, seed=9), -2, 2)
LOW, HIGH = -2.0, 6.0


def quantized(
    tmp_path: Path,
    graph: list[Any],
    constants: Mapping[str, Any],
    recipe: Recipe,
    inputs: tuple[str, ...] = ("x",),
    outputs: tuple[str, ...] = ("y",),
    exact: bool = False,
) -> tuple[Path, list[np.ndarray]]:
    """The variant, and what it gives for X; every layer's input has the range LOW..HIGH.

    exact: in an `exact_session`, where sums of two products do not fit into 16 bits.
    """
    model = tiny.save_graph(tmp_path / "model.onnx", graph, constants, outputs=outputs)
    ranges = Ranges(dict.fromkeys(inputs, (LOW, HIGH))) if recipe.mode == "static" else None
    path = quantize_onnx(model, tmp_path / "quantized.onnx", recipe, ranges)
    session = exact_session(path) if exact else open_session(path, threads=1)
    assert [output.name for output in session.get_outputs()] == list(outputs)
    return path, session.run(None, {"x": X})


def rounded(weight: np.ndarray, recipe: Recipe) -> np.ndarray:
    """A weight (in, out) as a recipe keeps it, as floats."""
    values, scale = quantize_weight(
        weight, per_channel=recipe.per_channel, bits=7 if recipe.reduce_range else 8
    )
    return values * scale


def taken(x: np.ndarray, recipe: Recipe) -> np.ndarray:
    """An activation as a recipe's products take it, as floats."""
    low, high = (LOW, HIGH) if recipe.mode == "static" else (float(x.min()), float(x.max()))
    return levels(x, activation_grid(low, high, signed=recipe.activation_type == "QInt8"))


def static(**changes: Any) -> Recipe:
    return replace(RECIPES["quant_2"], name="mine", **changes)


def dynamic(**changes: Any) -> Recipe:
    return replace(RECIPES["dynamic_u8s8"], name="mine", reduce_range=True, **changes)


EVERY = {
    "qdq_s8": static(format="QDQ", activation_type="QInt8"),
    "qdq_u8": static(format="QDQ"),
    "u8s8": static(),
    "s8s8": static(activation_type="QInt8"),
    "per_tensor": static(per_channel=False),
    "qdq_per_tensor": static(format="QDQ", per_channel=False),
    "u8s7": static(reduce_range=True),
    "dynamic": dynamic(),
    "dynamic_per_tensor": dynamic(per_channel=False),
}
every = pytest.mark.parametrize("recipe", EVERY.values(), ids=list(EVERY))
BIASED = [node("MatMul", ["x", "w"], ["p"], name="layer"), node("Add", ["p", "b"], ["y"], name="sum")]


@every
def test_a_layer_computes_what_its_grids_say(tmp_path: Path, recipe: Recipe) -> None:
    w, b = normal(4, 5), normal(5, seed=1)
    _, (y,) = quantized(tmp_path, BIASED, {"w": w, "b": b}, recipe)
    np.testing.assert_allclose(y, taken(X, recipe) @ rounded(w, recipe) + b, atol=1e-5)
    assert np.abs(y - (X @ w + b)).max() > 1e-3


@every
def test_a_layer_without_a_bias(tmp_path: Path, recipe: Recipe) -> None:
    _, (y,) = quantized(tmp_path, [node("MatMul", ["x", "w"], ["y"])], {"w": normal(4, 5)}, recipe)
    np.testing.assert_allclose(y, taken(X, recipe) @ rounded(normal(4, 5), recipe), atol=1e-5)


@every
@pytest.mark.parametrize("shape", [(1,), (1, 5), (3, 5)], ids=str)
def test_a_sum_that_is_no_bias(tmp_path: Path, recipe: Recipe, shape: tuple[int, ...]) -> None:
    b = normal(*shape, seed=1)
    path, (y,) = quantized(tmp_path, BIASED, {"w": normal(4, 5), "b": b}, recipe)
    np.testing.assert_allclose(y, taken(X, recipe) @ rounded(normal(4, 5), recipe) + b, atol=1e-5)
    assert "sum" in {n.name for n in onnx.load(path).graph.node}


@every
@pytest.mark.parametrize("bias", [["b"], []], ids=["bias", "no_bias"])
@pytest.mark.parametrize("transposed", [True, False], ids=["transB", "plain"])
def test_a_gemm(tmp_path: Path, recipe: Recipe, bias: list[str], transposed: bool) -> None:
    w, b = normal(5, 4) if transposed else normal(4, 5), normal(5, seed=1)
    graph = [node("Reshape", ["x", "flat"], ["f"])]
    graph.append(node("Gemm", ["f", "w", *bias], ["y"], name="layer", transB=int(transposed)))
    constants = {"w": w, "b": b, "flat": np.array([-1, 4])}
    path, (y,) = quantized(tmp_path, graph, constants, recipe, inputs=("f",))
    expected = taken(X.reshape(-1, 4), recipe) @ rounded(w.T if transposed else w, recipe)
    np.testing.assert_allclose(y, expected + (b if bias else 0), atol=1e-5)
    assert "Gemm" not in op_counts(path)
    assert "layer" in {n.name for n in onnx.load(path).graph.node}


@every
def test_layers_that_share_input_weight_and_bias(tmp_path: Path, recipe: Recipe) -> None:
    """Each is kept once."""
    graph = [*BIASED, node("MatMul", ["x", "w"], ["q"], name="second"), node("Add", ["q", "b"], ["z"])]
    w, b = normal(4, 5), normal(5, seed=1)
    path, (y, z) = quantized(tmp_path, graph, {"w": w, "b": b}, recipe, outputs=("y", "z"))
    np.testing.assert_allclose(y, taken(X, recipe) @ rounded(w, recipe) + b, atol=1e-5)
    np.testing.assert_array_equal(y, z)
    counts = op_counts(path)
    assert counts["QuantizeLinear"] + counts["DynamicQuantizeLinear"] == 1
    shapes = [array.shape for array in tensors(path).values()]
    assert shapes.count((4, 5)) == 1


@every
def test_a_matrix_used_as_it_is_transposed_and_by_row(tmp_path: Path, recipe: Recipe) -> None:
    """As a table and the head that shares it: each use has scales of its own."""
    w = normal(4, 4) * np.array([1, 2, 4, 8], np.float32)
    graph = [node("MatMul", ["x", "w"], ["y"]), node("Reshape", ["x", "flat"], ["f"])]
    graph += [node("Gemm", ["f", "w"], ["z"], transB=1), node("Gather", ["w", "i"], ["e"])]
    constants = {"w": w, "flat": np.array([-1, 4]), "i": np.array([[3, 0]])}
    _, (y, z, e) = quantized(tmp_path, graph, constants, recipe, ("x", "f"), ("y", "z", "e"))
    np.testing.assert_allclose(y, taken(X, recipe) @ rounded(w, recipe), atol=1e-4)
    np.testing.assert_allclose(z, taken(X.reshape(-1, 4), recipe) @ rounded(w.T, recipe), atol=1e-4)
    values, scales = quantize_rows(w)
    np.testing.assert_allclose(e, (values * scales)[[3, 0]][None], atol=1e-6)


@every
def test_a_layer_behind_a_layer_and_names_that_are_missing(tmp_path: Path, recipe: Recipe) -> None:
    graph = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Add", ["p", "b"], ["h"]),
        node("MatMul", ["h", "v"], ["y"]),
    ]
    w, b, v = normal(4, 3) / 4, normal(3, seed=1) / 4, normal(3, 5, seed=2)
    path, (y, h) = quantized(
        tmp_path, graph, {"w": w, "b": b, "v": v}, recipe, inputs=("x", "h"), outputs=("y", "h")
    )
    np.testing.assert_allclose(h, taken(X, recipe) @ rounded(w, recipe) + b, atol=1e-5)
    np.testing.assert_allclose(y, taken(h, recipe) @ rounded(v, recipe), atol=2e-2)
    assert find_linears(load_ir(path)) == []


def test_a_single_output_channel(tmp_path: Path) -> None:
    w, b = normal(4, 1), normal(1, seed=1)
    _, (y,) = quantized(tmp_path, BIASED, {"w": w, "b": b}, static())
    np.testing.assert_allclose(y, taken(X, static()) @ rounded(w, static()) + b, atol=1e-5)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_sixteen_bits_round_256_times_finer(tmp_path: Path, mode: str) -> None:
    recipe = static() if mode == "static" else dynamic()
    w, b = normal(4, 5), normal(5, seed=1)
    exact = X @ rounded(w, recipe) + b
    errors = []
    for changed in (recipe, replace(recipe, activation_type="QUInt16")):
        path, (y,) = quantized(tmp_path, BIASED, {"w": w, "b": b}, changed, exact=True)
        errors.append(np.abs(y - exact).max())
        step = (HIGH - LOW if mode == "static" else np.ptp(X)) / 255
        assert errors[-1] <= np.abs(rounded(w, recipe)).sum(axis=0).max() * step / (
            2 if changed is recipe else 500
        )
    assert errors[0] > 100 * errors[1]
    assert {n.name for n in nodes(path, "MatMulIntegerToFloat")} == {"layer", "layer/second_term"}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("depth", [16, 40, 64, 7])
def test_weights_in_blocks(tmp_path: Path, bits: int, depth: int) -> None:
    """Also a depth that is no multiple of the block: the padding of the last block multiplies nothing."""
    recipe = replace(RECIPES[f"weight_only_int{bits}"], name="mine", block_size=16, embeddings="float")
    w, b, x = normal(depth, 6), normal(6, seed=1), normal(2, 3, depth, seed=2)
    model = tiny.save_graph(tmp_path / "model.onnx", BIASED, {"w": w, "b": b}, width=depth)
    path = quantize_onnx(model, tmp_path / "quantized.onnx", recipe)
    (y,) = open_session(path, threads=1).run(None, {"x": x})
    values, scales = quantize_blocks(w, bits=bits, block_size=16)
    low = values & 15, values >> 4
    numbers = (
        np.stack(low, axis=-1).reshape(*values.shape[:2], 16).astype(int) - 8
        if bits == 4
        else values.astype(int) - 128
    )
    kept = (numbers * scales[..., None]).reshape(6, -1)[:, :depth].T
    np.testing.assert_allclose(y, x @ kept + b, rtol=1e-3, atol=1e-3)
    (product,) = nodes(path, "MatMulNBits")
    attributes = {a.name: helper.get_attribute_value(a) for a in product.attribute}
    assert attributes == {"K": depth, "N": 6, "bits": bits, "block_size": 16, "accuracy_level": 1}


@pytest.mark.parametrize(
    "recipe",
    [static(), *(replace(RECIPES[f"weight_only_int{bits}"], name="mine", block_size=16) for bits in (4, 8))],
    ids=["static", "int4", "int8"],
)
def test_a_shared_weight_in_two_precisions(tmp_path: Path, recipe: Recipe) -> None:
    """The second time in blocks of 8 bits, as long as the matrix."""
    recipe = replace(recipe, nodes=(("second", "weight_only"),))
    w = normal(4, 5)
    graph = [
        node("MatMul", ["x", "w"], ["y"], name="layer"),
        node("MatMul", ["x", "w"], ["z"], name="second"),
    ]
    _, (y, z) = quantized(tmp_path, graph, {"w": w}, recipe, outputs=("y", "z"))
    np.testing.assert_allclose(z, X @ rounded(w, static()), rtol=1e-3, atol=1e-3)
    same = recipe.mode == "weight_only" and recipe.weight_type == "QInt8"
    assert (np.abs(y - z).max() < 1e-3) == same


@every
def test_an_embedding(tmp_path: Path, recipe: Recipe) -> None:
    """Indices of any shape; a table that is looked up twice is kept once."""
    table = normal(9, 4) * np.exp(normal(9, 1, seed=3))
    graph = [node("Gather", ["t", "i"], ["e"], name="one"), node("Gather", ["t", "j"], ["f"], name="two")]
    graph.append(node("MatMul", ["x", "w"], ["y"]))
    constants = {"t": table, "i": np.array([[1, 8], [0, -1]]), "j": np.array(2), "w": normal(4, 2)}
    path, (e, f) = quantized(tmp_path, graph, constants, recipe, outputs=("e", "f"))
    values, scales = quantize_rows(table)
    np.testing.assert_allclose(e, (values * scales)[[[1, 8], [0, 8]]], atol=1e-6)
    np.testing.assert_allclose(f, (values * scales)[2], atol=1e-6)
    assert [array.shape for array in tensors(path).values()].count((9, 4)) == 1


SIXTEEN = {"u16s8": static(activation_type="QUInt16"), "dynamic_u16s8": dynamic(activation_type="QUInt16")}


@pytest.mark.parametrize("recipe", (EVERY | SIXTEEN).values(), ids=list(EVERY | SIXTEEN))
def test_an_activation_that_is_zero_on_every_row(tmp_path: Path, recipe: Recipe) -> None:
    """Only the bias is left; for another row, in which the activation is not zero, the result is finite."""
    graph = [node("Relu", ["x"], ["o"]), node("MatMul", ["o", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    b = normal(5, seed=1)
    model = tiny.save_graph(tmp_path / "model.onnx", graph, {"w": normal(4, 5), "b": b})
    all_ranges: list[Ranges | None] = [None]
    if recipe.mode == "static":
        feeds: Any = [{"x": -np.abs(X)}]
        all_ranges = [derive(collect(model, feeds, ["o"]), "MinMax"), Ranges({"o": (0.0, 0.0)})]
    for ranges in all_ranges:
        path = quantize_onnx(model, tmp_path / "quantized.onnx", recipe, ranges)
        session = open_session(path, threads=1)
        (y,) = session.run(None, {"x": -np.abs(X)})
        np.testing.assert_allclose(y, np.broadcast_to(b, y.shape), atol=1e-3)
        assert np.isfinite(session.run(None, {"x": X})[0]).all()


def test_a_constant_activation(tmp_path: Path) -> None:
    graph = [
        node("Sub", ["x", "x"], ["o"]),
        node("Add", ["o", "c"], ["k"]),
        node("MatMul", ["k", "w"], ["y"]),
    ]
    constants = {"c": np.full(4, 2.5, np.float32), "w": normal(4, 5)}
    model = tiny.save_graph(tmp_path / "model.onnx", graph, constants)
    ranges = derive(collect(model, [{"x": X}], ["k"]), "MinMax")
    path = quantize_onnx(model, tmp_path / "quantized.onnx", static(), ranges)
    (y,) = exact_session(path).run(None, {"x": X})
    np.testing.assert_allclose(y, np.broadcast_to(2.5 * normal(4, 5).sum(axis=0), y.shape), atol=0.05)


# What cannot be quantized


def test_ranges_that_are_missing_or_not_needed(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="recipe quant_1 is static: it needs calibrated ranges"):
        quantize_onnx(tiny_onnx, out, RECIPES["quant_1"])
    with pytest.raises(InputError, match="recipe dynamic_u8s8 is dynamic: it takes no ranges"):
        quantize_onnx(tiny_onnx, out, RECIPES["dynamic_u8s8"], ranges["quant_2"])
    lacking = "bert.pooler/Gather:0"
    others = Ranges({name: pair for name, pair in ranges["quant_2"].of.items() if name != lacking})
    with pytest.raises(InputError, match=f"the ranges lack {lacking}; they are those of another model"):
        quantize_onnx(tiny_onnx, out, RECIPES["quant_1"], others)
    assert list(tmp_path.iterdir()) == []
    without = replace(RECIPES["quant_2"], name="mine", nodes=(("pooler", "float"),))
    assert quantize_onnx(tiny_onnx, out, without, others) == out, "one that is not needed may be missing"


@pytest.mark.parametrize("name", ["quant_2", "quant_2_defaults", "static_u8s8_smooth"])
def test_a_smoothed_model_is_for_smoothed_recipes(
    sources: dict[bool, Path], ranges: dict[str, Ranges], tmp_path: Path, name: str
) -> None:
    recipe = RECIPES[name]
    other = sources[not recipe.smooth]
    if recipe.smooth:
        words = f"recipe {name} is for a model that is smoothed; this one is not (quantlib.smooth_onnx)"
    else:
        words = f"recipe {name} is for a model that is not smoothed; this one is (quantlib.smooth_onnx)"
    wide = Ranges(dict.fromkeys(tensors_to_calibrate(other, recipe), (-1.0, 1.0)))
    with pytest.raises(InputError, match=re.escape(f"{other}: {words}")):
        quantize_onnx(other, tmp_path / "out.onnx", recipe, wide)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["quant_2", "dynamic_u8s8", "weight_only_int8"])
def test_a_node_that_the_model_does_not_have(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path, name: str
) -> None:
    recipe = replace(RECIPES[name], name="mine", nodes=(("layer.2.ffn_out", "float"),))
    words = "recipe mine: the model has no node, group or role 'layer.2.ffn_out' to quantize; it has, for "
    for call in (
        lambda: tensors_to_calibrate(tiny_onnx, recipe),
        lambda: quantize_onnx(tiny_onnx, tmp_path / "out.onnx", recipe, ranges[name]),
    ):
        with pytest.raises(
            InputError, match=re.escape(f"{words}example, bert.embeddings.word_embeddings/Gather")
        ):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_leaves_everything_in_float(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    roles = ("embeddings", "qkv", "attention_output", "ffn_in", "ffn_out", "pooler", "classifier")
    recipe = replace(RECIPES["quant_2"], name="mine", nodes=tuple((role, "float") for role in roles))
    assert tensors_to_calibrate(tiny_onnx, recipe) == []
    with pytest.raises(InputError, match=re.escape(f"{tiny_onnx}: recipe mine quantizes no node of it")):
        quantize_onnx(tiny_onnx, tmp_path / "out.onnx", recipe, Ranges({}))
    assert list(tmp_path.iterdir()) == []
    only_tables = replace(recipe, nodes=recipe.nodes[1:])
    assert quantize_onnx(tiny_onnx, tmp_path / "out.onnx", only_tables, Ranges({})).is_file()


@pytest.mark.parametrize("name", ["dynamic_u8s8", "weight_only_int8", "library"])
def test_a_model_without_layers(tmp_path: Path, name: str) -> None:
    model = tiny.save_graph(tmp_path / "model.onnx", [node("Tanh", ["x"], ["y"])])
    recipe = RECIPES.get(name) or replace(RECIPES["dynamic_u8s8"], name="library", quantizer="onnxruntime")
    with pytest.raises(InputError, match=f"recipe {name} quantizes no node of it"):
        quantize_onnx(model, tmp_path / "out.onnx", recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["dynamic_u8s8", "quant_2", "quant_2_defaults"])
@pytest.mark.parametrize("data", [None, b"", b"garbage" * 30], ids=["missing", "empty", "garbage"])
def test_a_corrupt_model_is_one_line(tmp_path: Path, data: bytes | None, name: str) -> None:
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        quantize_onnx(path, tmp_path / "out.onnx", RECIPES[name], None if "dyn" in name else Ranges({}))
    assert str(caught.value).startswith(f"{path}: no")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_the_library_quantizes_dynamically_too(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    recipe = replace(RECIPES["dynamic_u8s8"], name="library", quantizer="onnxruntime", op_types=("MatMul",))
    path = quantize_onnx(tiny_onnx, tmp_path / "out.onnx", recipe)
    counts = op_counts(path)
    assert (counts["MatMulInteger"], counts["MatMul"], counts["Gemm"]) == (14, 4, 0), "products with a weight"
    assert np.abs(tiny.logits(path, tiny_rows) - tiny.logits(tiny_onnx, tiny_rows)).max() < 0.1


def test_op_counts(models: dict[str, Path]) -> None:
    counts = op_counts(models["fp32"])
    assert counts == Counter(n.op_type for n in onnx.load(models["fp32"]).graph.node)
    assert counts["QLinearMatMul"] == 0
    assert TensorProto.FLOAT in {t.data_type for t in onnx.load(models["fp32"]).graph.initializer}
