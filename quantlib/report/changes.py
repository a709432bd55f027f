"""The rows to which a variant gives another answer than the teacher: changes.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quantlib.data.metrics import Array, FloatArray, OutputMode
from quantlib.data.scores import predictions_of
from quantlib.data.tasks import Example, Task
from quantlib.measuring.accuracy import Evaluation
from quantlib.report.columns import VariantResult
from quantlib.support.errors import InputError
from quantlib.support.files import write_json
from quantlib.support.typed import read_json

SCHEMA_VERSION = 1
FILE = "changes.json"
# Characters that are kept of a text: enough to judge by, and rows of a megabyte stay out of the page.
_MOST_CHARACTERS = 400
_NO_LABEL = "none"


@dataclass(frozen=True)
class TaskFacts:
    """What the rows are; rows: how many were evaluated, pairs of embedded texts counted once."""

    name: str
    output_mode: OutputMode
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    labelled: bool
    rows: int


@dataclass(frozen=True)
class Row:
    """An evaluation row: its name, its texts, cut where they are long, and what it is labelled with."""

    name: str
    texts: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class ChangedRow:
    """A row, and what both models say of it.

    row: its place in `Changes.rows`. teacher, variant: the labels that they give; empty for a score.
    teacher_score, variant_score: the probability that each gives its own label; for sets of labels both are
    those of `of`; for regression the scores; for embeddings the cosine of the pair, or, where texts have no
    scores, of the variant's embedding with the teacher's, and None for the teacher. of: the label that
    changes most clearly, of a set. right: who has the row's label: "teacher", "variant" or "neither"; empty
    where that is not known.
    """

    row: str
    teacher: str
    variant: str
    teacher_score: float | None
    variant_score: float
    of: str = ""
    right: str = ""


@dataclass(frozen=True)
class Cell:
    """How many rows the teacher gives one label and the variant another, or the same."""

    teacher: str
    variant: str
    rows: int


@dataclass(frozen=True)
class LabelCounts:
    """To how many rows a label of a set is given, by both models and by one alone."""

    label: str
    both: int
    teacher_only: int
    variant_only: int


@dataclass(frozen=True)
class VariantChanges:
    """What one variant changes.

    changed: rows with another label; None for scores and embeddings. became_right, became_wrong: of these;
    None without labels. listed: the surest changes first, those of which the less sure of both models is
    surest; for scores the largest. confusion: of all rows, for one label a row. labels: for sets of labels.
    """

    changed: int | None
    became_right: int | None
    became_wrong: int | None
    listed: tuple[ChangedRow, ...]
    confusion: tuple[Cell, ...] = ()
    labels: tuple[LabelCounts, ...] = ()


@dataclass(frozen=True)
class Changes:
    """What changes.json holds; rows: by their place among the evaluation rows, those that are listed."""

    schema_version: int
    task: TaskFacts
    rows: Mapping[str, Row]
    variants: Mapping[str, VariantChanges]


def changes_of(results: Sequence[VariantResult], examples: Sequence[Example], most_rows: int) -> Changes:
    """What each variant changes of the teacher's answers.

    Args:
        results: with their predictions, the teacher first.
        examples: the evaluation rows.
        most_rows: how many rows are listed of a variant, at most.
    """
    teacher = results[0]
    task, reference = teacher.task, teacher.evaluation
    assert task is not None and reference is not None, "results of a run have their predictions"
    of_rows = examples[::2] if _of_pairs(task) else examples
    variants = {}
    for result in results[1:]:
        assert result.evaluation is not None
        variants[result.name] = _changes(task, reference, result.evaluation, most_rows)
    listed = {int(change.row) for each in variants.values() for change in each.listed}
    facts = TaskFacts(
        task.name, task.output_mode, task.labels, task.metrics, task.labelled, len(reference.predictions)
    )
    return Changes(
        SCHEMA_VERSION,
        facts,
        {str(place): _row(task, of_rows[place], examples, place) for place in sorted(listed)},
        variants,
    )


def write_changes(directory: Path, changes: Changes) -> None:
    """Write changes.json."""
    write_json(directory / FILE, asdict(changes))


def read_changes(path: Path) -> Changes:
    """The changes in a changes.json.

    Raises:
        InputError: it is missing, damaged, or of another version.
    """
    changes = read_json(Changes, path, f"a {FILE}")
    if changes.schema_version != SCHEMA_VERSION:
        raise InputError(f"{path}: version {changes.schema_version}, not {SCHEMA_VERSION}")
    lacking = {c.row for each in changes.variants.values() for c in each.listed} - set(changes.rows)
    if lacking:
        raise InputError(f"{path}: a variant lists row {min(lacking)!r}, which is missing among the rows")
    return changes


def _of_pairs(task: Task) -> bool:
    """Whether a row's score is that of two texts that stand one after the other."""
    return task.output_mode == "embedding" and task.labelled


def _row(task: Task, example: Example, examples: Sequence[Example], place: int) -> Row:
    texts = [example.text_a, *([] if example.text_b is None else [example.text_b])]
    if _of_pairs(task):
        texts.append(examples[2 * place + 1].text_a)
    label = example.label
    words = None if label is None else _label_words(label)
    return Row(readable(example.guid), tuple(readable(text) for text in texts), words)


