from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest

from quantlib.compression.recipes import DEFAULT_RECIPES, RECIPES, Recipe, get_recipes
from quantlib.support.errors import InputError


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_recipe_of_the_table(recipe: Recipe) -> None:
    assert RECIPES[recipe.name] is recipe
    assert re.fullmatch(r"[a-z0-9_]+", recipe.name), "it becomes part of a file name"
    assert recipe.summary
    assert "\n" not in recipe.summary + recipe.report_only
    assert (recipe.mode == "static") == (recipe.calibration_method is not None)


def test_names_are_unique() -> None:
    summaries = [recipe.summary for recipe in RECIPES.values()]
    assert len(set(summaries)) == len(RECIPES)


@pytest.mark.parametrize(
    ("name", "format_", "activation_type"), [("quant_1", "QDQ", "QInt8"), ("quant_2", "QOperator", "QUInt8")]
)
def test_the_two_reference_configurations(name: str, format_: str, activation_type: str) -> None:
    for recipe in (RECIPES[name], RECIPES[f"{name}_defaults"]):
        assert (recipe.mode, recipe.calibration_method) == ("static", "MinMax")
        assert (recipe.format, recipe.activation_type) == (format_, activation_type)
        assert recipe.weight_type == "QInt8"
        assert not recipe.smooth
        assert recipe.nodes == ()


def test_the_textbook_variants_are_for_reporting_only() -> None:
    for name, recipe in RECIPES.items():
        textbook = name.endswith("_defaults")
        assert bool(recipe.report_only) == textbook
        assert recipe.pad_calibration == textbook
        assert recipe.quantizer == ("onnxruntime" if textbook else "quantlib")
        assert recipe.op_types is None
        if textbook:
            assert not recipe.per_channel


def test_names_say_what_a_recipe_does() -> None:
    for name, recipe in RECIPES.items():
        assert ("smooth" in name) <= recipe.smooth
        assert ("u16" in name) == (recipe.activation_type == "QUInt16")
        assert ("s7" in name) == recipe.reduce_range
        assert ("per_tensor" in name) == (not recipe.per_channel and not recipe.report_only)
        assert ("int4" in name) == (recipe.weight_type == "QInt4")
        for mode in ("static", "dynamic", "weight_only"):
            assert name.startswith(mode) <= (recipe.mode == mode)


def test_the_default_recipes_may_be_shipped() -> None:
    smaller = ("static_u8s8_smooth", "static_u8s8_embed4", "dynamic_u8s8")
    assert ("quant_1", "quant_2", *smaller) == DEFAULT_RECIPES
    assert not any(RECIPES[name].report_only for name in DEFAULT_RECIPES)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["quant_1"].per_channel = False  # type: ignore[misc]


def test_what_decides_the_file_is_all_but_the_words() -> None:
    recipe = RECIPES["quant_1_defaults"]
    renamed = dataclasses.replace(recipe, name="mine", summary="other words", report_only="")
    assert renamed.file_key() == recipe.file_key()
    keys = [recipe.file_key() for recipe in RECIPES.values()]
    assert all(keys.count(key) == 1 for key in keys), "each row of the table makes another file"
    assert {*recipe.file_key(), "name", "summary", "report_only", "stock_session"} == {
        f.name for f in dataclasses.fields(Recipe)
    }


