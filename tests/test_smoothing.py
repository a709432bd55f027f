from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from exact import exact_session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from quantlib.compression.calibration import collect, derive
from quantlib.compression.calibration.graph import load_with_shapes, save, with_outputs
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import RECIPES
from quantlib.compression.smoothing import (
    ALPHAS,
    WORTHWHILE_DB,
    Smoothing,
    is_smoothed,
    search_smoothing,
    smooth_onnx,
)
from quantlib.data.features import CalibrationReader, Feature, Feed, pad
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model.compile import compile_onnx
from quantlib.onnx_model.layers import find_linears, load_ir
from quantlib.onnx_model.model import op_counts
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file

node = helper.make_node
Factors = Mapping[str, np.ndarray]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return rng(seed).normal(size=shape).astype(np.float32)


def smoothing(factors: Factors) -> dict[str, Smoothing]:
    return {name: Smoothing(0.5, 3.0, np.asarray(f, np.float32)) for name, f in factors.items()}


def some_factors(model: Path, seed: int = 0, spread: float = 1.0) -> dict[str, np.ndarray]:
    """Factors for every activation that is the input of a layer, log-normal."""
    draw, factors = rng(seed), {}
    for layer in find_linears(load_ir(model)):
        width = layer.weight.shape[0]
        factors.setdefault(str(layer.input.name), np.exp(draw.normal(0, spread, width)).astype(np.float32))
    return factors


def tensors(model: Path, names: Sequence[str], feed: Any) -> list[np.ndarray]:
    """The values of a model's activations for a feed, no node fused."""
    path = model.with_name("outputs.onnx")
    save(with_outputs(load_with_shapes(model), names), path)
    session = open_session(path, threads=1, optimize=False)
    return list(session.run(list(names), feed_for(session, feed)))


# The same model


