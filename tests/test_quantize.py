from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlib.calibration import (
    Ranges,
    Statistics,
    calibrate_min_max,
    collect,
    derive,
    load_with_shapes,
    tensors_for,
    write_ranges,
)
from quantlib.errors import InputError
from quantlib.features import CalibrationReader, Feature, batches
from quantlib.files import sha256_file
from quantlib.quantize import op_counts, quantize_onnx
from quantlib.recipes import RECIPES
from quantlib.runtime import feed_for, open_session, size_bytes

ROOT = Path(__file__).parents[1]
FLOAT_OPS = ("Add", "Erf", "Gather", "Gemm", "LayerNormalization", "MatMul", "Mul", "Softmax", "Tanh")

# What each recipe makes of the tiny BERT: 2 layers, so 12 MatMuls with weights, 4 of two activations, 2
# Gemms and 4 Gathers (3 embeddings and the first token). Operators that are not named here are as in FP32.
GOLDEN = {
    "fp32": {"MatMul": 16, "Gemm": 2, "Gather": 4, "Add": 22, "Mul": 6, "Softmax": 2},
    "quant_1": {
        "MatMul": 16, "Gemm": 2, "Gather": 4, "Add": 22, "Mul": 6, "Softmax": 2,
        "QuantizeLinear": 39, "DequantizeLinear": 58,  # activations, and 12 + 2 + 3 weights and 2 biases
    },
    "quant_2": {
        "QLinearMatMul": 16, "QGemm": 2, "Gather": 4, "Add": 22, "Mul": 6, "Softmax": 2,
        "QuantizeLinear": 18, "DequantizeLinear": 21,
    },
    "dynamic_u8s8": {
        "MatMul": 4, "MatMulInteger": 14, "Gather": 4, "Add": 24, "Mul": 34, "Softmax": 2,  # Gemm's bias
        "DynamicQuantizeLinear": 10, "DequantizeLinear": 3,
    },
    "quant_1_defaults": {
        "MatMul": 16, "Gemm": 2, "Gather": 4, "Add": 22, "Mul": 6, "Softmax": 2,
        "QuantizeLinear": 77, "DequantizeLinear": 121,
    },
    "quant_2_defaults": {
        "QLinearMatMul": 16, "QGemm": 2, "Gather": 4, "QLinearAdd": 22, "QLinearMul": 6, "QLinearSoftmax": 2,
        "QuantizeLinear": 9, "DequantizeLinear": 9,
    },
}  # fmt: skip
GOLDEN |= {f"static_u8s8_{method}": GOLDEN["quant_2"] for method in ("percentile", "entropy", "mse")}
EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
COUNTED = {op for counts in GOLDEN.values() for op in counts}


@pytest.fixture(scope="module")
def statistics(tiny_onnx: Path, tiny_rows: list[Feature]) -> dict[bool, Statistics]:
    """By `pad_calibration`."""
    return {
        padded: collect(
            tiny_onnx, CalibrationReader(tiny_rows, 8, 64 if padded else None), skip_padding=not padded
        )
        for padded in (False, True)
    }


@pytest.fixture(scope="module")
def ranges(statistics: dict[bool, Statistics]) -> dict[str, Ranges]:
    """By the name of the recipe."""
    return {
        name: derive(statistics[recipe.pad_calibration], recipe.calibration_method)
        for name, recipe in RECIPES.items()
        if recipe.calibration_method
    }


