from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.compression.recipes import RECIPES, Recipe
from quantlib.compression.variants import (
    BUDGETED,
    COMPILED,
    QUANTIZED_STUDENT,
    VariantName,
    check_recipe_name,
)
from quantlib.machine.engines import ENGINES
from quantlib.support.errors import InputError

FIELDS: dict[str, Any] = {
    "summary": "",
    "mode": "dynamic",
    "format": "QOperator",
    "activation_type": "QUInt8",
}


def accepted(name: str) -> bool:
    try:
        check_recipe_name(name)
    except InputError:
        return False
    return True


# Names near those that have a meaning, and any others.
PARTS = st.sampled_from(
    ["teacher", "student", "compiled", "quantized", "all", "quant_1", "1", "2", "02", "12", "_", "-", "."]
)
NEAR = st.lists(PARTS, min_size=1, max_size=5).map("".join)
RECIPE_NAMES = (NEAR | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]*", fullmatch=True)).filter(accepted)
STEPS = st.just("") | st.just(COMPILED) | RECIPE_NAMES
NAMES = st.builds(VariantName, st.integers(0, 12), STEPS, st.sampled_from(list(ENGINES)))


@pytest.mark.parametrize(
    ("text", "name", "model", "file_name"),
    [
        ("teacher", VariantName(), "teacher", "model.onnx"),
        ("teacher_compiled", VariantName(0, "compiled"), "teacher", "model_compiled.onnx"),
        ("quant_1", VariantName(0, "quant_1"), "teacher", "model_quant_1.onnx"),
        ("max_drop", VariantName(0, BUDGETED), "teacher", "model_max_drop.onnx"),
        ("student", VariantName(1), "student", "model.onnx"),
        ("student_compiled", VariantName(1, "compiled"), "student", "model_compiled.onnx"),
        ("student_quant_1", VariantName(1, "quant_1"), "student", "model_quant_1.onnx"),
        ("student_2", VariantName(2), "student_2", "model.onnx"),
        ("student_2_quant_1", VariantName(2, "quant_1"), "student_2", "model_quant_1.onnx"),
        ("teacher@openvino", VariantName(0, "", "openvino"), "teacher", "model.onnx"),
        (
            "teacher_compiled@openvino",
            VariantName(0, "compiled", "openvino"),
            "teacher",
            "model_compiled@openvino.onnx",
        ),
        ("quant_1@openvino", VariantName(0, "quant_1", "openvino"), "teacher", "model_quant_1@openvino.onnx"),
        (
            "student_2_quant_1@openvino",
            VariantName(2, "quant_1", "openvino"),
            "student_2",
            "model_quant_1@openvino.onnx",
        ),
    ],
)
def test_names_as_they_have_always_been(text: str, name: VariantName, model: str, file_name: str) -> None:
    assert str(name) == text
    assert VariantName.parse(text) == name
    assert (name.model, name.file_name) == (model, file_name)
    assert name.recipe == (None if name.step in ("", "compiled") else name.step)


@given(NAMES)
def test_every_name_is_read_as_it_was_written(name: VariantName) -> None:
    assert VariantName.parse(str(name)) == name


@given(NAMES, NAMES)
def test_two_variants_share_neither_name_nor_file(one: VariantName, other: VariantName) -> None:
    if one != other:
        assert str(one) != str(other)
        same_export = not (one.step or other.step) and one.student == other.student
        assert ((one.model, one.file_name) == (other.model, other.file_name)) == same_export


@given(NEAR | st.text(max_size=12))
def test_a_text_is_a_name_or_refused(text: str) -> None:
    try:
        name = VariantName.parse(text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert str(name) == text


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_keeps_to_it(recipe: str) -> None:
    assert VariantName.parse(f"student_3_{recipe}") == VariantName(3, recipe)


@pytest.mark.parametrize(
    "name",
    [
        "compiled",
        "Compiled",
        "2",
        "2_fast",
        "0",
        "12_",
        "quantized",
        "all",
        "teacher",
        "teacher_x",
        "student_2",
        "STUDENT",
    ],
)
def test_a_recipe_cannot_take_a_name_that_means_something_else(name: str) -> None:
    with pytest.raises(InputError, match=f"^recipe {name}: the name is taken; choose another") as caught:
        Recipe(name=name, **FIELDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["fast_2", "2nd", "2.5", "compiled_2", "my_student", "students", "quantized_2"]
)
def test_names_near_to_those_are_free(name: str) -> None:
    assert Recipe(name=name, **FIELDS).name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("student_1", "'student_1' is no variant's name; it is written 'student'"),
        ("student_02", "'student_02' is no variant's name; it is written 'student_2'"),
        ("student_0_quant_1", "'student_0_quant_1' is no variant's name; it is written 'quant_1'"),
        ("teacher_quant_1", "'teacher_quant_1' is no variant's name; it is written 'quant_1'"),
        ("teacher_2", "recipe 2: the name is taken"),
        ("student_", "recipe student_: the name is taken"),
        (QUANTIZED_STUDENT, "recipe quantized: the name is taken"),
        ("quant_1@tvm", "unknown engine 'tvm'; known: onnxruntime"),
        ("quant_1@onnxruntime", "'quant_1@onnxruntime' is no variant's name; it is written 'quant_1'"),
        ("quant_1@", "recipe 'quant_1@': a name is made of letters"),
        ("@openvino", "recipe '@openvino': a name is made of letters"),
        ("teacher_2@openvino", "recipe 2: the name is taken"),
        ("", "'' is no variant's name"),
    ],
)  # fmt: skip
def test_texts_that_are_no_names(text: str, words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        VariantName.parse(text)


def test_students_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        VariantName(-1)