STATIC: dict[str, Any] = {
    "mode": "static",
    "format": "QOperator",
    "activation_type": "QUInt8",
    "calibration_method": "MinMax",
}
DYNAMIC: dict[str, Any] = {"mode": "dynamic", "format": "QOperator", "activation_type": "QUInt8"}
WEIGHTS: dict[str, Any] = {
    "mode": "weight_only",
    "format": "QOperator",
    "activation_type": "Float",
    "block_size": 32,
}
LIBRARY = STATIC | {"quantizer": "onnxruntime"}
CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (STATIC, {"calibration_method": None}, "a static recipe needs a calibration method; known: MinMax"),
    (STATIC, {"op_types": ("MatMul",)}, "op_types are for the quantizer onnxruntime"),
    (STATIC, {"mode": "weights"}, "mode 'weights' is unknown; known: static, dynamic, weight_only"),
    (STATIC, {"format": "TensorRT"}, "format 'TensorRT' is unknown; known: QDQ, QOperator"),
    (STATIC, {"quantizer": "mine"}, "quantizer 'mine' is unknown; known: quantlib, onnxruntime"),
    (STATIC, {"embeddings": "int2"}, "embeddings 'int2' is unknown; known: per_row, int4, float"),
    (STATIC, {"weight_type": "QInt2"}, "weight_type 'QInt2' is unknown; known: QInt8, QUInt8, QInt4"),
    (STATIC, {"weight_type": "QInt4"}, "QInt4 weights are for weight_only"),
    (STATIC, {"weight_type": "QUInt8"}, "quantlib's weights are symmetric: QInt8 or QInt4"),
    (STATIC, {"activation_type": "Float"}, "Float activations are for weight_only"),
    (
        STATIC,
        {"activation_type": "QUInt16", "format": "QDQ"},
        "QUInt16 activations are quantlib's, QOperator",
    ),
    (STATIC, {"block_size": 32}, "weight_only, and nothing else, needs a block_size"),
    (STATIC, {"calibration_method": "Max"}, "calibration method 'Max' is unknown; known: MinMax, "),
    (STATIC, {"calibration_method": "Percentile:0"}, "calibration method 'Percentile:0' is unknown"),
    (STATIC, {"nodes": (("ffn_out", "int8"),)}, "the precision of ffn_out 'int8' is unknown; known: int16, "),
    (STATIC, {"nodes": (("qkv", "int16"), ("qkv", "float"))}, "nodes: a key is given twice"),
    (STATIC, {"nodes": (("qkv", "int16"),), "format": "QDQ"}, "int16 nodes are QOperator"),
    (DYNAMIC, {"calibration_method": "MinMax"}, "a dynamic recipe takes no calibration method"),
    (DYNAMIC, {"format": "QDQ"}, "dynamic quantization is QOperator with QUInt8 or QUInt16 activations"),
    (DYNAMIC, {"activation_type": "QInt8"}, "dynamic quantization is QOperator with QUInt8"),
    (DYNAMIC, {"pad_calibration": True}, "a dynamic recipe is not calibrated"),
    (WEIGHTS, {"format": "QDQ"}, "weight-only quantization is quantlib's, QOperator with Float activations"),
    (WEIGHTS, {"activation_type": "QUInt8"}, "weight-only quantization is quantlib's"),
    (WEIGHTS, {"quantizer": "onnxruntime"}, "weight-only quantization is quantlib's"),
    (WEIGHTS, {"block_size": None}, "weight_only, and nothing else, needs a block_size"),
    (WEIGHTS, {"block_size": 48}, "block_size 48 is unknown; known: 16, 32, 64, 128, 256"),
    (WEIGHTS, {"smooth": True}, "a weight_only recipe has no activations to smooth"),
    (WEIGHTS, {"reduce_range": True}, "weight_only multiplies in float; reduce_range is for int8"),
    (WEIGHTS, {"per_channel": False}, "weight_only has a scale for each block; leave out per_channel"),
    (WEIGHTS, {"nodes": (("qkv", "int16"),)}, "int16 nodes are for static and dynamic"),
    (WEIGHTS, {"calibration_method": "MSE"}, "a weight_only recipe takes no calibration method"),
    (LIBRARY, {"op_types": ()}, "op_types is empty"),
    (LIBRARY, {"smooth": True}, "smooth, nodes and embeddings are quantlib's; the quantizer is onnxruntime"),
    (LIBRARY, {"nodes": (("qkv", "float"),)}, "smooth, nodes and embeddings are quantlib's"),
    (LIBRARY, {"embeddings": "float"}, "smooth, nodes and embeddings are quantlib's"),
    (LIBRARY, {"rounding": "second_order"}, "second_order rounding is quantlib's; the quantizer is "),
    (LIBRARY, {"storage": "int4"}, "int4 storage is for quantlib's int8 weights with a scale for each "),
    (WEIGHTS, {"storage": "int4"}, "int4 storage is for quantlib's int8 weights"),
    (DYNAMIC, {"storage": "int4", "per_channel": False}, "int4 storage is for quantlib's int8 weights"),
    (DYNAMIC, {"storage": "int2"}, "storage 'int2' is unknown; known: as_computed, int4"),
    (STATIC, {"rounding": "third"}, "rounding 'third' is unknown; known: nearest, second_order"),
    (LIBRARY, {"activation_type": "QUInt16"}, "QUInt16 activations are quantlib's, QOperator"),
    (LIBRARY, {"activation_type": "QInt8", "weight_type": "QUInt8"}, "S8 activations with U8 weights"),
]


