"""Look at a user's rows and checkpoint before a run: write the configuration, and say what a run would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.compression.variants import STUDENT, TEACHER
from quantlib.data import features, tasks
from quantlib.data.tables import Table, read_table
from quantlib.data.tasks.own import label_column, text_columns
from quantlib.data.text import collapsed
from quantlib.experiment import given_models
from quantlib.experiment.options import ExperimentOptions, variant_names
from quantlib.experiment.rows import read_rows
from quantlib.experiment.work import is_onnx
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.measuring.profile.peak import measure_peak
from quantlib.support.configuration import FILE
from quantlib.support.errors import InputError
from quantlib.support.files import write_text
from quantlib.support.progress import Steps
from quantlib.training import checkpoints

if TYPE_CHECKING:
    pass

# Names of files beside the evaluation rows that a run can use.
_TRAIN, _CALIBRATION = ("train", "training"), ("calibration", "unlabelled", "unlabeled")
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# Of a MiniLM-like encoder, where no checkpoint says it: layers, width, width of the FFN.
_DEFAULT_SHAPE = (6, 384, 1536)


@dataclass(frozen=True)
class Proposal:
    """A configuration file that was written, and what it rests on.

    notes: what was found out, in sentences. open: what the user has to fill in, in sentences.
    """

    path: Path
    text: str
    notes: tuple[str, ...]
    open: tuple[str, ...]


def propose(
    data: str, teacher: str | None, path: Path, *, label: str | None, text: Sequence[str], name: str | None
) -> Proposal:
    """Write a configuration file for rows and a checkpoint.

    Args:
        data: the evaluation rows; train and calibration rows are looked for beside them.
        teacher: a checkpoint or an ONNX file; None to fine-tune the packaged MiniLM.
        path: the file to write.
        label: the column with labels; None for a usual name.
        text: the columns with texts; empty for usual names.
        name: of the task; None for the data's.

    Raises:
        InputError: the file is there already, or rows or checkpoint cannot be used.
    """
    if path.exists():
        raise InputError(f"{path}: is there already; remove it, or name another file (--config FILE)")
    table = read_table(data)
    model = None if teacher is None else given_models.labels_of(given_models.resolve(teacher, TEACHER))
    label = label or label_column(table) or _column_of_labels(table, model)
    if label is not None:
        table.column(label)
    columns = tuple(text) or _columns_of_texts(table, label)
    beside = {key: _beside(data, names) for key, names in (("train", _TRAIN), ("calibration", _CALIBRATION))}
    found: dict[str, Any] = {
        "name": name or tasks.name_of(data),
        "evaluation": data,
        **{key: str(file) for key, file in beside.items() if file is not None},
        "text": columns,
        **({} if label is None else {"label": label}),
    }
    notes = [f"{key} rows: {file}" for key, file in beside.items() if file is not None]
    notes.append(
        "no column of labels: agreement with the teacher is what is judged"
        if label is None
        else f"labels: {label}"
    )
    unsettled: list[str] = []
    try:
        rows = tasks.read_own_task(tasks.OwnTask(**found), model)
    except tasks.LabelMismatch as error:
        unsettled.append(str(error))
        mapping = dict.fromkeys(error.labels, "")
    else:
        mapping = {}
        notes += rows.notes
        found |= {"kind": rows.task.output_mode, "metrics": rows.task.metrics}
    document = _document(found, teacher, mapping, None if model is None else model.words(), path)
    write_text(path, document)
    return Proposal(path, document, tuple(notes), tuple(unsettled))


def _column_of_labels(table: Table, model: tasks.ModelLabels | None) -> str | None:
    """The only column whose values are all names of the model's labels; None where there is none."""
    if model is None or model.are_generic:
        return None
    fitting = []
    for name, cells in table.cells.items():
        words = {cell for cell in cells if isinstance(cell, str)}
        if len(words) in range(1, model.count + 1) and len(words) == len(set(map(str, cells))):
            with suppress(InputError):
                tasks.label_order(sorted(words), {}, model)
                fitting.append(name)
    return fitting[0] if len(fitting) == 1 else None


