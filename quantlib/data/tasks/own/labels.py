"""The kind of a task, and the labels of its rows, as the cells have them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quantlib.data.metrics import SCORE_MODES, OutputMode
from quantlib.data.tables import Table
from quantlib.data.tasks.labels import ModelLabels, check_kind, label_order
from quantlib.data.tasks.own.description import KINDS, OwnTask
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

SEPARATORS = ("|", ";", ",")
# More different whole numbers than this are scores, not classes.
_MOST_NUMBERED_CLASSES = 100

RawLabel = str | float | tuple[str, ...] | None


def kind_of(
    own: OwnTask, tables: Sequence[Table], model: ModelLabels | None, notes: list[str]
) -> tuple[OutputMode, str | None]:
    """The kind of task, and what parts several labels of a cell."""
    values = [value for t in tables if own.label is not None for value in t.column(own.label)]
    kind, reason, separator = _inferred(own, values, model)
    if own.kind is not None:
        kind = next(known for known in KINDS if known == own.kind)
        if kind == "multi_label" and separator is None:
            separator = _common_separator(values)
    else:
        notes.append(f"kind: {kind}, as {reason}")
    if model is not None:
        check_kind(own.name, kind, model)
    if kind != "multi_label":
        return kind, None
    if own.separator is None and separator is not None:
        notes.append(f"labels of a cell are parted by {quoted(separator)}")
    return kind, separator


def _inferred(
    own: OwnTask, values: Sequence[object], model: ModelLabels | None
) -> tuple[OutputMode, str, str | None]:
    """The kind, why, and the separator of labels."""
    if own.separator is not None:
        return "multi_label", "a separator of labels is given", own.separator
    if any(isinstance(value, list) for value in values):
        return "multi_label", f"{own.label} holds lists", None
    if model is not None and model.kind is not None:
        kind = next(known for known in KINDS if known == model.kind)
        several = kind == "multi_label" and own.label is not None
        return kind, f"{model.source} says so", _separator_of(values, own.labels, model) if several else None
    if model is not None and model.count == 1:
        return "regression", "the model has one logit", None
    if own.label is None:
        return "classification", "no labels say otherwise", None
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        if any(not number.is_integer() for number in numbers if number is not None):
            return "regression", f"{own.label} holds numbers with fractions", None
        different = len(set(numbers))
        if model is None and different > _MOST_NUMBERED_CLASSES:
            return "regression", f"{own.label} holds {different} different numbers", None
    if model is not None and not model.are_generic:
        separator = _separator_of(values, own.labels, model)
        if separator is not None:
            return "multi_label", "its cells hold several of the model's labels", separator
    return "classification", f"{own.label} holds {len(set(map(str, values)))} different labels", None


def _separator_of(values: Sequence[object], names: Mapping[str, str], model: ModelLabels) -> str | None:
    """What parts cells into labels that the model has, where whole cells are none."""

    def known(words: Sequence[str]) -> bool:
        try:
            label_order(words, names, model)
        except InputError:
            return False
        return True

    texts = sorted({str(value) for value in values if value not in (None, "")})
    if known(texts):
        return None
    return next(
        (sign for sign in SEPARATORS if known(sorted({w for t in texts for w in _parts(t, sign)}))), None
    )


def _common_separator(values: Sequence[object]) -> str | None:
    """The first usual separator that is in some cell."""
    texts = [value for value in values if isinstance(value, str)]
    return next((sign for sign in SEPARATORS if any(sign in text for text in texts)), None)


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def raw_labels(own: OwnTask, table: Table, kind: OutputMode, separator: str | None) -> list[RawLabel]:
    """The labels of a table as words or scores, before they are compared with any names."""
    if own.label is None:
        return [None] * len(table)
    labels: list[RawLabel] = []
    for row, value in enumerate(table.column(own.label)):
        where = f"{table.where(row)}, column {quoted(own.label)}"
        if kind == "multi_label":
            labels.append(_several(value, separator, where))
        elif value is None or value == "":
            raise InputError(f"{where}: no label; each row needs one")
        elif kind in SCORE_MODES:
            number = _number(value)
            if number is None:
                raise InputError(f"{where}: score {quoted(value)}; expected a finite number")
            labels.append(number)
        else:
            labels.append(_word(value, where))
    return labels


def _several(value: object, separator: str | None, where: str) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, list):
        return tuple(dict.fromkeys(_word(item, where) for item in value))
    word = _word(value, where)
    return tuple(dict.fromkeys(_parts(word, separator))) if separator else (word,)


def _word(value: object, where: str) -> str:
    """A label as a word: the same for 1 in a text file, 1 and 1.0 in a typed one."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where}: label {quoted(value)}; a label is a word or a whole number")
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, str | int):
        return str(value)
    raise InputError(f"{where}: label {quoted(value)}; a label is a word or a whole number")
