"""The rows of a task, in four parts that share no row; the same rows always land in the same part.

The sizes of calibration and validation are no options: a cached teacher must not change because the number of
calibration samples does. Ranges must not come from rows that the teacher was trained on, and a budget is
verified on rows that nothing was chosen on.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from quantlib.data.text import collapsed
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json

# Not the user's seed: a score must always be a score on the same rows.
SPLIT_SEED = 20191206
CALIBRATION_ROWS = 512
VALIDATION_ROWS = 512
# Below this a part of the train file (a quarter, an eighth) would be empty.
MIN_TRAIN_ROWS = 8

Label = str | float | tuple[str, ...] | None
"""What a row is labelled with: see `Example`."""


@dataclass(frozen=True)
class Example:
    """One row.

    `guid` names it for good: split and row number, counted from 1 without the header ("dev-17"); in BBC-News
    label and file ("tech-017"). `label` is the label's word for classification, the score for regression, the
    words of all labels for multi_label, in the order of the task's; None where rows have no labels.
    """

    guid: str
    text_a: str
    text_b: str | None
    label: Label

    def __post_init__(self) -> None:
        if isinstance(self.label, float | int) and not math.isfinite(self.label):
            raise ValueError(f"{self.guid}: a score must be a finite number, not {self.label}")


@dataclass(frozen=True)
class Splits:
    """The rows of a task in four parts that share no row."""

    train: tuple[Example, ...]
    calibration: tuple[Example, ...]
    validation: tuple[Example, ...]
    evaluation: tuple[Example, ...]

    def __post_init__(self) -> None:
        guids = [example.guid for part in self.parts().values() for example in part]
        if len(set(guids)) < len(guids):
            guid, count = Counter(guids).most_common(1)[0]
            raise ValueError(f"row {guid} is there {count} times; parts share no row")

    def parts(self) -> dict[str, tuple[Example, ...]]:
        """The parts by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def split_train(train: Sequence[Example], evaluation: Sequence[Example], source: str) -> Splits:
    """Splits where evaluation rows are given: calibration and validation come out of the train rows.

    Train rows whose texts occur in evaluation too are dropped; the rest is shuffled, then the first 512 (at
    most a quarter) are calibration, the next 512 (at most an eighth) validation, and what remains is train.

    Args:
        train: the rows of the train file.
        evaluation: the rows of the evaluation file, whose order stays.
        source: where they come from, for the message.

    Raises:
        InputError: too few train rows.
    """
    held_out = {texts_of_row(example) for example in evaluation}
    rows = shuffled([example for example in train if texts_of_row(example) not in held_out])
    if len(rows) < MIN_TRAIN_ROWS:
        raise InputError(
            f"{source}: {len(rows)} train rows that are not in the evaluation file too; "
            f"at least {MIN_TRAIN_ROWS} are needed for train, calibration and validation"
        )
    first = min(CALIBRATION_ROWS, len(rows) // 4)
    second = first + min(VALIDATION_ROWS, len(rows) // 8)
    return Splits(tuple(rows[second:]), tuple(rows[:first]), tuple(rows[first:second]), tuple(evaluation))


def set_aside(evaluation: Sequence[Example], source: str) -> Splits:
    """Splits where evaluation rows are all there is: a quarter of them, at most 512, become calibration rows.

    They are drawn at random and leave evaluation, whose order stays otherwise; so do rows with their texts.

    Args:
        evaluation: the rows.
        source: where they come from, for the message.

    Raises:
        InputError: too few rows.
    """
    count = min(CALIBRATION_ROWS, len(evaluation) // 4)
    if not count:
        raise InputError(
            f"{source}: {len(evaluation)} rows, of which none can be set aside to calibrate on; at least 4 "
            "are needed, or calibration rows of their own"
        )
    chosen = shuffled(evaluation)[:count]
    # By their texts, so that a row that occurs twice is not on both sides.
    texts = {texts_of_row(example) for example in chosen}
    rest = tuple(example for example in evaluation if texts_of_row(example) not in texts)
    if not rest:
        raise InputError(f"{source}: all rows have the same texts; none is left to evaluate on")
    return Splits((), tuple(chosen), (), rest)


def in_evaluation(rows: Sequence[Example], evaluation: Sequence[Example]) -> int:
    """How many rows have the texts of an evaluation row."""
    held_out = {texts_of_row(example) for example in evaluation}
    return sum(texts_of_row(example) in held_out for example in rows)


def with_calibration(splits: Splits, calibration: Sequence[Example]) -> Splits:
    """The same splits with these calibration rows, without those whose texts are in evaluation or validation.

    They are shuffled, as a file may be sorted; those that `split_train` has set aside go back to train.
    """
    held_out = {texts_of_row(example) for example in (*splits.evaluation, *splits.validation)}
    kept = tuple(shuffled([example for example in calibration if texts_of_row(example) not in held_out]))
    return replace(splits, train=splits.train + splits.calibration, calibration=kept)


def split_all(examples: Sequence[Example], validation: int, evaluation: int, source: str) -> Splits:
    """Splits of one collection of rows, shuffled: calibration, validation, train, evaluation.

    Args:
        examples: all rows.
        validation: rows of that part.
        evaluation: rows of that part.
        source: where they come from, for the message.

    Raises:
        InputError: none would be left for train.
    """
    second = CALIBRATION_ROWS + validation
    if len(examples) <= second + evaluation:
        raise InputError(
            f"{source}: {len(examples)} different texts; more than {second + evaluation} are needed"
        )
    rows = shuffled(examples)
    return Splits(
        train=tuple(rows[second:-evaluation]),
        calibration=tuple(rows[:CALIBRATION_ROWS]),
        validation=tuple(rows[CALIBRATION_ROWS:second]),
        evaluation=tuple(rows[-evaluation:]),
    )


def parted(splits: Splits, source: str) -> Splits:
    """The same splits with a row for each text: a pair becomes two rows, one after the other, with its label.

    A text of evaluation is dropped from calibration.

    Args:
        splits: rows with one text or two.
        source: where they come from, for the message.

    Raises:
        InputError: no row is left to calibrate on.
    """

    def texts(rows: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(
            Example(f"{row.guid}-{which}", text, None, row.label) if row.text_b is not None else row
            for row in rows
            for which, text in (("a", row.text_a), ("b", row.text_b))
            if text is not None
        )

    parts = {name: texts(rows) for name, rows in splits.parts().items()}
    held_out = {texts_of_row(example) for example in parts["evaluation"]}
    kept = tuple(row for row in parts["calibration"] if texts_of_row(row) not in held_out)
    if parts["calibration"] and not kept:
        raise InputError(f"{source}: every text to calibrate on is in evaluation too; give other ones")
    return Splits(**(parts | {"calibration": kept}))


def limit_train(splits: Splits, train_rows: int) -> Splits:
    """The same splits with the first `train_rows` train rows only.

    Raises:
        InputError: there are fewer, or none would be kept.
    """
    if not 1 <= train_rows <= len(splits.train):
        raise InputError(
            f"train rows {train_rows}: there are {len(splits.train)}; 1 up to that many can be kept"
        )
    return replace(splits, train=splits.train[:train_rows])


def data_hash(splits: Splits) -> str:
    """The SHA-256 of all rows with their order and part, in hexadecimal."""
    rows = {
        name: [[row.guid, row.text_a, row.text_b, row.label] for row in part]
        for name, part in splits.parts().items()
    }
    return sha256_json(rows)


def shuffled(examples: Sequence[Example]) -> list[Example]:
    """The rows in an order that is random and always the same."""
    rows = list(examples)
    random.Random(SPLIT_SEED).shuffle(rows)
    return rows


def texts_of_row(example: Example) -> tuple[str, str]:
    """The texts of a row, as two rows are compared: white space does not count."""
    # SST-2's train file ends its phrases with a space, its dev file does not.
    return collapsed(example.text_a), collapsed(example.text_b or "")