@pytest.fixture(scope="module")
def models(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The model of each recipe, and the FP32 one."""
    directory = tmp_path_factory.mktemp("quantized")
    made = {
        name: quantize_onnx(tiny_onnx, directory / f"model_{name}.onnx", recipe, ranges.get(name))
        for name, recipe in RECIPES.items()
    }
    return {"fp32": tiny_onnx, **made}


def logits(path: Path, rows: list[Feature]) -> np.ndarray:
    session = open_session(path)
    found = np.empty((len(rows), 2), np.float32)
    for index, feed in batches(rows, 8):
        found[index] = session.run(None, feed_for(session, feed))[0]
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_op_counts(models: dict[str, Path], name: str) -> None:
    counts = op_counts(models[name])
    assert {op: n for op, n in counts.items() if op in COUNTED} == GOLDEN[name]
    fp32 = op_counts(models["fp32"])
    others = set(counts) - COUNTED - {"Cast"}  # MatMulInteger's result is cast
    assert {op: counts[op] for op in others} == {op: fp32[op] for op in others}
    assert set(GOLDEN) == {"fp32", *RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_interface_and_opset_stay(models: dict[str, Path], name: str) -> None:
    ours, fp32 = onnx.load(models[name]), onnx.load(models["fp32"])
    assert list(ours.graph.input) == list(fp32.graph.input)
    assert list(ours.graph.output) == list(fp32.graph.output)
    assert {e.version for e in ours.opset_import if e.domain == ""} == {17}


@pytest.mark.parametrize("name", RECIPES)
def test_logits_stay_close(models: dict[str, Path], tiny_rows: list[Feature], name: str) -> None:
    want, found = logits(models["fp32"], tiny_rows), logits(models[name], tiny_rows)
    assert np.isfinite(found).all()
    if not RECIPES[name].report_only:
        assert np.corrcoef(want[:, 0] - want[:, 1], found[:, 0] - found[:, 1])[0, 1] > 0.9
        assert np.abs(want - found).max() > 0, "it is another model"


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_becomes_smaller(models: dict[str, Path], name: str) -> None:
    weights = {t.name: t.data_type for t in onnx.load(models[name]).graph.initializer}
    assert "bert.embeddings.word_embeddings.weight" not in weights
    assert weights["bert.embeddings.word_embeddings.weight_quantized"] in EIGHT_BITS
    assert size_bytes(models[name]) < 1.1 * size_bytes(models["fp32"]), "the tiny BERT is mostly graph"


# Types


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def nodes(path: Path, *op_types: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type in op_types]


@pytest.mark.parametrize("name", ["quant_1", "quant_1_defaults"])
def test_quant_1_is_qdq_with_signed_activations_and_weights(models: dict[str, Path], name: str) -> None:
    values = tensors(models[name])
    quantized = nodes(models[name], "QuantizeLinear")
    assert {values[node.input[2]].dtype for node in quantized} == {np.dtype(np.int8)}
    assert all(values[node.input[2]].ndim == 0 for node in quantized), "a scale for each activation"
    weights = [node for node in nodes(models[name], "DequantizeLinear") if node.input[0] in values]
    kinds = {values[node.input[0]].dtype for node in weights}
    assert kinds <= {np.dtype(np.int8), np.dtype(np.int32)}, "biases are 32 bits"
    eight = [node for node in weights if values[node.input[0]].dtype == np.int8]
    assert len(eight) >= 12 + 2 + 3
    products = [n for n in eight if re.search(r"encoder.*(?<!LayerNorm)\.weight_quantized", n.input[0])]
    assert len(products) == 12
    assert not any(values[node.input[2]].any() for node in products), "weights are symmetric"
    assert not nodes(models[name], "QLinearMatMul", "QGemm", "MatMulInteger")


@pytest.mark.parametrize("name", ["quant_2", "quant_2_defaults"])
def test_quant_2_has_integer_operators_with_unsigned_activations(models: dict[str, Path], name: str) -> None:
    values = tensors(models[name])
    quantized = nodes(models[name], "QuantizeLinear")
    assert {values[node.input[2]].dtype for node in quantized} == {np.dtype(np.uint8)}
    for node in nodes(models[name], "QLinearMatMul"):
        a_zero, b_zero, y_zero = (values[node.input[i]].dtype for i in (2, 5, 7))
        assert (a_zero, y_zero) == (np.uint8, np.uint8)
        assert b_zero == (np.int8 if node.input[3] in values else np.uint8), "weights, or activations"


def test_dynamic_has_signed_weights_and_ranges_at_run_time(models: dict[str, Path]) -> None:
    values = tensors(models["dynamic_u8s8"])
    for node in nodes(models["dynamic_u8s8"], "MatMulInteger"):
        assert values[node.input[1]].dtype == np.int8
        assert node.input[0] not in values


@pytest.mark.parametrize("name", ["quant_1", "quant_2", "dynamic_u8s8"])
def test_scales_are_per_channel(models: dict[str, Path], name: str) -> None:
    scale = tensors(models[name])["bert.encoder.layer.0.intermediate.dense.weight_scale"]
    assert scale.shape == (64,)
    assert len(np.unique(scale)) > 32


@pytest.mark.parametrize("name", ["quant_1_defaults", "quant_2_defaults"])
def test_the_defaults_have_a_scale_for_each_tensor(models: dict[str, Path], name: str) -> None:
    assert tensors(models[name])["bert.encoder.layer.0.intermediate.dense.weight_scale"].size == 1


def test_weights_are_rounded_to_their_grid(models: dict[str, Path]) -> None:
    values, fp32 = tensors(models["quant_1"]), tensors(models["fp32"])
    name = "bert.encoder.layer.1.output.dense.weight"
    scale = values[f"{name}_scale"]
    back = values[f"{name}_quantized"] * scale
    assert (np.abs(back - fp32[name]) <= scale / 2 + 1e-7).all()
    np.testing.assert_allclose(scale, np.abs(fp32[name]).max(axis=0) / 127, rtol=0.01)


def test_scales_of_activations_come_from_the_ranges(
    models: dict[str, Path], ranges: dict[str, Ranges]
) -> None:
    values = tensors(models["quant_2"])
    name = "bert.encoder.layer.0.intermediate.dense/MatMul:0"
    low, high = ranges["quant_2"].of[name]
    assert low < 0 < high
    assert float(values[f"{name}_scale"]) == pytest.approx((high - low) / 255, rel=1e-5)
    assert int(values[f"{name}_zero_point"]) == round(-low / ((high - low) / 255))


@pytest.mark.parametrize("name", ["quant_1", "quant_2"])
def test_only_the_ranges_of_quantized_nodes_matter(
    tiny_onnx: Path, tiny_rows: list[Feature], models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The plain extremes of every activation, with or without zero, give the same bytes."""
    recipe = RECIPES[name]
    every = calibrate_min_max(tiny_onnx, CalibrationReader(tiny_rows, 8))
    tensors = tensors_for(load_with_shapes(tiny_onnx), recipe.op_types)
    few = derive(collect(tiny_onnx, CalibrationReader(tiny_rows, 8), tensors, histograms=False), "MinMax")
    assert 20 < len(few.of) < len(every.of) / 1.5
    for number, found in enumerate((every, few)):
        path = quantize_onnx(tiny_onnx, tmp_path / f"{number}.onnx", recipe, found)
        assert sha256_file(path) == sha256_file(models[name])


# The same again


def test_the_same_bytes_in_other_processes(
    tiny_onnx: Path, ranges: dict[str, Ranges], models: dict[str, Path], tmp_path: Path
) -> None:
    """Whatever the hash seed: the library keeps operator types in a set."""
    for name, found in ranges.items():
        write_ranges(tmp_path / f"{name}.json", found)
    code = """if True:
        import sys
        from pathlib import Path
        from quantlib.calibration import read_ranges
        from quantlib.quantize import quantize_onnx
        from quantlib.recipes import RECIPES
        model, here = map(Path, sys.argv[1:])
        for name, recipe in RECIPES.items():
            ranges = read_ranges(here / f"{name}.json") if recipe.mode == "static" else None
            quantize_onnx(model, here / f"{name}.onnx", recipe, ranges)
    """
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_onnx), str(tmp_path)],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "it says nothing"
        for name in RECIPES:
            assert sha256_file(tmp_path / f"{name}.onnx") == sha256_file(models[name]), name


