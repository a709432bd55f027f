"""A user's own task: what the files hold, described by the names of columns, as a `Task` and its rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantlib.data.metrics import AGREEMENT, METRICS, OutputMode
from quantlib.data.scoring import DEFAULT_THRESHOLD
from quantlib.data.tables import Table, read_table
from quantlib.data.tables.table import listed
from quantlib.data.tasks.labels import ModelLabels, label_order
from quantlib.data.tasks.splits import (
    Example,
    Splits,
    in_evaluation,
    set_aside,
    split_train,
    with_calibration,
)
from quantlib.data.tasks.task import Task
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

KINDS: tuple[OutputMode, ...] = ("classification", "multi_label", "regression")
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
QUOTES = {"auto": None, "yes": True, "no": False}
_PARTS = frozenset({"test", "dev", "eval", "evaluation", "valid", "validation", "val", "heldout"})
SEPARATORS = ("|", ";", ",")
# More different whole numbers than this are scores, not classes.
_MOST_NUMBERED_CLASSES = 100
_DEFAULT_METRICS: dict[OutputMode, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1", "exact_match"),
    "regression": ("pearson", "spearman"),
}


@dataclass(frozen=True)
class OwnTask:
    """A description of a user's rows, as the options give it.

    evaluation, train, calibration: files, see `quantlib.data.tables.read_table`; the last two may be missing.
    text: one column, or two for a pair; empty where the usual names are looked for. label: its column; None
    for rows without labels. kind: one of `KINDS`, None to infer it. metrics: the first decides; empty for the
    kind's usual ones. labels: {label in the rows: name in the checkpoint}, where these differ. threshold: of
    the probability of a label, for multi-label tasks. separator: of the labels in one cell. quotes: whether
    cells of CSV and TSV files may be quoted; "auto" goes by what the files show.

    Raises:
        InputError: an unknown kind or metric, or a name that cannot name a directory.
    """

    name: str
    evaluation: str
    train: str | None = None
    calibration: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    kind: str | None = None
    metrics: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    threshold: float = DEFAULT_THRESHOLD
    separator: str | None = None
    quotes: str = "auto"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise InputError(
                f"task name {quoted(self.name)}: it names a directory, so it must begin with a letter or "
                "digit and have letters, digits, dots, hyphens and underscores only"
            )
        if self.kind is not None and self.kind not in KINDS:
            raise InputError(f"kind {quoted(self.kind)} is unknown; known: {', '.join(KINDS)}")
        if len(self.text) > 2:
            raise InputError(f"text columns {listed(self.text)}: one column, or two for a pair")
        known = dict.fromkeys(name for metrics in METRICS.values() for name in metrics)
        unknown = [name for name in self.metrics if name not in known]
        if unknown:
            raise InputError(f"metric {quoted(unknown[0])} is unknown; known: {', '.join(known)}")
        if not 0 < self.threshold < 1:
            raise InputError(
                f"threshold {self.threshold} is out of range; it is a probability between 0 and 1"
            )
        if self.quotes not in QUOTES:
            raise InputError(f"quotes {quoted(self.quotes)} is unknown; known: {', '.join(QUOTES)}")
        if self.separator == "":
            raise InputError("the separator of labels is empty; a character such as | parts them")

    def read(self, source: str) -> Table:
        """The table of one of its files.

        Raises:
            InputError: it cannot be read.
        """
        return read_table(
            source, quotes=QUOTES[self.quotes] if Path(source).suffix in (".csv", ".tsv") else None
        )


@dataclass(frozen=True)
class OwnRows:
    """What a description came to: the task, its rows, and what was inferred or dropped, in sentences."""

    task: Task
    splits: Splits
    notes: tuple[str, ...]


def read_own_task(own: OwnTask, model: ModelLabels | None, *, calibrate: bool = True) -> OwnRows:
    """Read the files of a user's task.

    Labels are matched by name with those of the model, never by order. Rows of train and calibration whose
    texts are in evaluation too are dropped and counted. Calibration rows are those of the file, else some
    that are set aside from train, else some that are set aside from evaluation and not evaluated on.

    Args:
        own: the description.
        model: what the teacher says of its logits; None where a teacher is yet to be trained.
        calibrate: whether calibration rows are needed.

    Raises:
        InputError: a file, column, label or text that cannot be used.
    """
    notes: list[str] = []
    evaluation = own.read(own.evaluation)
    columns = own.text or text_columns(evaluation, own.label)
    if not own.text:
        notes.append(f"text: column {listed(columns)}, as no other is named")
    train = None if own.train is None else own.read(own.train)
    if model is None and (train is None or own.label is None):
        raise InputError(
            f"{own.name}: without --teacher one is trained, which needs train rows and their labels "
            "(--train FILE --label COLUMN)"
        )
    tables = [table for table in (evaluation, train) if table is not None]
    kind, separator = _kind(own, tables, model, notes)
    raw = {id(table): _raw_labels(own, table, kind, separator) for table in tables}
    task = _task(own, kind, columns, [label for labels in raw.values() for label in labels], model, notes)
    rows = _examples(task, evaluation, "evaluation", columns, raw[id(evaluation)])
    learned = None if train is None else _examples(task, train, "train", columns, raw[id(train)])
    if own.calibration is None:
        unlabelled = None
    else:
        table = own.read(own.calibration)
        bare = replace(task, labelled=False, metrics=(AGREEMENT,), score_range=None)
        unlabelled = _examples(bare, table, "calibration", columns, [None] * len(table))
    return OwnRows(task, _splits(own, rows, learned, unlabelled, notes, calibrate), tuple(notes))


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


RawLabel = str | float | tuple[str, ...] | None


def _kind(
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
        return kind, f"{model.source} says so", _common_separator(values) if kind == "multi_label" else None
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


def _raw_labels(own: OwnTask, table: Table, kind: OutputMode, separator: str | None) -> list[RawLabel]:
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
        elif kind == "regression":
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


def _task(
    own: OwnTask,
    kind: OutputMode,
    columns: tuple[str, ...],
    raw: Sequence[RawLabel],
    model: ModelLabels | None,
    notes: list[str],
) -> Task:
    labels: tuple[str, ...] = ()
    if kind != "regression":
        words = _sorted_words(raw)
        labels = words if model is None else _in_model_order(own, words, model)
    elif model is not None and model.count != 1:
        raise InputError(f"{model.source}: {model.count} logits; a regression has one")
    if own.label is None:
        metrics: tuple[str, ...] = (AGREEMENT,)
        if own.metrics and own.metrics != metrics:
            raise InputError(f"metrics {listed(own.metrics)} need labels; name their column: --label COLUMN")
    else:
        metrics = own.metrics or _usual_metrics(kind, labels)
        if not own.metrics:
            notes.append(f"metrics: {', '.join(metrics)}")
    try:
        return Task(
            name=own.name,
            output_mode=kind,
            labels=labels,
            metrics=metrics,
            text_columns=columns,
            label_column=own.label or "",
            score_range=(-math.inf, math.inf) if kind == "regression" and own.label else None,
            threshold=own.threshold if kind == "multi_label" else DEFAULT_THRESHOLD,
            labelled=own.label is not None,
            labels_by_name=True,
            label_names=tuple(own.labels.items()),
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _usual_metrics(kind: OutputMode, labels: Sequence[str]) -> tuple[str, ...]:
    return _DEFAULT_METRICS[kind]


def _sorted_words(raw: Sequence[RawLabel]) -> tuple[str, ...]:
    """The different labels; numbers in their order, words in that of the alphabet."""
    words = {
        w
        for label in raw
        if label is not None
        for w in (label if isinstance(label, tuple) else (str(label),))
    }
    numbered = all(re.fullmatch(r"-?\d{1,18}", word) for word in words)
    return tuple(sorted(words, key=int) if numbered else sorted(words))


def _in_model_order(own: OwnTask, words: Sequence[str], model: ModelLabels) -> tuple[str, ...]:
    """A label for each logit: the word in the rows, or the model's own for those that no row has."""
    order = label_order(words, own.labels, model)
    labels = list(model.names) or [f"LABEL_{place}" for place in range(model.count)]
    for word, place in zip(words, order, strict=True):
        labels[place] = word
    if len(set(labels)) < len(labels):
        raise InputError(
            f"{model.source}: labels {listed(model.names)} of the checkpoint and {listed(words)} of the rows "
            "cannot be told apart; map them by name in [task.labels]"
        )
    return tuple(labels)


