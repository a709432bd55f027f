"""A recipe as a TOML file that can be read, edited, committed and run again."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from quantlib.errors import InputError
from quantlib.files import write_text
from quantlib.recipes import Recipe

_TUPLES = ("op_types",)
_FLAGS = ("per_channel", "smooth", "reduce_range", "pad_calibration")


def write_recipe(path: Path, recipe: Recipe, comments: Mapping[str, str] | None = None) -> None:
    """Write a recipe, whole or not at all; fields that stand at their default are left out.

    Args:
        path: the file; its name must end in .toml, by which `--recipes` knows it.
        recipe: what to write.
        comments: {key of `Recipe.nodes`: a remark behind it}; the key "" is the remark at the top.
    """
    import tomlkit

    comments = comments or {}
    document = tomlkit.document()
    for line in comments.get("", "").splitlines():
        document.add(tomlkit.comment(line))
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name != "nodes" and (field.default is MISSING or value != field.default):
            document[field.name] = list(value) if isinstance(value, tuple) else value
    if recipe.nodes:
        table = tomlkit.table()
        for key, precision in recipe.nodes:
            item = tomlkit.item(precision)
            if key in comments:
                item.comment(comments[key])
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
        text = path.read_text(encoding="utf-8")
        found: dict[str, Any] = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    known = {field.name: field for field in fields(Recipe)}
    for key, value in found.items():
        where = f"{path}:{_line(text, key)}"
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        wanted = _wanted(key)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise InputError(f"{where}: {key} is {value!r}; it must be a {_NAMES[wanted]}")
    for name, field in known.items():
        if field.default is MISSING and name not in found:
            raise InputError(f"{path}: the key {name!r} is missing")
    nodes = found.pop("nodes", {})
    values: dict[str, Any] = {k: tuple(v) if k in _TUPLES else v for k, v in found.items()}
    try:
        return Recipe(**values, nodes=tuple(nodes.items()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


_NAMES = {bool: "true or false", int: "whole number", str: "string", list: "list", dict: "table"}


def _wanted(key: str) -> type:
    if key in _FLAGS:
        return bool
    special = {"nodes": dict, "block_size": int} | dict.fromkeys(_TUPLES, list)
    return special.get(key, str)


def _line(text: str, key: str) -> int:
    """The line of a top-level key, counted from 1."""
    lines = text.splitlines()
    starts = (i for i, line in enumerate(lines, 1) if line.strip("[\"' \t").startswith(key))
    return next(starts, 1)