def test_the_model_and_its_directory_are_left_alone(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source" / "model.onnx"
    source.parent.mkdir()
    source.write_bytes(tiny_onnx.read_bytes())
    made: list[str] = []
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, **_: made.append(path.name))
    for name in ("quant_1", "dynamic_u8s8"):
        recipe = RECIPES[name]
        quantize_onnx(source, tmp_path / "out" / f"{name}.onnx", recipe, ranges.get(name))
    assert source.read_bytes() == tiny_onnx.read_bytes()
    assert [path.name for path in source.parent.iterdir()] == ["model.onnx"], "not even for a moment"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dynamic_u8s8.onnx", "quant_1.onnx"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_file_holds_no_path(models: dict[str, Path], name: str) -> None:
    data = models[name].read_bytes()
    for word in (str(models[name].parent), str(ROOT), "/tmp", "site-packages"):
        assert word.encode() not in data


# What cannot be quantized


def test_ranges_that_are_missing_or_not_needed(
    tiny_onnx: Path, ranges: dict[str, Ranges], tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="recipe quant_1 is static: it needs calibrated ranges"):
        quantize_onnx(tiny_onnx, out, RECIPES["quant_1"])
    with pytest.raises(InputError, match="recipe dynamic_u8s8 is dynamic: it takes no ranges"):
        quantize_onnx(tiny_onnx, out, RECIPES["dynamic_u8s8"], ranges["quant_2"])
    others = Ranges({name: pair for name, pair in ranges["quant_2"].of.items() if name != "logits"})
    with pytest.raises(InputError, match="the ranges lack logits; they are those of another model"):
        quantize_onnx(tiny_onnx, out, RECIPES["quant_1"], others)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [None, b"", b"garbage" * 30], ids=["missing", "empty", "garbage"])
def test_a_corrupt_model_is_one_line(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        quantize_onnx(path, tmp_path / "out.onnx", RECIPES["dynamic_u8s8"])
    assert str(caught.value).startswith(f"{path}: no")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_a_recipe_that_quantizes_nothing_is_no_success(tmp_path: Path) -> None:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Tanh", ["x"], ["y"])], "g", info[:1], info[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    recipe = replace(RECIPES["dynamic_u8s8"], name="mine")
    with pytest.raises(RuntimeError, match="recipe mine quantized no node"):
        quantize_onnx(path, tmp_path / "out.onnx", recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_op_counts(models: dict[str, Path]) -> None:
    counts = op_counts(models["fp32"])
    assert counts == Counter(node.op_type for node in onnx.load(models["fp32"]).graph.node)
    assert counts["QLinearMatMul"] == 0
