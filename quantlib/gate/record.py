"""What one gate run measured. A baseline is such a record, kept as a file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantlib.compression.variants import TEACHER, VariantName
from quantlib.data.tasks import TASKS
from quantlib.support.errors import InputError

# Keys that would name a machine instead of describing it; a baseline is committed for everyone to read.
_MACHINE_NAMES = frozenset({"node", "host", "hostname", "fqdn", "user", "ip"})


@dataclass(frozen=True)
class VariantRecord:
    """Accuracy and size of one variant.

    metrics: fractions by name, the primary one first. eval_loss: cross-entropy in nats, or MSE.
    accuracy_drop: teacher minus variant in the primary metric, as a fraction. predictions: a class index per
    row, or a score rounded to 6 significant digits. size_bytes: external data included. compression_ratio:
    the teacher's bytes over the variant's. quantized_share: see `quantlib.onnx_model.coverage`; None for
    a float model.
    op_counts: nodes by operator type. recipe: its fields, None for a float model. sha256: of the model file,
    empty where a baseline is older than this field.
    """

    metrics: Mapping[str, float]
    eval_loss: float
    accuracy_drop: float
    predictions: tuple[float, ...]
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
        values = (*self.metrics.values(), self.eval_loss, self.accuracy_drop, self.compression_ratio, *share)
        if not all(math.isfinite(value) for value in (*values, *self.predictions)):
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
    defaults; paths in the checkout are relative to its root.
    """

    session: Mapping[str, Any]
    worker: str
    commit: str
    changed: bool
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.commit and not re.fullmatch("[0-9a-f]{40,64}", self.commit):
            raise ValueError(f"commit {self.commit!r} must be 40 or 64 hexadecimal digits")


@dataclass(frozen=True)
class GateRecord:
    """One gate run.

    task: a name in `TASKS`. data_hash: of all rows. labels: of the evaluation rows, class indices or scores.
    machine: what latencies depend on, without a host name. settings: lengths, seeds and the like. variants:
    by name, the teacher first. latency: by variant and shape ("1x128"). origin: None in a baseline that is
    older than it.
    """

    task: str
    data_hash: str
    labels: tuple[float, ...]
    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    variants: Mapping[str, VariantRecord]
    latency: Mapping[str, Mapping[str, LatencyRecord]] = field(default_factory=dict)
    origin: Origin | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}")
        named = sorted(_MACHINE_NAMES & set(self.machine))
        if named:
            raise ValueError(f"machine must not name the machine: {', '.join(named)}")
        if self.variants and next(iter(self.variants)) != TEACHER:
            raise ValueError(f"the first variant must be {TEACHER!r}, not {next(iter(self.variants))!r}")
        unknown = sorted(set(self.latency) - set(self.variants))
        if unknown:
            raise ValueError(f"latency of variants that are not there: {', '.join(unknown)}")
        _check_rows("labels", self.task, self.labels)
        for name, variant in self.variants.items():
            self._check_variant(name, variant)

    def _check_variant(self, name: str, variant: VariantRecord) -> None:
        try:
            VariantName.parse(name)
        except InputError as error:
            raise ValueError(f"variants: {error}") from error
        primary = TASKS[self.task].primary_metric
        if next(iter(variant.metrics)) != primary:
            raise ValueError(f"{name}: the first metric must be {primary}, the primary one of {self.task}")
        if len(variant.predictions) != len(self.labels):
            raise ValueError(f"{name}: {len(variant.predictions)} predictions for {len(self.labels)} labels")
        _check_rows(f"{name}: predictions", self.task, variant.predictions)
        drop = self.variants[TEACHER].score - variant.score
        if abs(drop - variant.accuracy_drop) > 1e-9:
            raise ValueError(f"{name}: accuracy_drop is {variant.accuracy_drop}, the scores differ by {drop}")


def _check_rows(what: str, task: str, values: tuple[float, ...]) -> None:
    classes = len(TASKS[task].labels)
    for row, value in enumerate(values, start=1):
        if not math.isfinite(value) or (classes and value not in range(classes)):
            wanted = f"a class index below {classes}" if classes else "a finite score"
            raise ValueError(f"{what}: row {row} must be {wanted}, not {value}")


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
    """Raise `InputError` if the baseline is of another task or of other rows."""
    if current.task != baseline.task:
        raise InputError(f"the baseline is of task {baseline.task}, this run of {current.task}")
    if current.data_hash != baseline.data_hash or current.labels != baseline.labels:
        raise InputError(
            f"the baseline was made on other rows of {current.task} (data {baseline.data_hash[:12]}, "
            f"this run {current.data_hash[:12]}); make a new one: pytest bench --gate-update"
        )