@pytest.fixture(scope="module")
def smoothed(exported: tiny.Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each architecture, smoothed as the main job does it."""
    entries = search_smoothing(exported.model, CalibrationReader(exported.rows, 8), threads=1)
    assert len(entries) > 5
    return smooth_onnx(exported.model, tmp_path_factory.mktemp("smoothed") / "model.onnx", entries)


@pytest.mark.parametrize("batch_size", [1, 5, 48])
def test_logits_stay(exported: tiny.Exported, smoothed: Path, batch_size: int) -> None:
    expected = tiny.logits(exported.model, exported.rows)
    np.testing.assert_allclose(tiny.logits(smoothed, exported.rows, batch_size), expected, atol=1e-4)


@pytest.mark.parametrize("length", [32, 64])
def test_logits_stay_behind_padding(exported: tiny.Exported, smoothed: Path, length: int) -> None:
    feed = pad(exported.rows, length)
    results = []
    for path in (exported.model, smoothed):
        session = open_session(path, threads=1)
        results.append(session.run(None, feed_for(session, feed))[0])
    np.testing.assert_allclose(results[1], results[0], atol=1e-4)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.floats(0, 1.5), st.data())
def test_logits_stay_with_any_factors_of_any_activations(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path, seed: int, spread: float, data: st.DataObject
) -> None:
    factors = some_factors(tiny_onnx, seed, spread)
    chosen = data.draw(st.lists(st.sampled_from(sorted(factors)), unique=True))
    path = smooth_onnx(
        tiny_onnx, tmp_path / "model.onnx", smoothing({name: factors[name] for name in chosen})
    )
    np.testing.assert_allclose(
        tiny.logits(path, tiny_rows[:8]), tiny.logits(tiny_onnx, tiny_rows[:8]), atol=1e-4
    )


def test_interface_opset_and_source_stay(exported: tiny.Exported, smoothed: Path, tmp_path: Path) -> None:
    model, fp32 = onnx.load(smoothed), onnx.load(exported.model)
    assert [(v.name, v.type) for v in model.graph.input] == [(v.name, v.type) for v in fp32.graph.input]
    assert [(v.name, v.type) for v in model.graph.output] == [(v.name, v.type) for v in fp32.graph.output]
    assert {(e.domain, e.version) for e in model.opset_import} == {
        (e.domain, e.version) for e in fp32.opset_import
    }
    assert is_smoothed(load_ir(smoothed))
    assert not is_smoothed(load_ir(exported.model)), "the model itself is left alone"
    assert str(smoothed.parent).encode() not in smoothed.read_bytes()


def test_the_same_bytes_again(exported: tiny.Exported, smoothed: Path, tmp_path: Path) -> None:
    entries = search_smoothing(exported.model, CalibrationReader(exported.rows, 8), threads=1)
    path = smooth_onnx(exported.model, tmp_path / "model.onnx", entries)
    assert sha256_file(path) == sha256_file(smoothed)


def test_nothing_to_smooth_is_smoothed_too(tiny_onnx: Path, tmp_path: Path) -> None:
    path = smooth_onnx(tiny_onnx, tmp_path / "model.onnx", {})
    assert is_smoothed(load_ir(path))
    assert op_counts(path) == op_counts(tiny_onnx)


# Where factors go

EMBEDDED = "bert.embeddings.LayerNorm/LayerNormalization:0"
ATTENDED = "bert.encoder.layer.0.attention.self/Reshape_4:0"
ACTIVATED = "bert.encoder.layer.0.intermediate.intermediate_act_fn/Mul_2:0"


@pytest.mark.parametrize(
    ("name", "nodes"), [(EMBEDDED, 1), (ATTENDED, 0), (ACTIVATED, 1)], ids=["norm", "values", "gelu"]
)
def test_what_is_added(tiny_onnx: Path, tmp_path: Path, name: str, nodes: int) -> None:
    """A norm gives back what the residual takes; attention costs nothing at run time."""
    factors = some_factors(tiny_onnx)[name]
    path = smooth_onnx(tiny_onnx, tmp_path / "model.onnx", smoothing({name: factors}))
    more = op_counts(path) - op_counts(tiny_onnx)
    assert dict(more) == ({"Mul": nodes} if nodes else {})
    assert not op_counts(tiny_onnx) - op_counts(path)
    layer_inputs = {str(layer.input.name) for layer in find_linears(load_ir(path))}
    assert (f"{name}/smoothed" in layer_inputs) == (name == ACTIVATED)


def test_activations_are_divided_and_the_residual_is_not(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    names = [EMBEDDED, ATTENDED, ACTIVATED]
    factors = {name: some_factors(tiny_onnx)[name] for name in names}
    shutil.copy(tiny_onnx, tmp_path / "fp32.onnx")
    path = smooth_onnx(tiny_onnx, tmp_path / "model.onnx", smoothing(factors))
    feed = pad(tiny_rows[:4], 20)
    before = tensors(tmp_path / "fp32.onnx", names, feed)
    now = [EMBEDDED, ATTENDED, f"{ACTIVATED}/smoothed", f"{EMBEDDED}/original", ACTIVATED]
    divided = tensors(path, now, feed)
    for name, plain, smooth in zip(names, before, divided[:3], strict=True):
        np.testing.assert_allclose(smooth, plain / factors[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(divided[3], before[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(divided[4], before[2], rtol=1e-4, atol=1e-5)
    users = [n for n in onnx.load(path).graph.node if f"{EMBEDDED}/original" in n.input]
    assert [n.op_type for n in users] == ["Add"], "the sum behind attention"


# Graphs by hand

NORM = {"gamma": 1 + normal(4, seed=1) / 4, "beta": normal(4, seed=2)}


def norm(name: str, source: str = "x", result: str = "n", *more: str) -> Any:
    return node("LayerNormalization", [source, *(more or ("gamma", "beta"))], [result], name=name)


def checked(
    tmp_path: Path,
    nodes: list[Any],
    constants: dict[str, Any],
    factors: Factors,
    outputs: Sequence[str] = ("y",),
    shapes: Mapping[str, Sequence[str | int]] | None = None,
) -> Path:
    """The smoothed model, which gives the same outputs as before for random input."""
    path = tmp_path / "model.onnx"
    model = tiny.save_graph(path, nodes, constants, outputs=outputs, shapes=shapes)
    path = smooth_onnx(model, tmp_path / "smoothed.onnx", smoothing(factors))
    results = []
    for file in (model, path):
        session = open_session(file, threads=1)
        assert [output.name for output in session.get_outputs()] == list(outputs)
        results.append(session.run(None, {"x": normal(2, 3, 4, seed=5)}))
    for plain, smooth in zip(*results, strict=True):
        np.testing.assert_allclose(smooth, plain, rtol=1e-4, atol=1e-5)
    return path


FACTORS = np.array([0.1, 1, 2, 5], np.float32)


def test_a_norm_with_nothing_but_layers_behind_it(tmp_path: Path) -> None:
    nodes = [norm("a"), node("MatMul", ["n", "w"], ["p"]), node("MatMul", ["n", "v"], ["q"])]
    nodes.append(node("Add", ["p", "q"], ["y"]))
    constants = NORM | {"w": normal(4, 3), "v": normal(4, 3, seed=1)}
    path = checked(tmp_path, nodes, constants, {"n": FACTORS})
    assert op_counts(path)["Mul"] == 0


def test_a_norm_without_a_bias(tmp_path: Path) -> None:
    nodes = [norm("a", "x", "n", "gamma"), node("MatMul", ["n", "w"], ["y"])]
    path = checked(tmp_path, nodes, {"gamma": NORM["gamma"], "w": normal(4, 3)}, {"n": FACTORS})
    assert op_counts(path)["Mul"] == 0


def test_norms_that_share_their_parameters(tmp_path: Path) -> None:
    """The exporter merges equal ones; only one of the two norms is scaled."""
    nodes = [
        norm("a"),
        node("MatMul", ["n", "w"], ["p"]),
        norm("b", "p", "m"),
        node("MatMul", ["m", "v"], ["y"]),
    ]
    constants = NORM | {"w": normal(4, 4), "v": normal(4, 3)}
    path = checked(tmp_path, nodes, constants, {"n": FACTORS})
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    np.testing.assert_array_equal(values["gamma"], NORM["gamma"])
    checked(tmp_path, nodes, constants, {"n": FACTORS, "m": 1 / FACTORS})


def test_layers_that_share_a_weight(tmp_path: Path) -> None:
    nodes = [norm("a"), node("MatMul", ["n", "w"], ["p"], name="one")]
    nodes += [node("Tanh", ["p"], ["t"]), node("MatMul", ["t", "w"], ["y"], name="two")]
    constants = NORM | {"w": normal(4, 4)}
    checked(tmp_path, nodes, constants, {"n": FACTORS})
    checked(tmp_path, nodes, constants, {"t": FACTORS})
    checked(tmp_path, nodes, constants, {"n": FACTORS, "t": 1 / FACTORS})


def test_a_weight_that_is_stored_transposed(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "flat"], ["f"]), node("Tanh", ["f"], ["t"])]
    nodes.append(node("Gemm", ["t", "w", "b"], ["y"], transB=1))
    constants = {"flat": np.array([-1, 4]), "w": normal(3, 4), "b": normal(3)}
    assert op_counts(checked(tmp_path, nodes, constants, {"t": FACTORS}))["Mul"] == 1


def test_a_norm_whose_output_is_one_of_the_model(tmp_path: Path) -> None:
    nodes = [norm("a"), node("MatMul", ["n", "w"], ["y"])]
    checked(tmp_path, nodes, NORM | {"w": normal(4, 3)}, {"n": FACTORS}, outputs=("y", "n"))


@pytest.mark.parametrize("attributes", [{"axis": 1}, {"axis": -2}], ids=str)
def test_a_norm_over_more_than_the_channels(tmp_path: Path, attributes: dict[str, int]) -> None:
    shape = (3, 4)
    constants = {"gamma": normal(*shape), "beta": normal(*shape), "w": normal(4, 3)}
    nodes = [node("LayerNormalization", ["x", "gamma", "beta"], ["n"], **attributes)]
    nodes.append(node("MatMul", ["n", "w"], ["y"]))
    assert op_counts(checked(tmp_path, nodes, constants, {"n": FACTORS}))["Mul"] == 1


def test_a_norm_that_scales_by_an_activation(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", ["x"], ["g"], axes=[0, 1], keepdims=0)]
    nodes += [norm("a", "x", "n", "g", "beta"), node("MatMul", ["n", "w"], ["y"])]
    constants = {"beta": NORM["beta"], "w": normal(4, 3)}
    assert op_counts(checked(tmp_path, nodes, constants, {"n": FACTORS}))["Mul"] == 1


def attention(**changes: list[Any]) -> list[Any]:
    """One head pair over x: nodes by the name of what they give out, in order."""
    heads = {"perm": [0, 2, 1, 3]}
    parts = {
        "p": [node("MatMul", ["x", "wv"], ["p"], name="value")],
        "v": [node("Add", ["p", "bv"], ["v"])],
        "s": [node("Reshape", ["v", "split"], ["s"])],
        "h": [node("Transpose", ["s"], ["h"], **heads)],
        "scores": [node("Reshape", ["x", "split"], ["xs"]), node("Transpose", ["xs"], ["xh"], **heads)],
        "k": [node("Transpose", ["xh"], ["xk"], perm=[0, 1, 3, 2]), node("MatMul", ["xh", "xk"], ["k"])],
        "a": [node("Softmax", ["k"], ["a"], axis=-1)],
        "c": [node("MatMul", ["a", "h"], ["c"])],
        "j": [node("Transpose", ["c"], ["j"], **heads)],
        "o": [node("Reshape", ["j", "join"], ["o"])],
        "y": [node("MatMul", ["o", "wo"], ["y"], name="output")],
    }
    return [item for nodes in (parts | changes).values() for item in nodes]


ATTENTION = {
    "wv": normal(4, 4, seed=1), "bv": normal(4, seed=2), "wo": normal(4, 3, seed=3),
    "split": np.array([0, 0, 2, 2]), "join": np.array([0, 0, 4]),
}  # fmt: skip


def test_factors_go_into_the_values_of_an_attention(tmp_path: Path) -> None:
    path = checked(tmp_path, attention(), ATTENTION, {"o": FACTORS})
    assert op_counts(path)["Mul"] == 0
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    np.testing.assert_allclose(values["bv"], ATTENTION["bv"] / FACTORS, rtol=1e-6)
    np.testing.assert_allclose(values["wv"], ATTENTION["wv"] / FACTORS, rtol=1e-6)
    np.testing.assert_allclose(values["wo"], ATTENTION["wo"] * FACTORS[:, None], rtol=1e-6)


def test_values_without_a_bias(tmp_path: Path) -> None:
    nodes = attention(p=[node("MatMul", ["x", "wv"], ["v"])], v=[])
    assert op_counts(checked(tmp_path, nodes, ATTENTION, {"o": FACTORS}))["Mul"] == 0


def test_values_stored_transposed(tmp_path: Path) -> None:
    gemm = [node("Reshape", ["x", "flat"], ["f"]), node("Gemm", ["f", "wv", "bv"], ["v"], transB=1)]
    nodes = attention(p=gemm, v=[], s=[node("Reshape", ["v", "whole"], ["s"])])
    constants = ATTENTION | {"flat": np.array([-1, 4]), "whole": np.array([-1, 3, 2, 2])}
    assert op_counts(checked(tmp_path, nodes, constants, {"o": FACTORS}))["Mul"] == 0


ABS = node("Abs", ["v"], ["z"])
OTHER_ORDER = [
    node("Transpose", ["c"], ["j0"], perm=[0, 2, 3, 1]),
    node("Transpose", ["j0"], ["j"], perm=[0, 1, 3, 2]),
]
SUMMED = [node("MatMul", ["o", "wo"], ["r"]), node("ReduceSum", ["o"], ["t"]), node("Add", ["r", "t"], ["y"])]
REASONS: dict[str, tuple[dict[str, list[Any]], tuple[str, ...]]] = {
    "used_twice": ({"y": SUMMED}, ()),
    "values_used_twice": ({"s": [node("Reshape", ["v", "split"], ["s"]), ABS]}, ("z",)),
    "an_output": ({}, ("o",)),
    "an_output_within": ({}, ("c",)),
    "on_the_left": ({"a": [], "c": [node("MatMul", ["h", "mix"], ["c"])]}, ()),
    "other_order": ({"j": OTHER_ORDER}, ()),
    "all_axes_turned": (
        {"j": [node("Transpose", ["c"], ["j0"]), node("Transpose", ["j0"], ["j"], perm=[3, 1, 2, 0])]},
        (),
    ),
}


@pytest.mark.parametrize(("changes", "more"), REASONS.values(), ids=list(REASONS))
def test_an_attention_that_does_more_is_multiplied(
    tmp_path: Path, changes: dict[str, list[Any]], more: tuple[str, ...]
) -> None:
    constants = ATTENTION | {"mix": normal(2, 2)}
    path = checked(tmp_path, attention(**changes), constants, {"o": FACTORS}, outputs=("y", *more))
    assert op_counts(path)["Mul"] == 1


# Compiled graphs

MICROSOFT = {"domain": "com.microsoft", "num_heads": 2}
FUSED = {"w": normal(4, 12, seed=1), "b": normal(12, seed=2), "wo": normal(4, 3, seed=3)}
ONE_NODE = [node("Attention", ["x", "w", "b"], ["o"], name="qkv", **MICROSOFT)]
PARTS = [
    node("MatMul", ["x", "wq"], ["q"]),
    node("MatMul", ["x", "wkv"], ["p"]),
    node("Add", ["p", "bkv"], ["kv"]),
    node("Split", ["kv", "halves"], ["k", "v"], axis=2),
    node("MultiHeadAttention", ["q", "k", "v"], ["o"], **MICROSOFT),
]
HALVES = {
    "wq": normal(4, 4, seed=1), "wkv": normal(4, 8, seed=2), "bkv": normal(8, seed=3), "wo": normal(4, 3),
    "halves": np.array([4, 4]),
}  # fmt: skip
ROWS = ["rows", "tokens", 4]
OUT = node("MatMul", ["o", "wo"], ["y"], name="output")
PICK = [
    node("Gather", ["o", "row"], ["r"], axis=1),
    node("MatMul", ["r", "wo"], ["y"], name="output"),
]


@pytest.mark.parametrize("row", [False, True], ids=["all_rows", "one_row"])
def test_factors_go_into_the_values_of_a_fused_attention(tmp_path: Path, row: bool) -> None:
    tail, layer_input = (PICK, "r") if row else ([OUT], "o")
    constants = FUSED | {"row": np.array([1])}
    path = checked(tmp_path, [*ONE_NODE, *tail], constants, {layer_input: FACTORS}, shapes={"o": ROWS})
    assert op_counts(path)["Mul"] == 0
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name in ("w", "b"):
        np.testing.assert_array_equal(values[name][..., :8], FUSED[name][..., :8])
        np.testing.assert_allclose(values[name][..., 8:], FUSED[name][..., 8:] / FACTORS, rtol=1e-6)


def test_factors_go_into_the_values_beside_the_keys(tmp_path: Path) -> None:
    path = checked(tmp_path, [*PARTS, OUT], HALVES, {"o": FACTORS})
    assert op_counts(path)["Mul"] == 0
    values = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name in ("wkv", "bkv"):
        np.testing.assert_array_equal(values[name][..., :4], HALVES[name][..., :4])
        np.testing.assert_allclose(values[name][..., 4:], HALVES[name][..., 4:] / FACTORS, rtol=1e-6)


TURNED = [PARTS[0], PARTS[1], PARTS[2], node("Split", ["kv", "halves"], ["v", "k"], axis=2), PARTS[4]]
BARE = [node("Attention", ["x", "w", "b"], ["o"], name="qkv", **MICROSOFT), *PICK, node("Abs", ["o"], ["z"])]
FUSED_REASONS: dict[str, tuple[list[Any], str, tuple[str, ...]]] = {
    "values_first": ([*TURNED, OUT], "o", ("y",)),
    "values_used_twice": ([*PARTS, OUT, node("Abs", ["v"], ["z"])], "o", ("y", "z")),
    "pair_used_twice": ([*PARTS, OUT, node("Abs", ["kv"], ["z"])], "o", ("y", "z")),
    "all_rows_wanted": (BARE, "r", ("y", "z")),
    "pick_of_channels": (
        [*ONE_NODE, node("Gather", ["o", "mixed"], ["r"], axis=2), node("MatMul", ["r", "wo"], ["y"])],
        "r",
        ("y",),
    ),
}


@pytest.mark.parametrize(("nodes", "layer_input", "outputs"), FUSED_REASONS.values(), ids=list(FUSED_REASONS))
def test_a_fused_attention_that_does_more_is_multiplied(
    tmp_path: Path, nodes: list[Any], layer_input: str, outputs: tuple[str, ...]
) -> None:
    constants = FUSED | HALVES | {"row": np.array([1]), "mixed": np.array([2, 0, 3, 1])}
    path = checked(tmp_path, nodes, constants, {layer_input: FACTORS}, outputs=outputs, shapes={"o": ROWS})
    assert op_counts(path)["Mul"] == 1


def test_a_picked_row_is_multiplied_back_behind_the_pick(tmp_path: Path) -> None:
    """Of the residual, which takes one row, one row is multiplied and not all."""
    nodes = [
        norm("a"),
        node("MatMul", ["n", "w"], ["p"], name="all"),
        node("Gather", ["n", "row"], ["r"], axis=1),
        node("MatMul", ["r", "v"], ["q"], name="one"),
        node("Add", ["q", "r"], ["s"]),
        node("Add", ["p", "s"], ["y"]),
    ]
    constants = NORM | {"w": normal(4, 4), "v": normal(4, 4, seed=1), "row": np.array([1])}
    for factors in ({"n": FACTORS}, {"r": FACTORS, "n": 1 / FACTORS}, {"n": FACTORS, "r": 1 / FACTORS}):
        path = checked(tmp_path, nodes, constants, factors, shapes={"n": ROWS})
        muls = [n for n in onnx.load(path).graph.node if n.op_type == "Mul"]
        assert len(muls) == len(factors)
        assert muls[0].input[0] == "r"


@pytest.fixture(scope="module", params=["row", "whole"])
def compiled(
    exported: tiny.Exported, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Each architecture, compiled in each form."""
    path = tmp_path_factory.mktemp("compiled") / "model.onnx"
    return compile_onnx(exported.model, path, last_attention=request.param).path


def test_logits_of_a_compiled_model_stay(exported: tiny.Exported, compiled: Path, tmp_path: Path) -> None:
    entries = search_smoothing(compiled, CalibrationReader(exported.rows, 8), threads=1)
    attended = {n.output[0] for n in onnx.load(compiled).graph.node if "Attention" in n.op_type}
    assert len(entries) > 5
    assert attended & set(entries), "an attention whose values are smoothed"
    path = smooth_onnx(compiled, tmp_path / "model.onnx", entries)
    expected = tiny.logits(exported.model, exported.rows)
    for batch_size in (1, 8):
        np.testing.assert_allclose(tiny.logits(path, exported.rows, batch_size), expected, atol=1e-4)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.floats(0, 1.5), st.data())