def _label_words(label: str | float | tuple[str, ...]) -> str:
    if isinstance(label, tuple):
        return _set_words(label)
    return label if isinstance(label, str) else f"{label:g}"


def _set_words(labels: Sequence[str]) -> str:
    return ", ".join(labels) or _NO_LABEL


def readable(text: str) -> str:
    """A text that any page can show: not too long, and without characters that no text has."""
    cut = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rstrip() + " …"
    cut = "".join(c if c.isprintable() or c.isspace() or ord(c) > 0x9F else "\ufffd" for c in cut)
    return cut.encode("utf-8", "replace").decode("utf-8")


def _changes(task: Task, teacher: Evaluation, variant: Evaluation, most_rows: int) -> VariantChanges:
    if task.output_mode == "classification":
        return _changed_labels(task, teacher, variant, most_rows)
    if task.output_mode == "multi_label":
        return _changed_sets(task, teacher, variant, most_rows)
    return _changed_scores(task, teacher, variant, most_rows)


def _changed_labels(task: Task, teacher: Evaluation, variant: Evaluation, most_rows: int) -> VariantChanges:
    from scipy.special import softmax

    ours, theirs = variant.predictions, teacher.predictions
    every = np.arange(len(ours))
    own = softmax(variant.logits.astype(np.float64), axis=1)[every, ours]
    of_teacher = softmax(teacher.logits.astype(np.float64), axis=1)[every, theirs]
    places = np.flatnonzero(ours != theirs)
    listed = [
        ChangedRow(
            str(place),
            task.labels[theirs[place]],
            task.labels[ours[place]],
            float(of_teacher[place]),
            float(own[place]),
            right=_right(task, theirs[place] == teacher.truth[place], ours[place] == teacher.truth[place]),
        )
        for place in _surest(places, np.minimum(own, of_teacher), most_rows)
    ]
    cells = Counter(zip(theirs.tolist(), ours.tolist(), strict=True))
    return VariantChanges(
        len(places),
        *_turned(task, theirs == teacher.truth, ours == teacher.truth),
        tuple(listed),
        confusion=tuple(Cell(task.labels[a], task.labels[b], n) for (a, b), n in sorted(cells.items())),
    )


def _changed_sets(task: Task, teacher: Evaluation, variant: Evaluation, most_rows: int) -> VariantChanges:
    from scipy.special import expit

    ours, theirs = variant.predictions.astype(bool), teacher.predictions.astype(bool)
    own, of_teacher = (expit(each.logits.astype(np.float64)) for each in (variant, teacher))
    # How far both are from the threshold, on its two sides.
    sure = np.where(
        ours != theirs,
        np.minimum(np.abs(own - task.threshold), np.abs(of_teacher - task.threshold)),
        -1.0,
    )
    places, clearest = np.flatnonzero((ours != theirs).any(axis=1)), sure.argmax(axis=1)
    truth = teacher.truth.astype(bool)
    teacher_right, own_right = ((each == truth).all(axis=1) for each in (theirs, ours))
    listed = [
        ChangedRow(
            str(place),
            _set_words([task.labels[i] for i in np.flatnonzero(theirs[place])]),
            _set_words([task.labels[i] for i in np.flatnonzero(ours[place])]),
            float(of_teacher[place, clearest[place]]),
            float(own[place, clearest[place]]),
            of=task.labels[clearest[place]],
            right=_right(task, teacher_right[place], own_right[place]),
        )
        for place in _surest(places, sure.max(axis=1), most_rows)
    ]
    counts = [(theirs & ours), (theirs & ~ours), (~theirs & ours)]
    sums = np.stack([each.sum(axis=0) for each in counts], axis=1).tolist()
    return VariantChanges(
        len(places),
        *_turned(task, teacher_right, own_right),
        tuple(listed),
        labels=tuple(LabelCounts(label, *row) for label, row in zip(task.labels, sums, strict=True)),
    )


def _changed_scores(task: Task, teacher: Evaluation, variant: Evaluation, most_rows: int) -> VariantChanges:
    own = variant.predictions.astype(np.float64)
    scored = task.output_mode == "regression" or task.labelled
    # Texts without scores are judged by the cosine with the teacher's embedding, which is 1 for the teacher.
    theirs = predictions_of(task, teacher.logits, teacher.logits).astype(np.float64)
    change = np.abs(own - theirs)
    listed = [
        ChangedRow(str(place), "", "", float(theirs[place]) if scored else None, float(own[place]))
        for place in _surest(np.flatnonzero(change > 0), change, most_rows)
    ]
    return VariantChanges(None, None, None, tuple(listed))


def _surest(places: Array, sure: FloatArray, most_rows: int) -> Iterator[int]:
    """The places, the surest first; those that are equally sure in their order."""
    order = places[np.argsort(-sure[places], kind="stable")]
    return iter(order[:most_rows].tolist())


def _right(task: Task, teacher: bool, variant: bool) -> str:
    if not task.labelled:
        return ""
    return "teacher" if teacher else "variant" if variant else "neither"


def _turned(task: Task, teacher_right: Array, own_right: Array) -> tuple[int | None, int | None]:
    """Rows that became right, and rows that became wrong."""
    if not task.labelled:
        return None, None
    return int((own_right & ~teacher_right).sum()), int((teacher_right & ~own_right).sum())
