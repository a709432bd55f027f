from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.calibration import Ranges
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.onnx_model.coverage import (
    KEPT,
    TWO_ACTIVATIONS,
    Coverage,
    NotQuantized,
    coverage,
    has_integer_products,
)
from quantlib.support.errors import InputError

node = helper.make_node
Array = np.ndarray[Any, Any]


def save(path: Path, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Any] | None = None) -> Path:
    """A model of these nodes, from x float32 (rows, 4) to y float32 (rows, 4)."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def weight(shape: tuple[int, ...] = (4, 4), dtype: Any = np.float32) -> Array:
    return np.random.default_rng(0).integers(-9, 9, shape).astype(dtype)


SCALE = {"scale": np.float32(0.1), "zero": np.int8(0), "scale_x": np.float32(0.1), "zero_x": np.uint8(128)}
QDQ_INPUT = [
    node("QuantizeLinear", ["x", "scale_x", "zero_x"], ["xq"]),
    node("DequantizeLinear", ["xq", "scale_x", "zero_x"], ["xd"]),
]
DEQUANTIZED_WEIGHT = node("DequantizeLinear", ["wq", "scale", "zero"], ["wd"])
INT8 = SCALE | {"wq": weight(dtype=np.int8)}


def test_float_weights_are_counted_wherever_they_come_from(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(weight(), "value")
    nodes = [
        node("MatMul", ["x", "w"], ["a"], name="plain"),
        node("Transpose", ["w"], ["wt"]),
        node("Reshape", ["wt", "shape"], ["wr"]),
        node("MatMul", ["a", "wr"], ["b"], name="handed_on"),
        node("Cast", ["half"], ["single"], to=TensorProto.FLOAT),
        node("Gemm", ["b", "single", "bias"], ["c"], name="cast"),
        node("Constant", [], ["k"], value=constant),
        node("MatMul", ["k", "c"], ["d"], name="constant_on_the_left"),
        node("Attention", ["d", "qkv", "bias"], ["e"], domain="com.microsoft", num_heads=1),
        node("FusedMatMul", ["e", "w"], ["y"], name="fused", domain="com.microsoft"),
    ]
    constants = {
        "w": weight(),
        "shape": np.array([4, 4]),
        "half": weight(dtype=np.float16),
        "bias": weight((4,)),
        "qkv": weight((4, 12)),
    }
    result = coverage(save(tmp_path / "m.onnx", nodes, constants))
    # A node without a name goes by its output.
    names = ("plain", "handed_on", "cast", "constant_on_the_left", "e", "fused")
    assert result == Coverage(0, tuple(NotQuantized(name, "weight stays float") for name in names))
    assert (result.quantized, result.total, result.in_float, result.share) == (0, 6, names, 0.0)


def test_products_of_two_activations_do_not_count(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["x"], ["xt"]),
        node("MatMul", ["x", "xt"], ["scores"], name="scores"),
        node("MatMul", ["scores", "x"], ["context"], name="context"),
        node("MatMul", ["context", "w"], ["y"], name="dense"),
    ]
    result = coverage(save(tmp_path / "m.onnx", nodes, {"w": weight()}))
    assert (result.in_float, result.total) == (("dense",), 1)
    assert [(product.node, product.reason) for product in result.not_quantized] == [
        ("scores", TWO_ACTIVATIONS),
        ("context", TWO_ACTIVATIONS),
        ("dense", "weight stays float"),
    ]


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("MatMulInteger", ["x", "w"]),
        ("MatMulIntegerToFloat", ["x", "w", "s", "s"]),
        ("QLinearMatMul", ["x", "s", "z", "w", "s", "z", "s", "z"]),
        ("QGemm", ["x", "s", "z", "w", "s", "z"]),
        ("DynamicQuantizeMatMul", ["x", "w", "s"]),
        ("QAttention", ["x", "w", "bias", "s", "s"]),
        ("MatMulNBits", ["x", "w", "s"]),
    ],
)
def test_operators_on_integers_are_quantized(tmp_path: Path, op: str, inputs: list[str]) -> None:
    nodes = [node(op, inputs, ["a"], domain="com.microsoft"), node("MatMul", ["a", "v"], ["y"], name="left")]
    constants = {"w": weight(dtype=np.int8), "v": weight(), "s": np.float32(1), "z": np.uint8(0)}
    path = save(tmp_path / "m.onnx", nodes, constants)
    result = coverage(path)
    assert (result.quantized, result.total, result.in_float) == (1, 2, ("left",))
    assert has_integer_products(path) == (op != "MatMulNBits"), "whose activations stay in float"


def test_integer_products_of_two_activations_do_not_count_either(tmp_path: Path) -> None:
    nodes = [
        node("QLinearMatMul", ["x", "s", "z", "x", "s", "z", "s", "z"], ["a"]),
        node("MatMulInteger", ["a", "x"], ["b"]),
        node("MatMul", ["b", "w"], ["y"], name="dense"),
    ]
    constants = {"w": weight(), "s": np.float32(1), "z": np.uint8(0)}
    result = coverage(save(tmp_path / "m.onnx", nodes, constants))
    assert (result.total, result.not_quantized) == (1, (NotQuantized("dense", "weight stays float"),))


@pytest.mark.parametrize(
    ("op", "inputs", "reason"),
    [
        ("MatMul", ["xd", "wd"], None),
        ("Gemm", ["xd", "wd", "bias"], None),
        ("MatMul", ["xd", "wt"], None),
        ("MatMul", ["xd", "folded"], None),
        ("MatMul", ["x", "wd"], "the first factor is not quantized"),
        ("MatMul", ["xd", "w"], "the second factor is not quantized"),
        ("MatMul", ["x", "w"], "weight stays float"),
    ],
    ids=[
        "both",
        "float_bias",
        "transposed",
        "float_weight_in_a_pair",
        "weight_only",
        "input_only",
        "neither",
    ],
)
def test_qdq_needs_both_factors(tmp_path: Path, op: str, inputs: list[str], reason: str | None) -> None:
    nodes = [
        *QDQ_INPUT,
        DEQUANTIZED_WEIGHT,
        node("Transpose", ["wd"], ["wt"]),
        node("QuantizeLinear", ["w", "scale", "zero"], ["folded_q"]),
        node("DequantizeLinear", ["folded_q", "scale", "zero"], ["folded"]),
        node(op, inputs, ["y"]),
    ]
    constants = INT8 | {"w": weight(), "bias": weight((4,))}
    path = save(tmp_path / "m.onnx", nodes, constants)
    result = coverage(path)
    assert result.share == (1.0 if reason is None else 0.0)
    assert [product.reason for product in result.not_quantized] == ([] if reason is None else [reason])
    assert has_integer_products(path) == (reason is None)


@pytest.fixture(scope="module")
def two_products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nodes = [
        node("MatMul", ["x", "first"], ["h"], name="first"),
        node("Gemm", ["h", "second", "bias"], ["y"], name="second"),
    ]
    constants = {"first": weight(), "second": weight(), "bias": weight((4,))}
    return save(tmp_path_factory.mktemp("coverage") / "float.onnx", nodes, constants)


@pytest.mark.parametrize("recipe", [*RECIPES])
def test_recipes_quantize_every_product(two_products: Path, tmp_path: Path, recipe: str) -> None:
    table = replace(RECIPES[recipe], smooth=False, nodes=(), rounding="nearest")
    ranges = Ranges(dict.fromkeys(("x", "h", "y"), (-4.0, 4.0))) if table.mode == "static" else None
    assert coverage(two_products).share == 0.0
    assert coverage(quantize_onnx(two_products, tmp_path / "q.onnx", table, ranges)).share == 1.0


def test_a_product_left_out_is_named(two_products: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    out = tmp_path / "q.onnx"
    quantize_dynamic(two_products, out, nodes_to_exclude=["first"])
    assert coverage(out) == Coverage(1, (NotQuantized("first", "weight stays float"),))
    assert coverage(out, kept={"first", "second"}) == Coverage(1, (NotQuantized("first", KEPT),))
    assert coverage(out).share == 0.5


def test_a_product_of_two_activations_is_no_choice_of_the_recipe(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["q"], name="query"),
        node("Transpose", ["q"], ["qt"]),
        node("MatMul", ["q", "qt"], ["y"], name="scores"),
    ]
    result = coverage(save(tmp_path / "m.onnx", nodes, {"w": weight()}), kept={"query", "scores"})
    assert result.not_quantized == (NotQuantized("query", KEPT), NotQuantized("scores", TWO_ACTIVATIONS))


def test_float_nodes_of_a_bert_have_reasons(tiny_onnx: Path, tmp_path: Path) -> None:
    result = coverage(quantize_onnx(tiny_onnx, tmp_path / "q.onnx", RECIPES["dynamic_u8s8"]))
    assert (result.quantized, result.total) == (14, 14)  # 6 in each of 2 layers, pooler, classifier
    assert len(result.not_quantized) == 4, "scores and context of 2 layers"
    assert {product.reason for product in result.not_quantized} == {TWO_ACTIVATIONS}
    assert all("attention.self" in product.node for product in result.not_quantized)


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no such ONNX model"), ("not a model", "not an ONNX file")],
    ids=["missing", "text"],
)
def test_unusable_files(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "m.onnx"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"m.onnx: {words}"):
        coverage(path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m.onnx: no MatMul, Gemm or Attention multiplies by a weight"):
        coverage(save(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])]))


@pytest.mark.parametrize(
    ("quantized", "reasons"), [(0, []), (0, [TWO_ACTIVATIONS]), (-1, [KEPT, KEPT])], ids=str
)
def test_counts_are_checked(quantized: int, reasons: list[str]) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Coverage(quantized, tuple(NotQuantized("a", reason) for reason in reasons))