def test_logits_of_a_compiled_model_stay_with_any_factors(
    exported: tiny.Exported, compiled: Path, tmp_path: Path, seed: int, spread: float, data: st.DataObject
) -> None:
    factors = some_factors(compiled, seed, spread)
    chosen = data.draw(st.lists(st.sampled_from(sorted(factors)), unique=True))
    path = smooth_onnx(compiled, tmp_path / "model.onnx", smoothing({name: factors[name] for name in chosen}))
    rows = exported.rows[:8]
    np.testing.assert_allclose(tiny.logits(path, rows), tiny.logits(compiled, rows), atol=1e-4)


# What cannot be smoothed


def test_a_model_that_is_smoothed_already(tiny_onnx: Path, tmp_path: Path) -> None:
    path = smooth_onnx(tiny_onnx, tmp_path / "model.onnx", smoothing({ATTENDED: np.ones(32)}))
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: this model is smoothed already$"):
        smooth_onnx(path, tmp_path / "again.onnx", {})
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("name", ["nothing", "bert.encoder.layer.0.attention.self/Softmax:0", "input_ids"])
def test_an_activation_that_no_layer_takes(tiny_onnx: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=f"{re.escape(str(tiny_onnx))}: no product takes the activation '{name}'"
    ):
        smooth_onnx(tiny_onnx, tmp_path / "model.onnx", smoothing({name: FACTORS}))
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_layers(tmp_path: Path) -> None:
    path = tiny.save_graph(tmp_path / "model.onnx", [node("Tanh", ["x"], ["y"])])
    with pytest.raises(InputError, match=r"model\.onnx: no MatMul or Gemm with a weight to smooth$"):
        search_smoothing(path, x(normal(1, 2, 4)))


