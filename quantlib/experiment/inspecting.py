"""What a run would read and do, before it does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.compression.variants import STUDENT, TEACHER
from quantlib.data import features, tasks
from quantlib.data.tasks.splits import texts_of_row
from quantlib.experiment import given_models
from quantlib.experiment.options import ExperimentOptions, variant_names
from quantlib.experiment.rows import read_rows
from quantlib.experiment.work import is_onnx
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.measuring.profile.peak import measure_peak
from quantlib.support.progress import Steps
from quantlib.training import checkpoints

# Of a MiniLM-like encoder, where no checkpoint says it: layers, width, width of the FFN.
_DEFAULT_SHAPE = (6, 384, 1536)


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
        own = options.own_task is not None
        given_models.check_for_task(teacher, rows.task, options.seq_len, gave_order=own)
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
        duplicates=len(evaluation) - len(set(map(texts_of_row, evaluation))),
        notes=rows.notes,
        variants=variant_names(options),
        seconds=_seconds(options, base, rows.splits, np.minimum(tokens, options.seq_len)),
    )


def _tokens(model: Path, rows: Sequence[tasks.Example]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tokens of each row, uncut."""
    tokenizer = features.load_tokenizer(model.parent if is_onnx(model) else model)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoded = features.encode_batch(tokenizer, [(e.text_a, e.text_b) for e in rows])
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


@cache
def _operations_per_second() -> float:
    """Of a model's products in float32, on all cores: some two thirds of the machine's peak."""
    return 0.65e9 * measure_peak(SessionConfig(default_threads())).float_gops
