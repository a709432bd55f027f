"""A recipe as a TOML file that can be read, edited, committed and run again."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from quantlib.compression.recipes.recipe import CHOICES, PRECISIONS, Recipe
from quantlib.support.errors import InputError
from quantlib.support.files import write_text

_TUPLES = ("op_types",)
_FLAGS = ("per_channel", "smooth", "reduce_range", "pad_calibration")


def write_recipe(path: Path, recipe: Recipe, comments: Mapping[str, str] | None = None) -> None:
    """Write a recipe, whole or not at all; fields that stand at their default are left out.

    Args:
        path: the file; its name must end in .toml, by which `--recipes` knows it.
        recipe: what to write.
        comments: {key of `Recipe.nodes`: a remark behind it}; the key "" is the remark at the top.

    Raises:
        InputError: the place cannot be written.
    """
    import tomlkit

    comments = comments or {}
    document = tomlkit.document()
    for line in comments.get("", "").splitlines():
        document.add(tomlkit.comment(line))
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name != "nodes" and value != field.default:
            document[field.name] = list(value) if isinstance(value, tuple) else value
    if recipe.nodes:
        table = tomlkit.table()
        for key, precision in recipe.nodes:
            item = tomlkit.item(precision)
            if key in comments:
                item.comment(" ".join(comments[key].split()))
            table.add(key, item)
        document["nodes"] = table
    write_text(path, tomlkit.dumps(document))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        InputError: it is missing, is not TOML, has an unknown or missing key, a value of another type, or
            fields that contradict each other; the message names the file and, where it can, the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such recipe file")
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: dict[str, Any] = tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    for key, value in found.items():
        if problem := _problem(key, value):
            raise InputError(f"{path}{_line(text, key)}: {problem}")
    nodes = found.pop("nodes", {})
    for key, precision in nodes.items():
        if problem := _node_problem(key, precision):
            raise InputError(f"{path}{_line(text, key)}: {problem}")
    for field in fields(Recipe):
        if field.default is MISSING and field.name not in found:
            raise InputError(f"{path}: the key {field.name!r} is missing")
    values: dict[str, Any] = {k: tuple(v) if k in _TUPLES else v for k, v in found.items()}
    try:
        return Recipe(**values, nodes=tuple(nodes.items()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _problem(key: str, value: Any) -> str:
    """What is wrong with a line, taken by itself; empty if nothing is."""
    known = [field.name for field in fields(Recipe)]
    if key not in known:
        return f"unknown key {key!r}; known: {', '.join(known)}"
    wanted, words = _wanted(key)
    strings = key not in _TUPLES or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    if type(value) is not wanted or not strings:
        return f"{key} is {value!r}; it must be {words}"
    if value not in CHOICES.get(key, (value,)):
        return f"{key} {value!r} is unknown; known: {', '.join(CHOICES[key])}"
    return ""


def _node_problem(key: str, precision: Any) -> str:
    """What is wrong with a line of [nodes]; empty if nothing is."""
    if isinstance(precision, dict) and precision:
        whole = key
        while isinstance(precision, dict) and precision:
            part, precision = next(iter(precision.items()))
            whole = f"{whole}.{part}"
        return f'nodes: a key with dots needs quotation marks: "{whole}"'
    if precision not in PRECISIONS:
        return f"nodes: {key} is {precision!r}, an unknown precision; known: {', '.join(PRECISIONS)}"
    return ""


def _wanted(key: str) -> tuple[type, str]:
    """The type of a key's value, and in words."""
    if key in _FLAGS:
        return bool, "true or false"
    if key in _TUPLES:
        return list, "a list of strings"
    special: dict[str, tuple[type, str]] = {"nodes": (dict, "a table"), "block_size": (int, "a whole number")}
    return special.get(key, (str, "a string"))


def _line(text: str, key: str) -> str:
    """ ":9" for the line that gives a key its value or opens the table of that name; empty if none does."""
    start = re.compile(rf"[\[\s]*[\"']?{re.escape(key)}[\"']?\s*[.=\]]")
    return next((f":{i}" for i, line in enumerate(text.splitlines(), 1) if start.match(line)), "")
