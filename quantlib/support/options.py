"""Options that are declared once, as fields of a frozen dataclass with their help and range.

The command, the pytest options, the configuration file, the gate's settings and the table in the
documentation are made from the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from quantlib.support.errors import InputError

COMMAND, PYTEST = "command", "pytest"

Options = TypeVar("Options")


@dataclass(frozen=True)
class Option:
    """One option: the metadata of its field, and what follows from the field's name, type and default.

    help: one sentence. flag: where it is not `--name-of-the-field`. metavar: the name of its value.
    least, most: the range of a number, both included. offered: where it can be given. recorded: by the
    gate, since other values make other models or sessions. trains: it applies only when a model of this
    role is trained. comma: several values stand in one text; else the flag is repeated. bare: the value of a
    flag that is given without one. section, key: where it stands in a configuration file; the key is the
    field's name unless another one is given. is_place: a text that may be a path. is_file: a text that is
    one, or names rows of the hub. advanced: left out of the short help.

    name, kind, many, pairs, default: filled in by `options_of`; kind is the type of one value. Pairs are a
    table in the file, and A=B on the command line. A default that is computed, or that stands for nothing
    given, is None.
    """

    help: str
    flag: str = ""
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    offered: tuple[str, ...] = (COMMAND, PYTEST)
    recorded: bool = False
    trains: Literal["", "teacher", "student"] = ""
    comma: bool = False
    bare: str | None = None
    section: str = "run"
    key: str = ""
    is_place: bool = False
    is_file: bool = False
    advanced: bool = False
    name: str = ""
    kind: type = str
    many: bool = False
    pairs: bool = False
    default: Any = None

    @property
    def pytest_flag(self) -> str:
        """Its flag in pytest, where other plugins have theirs: with a prefix, but for those of the gate."""
        return self.flag if self.flag.startswith("--gate") else f"--quant-{self.flag.removeprefix('--')}"

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value; it says the opposite of the default."""
        return self.kind is bool

    @property
    def text_default(self) -> Any:
        """The default as it is written behind the flag."""
        return ",".join(self.default) if self.comma else self.default

    @property
    def shown_default(self) -> str:
        """The default for a page of help; empty where there is nothing to show."""
        shown = "off" if self.is_switch else self.text_default
        return "" if shown in (None, (), "") else str(shown)

    @property
    def may_be_path(self) -> bool:
        """Whether a value may be a path, which a configuration file gives relative to itself."""
        return self.is_place or self.is_file or issubclass(self.kind, Path)


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option; a default that can be called is computed. more: see `Option`."""
    metadata = {"option": Option(help, **more)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of(cls: type, place: str | None = None) -> tuple[Option, ...]:
    """The options of a dataclass in the order of its fields; with a place, those offered there."""
    hints = get_type_hints(cls)
    declared = []
    for item in fields(cls):
        base: Option | None = item.metadata.get("option")
        if base is None or (place is not None and place not in base.offered):
            continue
        hint = hints[item.name]
        kind = next(part for part in (*get_args(hint), hint) if part is not NoneType)
        switched_off = "no-" if item.default is True else ""
        declared.append(
            replace(
                base,
                flag=base.flag or f"--{switched_off}{item.name.replace('_', '-')}",
                key=base.key or item.name,
                name=item.name,
                kind=kind,
                many=get_origin(hint) is tuple,
                pairs=get_origin(hint) is Mapping,
                default=None if item.default is MISSING else item.default,
            )
        )
    return tuple(declared)


def from_flags(
    cls: type[Options], given: Mapping[str, Any], place: str, configured: Mapping[str, Any] | None = None
) -> Options:
    """The options as the flags of a place give them, by field name; None stands for what is not given.

    Args:
        cls: the class of the options.
        given: the flags.
        place: where they were given.
        configured: values of a configuration file, by field name; flags override them.

    Raises:
        InputError: what the class refuses.
    """
    values = dict(configured or {})
    for item in options_of(cls, place):
        value = given.get(item.name)
        if value is None or ((item.pairs or item.many) and not item.comma and not value):
            continue
        if item.is_switch:
            if not value:
                continue
            value = not item.default
        elif item.comma:
            value = split_names(value)
        elif item.pairs:
            value = split_pairs(value, item.flag)
        elif item.many:
            value = tuple(value)
        values[item.name] = value
    return cls(**values)


def command_line(options: object, place: str) -> list[str]:
    """The words that give these options in a place: those that are not the default, or whose is computed."""
    words: list[str] = []
    for item in options_of(type(options), place):
        value = getattr(options, item.name)
        if value is None or value == item.default or (item.pairs and not value):
            continue
        if item.is_switch:
            words.append(item.flag)
        elif item.comma:
            words += [item.flag, ",".join(value)]
        elif item.pairs:
            words += [word for key, name in value.items() for word in (item.flag, f"{key}={name}")]
        elif item.many:
            words += [word for each in value for word in (item.flag, str(each))]
        else:
            words += [item.flag, str(value)]
    return words


def split_pairs(texts: Iterable[str], flag: str) -> dict[str, str]:
    """{A: B} of texts A=B, split at the last equals sign.

    Raises:
        InputError: a text without one.
    """
    pairs = {}
    for text in texts:
        key, sign, value = text.rpartition("=")
        if not (sign and key and value):
            raise InputError(f"{flag} {text!r}: expected two words with = between them")
        pairs[key] = value
    return pairs


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_ranges(options: object) -> None:
    """Raise `InputError` if a number is outside the range that its option declares."""
    for item in options_of(type(options)):
        value = getattr(options, item.name)
        if value is None or item.least is None:
            continue
        if not item.least <= value <= (value if item.most is None else item.most):
            limits = f"at least {item.least}" if item.most is None else f"within {item.least}..{item.most}"
            raise InputError(f"{item.flag} {value} is out of range; it must be {limits}")


def markdown_table(cls: type) -> str:
    """A table of the options for the documentation, in Markdown."""
    lines = ["| option | in the file | default | meaning | offered by |", "| --- | --- | --- | --- | --- |"]
    for item in options_of(cls):
        names = {COMMAND: "the command", PYTEST: f"pytest as `{item.pytest_flag}`"}
        value = "" if item.is_switch else " " + (item.metavar or item.name.upper())
        cells = (
            f"`{item.flag}{value}`",
            f"`[{item.section}] {item.key}`",
            f"`{item.shown_default}`" if item.shown_default else "",
            item.help.replace("|", "\\|"),
            ", ".join(names[place] for place in item.offered),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
