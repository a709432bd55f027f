"""What one gate run measured. A baseline is such a record, kept as a file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from quantlib.compression.variants import TEACHER, VariantName
from quantlib.data.features import indicators
from quantlib.data.metrics import SCORE_MODES
from quantlib.data.scoring import Scoring
from quantlib.data.tasks import TASKS
from quantlib.support.errors import InputError

# Keys that would name a machine instead of describing it; a baseline is committed for everyone to read.
_MACHINE_NAMES = frozenset({"node", "host", "hostname", "fqdn", "user", "ip"})

Row = float | tuple[int, ...]
"""What a row is labelled with: a class index, a score, or rising class indices for multi_label."""


@dataclass(frozen=True)
class VariantRecord:
    """Accuracy and size of one variant.

    metrics: fractions by name, the primary one first. eval_loss: cross-entropy in nats, or MSE; None where
    rows have no labels, and for embeddings. accuracy_drop: teacher minus variant in the primary metric, as a
    fraction. predictions: for each row; scores are rounded to 6 significant digits. size_bytes: external data
    included. compression_ratio: the teacher's bytes over the variant's. quantized_share: see
    `quantlib.onnx_model.coverage`; None for a float model. op_counts: nodes by operator type. recipe: its
    fields, None for a float model. sha256: of the model file, empty where a baseline is older than this
    field.
    """

    metrics: Mapping[str, float]
    eval_loss: float | None
    accuracy_drop: float
    predictions: tuple[Row, ...]
    size_bytes: int
    compression_ratio: float
    quantized_share: float | None
    op_counts: Mapping[str, int]
    recipe: Mapping[str, Any] | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.sha256 and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 {self.sha256!r} must be 64 hexadecimal digits")
        share = () if self.quantized_share is None else (self.quantized_share,)
        loss = () if self.eval_loss is None else (self.eval_loss,)
        scores = [row for row in self.predictions if not isinstance(row, tuple)]
        values = (*self.metrics.values(), *loss, self.accuracy_drop, self.compression_ratio, *share, *scores)
        if not all(math.isfinite(value) for value in values):
            raise ValueError("metrics, loss, drop, ratio and predictions must be finite")
        if not self.metrics or self.size_bytes < 1 or self.compression_ratio <= 0:
            raise ValueError("a metric, a size and a compression ratio above 0 are needed")
        if share and not 0 <= share[0] <= 1:
            raise ValueError(f"quantized_share {share[0]} must lie between 0 and 1")

    @property
    def score(self) -> float:
        """The primary metric."""
        return next(iter(self.metrics.values()))


@dataclass(frozen=True)
class LatencyRecord:
    """One variant's times at one shape, beside the teacher's.

    launches: for each launch of the processes, the log of (teacher's time / variant's time) of each turn, at
    least two. teacher_ms, variant_ms: medians, for information only: they drift with the machine. others: the
    share of the machine that other programs used meanwhile. disturbed: whether that was too much for the
    ratios to mean anything.
    """

    launches: tuple[tuple[float, ...], ...]
    teacher_ms: float
    variant_ms: float
    others: float = 0.0
    disturbed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.others < math.inf:
            raise ValueError(f"others {self.others} must be a share")
        if not self.launches or min(map(len, self.launches)) < 2:
            raise ValueError("latency needs a launch, and two turns in each")
        if not all(math.isfinite(value) for launch in self.launches for value in launch):
            raise ValueError("log ratios must be finite")
        if not (0 < self.teacher_ms < math.inf and 0 < self.variant_ms < math.inf):
            raise ValueError("teacher_ms and variant_ms must be positive and finite")


@dataclass(frozen=True)
class Origin:
    """What else latencies and models come from, so that a later run can compare with it or make it again.

    session: the options of timed sessions. worker: the SHA-256 of the code of the process that times.
    commit: of the checkout that the code ran from, empty outside of one; changed: whether the code differed
    from it. arguments: the options that decide which models are made, by field name, where they are not the
    defaults; paths in the checkout are relative to its root. engines: of the engines beside the default one
    the version and the options of sessions, by name; empty in a baseline that is older than it.
    """

    session: Mapping[str, Any]
    worker: str
    commit: str
    changed: bool
    arguments: Mapping[str, Any]
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.commit and not re.fullmatch("[0-9a-f]{40,64}", self.commit):
            raise ValueError(f"commit {self.commit!r} must be 40 or 64 hexadecimal digits")


@dataclass(frozen=True)
class GateRecord:
    """One gate run.

    task: its name. data_hash: of all rows. labels: of the evaluation rows; empty for a task without labels.
    machine: what latencies depend on, without a host name. settings: lengths, seeds and the like. variants:
    by name, the teacher first. latency: by variant and shape ("1x128"). origin: None in a baseline that is
    older than it. scoring: what the task's predictions are judged by; None in a baseline that is older than
    it, whose task is one of `TASKS`: `judged_by` says it then too.
    """

    task: str
    data_hash: str
    labels: tuple[Row, ...]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    variants: Mapping[str, VariantRecord]
    latency: Mapping[str, Mapping[str, LatencyRecord]] = field(default_factory=dict)
    origin: Origin | None = None
    scoring: Scoring | None = None

    def __post_init__(self) -> None:
        if self.scoring is None and self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}; others need a scoring")
        named = sorted(_MACHINE_NAMES & set(self.machine))
        if named:
            raise ValueError(f"machine must not name the machine: {', '.join(named)}")
        if self.variants and next(iter(self.variants)) != TEACHER:
            raise ValueError(f"the first variant must be {TEACHER!r}, not {next(iter(self.variants))!r}")
        unknown = sorted(set(self.latency) - set(self.variants))
        if unknown:
            raise ValueError(f"latency of variants that are not there: {', '.join(unknown)}")
        if self.labels and not self.judged_by.labelled:
            raise ValueError(f"labels of {self.task}, a task without labels")
        _check_rows("labels", self.judged_by, self.labels)
        for name, variant in self.variants.items():
            self._check_variant(name, variant)

    @property
    def judged_by(self) -> Scoring:
        """What the task's predictions are judged by."""
        return TASKS[self.task].scoring if self.scoring is None else self.scoring

    @property
    def truth(self) -> tuple[Row, ...]:
        """The labels; for a task without labels the teacher's predictions."""
        return self.labels if self.judged_by.labelled else self.variants[TEACHER].predictions

    def _check_variant(self, name: str, variant: VariantRecord) -> None:
        try:
            VariantName.parse(name)
        except InputError as error:
            raise ValueError(f"variants: {error}") from error
        primary = self.judged_by.primary_metric
        if next(iter(variant.metrics)) != primary:
            raise ValueError(f"{name}: the first metric must be {primary}, the primary one of {self.task}")
        if len(variant.predictions) != len(self.truth):
            raise ValueError(f"{name}: {len(variant.predictions)} predictions for {len(self.truth)} labels")
        has_loss = self.judged_by.labelled and self.judged_by.output_mode != "embedding"
        if (variant.eval_loss is None) == has_loss:
            raise ValueError(
                f"{name}: eval_loss {variant.eval_loss}; without labels it is null, else a number"
            )
        _check_rows(f"{name}: predictions", self.judged_by, variant.predictions)
        drop = self.variants[TEACHER].score - variant.score
        if abs(drop - variant.accuracy_drop) > 1e-9:
            raise ValueError(f"{name}: accuracy_drop is {variant.accuracy_drop}, the scores differ by {drop}")


