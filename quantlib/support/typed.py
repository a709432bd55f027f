"""Values of JSON and TOML files, checked against the types of a dataclass.

pydantic does it, for its errors: they name the value and the whole path to it, entries of mappings included
(msgspec is imported in a third of the time, but says `$.variants[...].size_bytes`, and no value). It takes
standard dataclasses as they are and calls their `__post_init__`. typer depends on it already. It is imported
when a file is read, since that takes a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from quantlib.support.errors import InputError
from quantlib.support.parsing import read_bytes

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

_WANTED = {
    "bool_type": "true or false",
    "dataclass_type": "an object",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "literal_error": "one of {expected}",
    "mapping_type": "an object",
    "string_type": "a string",
    "tuple_type": "a list",
}
_PROBLEMS: dict[str, Literal["unknown", "missing", "syntax", "rule"]] = {
    "unexpected_keyword_argument": "unknown",
    "missing": "missing",
    "json_invalid": "syntax",
    "value_error": "rule",
}
# What pydantic adds to the place of a value that fits no type of a union of plain types.
_UNION_MEMBERS = ("float", "int", "str", "bool")
_SHOWN_CHARACTERS = 40  # of a wrong value


class WrongValue(ValueError):
    """A value that does not fit its type.

    place: the keys and indices that lead to it. problem: an "unknown" key, a "missing" one, the wrong "type",
    a broken "rule" (a `ValueError` of the dataclass), or the "syntax" of the file. value: what is there.
    wanted: what would be right, in words, or the rule or syntax that is broken.
    """

    def __init__(self, place: tuple[str | int, ...], problem: str, value: object, wanted: str) -> None:
        self.place, self.problem, self.value, self.wanted = place, problem, value, wanted
        path, key = ".".join(map(str, place[:-1])), place[-1] if place else "the file"
        if problem in ("rule", "syntax"):
            path, words = ".".join(map(str, place)), wanted
        elif problem == "type":
            words = f"{key} must be {wanted}, not {str(value)[:_SHOWN_CHARACTERS]!r}"
        else:
            words = f"{key} is {problem}"
        super().__init__(f"{path}: {words}" if path else words)


def parse_json(kind: type[T], text: str | bytes, *, strict_keys: bool = False) -> T:
    """What a JSON text holds, as a value of a dataclass or another type; nothing is converted.

    Args:
        kind: the type.
        text: JSON; NaN and Infinity are numbers.
        strict_keys: refuse keys that are no fields.

    Raises:
        WrongValue: the first thing that is wrong; unknown keys come first, missing ones last.
    """
    from pydantic import ValidationError

    try:
        adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
        return adapter.validate_json(text, strict=True, extra="forbid" if strict_keys else "ignore")
    except ValidationError as invalid:
        rank = {"unknown": 0, "missing": 2}
        errors = invalid.errors(include_url=False)
        error = min(errors, key=lambda error: rank.get(_PROBLEMS.get(error["type"], ""), 1))
        details = {"error": error["msg"], "expected": ""} | error.get("ctx", {})
        wanted = _WANTED.get(error["type"], "").format(**details) or str(details["error"])
        problem, place = _PROBLEMS.get(error["type"], "type"), error["loc"]
        if problem == "type" and place and place[-1] in _UNION_MEMBERS:
            place = place[:-1]
            list_allowed = any(
                e["loc"][: len(place)] == place and _names_list_type(e["loc"][len(place) :]) for e in errors
            )
            wanted = f"{wanted} or a list" if list_allowed else "a single value"
        raise WrongValue(place, problem, error["input"], wanted) from invalid


def parse_values(kind: type[T], values: Mapping[str, Any]) -> T:
    """`parse_json` for the values of a TOML file; keys that are no fields are refused."""
    from pydantic_core import to_json

    return parse_json(kind, to_json(values, inf_nan_mode="constants"), strict_keys=True)


def read_json(kind: type[T], path: Path, what: str) -> T:
    """What a JSON file holds.

    Args:
        kind: the type.
        path: the file.
        what: what it should be, for the message: "a baseline".

    Raises:
        InputError: it cannot be read, is no JSON, or holds something else.
    """
    try:
        return read_json_text(kind, read_bytes(path), str(path), what)
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: not {what}: {reason}") from error


def read_json_text(kind: type[T], text: bytes, name: str, what: str) -> T:
    """`read_json`, of the bytes of a file that lies elsewhere, in a commit for example; name: of the file."""
    try:
        return parse_json(kind, text.decode("utf-8"))
    except WrongValue as error:
        words = f"not {what}: {error}" if error.problem == "syntax" else str(error)
        raise InputError(f"{name}: {words}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not {what}: {error}") from error


def _names_list_type(place: tuple[str | int, ...]) -> bool:
    """Whether the rest of an error's place, after that of the value, names a list type of a union."""
    return bool(place) and str(place[0]).startswith("tuple[")


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
