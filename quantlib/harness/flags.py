"""The options of the library as flags of pytest.

They are read from a file, since to import their declarations takes a third of a second, and pytest loads this
plugin in every run. `python tests/test_options.py` writes the file from the declarations; a test holds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

FILE = Path(__file__).with_name("flags.json")
_KINDS = {"int": int, "float": float, "str": str, "Path": Path}
_PREFIX = "quantlib_"  # of the names under which pytest keeps the values: other plugins have theirs


def add_flags(parser: pytest.Parser) -> None:
    """Add the flags, in groups."""
    for title, flags in _groups().items():
        group = parser.getgroup(f"quantlib, {title}")
        for name, flag in flags.items():
            words = dict(flag["words"])
            if "type" in words:
                words["type"] = _KINDS[words["type"]]
            group.addoption(flag["flag"], dest=_PREFIX + name, **words)


def given(config: pytest.Config) -> dict[str, Any]:
    """What the flags say, by the names of the options; None, empty or False where a flag is not given."""
    return {
        name: config.getoption(_PREFIX + name, default=None) for flags in _groups().values() for name in flags
    }


def as_in_pytest(message: str) -> str:
    """A message of the library with its flags as they are called here."""
    flags = {flag["library"]: flag["flag"] for flags in _groups().values() for flag in flags.values()}
    return re.sub(r"--[a-z][a-z-]*", lambda found: flags.get(found[0], found[0]), message)


@cache
def _groups() -> dict[str, dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return groups


def declared() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What the file has to hold: (title, {name of an option: its flag and its words for argparse})."""
    from quantlib.experiment.gate_options import GateOptions
    from quantlib.experiment.options import ExperimentOptions
    from quantlib.support.options import PYTEST, Option, options_of

    def words_of(item: Option) -> dict[str, Any]:
        # What is not given is None or empty, so that the configuration file can say it.
        metavar = item.metavar or item.name.upper()
        words: dict[str, Any] = {"type": item.kind.__name__, "default": None, "metavar": metavar}
        if item.is_switch:
            words = {"action": "store_true"}
        elif item.pairs or (item.many and not item.comma):
            words = {"action": "append", "default": [], "metavar": metavar}
        elif item.bare is not None:
            words |= {"nargs": "?", "const": item.bare}
        elif item.comma:
            words |= {"type": "str"}
        shown = f" Default: {item.shown_default}." if item.shown_default and not item.is_switch else ""
        return words | {"help": (item.help + shown).replace("%", "%%")}

    titles = {"models and rows": ExperimentOptions, "what is timed and gated": GateOptions}
    for title, options in titles.items():
        yield (
            title,
            {
                item.name: {"flag": item.pytest_flag, "library": item.flag, "words": words_of(item)}
                for item in options_of(options, PYTEST)
            },
        )
