"""The configuration file, quantlib.toml or [tool.quantlib] in pyproject.toml, by the declared options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from quantlib.support.errors import InputError
from quantlib.support.options import Option, options_of
from quantlib.support.parsing import parse_toml_text, read_utf8

FILE = "quantlib.toml"
_PROJECT_FILE = "pyproject.toml"
_WORDS: dict[type, str] = {
    str: "a string",
    Path: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@dataclass(frozen=True)
class Configuration:
    """What a configuration file says; empty without one.

    path: the file. tables: its sections. prefix: of a section's name in the file. text: the file as it is,
    to find lines for messages.
    """

    path: Path | None = None
    tables: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    text: str = field(default="", repr=False)

    def values(self, *classes: type) -> tuple[dict[str, Any], ...]:
        """The values of the options of each class, by field name; paths are relative to the file.

        Args:
            classes: all classes of options that a file may have; other sections and keys are refused.

        Raises:
            InputError: an unknown section or key, or a value of another type; with file and line.
        """
        by_class: tuple[dict[str, Any], ...] = tuple({} for _ in classes)
        known: dict[str, dict[str, tuple[dict[str, Any], Option]]] = {}
        for values, cls in zip(by_class, classes, strict=True):
            for item in options_of(cls):
                known.setdefault(item.section, {})[item.key] = values, item
        for section, table in self.tables.items():
            if section not in known:
                raise self.error(
                    section, "", f"unknown section [{self.prefix}{section}]{suggestion(section, known)}"
                )
            if not isinstance(table, dict):
                raise self.error(section, "", f"{section} must be a section, [{self.prefix}{section}]")
            for key, value in table.items():
                if key not in known[section]:
                    raise self.error(section, key, f"unknown key {key!r}{suggestion(key, known[section])}")
                values, item = known[section][key]
                values[item.name] = self._value(item, value)
        return by_class

    def _value(self, item: Option, value: Any) -> Any:
        """A value of the file as the option's field holds it."""
        if item.pairs:
            if isinstance(value, dict) and all(isinstance(word, str) for word in value.values()):
                return value
            raise self.error(item.section, item.key, f"{item.key} must be a table of strings, not {value!r}")
        if not item.many:
            return self._one_value(item, value)
        if item.comma and isinstance(value, str):  # one value needs no list
            value = [value]
        if not isinstance(value, list):
            raise self.error(item.section, item.key, f"{item.key} must be a list, not {value!r}")
        return tuple(self._one_value(item, element) for element in value)

    def _one_value(self, item: Option, value: Any) -> Any:
        kind: Any = str if item.kind is Path else item.kind
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(item.section, item.key, f"{item.key} must be {_WORDS[item.kind]}, not {value!r}")
        if item.may_be_path and self.path is not None:
            value = self._beside(item, self.path.parent, value)
        return item.kind(value)

    def _beside(self, item: Option, directory: Path, value: str) -> str:
        """A path as it is seen from here; what is no path stays as it is."""
        try:
            place = directory / Path(value).expanduser()
            is_there = place.exists()
        except (OSError, RuntimeError) as error:  # a name that is too long, or of no user
            raise self.error(item.section, item.key, f"{item.key}: no such path, {value[:80]!r}") from error
        # Other texts may be the name of something else: a hub's checkpoint, a recipe of the table.
        is_path = item.kind is Path or (item.is_file and not value.startswith("hf://"))
        return str(place) if is_path or is_there else value

    def error(self, section: str, key: str, words: str) -> InputError:
        """An error about a key, or about a section if the key is empty, with file and line."""
        assert self.path is not None
        line = self.line_of(section, key)
        place = f"{self.path} line {line}" if line else str(self.path)
        return InputError(f"{place}: {' '.join(words.split())}")

    def line_of(self, section: str, key: str) -> int | None:
        """The line of a key in a section, or of the section's heading; None where it is written otherwise."""
        return _line_of(self.text, self.prefix + section, key)


def find_configuration(directory: Path) -> Configuration:
    """The configuration that lies in a directory: quantlib.toml, else [tool.quantlib] of pyproject.toml.

    Raises:
        InputError: a file cannot be read, or is no TOML.
    """
    if (directory / FILE).is_file():
        return read_configuration(directory / FILE)
    project = directory / _PROJECT_FILE
    return read_configuration(project) if project.is_file() else Configuration()


def read_configuration(path: Path) -> Configuration:
    """The configuration in a file; of pyproject.toml the table [tool.quantlib], which may be missing.

    Raises:
        InputError: it cannot be read, or is no TOML.
    """
    try:
        text = read_utf8(path)
        tables = parse_toml_text(text)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    if path.name != _PROJECT_FILE:
        return Configuration(path, tables, text=text)
    tool = tables.get("tool", {})
    section = tool.get("quantlib", {}) if isinstance(tool, dict) else {}
    if not isinstance(section, dict):
        raise InputError(f"{path}: tool.quantlib must be a section, [tool.quantlib]")
    return Configuration(path, section, "tool.quantlib.", text)


def suggestion(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that is nearest, else all of them."""
    known = list(known)
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _line_of(text: str, section: str, key: str) -> int | None:
    """The line of a key in a section, or of the section's heading; None where it is written otherwise."""
    current = ""
    for number, line in enumerate(text.splitlines(), start=1):
        heading = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if heading:
            current = heading[1].replace(" ", "")
            if current == (f"{section}.{key}" if key else section):
                return number
        elif key and current == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line):
            return number
    return None