def _columns_of_texts(table: Table, label: str | None) -> tuple[str, ...]:
    """The columns with usual names; else the one with the longest texts."""
    try:
        return text_columns(table, label)
    except InputError:
        letters = {
            name: sum(len(cell) for cell in cells if isinstance(cell, str))
            for name, cells in table.cells.items()
            if name != label
        }
        longest = max(letters, key=lambda name: letters[name], default=None)
        if longest is None or not letters[longest]:
            raise
        return (longest,)


def _beside(data: str, names: Sequence[str]) -> Path | None:
    """The first file beside the data with one of these names and a known suffix."""
    path = Path(data)
    if not path.is_file():
        return None
    suffixes = dict.fromkeys((path.suffix.lower(), *_SUFFIXES))
    candidates = (path.with_name(name + suffix) for name in names for suffix in suffixes)
    return next((file for file in candidates if file.is_file() and file != path), None)


def _document(
    found: Mapping[str, Any], teacher: str | None, mapping: Mapping[str, str], names: str | None, path: Path
) -> str:
    import tomlkit

    document = tomlkit.document()
    document.add(tomlkit.comment("What `quantlib run`, `quantlib check` and `quantlib gate` work on."))
    document.add(
        tomlkit.comment(
            "Every key is also an option of the command; `quantlib run --help-all` explains them."
        )
    )
    document.add(tomlkit.nl())
    task = tomlkit.table()
    for key, value in found.items():
        is_place = key in ("evaluation", "train", "calibration")
        task.add(
            key, _relative(value, path) if is_place else list(value) if isinstance(value, tuple) else value
        )
    document.add("task", task)
    if mapping:
        labels = tomlkit.table()
        labels.comment(f"label of the rows = name in the checkpoint, one of {names}")
        for word in mapping:
            labels.add(word, "")
        task.add("labels", labels)
    if teacher is not None:
        models = tomlkit.table()
        models.add("teacher", _relative(teacher, path))
        document.add("models", models)
    limits = tomlkit.table()
    limits.add("max_drop_points", 0.5)
    document.add("limits", limits)
    return tomlkit.dumps(document)


def _relative(value: str, path: Path) -> str:
    """A path as it is written in a file: relative to it, if it lies below."""
    place, root = Path(value).absolute(), path.absolute().parent
    return place.relative_to(root).as_posix() if place.exists() and place.is_relative_to(root) else value


# Check


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows, special tokens included, before anything is cut. truncated: rows that are cut."""

    median: int
    p95: int
    longest: int
    truncated: int


@dataclass(frozen=True)
class Report:
    """What a run would read and do.

    rows: by part. labels: rows by label and part. names: {label: name in the checkpoint}. duplicates: rows
    of evaluation whose texts occurred before. variants: by name. seconds: about how long a run takes here
    with nothing cached, by what it does.
    """

    task: str
    kind: str
    metrics: tuple[str, ...]
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    names: Mapping[str, str]
    lengths: Lengths
    duplicates: int
    notes: tuple[str, ...]
    variants: tuple[str, ...]
    seconds: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return asdict(self)


def inspect(options: ExperimentOptions, steps: Steps) -> Report:
    """Read and check everything that a run needs, and make nothing.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    teacher = None if options.teacher is None else given_models.resolve(options.teacher, TEACHER)
    model = None if teacher is None else given_models.labels_of(teacher)
    rows = read_rows(
        options, None if options.own_task is None else model, steps, train_rows=options.train_rows
    )
    for name in options.students:
        given_models.check_for_task(given_models.resolve(name, STUDENT), rows.task, options.seq_len)
    if teacher is not None:
        given_models.check_for_task(teacher, rows.task, options.seq_len)
    base = teacher or checkpoints.packaged_minilm()
    parts = rows.splits.parts()
    evaluation = rows.splits.evaluation
    tokens = _tokens(base, evaluation)
    return Report(
        task=rows.task.name,
        kind=rows.task.output_mode,
        metrics=rows.task.metrics,
        rows={name: len(part) for name, part in parts.items()},
        labels=_label_counts(rows.task, parts),
        names=_names(rows.task, teacher),
        lengths=_lengths(tokens, options.seq_len),
        duplicates=len(evaluation)
        - len({(collapsed(e.text_a), collapsed(e.text_b or "")) for e in evaluation}),
        notes=rows.notes,
        variants=variant_names(options),
        seconds=_seconds(options, base, rows.splits, np.minimum(tokens, options.seq_len)),
    )


