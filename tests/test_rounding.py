"""Second-order rounding: plain rounding where inputs are unrelated, less error in the output elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.calibration import (
    Gram,
    Ranges,
    add_grams,
    collect,
    collect_grams,
    derive,
)
from quantlib.compression.grid import block_scales, highest, round_weight, steps_of_blocks, weight_scale
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate, tensors_to_correlate
from quantlib.compression.recipes import RECIPES, Recipe
from quantlib.compression.rounding import DAMPING, round_second_order
from quantlib.data.features import CalibrationReader, Feature
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model.layers import find_linears, load_ir
from quantlib.support.errors import InputError

SEEDS = st.integers(0, 2**32 - 1)
PLAIN = [
    name
    for name, recipe in RECIPES.items()
    if recipe.quantizer == "quantlib" and recipe.storage == "as_computed" and not recipe.smooth
]


def gram_of(x: np.ndarray) -> Gram:
    wide = x.astype(np.float64)
    return Gram(len(wide), wide.sum(axis=0), wide.T @ wide)


def problem(
    seed: int, depth: int, width: int, positions: int, rank: int | None = None
) -> tuple[np.ndarray, Gram]:
    """A random weight, and the Gram matrix of random inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    rank = depth if rank is None else rank
    x = rng.normal(size=(positions, rank)) @ rng.normal(size=(rank, depth)) + rng.normal(size=depth)
    return rng.normal(size=(depth, width)).astype(np.float32), gram_of(x)


def output_error(weight: np.ndarray, levels: np.ndarray, steps: np.ndarray, gram: Gram) -> float:
    """tr((W - Ŵ)ᵀ·G·(W - Ŵ))."""
    lost = weight.astype(np.float64) - levels * steps.astype(np.float64)
    return float(np.einsum("io,ij,jo->", lost, gram.products, lost))


def column_by_column(weight: np.ndarray, scale: np.ndarray, gram: Gram, bits: int) -> np.ndarray:
    """The same by the textbook: an explicit inverse of what is left for every input."""
    top = highest(bits)
    moments = gram.products + DAMPING * np.mean(np.diag(gram.products)) * np.eye(gram.channels)
    steps = np.broadcast_to(scale, weight.shape).astype(np.float64)
    current = weight.astype(np.float64)
    levels = np.zeros(weight.shape, np.int8)
    left = list(np.argsort(-np.diag(gram.products), kind="stable"))
    while left:
        inverse = np.linalg.inv(moments[np.ix_(left, left)])
        first = left[0]
        levels[first] = np.clip(np.rint(current[first] / steps[first]), -top, top)
        error = (current[first] - levels[first] * steps[first]) / inverse[0, 0]
        current[left] -= np.outer(inverse[:, 0], error)
        left = left[1:]
    return levels


