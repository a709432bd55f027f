"""Weights in 4 bits on disk and 8 bits at work: what the file holds, and what a session makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from exact import with_constants
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.calibration import Ranges, collect, derive
from quantlib.compression.packing import BITS, BLOCK, choose_factors, pack, padded_to_pairs
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import RECIPES, Recipe
from quantlib.data.features import CalibrationReader, Feature
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model.coverage import coverage, has_integer_products
from quantlib.onnx_model.model import size_bytes
from quantlib.support.errors import InputError

NAMES = ["quant_1", "quant_2", "static_u16s8", "dynamic_u8s8"]
EXPANDING = {"BitShift", "Mod"}


def stored(name: str, **changes: Any) -> Recipe:
    return replace(RECIPES[name], storage="int4", **changes)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 3 * BLOCK), st.integers(1, 4), st.sampled_from([7, 8]),
    st.floats(-10, 10),
)  # fmt: skip
@settings(deadline=None, max_examples=50)
def test_levels_are_products_of_small_whole_numbers(
    seed: int, depth: int, width: int, bits: int, exponent: float
) -> None:
    weight = (np.random.default_rng(seed).normal(size=(depth, width)) * 10**exponent).astype(np.float32)
    chosen = choose_factors(weight, bits=bits)
    assert (chosen.factors.dtype, chosen.factors.shape) == (np.int8, (-(-depth // BLOCK), width))
    assert chosen.factors.min() >= 1
    assert 7 * int(chosen.factors.max()) <= {7: 63, 8: 127}[bits], "levels at work"
    steps = chosen.steps(depth)
    assert steps.shape == weight.shape
    exact = weight.astype(np.float64)
    rounded = np.clip(np.rint(exact / steps), -7, 7) * steps
    plain = np.abs(exact).max(axis=0) / 7
    nearest = np.rint(exact / plain) * plain
    slack = 1e-10 * np.square(exact).sum()
    assert np.square(rounded - exact).sum() <= 1.001 * np.square(nearest - exact).sum() + slack


def test_important_inputs_decide_the_factor() -> None:
    weight = np.full((BLOCK, 1), 0.1, np.float32)
    weight[0] = 1.0
    importance = np.ones(BLOCK)
    importance[0] = 0
    assert choose_factors(weight).factors.item() == 14, "14 · 7 = 98 and 14 · 1 for 112 and 11.2"
    assert choose_factors(weight, importance).factors.item() == 11


def test_a_weight_of_zeros_has_a_grid() -> None:
    chosen = choose_factors(np.zeros((BLOCK + 1, 2), np.float32), np.zeros(BLOCK + 1))
    assert np.isfinite(chosen.steps(BLOCK + 1)).all()
    assert (chosen.scale > 0).all()


def test_importance_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="its Gram matrix is not finite"):
        choose_factors(np.ones((BLOCK, 2), np.float32), np.full(BLOCK, np.inf))


def test_two_numbers_share_a_byte_first_half_low() -> None:
    levels = np.array([[-8, 0], [7, 1], [0, -1], [-7, 3]], np.int8)
    packed = pack(levels, -8)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal((packed & 15).astype(int) - 8, levels[:2])
    np.testing.assert_array_equal((packed >> 4).astype(int) - 8, levels[2:])
    assert padded_to_pairs(np.ones((5, 2), np.int8), 2, 3).tolist() == [[1, 1]] * 5 + [[3, 3]] * 3
    assert BITS == 4


# In a model


@pytest.fixture(scope="module")
def ranges(tiny_onnx: Path, tiny_rows: list[Feature]) -> Ranges:
    tensors = tensors_to_calibrate(tiny_onnx, RECIPES["quant_2"])
    return derive(collect(tiny_onnx, CalibrationReader(tiny_rows, 8), tensors, threads=1), "MinMax")


def variant(model: Path, out: Path, recipe: Recipe, ranges: Ranges) -> Path:
    return quantize_onnx(model, out, recipe, ranges if recipe.mode == "static" else None)


def expanded(path: Path, copy: Path) -> onnx.ModelProto:
    """What a plain session of ONNX Runtime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(copy)
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(copy)


def logits(session: ort.InferenceSession, rows: list[Feature]) -> np.ndarray:
    return np.concatenate([session.run(None, feed_for(session, f))[0] for f in CalibrationReader(rows, 1)])


@pytest.mark.parametrize("name", NAMES)
def test_a_session_runs_the_8_bit_graph(
    name: str, tiny_onnx: Path, tiny_rows: list[Feature], ranges: Ranges, tmp_path: Path
) -> None:
    path = variant(tiny_onnx, tmp_path / "stored.onnx", stored(name), ranges)
    plain = variant(tiny_onnx, tmp_path / "plain.onnx", RECIPES[name], ranges)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [each.version for each in model.opset_import if each.domain == ""] == [17]
    run, usual = (expanded(each, tmp_path / "opt.onnx").graph for each in (path, plain))
    assert [node.op_type for node in run.node] == [node.op_type for node in usual.node]
    assert not EXPANDING & {node.op_type for node in run.node}
    constants = with_constants(path, tmp_path / "constants.onnx")
    ours = logits(ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]), tiny_rows)
    np.testing.assert_array_equal(
        ours, logits(ort.InferenceSession(str(constants), providers=["CPUExecutionProvider"]), tiny_rows)
    )
    for options in ({}, {"optimize": False}):
        here = logits(open_session(path, threads=1, **options), tiny_rows)
        there = logits(open_session(constants, threads=1, **options), tiny_rows)
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("name", NAMES)
def test_it_counts_as_8_bits(name: str, tiny_onnx: Path, ranges: Ranges, tmp_path: Path) -> None:
    path = variant(tiny_onnx, tmp_path / "stored.onnx", stored(name), ranges)
    plain = variant(tiny_onnx, tmp_path / "plain.onnx", RECIPES[name], ranges)
    assert coverage(path) == coverage(plain)
    assert coverage(path).share == 1.0
    assert has_integer_products(path)
    largest = max(onnx.load(path).graph.initializer, key=lambda each: len(each.raw_data))
    assert largest.data_type in (TensorProto.UINT8, TensorProto.INT8)
    assert size_bytes(path) > 0


@pytest.mark.parametrize("depth", [16, 32, 63, 80, 128])
def test_any_number_of_inputs(depth: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(depth)
    w = rng.normal(size=(depth, 12)).astype(np.float32)
    info = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", d]) for n, d in (("x", depth), ("y", 12))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g", info[:1], info[1:], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    path = quantize_onnx(model, tmp_path / "out.onnx", stored("dynamic_u8s8"))
    arrays = {
        each.name: numpy_helper.to_array(each)
        for each in onnx.load(with_constants(path, tmp_path / "constants.onnx")).graph.initializer
    }
    (weight,) = (array for array in arrays.values() if array.dtype == np.int8)
    chosen = choose_factors(w)
    steps = chosen.steps(depth)
    wanted = np.clip(np.rint(w / steps), -7, 7) * np.repeat(chosen.factors, BLOCK, axis=0)[:depth]
    np.testing.assert_array_equal(weight, wanted)
    assert np.abs(weight * chosen.scale - w).max() < np.abs(w).max() / 7
