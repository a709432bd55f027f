"""Columns by their usual names, and a name for a task."""

from __future__ import annotations

import re
from pathlib import Path

from quantlib.data.tables import Table
from quantlib.data.tables.table import listed
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

# What the columns are usually called; the first that are there are taken.
TEXT_COLUMNS = (
    ("text",), ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis"),
    ("question1", "question2"), ("question", "sentence"), ("question", "answer"), ("query", "passage"),
    ("query", "document"),
    ("text_a", "text_b"), ("text1", "text2"), ("title", "body"), ("content",), ("review",), ("comment",),
    ("utterance",), ("tweet",), ("message",), ("body",), ("title",), ("question",), ("query",),
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "category", "categories", "class", "target", "intent", "sentiment", "topic", "tag",
    "tags", "score", "rating", "similarity", "relevance",
)  # fmt: skip
# What a file is called that holds a part of a task.
_PARTS = frozenset({"test", "dev", "eval", "evaluation", "valid", "validation", "val", "heldout"})


def text_columns(table: Table, label: str | None) -> tuple[str, ...]:
    """The columns with texts: those with a usual name, or the only one that is left.

    Raises:
        InputError: there is none, or more than one could be meant.
    """
    names = {name.casefold(): name for name in table.columns if name != label}
    for usual in TEXT_COLUMNS:
        if all(name in names for name in usual):
            return tuple(names[name] for name in usual)
    if len(names) == 1:
        return tuple(names.values())
    raise InputError(
        f"{table.source}: which column holds the text? There are {listed(table.columns)}; name one, or two "
        'for a pair: text = ["title", "body"], or --text title,body'
    )


def label_column(table: Table) -> str | None:
    """The column with a usual name of labels; None where there is none."""
    names = {name.casefold(): name for name in table.columns}
    return next((names[usual] for usual in LABEL_COLUMNS if usual in names), None)


def name_of(evaluation: str) -> str:
    """A name for a task whose rows come from there: the file's, its directory's if that only names a part."""
    if evaluation.startswith("hf://"):
        repository = re.split("[@:]", evaluation.removeprefix("hf://"))[0]
        return _as_name("/".join(repository.split("/")[1:2]) or repository)
    path = Path(evaluation).absolute()
    return _as_name(path.parent.name if path.stem.casefold() in _PARTS else path.stem)


def _as_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("._-") or "task"


def texts_of(table: Table, column: str) -> list[str]:
    """A column as texts; numbers are written out.

    Raises:
        InputError: a row without a text.
    """
    texts = []
    for row, value in enumerate(table.column(column)):
        if value is None or isinstance(value, list):
            said = "no text" if value is None else f"a list, {quoted(value)}"
            raise InputError(f"{table.where(row)}: {said} in column {quoted(column)}; each row needs a text")
        texts.append(str(value))
    return texts
