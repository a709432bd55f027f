"""A recipe as a TOML file that can be read, edited, committed and run again."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from quantlib.compression.recipes.recipe import CHOICES, PRECISIONS, Recipe
from quantlib.support.errors import InputError
from quantlib.support.files import write_text
from quantlib.support.parsing import parse_toml_text, read_utf8
from quantlib.support.typed import WrongValue, parse_values

# The fields that are tables of a file.
_TABLES = ("nodes", "widths", "heads")
_EXAMPLES = {"widths": "neurons, such as 768", "heads": "heads, such as 9"}


def write_recipe(path: Path, recipe: Recipe, comments: Mapping[str, str] | None = None) -> None:
    """Write a recipe, whole or not at all; fields that stand at their default are left out.

    Args:
        path: the file; its name must end in .toml, by which `--recipes` knows it.
        recipe: what to write.
        comments: {key of one of the recipe's tables: a remark behind it}; the key "" is the remark at the
            top.

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
        if field.name not in _TABLES and value != field.default:
            document[field.name] = list(value) if isinstance(value, tuple) else value
    for name in _TABLES:
        pairs: tuple[tuple[str, str | int], ...] = getattr(recipe, name)
        if pairs:
            table = tomlkit.table()
            for key, value in pairs:
                item = tomlkit.item(value)
                if key in comments:
                    item.comment(" ".join(comments[key].split()))
                table.add(key, item)
            document[name] = table
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
        text = read_utf8(path)
        values: dict[str, Any] = parse_toml_text(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    tables = {name: values.pop(name, {}) for name in _TABLES}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(f"{path}{_line(text, name)}: {name} is {table!r}; it must be a table")
        for key, value in table.items():
            problem = _node_problem(key, value) if name == "nodes" else _number_problem(name, key, value)
            if problem:
                raise InputError(f"{path}{_line(text, key)}: {problem}")
    try:
        return parse_values(Recipe, values | {name: list(table.items()) for name, table in tables.items()})
    except WrongValue as error:
        key = str(error.place[0])
        line = "" if error.problem == "missing" else _line(text, key)
        raise InputError(f"{path}{line}: {_problem(key, error, values)}") from error
    except InputError as error:
        keys = {*(key for table in tables.values() for key in table), *values} - {"name"}
        raise InputError(f"{path}{_line_named(text, str(error), keys)}: {error}") from error


def _problem(key: str, error: WrongValue, values: Mapping[str, Any]) -> str:
    """What is wrong with the value of a key."""
    if error.problem == "missing":
        return f"the key {key!r} is missing"
    if error.problem == "unknown":
        return f"unknown key {key!r}; known: {', '.join(field.name for field in fields(Recipe))}"
    if key in CHOICES and isinstance(error.value, str):
        return f"{key} {error.value!r} is unknown; known: {', '.join(CHOICES[key])}"
    wanted = "a list of strings" if key == "op_types" else error.wanted
    return f"{key} is {values[key]!r}; it must be {wanted}"


def _number_problem(table: str, key: str, number: Any) -> str:
    """What is wrong with a line of [widths] or [heads]; empty if nothing is."""
    if isinstance(number, dict):
        return f'{table}: a key with dots needs quotation marks: "{_whole(key, number)}"'
    if isinstance(number, bool) or not isinstance(number, int):
        return f"{table}: {key} is {number!r}; it must be a number of {_EXAMPLES[table]}"
    return ""


def _node_problem(key: str, precision: Any) -> str:
    """What is wrong with a line of [nodes]; empty if nothing is."""
    if isinstance(precision, dict) and precision:
        return f'nodes: a key with dots needs quotation marks: "{_whole(key, precision)}"'
    if precision in PRECISIONS:
        return ""
    return f"nodes: {key} is {precision!r}, an unknown precision; known: {', '.join(PRECISIONS)}"


def _whole(key: str, value: Any) -> str:
    """The key with the dots by which TOML took it apart."""
    while isinstance(value, dict) and value:
        part, value = next(iter(value.items()))
        key = f"{key}.{part}"
    return key


def _line_named(text: str, message: str, keys: Collection[str]) -> str:
    """`_line` of the first of some keys that a message about a recipe names; empty if it names none."""
    words = re.findall(r"[\w.]+", message.partition(": ")[2])
    return next((_line(text, word) for word in words if word in keys), "")


def _line(text: str, key: str) -> str:
    """ ":9" for the line that gives a key its value or opens the table of that name; empty if none does."""
    start = re.compile(rf"[\[\s]*[\"']?{re.escape(key)}[\"']?\s*[.=\]]")
    return next((f":{i}" for i, line in enumerate(text.splitlines(), 1) if start.match(line)), "")
