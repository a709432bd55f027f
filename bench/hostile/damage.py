"""Damage of bytes, JSON, TOML and tables: what a disk, an editor or an attacker makes of a good file."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

DEEP = 20_000
"""How deep what is nested is nested: beyond the recursion that Python allows."""

# Values where another one belongs. Numbers at the ends of ranges, text that is no text, and nothing at all.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 0.5, -0.0, 1e-320, 1e308,
    float("inf"), float("-inf"), float("nan"), "", " ", "0", "1", "nan", "x" * 100_000,
    "\ud800", "\0", "\x1b[31m", "line\nbreak", "../../outside", "/etc/passwd", "~nobody/x", "é\u202e",
    [], {}, [[]], [None], {"": None},
    [1, "a", None], {"a": {"b": {"c": 1}}}, "teacher", "student", "a" * 300, "COM1", "%s%n", "{}", "$(id)",
)  # fmt: skip


TEXT_PIECES = (
    "a", "1", "-", " ", "b,c", ",", ";", ":", '"', '""', "\t", "\n", "\r", "\r\n", "\0", "{", "}", "[",
    '{"a": 1}\n', "é", "\u2028", "\ufeff",
)  # fmt: skip
"""What a text is made of that looks like a table, or nearly."""


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """The bytes cut off, or with some of them changed, moved, doubled, taken out or set to zero."""
    if not data or draw.random() < 0.05:
        return draw.randbytes(draw.randint(0, 300))
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8, 64))):
        start = draw.randrange(len(changed)) if changed else 0
        end = min(len(changed), start + draw.choice((1, 2, 4, 8, 100, 4096)))
        kind = draw.randrange(7)
        if kind == 0:
            del changed[start:]
        elif kind == 1:
            del changed[start:end]
        elif kind == 2:
            changed[start:end] = bytes(end - start)
        elif kind == 3:
            changed[start:end] = draw.randbytes(end - start)
        elif kind == 4:
            changed[start:start] = changed[start:end]
        elif changed:
            changed[start] = (
                changed[start] ^ (1 << draw.randrange(8)) if kind == 5 else draw.choice((0, 0xFF))
            )
    return bytes(changed)


def damaged_json(data: bytes, draw: random.Random) -> bytes:
    """A JSON file with values of other types and sizes, without keys, or with text that is no JSON."""
    if draw.random() < 0.25:
        return _damaged_text(data, draw, _JSON_TEXTS)
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        value = _damaged_value(value, draw)
    return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode("utf-8", errors="surrogatepass")


def _damaged_value(value: Any, draw: random.Random) -> Any:
    """The value with a place in it changed; every place below is as likely as any other at its depth."""
    if not isinstance(value, dict | list) or not value or draw.random() < 0.05:
        return copy.deepcopy(draw.choice(_VALUES)) if draw.random() < 0.8 else _near(value, draw)
    places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    place = draw.choice(places)
    kind = draw.randrange(9)
    if kind == 0:
        del value[place]
    elif kind == 1 and isinstance(value, dict):
        value[draw.choice(("", "x", f"{place}s", str(place).upper(), "\ud800", "__class__"))] = value.pop(
            place
        )
    elif kind == 1 and isinstance(value, list):
        value.insert(place, value[place])
    elif kind == 2:
        value[place] = draw.choice((str, repr, lambda v: [v], lambda v: {"value": v}))(value[place])
    elif kind == 3:
        other = draw.choice(places)
        value[place], value[other] = value[other], value[place]
    else:
        value[place] = _damaged_value(value[place], draw)
    return value


def _near(value: Any, draw: random.Random) -> Any:
    """A value of the same type, slightly wrong."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return draw.choice((value + 1, value - 1, -value, value * 1000, value / 3, float(value), str(value)))
    if isinstance(value, str):
        return draw.choice((value.upper(), value + " ", value[:-1], value * 2, value + "\n", value[::-1]))
    return value


