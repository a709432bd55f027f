from __future__ import annotations

import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantlib.compression.recipes import PRECISIONS, RECIPES, Recipe, get_recipes
from quantlib.compression.recipes.file import read_recipe, write_recipe
from quantlib.support.errors import InputError

GOOD = """\
name = "mine"
summary = "my own"
mode = "static"
format = "QOperator"
activation_type = "QUInt8"
calibration_method = "MinMax"

[nodes]
ffn_out = "int16"  # the worst of them
"layer.0.qkv" = "float"
"""

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def write(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


# There and back


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_recipe_of_the_table_comes_back(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    write_recipe(path, recipe)
    assert read_recipe(path) == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([recipe for recipe in RECIPES.values() if recipe.quantizer == "quantlib"]),
    st.from_regex(r"mine_[A-Za-z0-9_.-]*", fullmatch=True),
    TEXT,
    st.dictionaries(TEXT, st.sampled_from(PRECISIONS), max_size=4),
    st.data(),
)
def test_any_text_and_any_exceptions_come_back(
    tmp_path: Path, base: Recipe, name: str, text: str, nodes: dict[str, str], data: st.DataObject
) -> None:
    """In their order, whatever is in a name or a remark."""
    if base.format == "QDQ" or base.mode == "weight_only":
        nodes = {key: precision for key, precision in nodes.items() if precision != "int16"}
    recipe = replace(base, name=name, summary=text, report_only=text, nodes=tuple(nodes.items()))
    words = st.text(st.characters(exclude_categories=["C"]), max_size=9)
    comments = {key: data.draw(words) for key in ["", *nodes]}
    path = tmp_path / "recipe.toml"
    write_recipe(path, recipe, comments)
    assert read_recipe(path) == recipe


def test_only_what_differs_from_the_defaults_is_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    write_recipe(path, read_recipe(write(tmp_path, GOOD, "given.toml")))
    assert path.read_text(encoding="utf-8") == GOOD.replace("  # the worst of them", "")
    assert tomllib.loads(path.read_text(encoding="utf-8"))["nodes"] == {
        "ffn_out": "int16",
        "layer.0.qkv": "float",
    }


def test_remarks_are_written_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    recipe = read_recipe(write(tmp_path, GOOD, "given.toml"))
    comments = {"": "found by a search\non 512 rows", "ffn_out": "0.4 points,\nalone", "unused": "never"}
    write_recipe(path, recipe, comments)
    text = path.read_text(encoding="utf-8")
    assert text.startswith('# found by a search\n# on 512 rows\nname = "mine"\n')
    assert 'ffn_out = "int16" # 0.4 points, alone\n' in text
    assert "never" not in text
    assert read_recipe(path) == recipe


def test_a_list_and_a_flag(tmp_path: Path) -> None:
    text = GOOD.partition("[nodes]")[0] + (
        'quantizer = "onnxruntime"\nop_types = ["MatMul", "Gemm"]\nper_channel = false\n'
    )
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.op_types == ("MatMul", "Gemm")
    assert recipe.per_channel is False
    write_recipe(tmp_path / "again.toml", recipe)
    assert read_recipe(tmp_path / "again.toml") == recipe


def test_a_file_from_a_windows_editor(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert read_recipe(path) == read_recipe(write(tmp_path, GOOD, "other.toml"))


# What is no recipe


def broken(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (broken('summary = "my own"\n', 'sumary = "my own"\n'), 2, "unknown key 'sumary'; known: name, "),
        (broken("[nodes]", "[node]"), 8, "unknown key 'node'; known: name, summary, mode, "),
        ("n = 1\n" + GOOD, 1, "unknown key 'n'; known: "),
        (GOOD.replace('"mine"', "3"), 1, "name is 3; it must be a string"),
        (broken("[nodes]", "per_channel = 1\n[nodes]"), 8, "per_channel is 1; it must be true or false"),
        (broken("[nodes]", "smooth = 'yes'\n[nodes]"), 8, "smooth is 'yes'; it must be true or false"),
        (broken("[nodes]", "block_size = true\n[nodes]"), 8, "block_size is True; it must be a whole number"),
        (broken("[nodes]", "block_size = 1.5\n[nodes]"), 8, "block_size is 1.5; it must be a whole number"),
        (broken("[nodes]", "op_types = 'MatMul'\n[nodes]"), 8, "op_types is 'MatMul'; it must be a list"),
        (broken("[nodes]", "op_types = [1]\n[nodes]"), 8, "op_types is [1]; it must be a list of strings"),
        ("nodes = 'qkv'\n" + GOOD.partition("[nodes]")[0], 1, "nodes is 'qkv'; it must be a table"),
        (broken('mode = "static"', 'mode = "statik"'), 3, "mode 'statik' is unknown; known: static, "),
        (broken('mode = "static"', "mode = 3"), 3, "mode is 3; it must be one of 'static', 'dynamic' or 'w"),
        (broken('"QUInt8"', '"UInt8"'), 5, "activation_type 'UInt8' is unknown; known: QInt8, "),
        (broken('"int16"', '"int32"'), 9, "nodes: ffn_out is 'int32', an unknown precision; known: int16, "),
        (broken('"int16"', "16"), 9, "nodes: ffn_out is 16, an unknown precision"),
        (broken('"layer.0.qkv" =', "layer.0.qkv ="), 10, 'nodes: a key with dots needs quotation marks: "l'),
    ],
    ids=[
        "misspelt", "misspelt_table", "part_of_a_key", "a_number_for_a_name", "a_number_for_a_flag",
        "a_string_for_a_flag", "a_flag_for_a_number", "a_fraction", "a_string_for_a_list", "numbers",
        "a_string_for_a_table", "a_word_unknown", "no_word", "a_type_unknown", "a_precision_unknown",
        "a_number_for_a_precision", "dots",
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}:{line}: {words}')}") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("[nodes.layer]\n0.qkv = 'float'", 'nodes: a key with dots needs quotation marks: "layer.0.qkv"'),
        ("[nodes.layer]", "nodes: layer is {}, an unknown precision"),
    ],
    ids=["a_table_of_nodes", "an_empty_table"],
)
def test_a_line_that_cannot_be_told_is_not_guessed(tmp_path: Path, lines: str, words: str) -> None:
    path = write(tmp_path, broken('"layer.0.qkv" = "float"', lines))
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {words}')}"):
        read_recipe(path)