def _check_rows(what: str, scoring: Scoring, values: tuple[Row, ...]) -> None:
    count = scoring.num_labels
    wanted = {
        "classification": f"a class index below {count}",
        "multi_label": f"rising class indices below {count}",
        "regression": "a finite score",
        "embedding": "a finite cosine",
    }[scoring.output_mode]
    for row, value in enumerate(values, start=1):
        if not _fits(scoring, value):
            raise ValueError(f"{what}: row {row} must be {wanted}, not {value}")


def _fits(scoring: Scoring, value: Row) -> bool:
    if scoring.output_mode == "multi_label":
        return (
            isinstance(value, tuple)
            and list(value) == sorted(set(value))
            and all(index in range(scoring.num_labels) for index in value)
        )
    if isinstance(value, tuple) or not math.isfinite(value):
        return False
    return scoring.output_mode in SCORE_MODES or value in range(scoring.num_labels)


def recorded_predictions(scoring: Scoring, predictions: npt.NDArray[Any]) -> tuple[Row, ...]:
    """Predictions in the form of `quantlib.data.scores.predictions_of`, as a record keeps them."""
    if scoring.output_mode == "multi_label":
        return tuple(tuple(np.flatnonzero(row).tolist()) for row in predictions)
    return tuple(float(f"{value:.6g}") for value in predictions)


def recorded_array(scoring: Scoring, rows: Sequence[Row]) -> npt.NDArray[Any]:
    """The reverse, of labels too: int64 or float64 (rows,); 0 and 1, int8 (rows, labels), for multi_label."""
    if scoring.output_mode != "multi_label":
        return np.asarray(rows, dtype=np.float64 if scoring.output_mode in SCORE_MODES else np.int64)
    return indicators(cast(Sequence[tuple[int, ...]], rows), scoring.num_labels)


def machine_differences(current: GateRecord, baseline: GateRecord) -> list[str]:
    """The differences between the machines of two records, for example `threads: 2, baseline 4`."""
    return differences(current.machine, baseline.machine)


def settings_differences(current: GateRecord, baseline: GateRecord) -> list[str]:
    """The differences between the settings of two records, in the same form."""
    return differences(current.settings, baseline.settings)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The keys whose values differ, with both values in words."""
    both = {key: (_words(ours, key), _words(theirs, key)) for key in [*ours, *theirs]}
    return [f"{key}: {our}, baseline {their}" for key, (our, their) in both.items() if our != their]


def _words(values: Mapping[str, Any], key: str) -> str:
    """A value in words; lists and tuples alike, since JSON knows no tuples."""
    if key not in values:
        return "not recorded"
    value = values[key]
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def check_comparable(current: GateRecord, baseline: GateRecord) -> None:
    """Raise `InputError` if the baseline is of another task, judged otherwise, or of other rows."""
    if current.task != baseline.task:
        raise InputError(f"the baseline is of task {baseline.task}, this run of {current.task}")
    # The primary metric alone is compared.
    ours, theirs = (
        asdict(each.judged_by) | {"metrics": each.judged_by.primary_metric} for each in (current, baseline)
    )
    otherwise = differences(ours, theirs)
    if otherwise:
        raise InputError(
            f"{current.task} was judged otherwise in the baseline ({'; '.join(otherwise)}); make a new one: "
            "--gate-update"
        )
    if current.data_hash != baseline.data_hash or current.labels != baseline.labels:
        raise InputError(
            f"the baseline was made on other rows of {current.task} (data {baseline.data_hash[:12]}, "
            f"this run {current.data_hash[:12]}); make a new one: --gate-update"
        )