_JSON_TEXTS: tuple[Callable[[str], str], ...] = (
    lambda text: "[" * DEEP,
    lambda text: '{"a":' * DEEP + "1" + "}" * DEEP,
    lambda text: re.sub(r"\d+", "9" * 5000, text, count=1),
    lambda text: re.sub(r"\d+", "1e999", text, count=1),
    lambda text: re.sub(r"\d+", "[" * 3000 + "]" * 3000, text, count=1),
    lambda text: text.replace(":", ":,", 1),
    lambda text: text.replace("{", '{"a": 1, "a": 2, ', 1),
    lambda text: text.replace('"', "'"),
    lambda text: text + text,
)


def damaged_toml(data: bytes, draw: random.Random) -> bytes:
    """A TOML file with other values, keys and headings, or with text that is no TOML."""
    if draw.random() < 0.2:
        return _damaged_text(data, draw, _TOML_TEXTS)
    lines = data.decode("utf-8").splitlines()
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        number = draw.randrange(len(lines))
        key, sign, value = lines[number].partition("=")
        kind = draw.randrange(8)
        if kind == 0:
            del lines[number]
            lines = lines or [""]
        elif kind == 1:
            lines.insert(draw.randrange(len(lines) + 1), lines[number])
        elif kind == 2:
            lines[number] = draw.choice(
                ("[x]", "[]", "[a.b.c]", "[[x]]", "= 1", "a", '"" = 1', f"[{key.strip()}]")
            )
        elif sign and kind == 3:
            lines[number] = f"{key.strip()}{draw.choice(('s', '.a', ' b', ''))} ={value}"
        elif sign and kind == 4:
            lines[number] = f"{draw.choice(('x', 'nodes', 'name', 'é', chr(34) * 2))} ={value}"
        elif sign:
            lines[number] = f"{key}= {draw.choice(_TOML_VALUES)}"
    return "\n".join(lines).encode("utf-8") + b"\n"


_TOML_VALUES = (
    "true", "false", "0", "-1", "1", "9223372036854775807", "9223372036854775808", "9" * 5000, "0.5", "-0.0",
    "1e308", "1e999", "inf", "-inf", "nan", '""', '" "', '"x"', "'''\nlines\n'''", "[]", "{}", "[[]]",
    "[1, 'a']", '["a", "b"]', "{a = 1}", "{a = {b = 'c'}}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z",
    "0xff", "1_0", '"\\u0000"', '"\\u001b[31m"', '"../../outside"', '"/etc/passwd"', '"~nobody/x"', '"~"',
    '"."', '".."', '"/dev/zero"',
    '"' + "x" * 5000 + '"', "[" * 500 + "]" * 500, '"teacher"', '"quant_1"', '"static"', '"none"',
    '"all"', "{}{}",
)  # fmt: skip

_TOML_TEXTS: tuple[Callable[[str], str], ...] = (
    lambda text: "a = " + "[" * DEEP,
    lambda text: "a = " + "[" * 900 + "]" * 900 + "\n" + text,
    lambda text: "[" + ".".join("a" * DEEP) + "]\n" + text,
    lambda text: ".".join("a" * 5000) + " = 1\n" + text,
    lambda text: "a = " + "{b=" * DEEP + "1" + "}" * DEEP,
    lambda text: "a = " + "9" * 5000 + "\n" + text,
    lambda text: "x" * 2**20,
    lambda text: text + text,
    lambda text: '"""' + text,
    lambda text: "\x00" + text,
)


def _damaged_text(data: bytes, draw: random.Random, changes: tuple[Callable[[str], str], ...]) -> bytes:
    kind = draw.random()
    if kind < 0.4:
        return damaged_bytes(data, draw)
    text = data.decode("utf-8")
    if kind < 0.5:
        return text.encode(draw.choice(("utf-16", "utf-8-sig", "utf-32-le", "cp037")))
    return draw.choice(changes)(text).encode("utf-8", errors="surrogatepass")


def hostile_cell(draw: random.Random) -> Any:
    """A value of a table's cell."""
    if draw.random() < 0.3:
        return draw.choice(_VALUES)
    return "".join(draw.choices(TEXT_PIECES, k=draw.randint(0, 30)))