def _tokens(model: Path, rows: Sequence[tasks.Example]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tokens of each row, uncut."""
    tokenizer = features.load_tokenizer(model.parent if is_onnx(model) else model)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch([e.text_a if e.text_b is None else (e.text_a, e.text_b) for e in rows])
    return np.array([len(row.ids) for row in encoded], dtype=np.int64)


def _lengths(tokens: np.ndarray[Any, np.dtype[np.int64]], seq_len: int) -> Lengths:
    median, p95 = np.percentile(tokens, [50, 95])
    return Lengths(round(median), round(p95), int(tokens.max()), int((tokens > seq_len).sum()))


def _label_counts(
    task: tasks.Task, parts: Mapping[str, Sequence[tasks.Example]]
) -> dict[str, dict[str, int]]:
    """Rows by label and part; nothing for scores, and for rows without labels."""
    if not task.labels or not task.labelled:
        return {}
    counts = {
        name: Counter(word for row in part for word in _words(row.label))
        for name, part in parts.items()
        if part
    }
    return {
        label: {name: count[label] for name, count in counts.items() if sum(count.values())}
        for label in task.labels
    }


def _words(label: object) -> Iterator[str]:
    if isinstance(label, tuple):
        yield from label
    elif isinstance(label, str):
        yield label


def _names(task: tasks.Task, teacher: Path | None) -> dict[str, str]:
    if teacher is None or not task.labels:
        return {}
    model = given_models.labels_of(teacher)
    if not model.names:
        return {}
    order = list(range(model.count)) if is_onnx(teacher) else checkpoints.check_for_task(teacher, task)
    return {label: model.names[place] for label, place in zip(task.labels, order, strict=True)}


def _seconds(
    options: ExperimentOptions,
    base: Path,
    splits: tasks.Splits,
    tokens: np.ndarray[Any, np.dtype[np.int64]],
) -> dict[str, float]:
    """About how long each part of a run takes, from the operations of an encoder and this machine's speed."""
    layers, width, ffn = _shape(base)
    per_token = 2 * layers * (4 * width * width + 2 * width * ffn)
    rate = _operations_per_second()
    forward = per_token * float(tokens.mean()) / rate  # a row, in float32
    calibration = min(len(splits.calibration), options.calibration_samples)
    variants = variant_names(options)
    seconds = {}
    if options.teacher is None:
        seconds["fine-tune the teacher"] = 9 * forward * len(splits.train)
    if options.trains_student:
        seconds["train a student"] = 9 * forward * len(splits.train)
    seconds["calibrate and smooth"] = 8 * forward * calibration
    seconds["evaluate and check"] = 0.8 * forward * (len(splits.evaluation) + 100) * len(variants)
    seconds["time"] = 2 * min(options.timing_seconds, 30.0)
    return {name: round(value, 1) for name, value in seconds.items()}


def _shape(base: Path) -> tuple[int, int, int]:
    directory = base.parent if is_onnx(base) else base
    if not (directory / "config.json").is_file():
        return _DEFAULT_SHAPE
    config = checkpoints.read_config(directory)
    layers = config.get("num_hidden_layers", config.get("n_layers", _DEFAULT_SHAPE[0]))
    width = config.get("hidden_size", config.get("dim", _DEFAULT_SHAPE[1]))
    return layers, width, config.get("intermediate_size", config.get("hidden_dim", 4 * width))


def _operations_per_second() -> float:
    """Of a model's products in float32, on all cores: some two thirds of the machine's peak."""
    return 0.65e9 * measure_peak(SessionConfig(default_threads())).float_gops


def default_path() -> Path:
    """Where a configuration file is written if no place is named."""
    return Path(FILE)
