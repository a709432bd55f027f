from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from quantlib.errors import InputError
from quantlib.recipes import DEFAULT_RECIPES, RECIPES, WORTH_QUANTIZING, Recipe, get_recipes


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


def test_the_textbook_variants_are_for_reporting_only() -> None:
    for name, recipe in RECIPES.items():
        textbook = name.endswith("_defaults")
        assert bool(recipe.report_only) == textbook
        assert recipe.pad_calibration == textbook
        assert recipe.op_types == (None if textbook else WORTH_QUANTIZING)
        assert recipe.per_channel != textbook


def test_the_default_recipes_may_be_shipped() -> None:
    assert DEFAULT_RECIPES[:2] == ("quant_1", "quant_2")
    assert not any(RECIPES[name].report_only for name in DEFAULT_RECIPES)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECIPES["quant_1"].per_channel = False  # type: ignore[misc]


DYNAMIC: dict[str, Any] = {"mode": "dynamic", "format": "QOperator", "activation_type": "QUInt8"}
DYNAMIC["calibration_method"] = None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration_method": None}, "a static recipe needs a calibration method; known: MinMax"),
        (DYNAMIC | {"calibration_method": "MinMax"}, "a dynamic recipe takes no calibration method"),
        (DYNAMIC | {"format": "QDQ"}, "dynamic quantization is QOperator with QUInt8 activations"),
        (DYNAMIC | {"activation_type": "QInt8"}, "dynamic quantization is QOperator with QUInt8"),
        (DYNAMIC | {"pad_calibration": True}, "a dynamic recipe is not calibrated"),
        ({"op_types": ()}, "op_types is empty"),
        ({"mode": "weights"}, "mode 'weights' is unknown; known: static, dynamic"),
        ({"format": "TensorRT"}, "format 'TensorRT' is unknown; known: QDQ, QOperator"),
        ({"weight_type": "QInt4"}, "weight_type 'QInt4' is unknown; known: QInt8, QUInt8"),
        ({"calibration_method": "Max"}, "calibration method 'Max' is unknown; known: MinMax, "),
        ({"calibration_method": "Percentile:0"}, "calibration method 'Percentile:0' is unknown"),
        ({"weight_type": "QUInt8"}, "S8 activations with U8 weights"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_combination_fails_when_it_is_built(changes: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {
        "name": "mine",
        "summary": "my own",
        "mode": "static",
        "format": "QDQ",
        "activation_type": "QInt8",
        "weight_type": "QInt8",
        "calibration_method": "MinMax",
    }
    assert Recipe(**good).name == "mine"
    with pytest.raises(InputError, match=f"^recipe mine: {re.escape(words)}"):
        Recipe(**(good | changes))


def test_get_recipes_keeps_the_order() -> None:
    assert get_recipes(("quant_2", "quant_1")) == (RECIPES["quant_2"], RECIPES["quant_1"])
    assert get_recipes(()) == ()


def test_all_stands_for_the_table() -> None:
    assert get_recipes(("all",)) == tuple(RECIPES.values())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("int7",), "unknown recipe 'int7'; known: all, quant_1, quant_2, "),
        (("quant_1", ""), "unknown recipe ''"),
        (("quant_1", "quant_2", "quant_1"), "recipe 'quant_1' is given twice"),
        (("all", "quant_1"), "'all' stands alone"),
    ],
    ids=["unknown", "empty", "twice", "all_and_more"],
)
def test_names_that_are_refused(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        get_recipes(names)