@pytest.mark.parametrize("key", ["name", "summary", "mode", "format", "activation_type"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    text = re.sub(rf"(?m)^{key} = .*\n", "", GOOD)
    with pytest.raises(InputError, match=rf"mine\.toml: the key '{key}' is missing$"):
        read_recipe(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            broken('calibration_method = "MinMax"\n', ""),
            "recipe mine: a static recipe needs a calib",
        ),
        (broken('"QOperator"', '"QDQ"'), "recipe mine: int16 nodes are QOperator"),
        (broken('"MinMax"', '"Max"'), "recipe mine: calibration method 'Max' is unknown; known: MinMax"),
        (GOOD.replace('"mine"', '"a/b"'), "recipe 'a/b': a name is made of letters, digits"),
        (GOOD.replace('"mine"', '"student"'), "recipe student: the name is taken; choose another"),
        (GOOD.replace('"mine"', '"compiled"'), "recipe compiled: the name is taken; choose another"),
        (GOOD.replace('"mine"', '"2_fast"'), "recipe 2_fast: the name is taken; choose another"),
    ],
    ids=["no_method", "qdq", "method", "slash", "student", "compiled", "number"],
)
def test_fields_that_contradict_each_other(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {words}')}"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'name = "mine"\nmode: static\n', "not a TOML file: .*line 2"),
        (b"\xff\xfe\x00", "not a TOML file"),
        (b"", "the key 'name' is missing"),
        (b'name = "a"\nname = "b"\n', "not a TOML file: .*line 2"),
    ],
    ids=["yaml", "binary", "empty", "twice"],
)
def test_what_is_not_toml(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {words}") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_a_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.toml", tmp_path):
        with pytest.raises(InputError, match=f"^{re.escape(str(path))}: no such recipe file$"):
            read_recipe(path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, os.strerror(13))

    path = write(tmp_path, GOOD)
    monkeypatch.setattr("quantlib.support.parsing._open", refuse)
    with pytest.raises(InputError, match=r"mine\.toml: cannot be read: Permission denied$"):
        read_recipe(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write"):
        write_recipe(tmp_path / "file" / "recipe.toml", RECIPES["quant_1"])


# By name


def test_a_file_stands_beside_names_of_the_table(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert get_recipes(("quant_2", str(path))) == (RECIPES["quant_2"], read_recipe(path))


def test_a_name_that_the_table_has_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace('"mine"', '"quant_2"'))
    with pytest.raises(
        InputError, match=rf"^{re.escape(str(path))}: the name 'quant_2' is taken by the table"
    ):
        get_recipes((str(path),))


def test_a_name_of_the_grammar_of_pruned_recipes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace('"mine"', '"prune50_mine"'))
    with pytest.raises(
        InputError, match="is that of a recipe of the table on a pruned model; choose another"
    ):
        get_recipes((str(path),))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path, GOOD, name) for name in ("a.toml", "b.toml")]
    with pytest.raises(InputError, match=r"^recipe 'mine' is given twice$"):
        get_recipes(tuple(str(path) for path in paths))