@given(SEEDS, st.integers(1, 80), st.integers(1, 6), st.sampled_from([4, 7, 8]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_unrelated_inputs_are_rounded_to_the_nearest(
    seed: int, depth: int, width: int, bits: int, per_channel: bool
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(depth, width)).astype(np.float32)
    scale = weight_scale(weight, per_channel=per_channel, bits=bits)
    for diagonal in (np.ones(depth), rng.uniform(0.1, 10, depth)):
        gram = Gram(100, np.zeros(depth), np.diag(diagonal))
        levels = round_second_order(weight, scale, gram, bits=bits)
        nearest = round_weight(weight, scale, bits=bits)
        # In float32 and in float64 a weight in the middle of two levels may go either way.
        middle = np.abs(np.abs(weight / scale - np.trunc(weight / scale)) - 0.5) < 1e-4
        np.testing.assert_array_equal(levels[~middle], nearest[~middle])
        assert np.abs(levels.astype(int) - nearest).max() <= 1


@given(SEEDS, st.integers(2, 24), st.integers(1, 4), st.sampled_from([4, 8]))
@settings(deadline=None, max_examples=30)
def test_it_is_that_of_the_textbook(seed: int, depth: int, width: int, bits: int) -> None:
    weight, gram = problem(seed, depth, width, positions=3 * depth)
    scale = weight_scale(weight, bits=bits)
    ours = round_second_order(weight, scale, gram, bits=bits)
    textbook = column_by_column(weight, scale, gram, bits)
    # A tie that goes the other way changes what comes after it, but not by how much the output is wrong.
    assert (ours == textbook).mean() > 0.9 or output_error(weight, ours, scale, gram) == pytest.approx(
        output_error(weight, textbook, scale, gram), rel=0.05
    )


def test_many_inputs_are_as_in_the_textbook() -> None:
    """More of them than go into one product of matrices."""
    weight, gram = problem(7, 150, 5, positions=400)
    scale = weight_scale(weight, bits=8)
    ours = round_second_order(weight, scale, gram, bits=8)
    np.testing.assert_array_equal(ours, column_by_column(weight, scale, gram, 8))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rank", [8, 48])
def test_the_output_is_closer_on_average(bits: int, rank: int) -> None:
    ratios = []
    for seed in range(12):
        weight, gram = problem(seed, 48, 8, positions=200, rank=rank)
        scale = weight_scale(weight, bits=bits)
        ours, nearest = (
            output_error(weight, levels, scale, gram)
            for levels in (
                round_second_order(weight, scale, gram, bits=bits),
                round_weight(weight, scale, bits=bits),
            )
        )
        ratios.append(ours / nearest)
    assert max(ratios) < 1.05
    assert np.mean(ratios) < (0.3 if rank == 8 else 0.8)


@given(SEEDS, st.integers(2, 40), st.integers(1, 40), st.sampled_from([4, 8]), st.sampled_from([16, 32]))
@settings(deadline=None, max_examples=30)
def test_every_value_stays_on_the_grid_whatever_the_rank(
    seed: int, depth: int, positions: int, bits: int, block_size: int
) -> None:
    weight, gram = problem(seed, depth, 4, positions)
    weight[:, 1] = 0
    weight[:block_size, 2] = 0
    scales = block_scales(weight, bits=bits, block_size=block_size)
    steps = steps_of_blocks(scales, block_size, depth)
    levels = round_second_order(weight, steps, gram, bits=bits)
    assert (levels.dtype, levels.shape) == (np.int8, weight.shape)
    assert np.abs(levels.astype(int)).max() <= highest(bits)
    assert not levels[:, 1].any(), "a channel without weights stays so"
    assert not levels[:block_size, 2].any(), "a block without weights stays so"


def test_no_inputs_at_all_round_to_the_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    scale = weight_scale(weight)
    silent = Gram(5, np.zeros(10), np.zeros((10, 10)))
    np.testing.assert_array_equal(
        round_second_order(weight, scale, silent, bits=8), round_weight(weight, scale, bits=8)
    )


def test_what_does_not_fit_is_refused() -> None:
    weight = np.ones((4, 2), np.float32)
    scale = weight_scale(weight)
    with pytest.raises(InputError, match="a Gram matrix of 3 channels does not fit a weight of 4"):
        round_second_order(weight, scale, gram_of(np.ones((2, 3))), bits=8)
    with pytest.raises(InputError, match="is not finite"):
        round_second_order(weight, scale, gram_of(np.full((2, 4), np.inf)), bits=8)


# In a model


@pytest.mark.parametrize("storage", ["as_computed", "int4"])
def test_a_matrix_that_is_not_finite_names_the_layer(storage: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    path = tiny.save_graph(tmp_path / "m.onnx", nodes, {"w": np.ones((4, 2), np.float32)})
    gram = gram_of(np.full((2, 4), np.inf))
    with pytest.raises(InputError, match=r"^product: its Gram matrix is not finite"):
        quantize_onnx(
            path, tmp_path / "out.onnx", second_order("dynamic_u8s8", storage=storage), grams={"x": gram}
        )
    assert not (tmp_path / "out.onnx").exists()


def second_order(name: str, **changes: Any) -> Recipe:
    return replace(RECIPES[name], rounding="second_order", **changes)


@pytest.fixture(scope="module")
def grams(tiny_onnx: Path, tiny_rows: list[Feature]) -> dict[str, Gram]:
    tensors = tensors_to_correlate(tiny_onnx, second_order("dynamic_u8s8"))
    return collect_grams(tiny_onnx, CalibrationReader(tiny_rows, 8), tensors, threads=1)


@pytest.fixture(scope="module")
def ranges(tiny_onnx: Path, tiny_rows: list[Feature]) -> Ranges:
    tensors = tensors_to_calibrate(tiny_onnx, RECIPES["quant_2"])
    return derive(collect(tiny_onnx, CalibrationReader(tiny_rows, 8), tensors, threads=1), "MinMax")


def logits(path: Path, rows: list[Feature]) -> np.ndarray:
    session = open_session(path, threads=1)
    outputs = [session.run(None, feed_for(session, feed))[0] for feed in CalibrationReader(rows, 1)]
    return np.concatenate(outputs)


@pytest.mark.parametrize("name", PLAIN)
def test_a_model_differs_in_the_numbers_of_its_weights_alone(
    name: str,
    tiny_onnx: Path,
    tiny_rows: list[Feature],
    grams: dict[str, Gram],
    ranges: Ranges,
    tmp_path: Path,
) -> None:
    given_ranges = ranges if RECIPES[name].mode == "static" else None
    recipe = replace(RECIPES[name], rounding="nearest")
    nearest = quantize_onnx(tiny_onnx, tmp_path / "nearest.onnx", recipe, given_ranges)
    rounded = quantize_onnx(tiny_onnx, tmp_path / "rounded.onnx", second_order(name), given_ranges, grams)
    before, after = (onnx.load(path).graph for path in (nearest, rounded))
    assert list(before.node) == list(after.node)
    changed = []
    for old, new in zip(before.initializer, after.initializer, strict=True):
        assert (old.name, old.data_type, list(old.dims)) == (new.name, new.data_type, list(new.dims))
        if old != new:
            changed.append(old.name)
    assert changed
    assert all(each.endswith("_quantized") or "_bit_blocks_of_" in each for each in changed)
    assert not any("scale" in each or "embeddings" in each for each in changed)
    exact, plain, ours = (logits(path, tiny_rows) for path in (tiny_onnx, nearest, rounded))
    assert np.square(ours - exact).mean() < 2 * np.square(plain - exact).mean()


def test_four_bits_change_the_logits_less(
    tiny_onnx: Path, tiny_rows: list[Feature], grams: dict[str, Gram], tmp_path: Path
) -> None:
    exact = logits(tiny_onnx, tiny_rows)
    plain, ours = RECIPES["weight_only_int4"], second_order("weight_only_int4")
    plain = replace(plain, rounding="nearest")
    nearest = logits(quantize_onnx(tiny_onnx, tmp_path / "a.onnx", plain), tiny_rows)
    rounded = logits(quantize_onnx(tiny_onnx, tmp_path / "b.onnx", ours, None, grams), tiny_rows)
    assert np.square(rounded - exact).mean() < np.square(nearest - exact).mean()


def test_which_activations_are_correlated(tiny_onnx: Path) -> None:
    everything = tensors_to_correlate(tiny_onnx, second_order("quant_2"))
    assert everything == tensors_to_calibrate(tiny_onnx, RECIPES["quant_2"])
    assert tensors_to_correlate(tiny_onnx, RECIPES["quant_2"]) == []
    float_pooler = second_order("dynamic_u8s8", nodes=(("pooler", "float"), ("ffn_in", "weight_only")))
    assert len(tensors_to_correlate(tiny_onnx, float_pooler)) == len(everything) - 1


def test_gram_matrices_are_taken_where_they_are_needed(
    tiny_onnx: Path, grams: dict[str, Gram], ranges: Ranges, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="quant_2 has nearest rounding: it takes no Gram matrices"):
        quantize_onnx(tiny_onnx, out, RECIPES["quant_2"], ranges, grams)
    with pytest.raises(InputError, match="quant_2 has second_order rounding: it needs Gram matrices"):
        quantize_onnx(tiny_onnx, out, second_order("quant_2"), ranges)
    first, *others = grams
    with pytest.raises(InputError, match=f"the Gram matrices lack {first}; they are those of another model"):
        quantize_onnx(tiny_onnx, out, second_order("dynamic_u8s8"), None, {n: grams[n] for n in others})
    narrow = grams | {first: gram_of(np.ones((2, 3)))}
    with pytest.raises(InputError, match="does not fit a weight of"):
        quantize_onnx(tiny_onnx, out, second_order("dynamic_u8s8"), None, narrow)
    assert not out.exists()


def test_layers_that_share_a_weight_are_rounded_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    w = rng.normal(size=(16, 16)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [x, "w"], [y], name=y) for x, y in (("x", "y"), ("y", "logits"))]
    model = tmp_path / "model.onnx"
    info = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", 16]) for each in ("x", "logits")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    x = rng.normal(size=(40, 16))
    given_grams = {"x": gram_of(x), "y": gram_of(x @ w)}
    out = quantize_onnx(model, tmp_path / "out.onnx", second_order("dynamic_u8s8"), None, given_grams)
    arrays = {each.name: numpy_helper.to_array(each) for each in onnx.load(out).graph.initializer}
    whole = round_second_order(w, weight_scale(w), add_grams(list(given_grams.values())), bits=8)
    np.testing.assert_array_equal(arrays["w_quantized"], whole)
    assert len(find_linears(load_ir(model))) == 2