def test_no_rows_and_rows_of_padding(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    with pytest.raises(InputError, match="the calibration set is empty"):
        search_smoothing(tiny_onnx, [])
    feed = pad(tiny_rows[:2], 20)
    feed["attention_mask"][:] = 0
    with pytest.raises(InputError, match="calibration row 0 is all padding"):
        search_smoothing(tiny_onnx, [feed])


# The search


def x(*arrays: np.ndarray) -> list[Feed]:
    return [{"x": np.asarray(array, np.float32)} for array in arrays]  # type: ignore[dict-item]


def product(tmp_path: Path, *weights: np.ndarray, before: str = "Identity") -> Path:
    """A model in which layers with these weights take the same activation, a."""
    names = [f"w{i}" for i in range(len(weights))]
    nodes = [node("Mul", ["x", "one"], ["m"]), node(before, ["m"], ["a"])]
    nodes += [node("MatMul", ["a", name], [f"y{name}"]) for name in names]
    constants = dict(zip(names, weights, strict=True)) | {"one": np.ones(1, np.float32)}
    outputs = [f"y{name}" for name in names]
    return tiny.save_graph(tmp_path / "model.onnx", nodes, constants, outputs=outputs, width=len(weights[0]))


def in_8_bits(values: np.ndarray, weights: Sequence[np.ndarray], factors: np.ndarray) -> float:
    """The squared error of the products, in float64, computed independently."""
    smooth = values / factors
    low, high = min(0.0, smooth.min()), max(0.0, smooth.max())
    step = (high - low) / 255
    zero = round(-low / step)
    rounded_rows = (np.clip(np.round(smooth / step) + zero, 0, 255) - zero) * step
    error = 0.0
    for weight in weights:
        scaled = weight * factors[:, None]
        steps = np.abs(scaled).max(axis=0) / 127
        error += ((rounded_rows @ (np.round(scaled / steps) * steps) - values @ weight) ** 2).sum()
    return error


def brute_force(values: np.ndarray, weights: Sequence[np.ndarray]) -> dict[float, tuple[float, np.ndarray]]:
    """{alpha: (gain in decibels, factors)} of every alpha."""
    plain = in_8_bits(values, weights, np.ones(values.shape[1]))
    by_alpha = {}
    for alpha in ALPHAS:
        factors = np.empty(values.shape[1])
        for j in range(len(factors)):
            largest = max(np.abs(weight[j]).max() for weight in weights)
            factors[j] = np.abs(values[:, j]).max() ** alpha / largest ** (1 - alpha)
        factors /= np.prod(factors) ** (1 / len(factors))
        by_alpha[alpha] = (10 * np.log10(plain / in_8_bits(values, weights, factors)), factors)
    return by_alpha


@pytest.mark.parametrize("seed", range(6))
def test_the_search_finds_what_brute_force_finds(tmp_path: Path, seed: int) -> None:
    draw = rng(seed)
    widths = np.exp(draw.normal(0, seed / 3, 16))
    values = (draw.normal(size=(300, 16)) * widths).astype(np.float32)
    weights = [draw.normal(size=(16, n)).astype(np.float32) for n in (8, 24)]
    model = product(tmp_path, *weights)
    entries = search_smoothing(model, x(*values.reshape(3, 2, 50, 16)), threads=1)
    by_alpha = brute_force(values.astype(np.float64), [w.astype(np.float64) for w in weights])
    best = max(by_alpha, key=lambda alpha: by_alpha[alpha][0])
    assert (list(entries) == ["a"]) == (by_alpha[best][0] >= WORTHWHILE_DB)
    assert (seed > 1) <= bool(entries), "channels of other widths"
    for entry in entries.values():
        assert entry.alpha == best
        assert entry.gain_db == pytest.approx(by_alpha[best][0], abs=0.02)
        np.testing.assert_allclose(entry.factors, by_alpha[best][1], rtol=1e-4)


def test_even_channels_are_left_alone(tmp_path: Path) -> None:
    values = rng().uniform(-1, 1, (1, 400, 16))
    weight = rng(1).uniform(-1, 1, (16, 16)).astype(np.float32)
    assert search_smoothing(product(tmp_path, weight), x(values)) == {}


def test_an_activation_that_is_zero_is_left_alone(tmp_path: Path) -> None:
    assert search_smoothing(product(tmp_path, normal(4, 4)), x(np.zeros((1, 5, 4)))) == {}
    assert search_smoothing(product(tmp_path, np.zeros((4, 4), np.float32)), x(normal(1, 5, 4))) == {}


def test_an_activation_that_is_constant(tmp_path: Path) -> None:
    model = product(tmp_path, normal(4, 4))
    for entry in search_smoothing(model, x(np.full((1, 5, 4), 3.0))).values():
        assert np.isfinite(entry.factors).all()
        assert (entry.factors > 0).all()


def test_a_channel_that_is_zero_on_every_row_is_not_spread(tmp_path: Path) -> None:
    """Behind a ReLU a channel may first come to life on other rows: it must not be clipped there."""
    values = normal(1, 400, 8) * np.array([1, 1, 1, 40, 1, 1, 1, 1], np.float32)
    values[..., 0] = -np.abs(values[..., 0])
    (entry,) = search_smoothing(product(tmp_path, normal(8, 8), before="Relu"), x(values)).values()
    assert entry.factors[3] == entry.factors.max()
    others = entry.factors[[1, 2, 4, 5, 6, 7]]
    assert others.min() / 2 < entry.factors[0] < entry.factors[3]


@pytest.fixture(scope="module")
def with_outliers(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT with one channel of a LayerNorm 40 times as wide, as in trained ones."""
    from quantlib.onnx_model.export import export_bert_to_onnx

    directory = tmp_path_factory.mktemp("outliers")
    shutil.copytree(tiny_teacher, directory / "checkpoint")

    def change(weights: dict[str, Any]) -> None:
        weights["bert.encoder.layer.0.attention.output.LayerNorm.weight"][CHANNEL] *= 40

    tiny.edit_weights(directory / "checkpoint", change)
    return export_bert_to_onnx(directory / "checkpoint", directory / "model.onnx", seq_len=64)


CHANNEL = 7


def test_planted_outliers_are_found_and_smoothing_wins(
    with_outliers: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    name = "bert.encoder.layer.0.attention.output.LayerNorm/LayerNormalization:0"
    entries = search_smoothing(with_outliers, CalibrationReader(tiny_rows, 8), threads=1)
    assert int(np.argmax(entries[name].factors)) == CHANNEL
    assert entries[name].gain_db == max(entry.gain_db for entry in entries.values()) > 10
    smooth = smooth_onnx(with_outliers, tmp_path / "smooth.onnx", entries)
    expected = tiny.logits(with_outliers, tiny_rows)
    errors = {}
    for recipe, source in (("quant_2", with_outliers), ("static_u8s8_smooth", smooth)):
        names = tensors_to_calibrate(source, RECIPES[recipe])
        ranges = derive(collect(source, CalibrationReader(tiny_rows, 8), names, histograms=False), "MinMax")
        path = quantize_onnx(source, tmp_path / f"{recipe}.onnx", RECIPES[recipe], ranges)
        errors[recipe] = np.abs(tiny.logits(path, tiny_rows) - expected).mean()
    assert errors["static_u8s8_smooth"] < errors["quant_2"] / 2


@pytest.mark.parametrize("factor", [0.0, 1.0], ids=["zero", "constant"])
def test_a_smoothed_recipe_where_an_activation_never_changes(tmp_path: Path, factor: float) -> None:
    """From the search to the variant; another activation beside it is smoothed as ever."""
    ones, weight = np.full(8, factor, np.float32), normal(8, 5)
    nodes = [node("Mul", ["x", "wide"], ["a"]), node("MatMul", ["a", "w"], ["p"])]
    nodes += [
        node("Sub", ["x", "x"], ["o"]),
        node("Add", ["o", "one"], ["k"]),
        node("MatMul", ["k", "w"], ["q"]),
    ]
    nodes.append(node("Add", ["p", "q"], ["y"]))
    wide = np.array([1, 1, 1, 50, 1, 1, 1, 1], np.float32)
    constants = {"wide": wide, "one": ones, "w": weight}
    model = tiny.save_graph(tmp_path / "model.onnx", nodes, constants, width=8)
    rows = normal(4, 60, 8, seed=3)
    entries = search_smoothing(model, x(rows), threads=1)
    assert entries["a"].factors.argmax() == 3
    smooth = smooth_onnx(model, tmp_path / "smooth.onnx", entries)
    recipe = RECIPES["static_u8s8_smooth"]
    ranges = derive(collect(smooth, x(rows), tensors_to_calibrate(smooth, recipe)), "MinMax")
    path = quantize_onnx(smooth, tmp_path / "quantized.onnx", recipe, ranges)
    (y,) = exact_session(path).run(None, {"x": rows})
    expected = (rows * wide) @ weight + ones @ weight
    assert np.abs(y - expected).max() < 0.02 * np.abs(expected).max()
