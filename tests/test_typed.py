from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from quantlib.support.errors import InputError
from quantlib.support.typed import WrongValue, parse_json, parse_values, read_json


@dataclass(frozen=True)
class Part:
    size: int = 1
    share: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size {self.size} is below 1")


@dataclass(frozen=True)
class Whole:
    name: str
    kind: Literal["big", "small"] = "big"
    on: bool = False
    rows: tuple[tuple[float, ...], ...] = ()
    parts: Mapping[str, Part] = field(default_factory=dict)


def test_values_come_as_they_are_declared() -> None:
    text = '{"name": "a", "rows": [[1, 2.5], []], "parts": {"b": {"share": 1}}, "new": 3}'
    assert parse_json(Whole, text) == Whole("a", rows=((1.0, 2.5), ()), parts={"b": Part(1, 1.0)})
    assert parse_values(Whole, {"name": "a", "on": True}) == Whole("a", on=True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "name is missing"),
        ({"name": 3}, "name must be a string, not '3'"),
        ({"name": "a", "on": 1}, "on must be true or false, not '1'"),
        ({"name": "a", "kind": "tiny"}, "kind must be one of 'big' or 'small', not 'tiny'"),
        ({"name": "a", "rows": 3}, "rows must be a list, not '3'"),
        ({"name": "a", "rows": [[1], [True]]}, "rows.1: 0 must be a number, not 'True'"),
        ({"name": "a", "parts": {"b": 1}}, "parts: b must be an object, not '1'"),
        ({"name": "a", "parts": {"b": {"size": 1.5}}}, "parts.b: size must be a whole number, not '1.5'"),
        ({"name": "a", "parts": {"b": {"size": "1"}}}, "parts.b: size must be a whole number, not '1'"),
        ({"name": "a", "parts": {"b": {"size": 0}}}, "parts.b: size 0 is below 1"),
        ({"name": 3, "parts": {"b": {"sizes": 1}}}, "parts.b: sizes is unknown"),
        ({"nam": "a"}, "nam is unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_wrong_value_is_named_with_its_place(values: dict[str, Any], words: str) -> None:
    with pytest.raises(WrongValue, match=f"^{re.escape(words)}$"):
        parse_values(Whole, values)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"name": 1}', "name must be a string, not '1'"),
        (b'{"name": ', "not a thing: EOF while parsing a value at line 1 column 9"),
        (b"[1]", "the file must be an object, not '[1]'"),
        (b"\xff", "not a thing: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
    ids=["type", "cut_off", "list", "binary"],
)
def test_files_that_hold_something_else(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "thing.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}: {words}')}$"):
        read_json(Whole, path, "a thing")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: not a thing: No such file or directory$"):
        read_json(Whole, tmp_path / "none.json", "a thing")