def _examples(
    task: Task,
    table: Table,
    split: str,
    columns: Sequence[str],
    labels: Sequence[RawLabel],
) -> list[Example]:
    texts = [texts_of(table, column) for column in columns]
    return [
        task.example(f"{split}-{row + 1}", cells, label, table.where(row))
        for row, (*cells, label) in enumerate(zip(*texts, labels, strict=True))
    ]


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


def _splits(
    own: OwnTask,
    evaluation: Sequence[Example],
    train: Sequence[Example] | None,
    calibration: Sequence[Example] | None,
    notes: list[str],
    calibrate: bool,
) -> Splits:
    for name, rows in (("train", train), ("calibration", calibration)):
        dropped = in_evaluation(rows or (), evaluation)
        if dropped:
            notes.append(f"{name}: {dropped} rows dropped, as their texts are in evaluation too")
    if train is not None:
        whole = split_train(train, evaluation, own.train or "")
        return whole if calibration is None else with_calibration(whole, calibration)
    if calibration is not None:
        return with_calibration(Splits((), (), (), tuple(evaluation)), calibration)
    if not calibrate:
        return Splits((), (), (), tuple(evaluation))
    splits = set_aside(evaluation, own.evaluation)
    notes.append(
        f"calibration: {len(splits.calibration)} of the {len(evaluation)} evaluation rows, set aside and not "
        "evaluated on, as neither train nor calibration rows are given"
    )
    return splits