@pytest.mark.parametrize(
    ("good", "changes", "words"),
    CONTRADICTIONS,
    ids=[f"{good['mode']}:" + ",".join(f"{k}={v}" for k, v in c.items()) for good, c, _ in CONTRADICTIONS],
)
def test_a_wrong_combination_fails_when_it_is_built(
    good: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    assert Recipe(name="mine", summary="my own", **good).name == "mine"
    with pytest.raises(InputError, match=f"^recipe mine: {re.escape(words)}"):
        Recipe(name="mine", summary="my own", **(good | changes))


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b", "ü", ".hidden", "a\nb"])
def test_a_name_that_is_no_part_of_a_file_name(name: str) -> None:
    with pytest.raises(InputError, match="a name is made of letters, digits"):
        Recipe(name=name, summary="", **DYNAMIC)


@pytest.mark.parametrize("name", ["teacher", "student", "student_2", "student_quant_1", "all"])
def test_a_name_that_another_variant_has(name: str) -> None:
    with pytest.raises(InputError, match=f"^recipe {name}: the name is taken"):
        Recipe(name=name, summary="", **DYNAMIC)
    assert Recipe(name=f"my_{name}", summary="", **DYNAMIC).name == f"my_{name}"


# Exceptions

NAMES = [f"bert.encoder.layer.{n}.{m}/MatMul" for n in (0, 1) for m in ("intermediate.dense", "output.dense")]
NAMES += ["bert.pooler.dense/Gemm", "bert.embeddings.word_embeddings/Gather"]


def with_nodes(**nodes: Any) -> Recipe:
    return Recipe(name="mine", summary="", nodes=tuple(nodes.items()), **STATIC)


def test_the_narrowest_key_decides() -> None:
    """A name before a group, a group before a role, in whatever order they are written."""
    keys = {"ffn_out": "int16", "layer.1.ffn_out": "weight_only", NAMES[1]: "float"}
    expected = {NAMES[1]: "float", NAMES[3]: "weight_only"}
    for order in itertools.permutations(keys):
        assert with_nodes(**{key: keys[key] for key in order}).precisions(NAMES) == expected
    assert with_nodes(ffn_out="int16").precisions(NAMES) == dict.fromkeys((NAMES[1], NAMES[3]), "int16")
    assert with_nodes(embeddings="float", pooler="int16").precisions(NAMES) == {
        NAMES[4]: "int16",
        NAMES[5]: "float",
    }
    assert with_nodes().precisions(NAMES) == {}


@pytest.mark.parametrize("key", ["layer.2.ffn_out", "qkv", "bert.encoder.layer.0", "ffn", ""])
def test_a_key_that_fits_no_node(key: str) -> None:
    message = f"recipe mine: the model has no node, group or role {key!r} to quantize; it has, for example, "
    with pytest.raises(InputError, match=re.escape(message + NAMES[0])):
        with_nodes(**{"ffn_out": "int16", key: "float"}).precisions(NAMES)


def test_exceptions_for_a_model_without_layers() -> None:
    with pytest.raises(InputError, match=r"^recipe mine: nothing to quantize$"):
        with_nodes(qkv="float").precisions([])
    assert with_nodes().precisions([]) == {}


# Choosing


def test_get_recipes_keeps_the_order() -> None:
    assert get_recipes(("quant_2", "quant_1")) == (RECIPES["quant_2"], RECIPES["quant_1"])
    assert get_recipes(()) == ()


def test_all_stands_for_the_table() -> None:
    assert get_recipes(("all",)) == tuple(RECIPES.values())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("int7",), "unknown recipe 'int7'; known: all, quant_1, quant_2, "),
        (("int7",), ", or a file that ends in .toml"),
        (("quant_1", ""), "unknown recipe ''"),
        (("quant_1", "quant_2", "quant_1"), "recipe 'quant_1' is given twice"),
        (("all", "quant_1"), "'all' stands alone"),
    ],
    ids=["unknown", "a_file", "empty", "twice", "all_and_more"],
)
def test_names_that_are_refused(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        get_recipes(names)
