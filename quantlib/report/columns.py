"""The result of a variant, and its columns: a row each, of which files, tables and documentation are made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from quantlib.data import scores
from quantlib.data.embeddings import cosines
from quantlib.data.metrics import AGREEMENT, MEAN_COSINE, WORST_COSINE, Array
from quantlib.data.tasks import Task
from quantlib.machine.engines import DEFAULT_ENGINE
from quantlib.measuring.accuracy import Evaluation
from quantlib.measuring.checks import Checks
from quantlib.measuring.latency.paired import PairedRatio
from quantlib.measuring.latency.speedup import EQUAL, Speedup
from quantlib.measuring.latency.stats import LatencyStats
from quantlib.measuring.throughput import Throughput
from quantlib.support.columns import Column, Value, fixed
from quantlib.support.console import red

BYTES_PER_MB = 2**20
METRIC_HELP = (
    "the task's metrics on the evaluation rows; the first one is primary; more is better, so errors of "
    "regression are negative, in the unit of the score"
)
# A drop of more points than this is red in the table.
_LARGE_DROP = 1.0


@dataclass(frozen=True)
class VariantResult:
    """What was measured of one variant, and of the teacher beside it; `values` gives its columns.

    metrics: the task's metrics by name, the primary one first. eval_loss: cross-entropy or MSE;
    None without labels. size_bytes: external data included. latency: None if it was not timed.
    agreement: see `quantlib.data.scores.agreement`; where it is a metric of the task, it is written as such.
    teacher: its result; None for the teacher itself.
    recipe: how it was quantized, None for a float model. task, evaluation: the predictions, if they are at
    hand. on_front: no other variant beats it. beaten_by: one that does. Neither is so until variants are
    compared. extra: further values, written after the columns. checks: what was checked, written last.
    engine: what runs it. report_only: it is shown to compare with, not to be shipped.
    """

    name: str
    metrics: Mapping[str, float]
    eval_loss: float | None
    size_bytes: int
    latency: LatencyStats | None = None
    throughput: Throughput | None = None
    agreement: float = 1.0
    teacher: VariantResult | None = field(default=None, repr=False)
    recipe: str | None = None
    task: Task | None = field(default=None, repr=False)
    evaluation: Evaluation | None = field(default=None, repr=False)
    on_front: bool = False
    beaten_by: str | None = None
    extra: Mapping[str, Value] = field(default_factory=dict)
    checks: Checks | None = None
    paired: Speedup | None = None
    throughput_ratio: PairedRatio | None = None
    engine: str = DEFAULT_ENGINE
    report_only: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.metrics or self.size_bytes < 1:
            raise ValueError(f"variant {self.name!r} needs a name, a metric and a size")
        if self.reference.primary_metric != self.primary_metric:
            raise ValueError(
                f"{self.name}: primary metric {self.primary_metric}, but the teacher's is "
                f"{self.reference.primary_metric}"
            )
        given = ["variant", *self.metrics, *(c.key for c in COLUMNS if c.when(self)), *self.extra]
        given += [] if self.checks is None else self.checks.values()
        clashes = sorted({key for key in given if given.count(key) > 1})
        if clashes:
            raise ValueError(f"{self.name}: names given twice: {', '.join(clashes)}")
        for key, value in self.values().items():
            if not isinstance(value, float | int | str | None):
                raise ValueError(f"{self.name}: {key} is a {type(value).__name__}, not a plain JSON value")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.name}: {key} is {value}, not a finite number")

    def values(self) -> dict[str, Value]:
        """What is written of this variant, in the order in which it is written."""
        columns = (*metric_columns([self]), *COLUMNS)
        checked = {} if self.checks is None else self.checks.values()
        return {c.key: c.value(self) for c in columns if c.when(self)} | {**self.extra, **checked}

    @property
    def reference(self) -> VariantResult:
        """The result that this one is compared with: the teacher's, or the teacher itself."""
        return self.teacher or self

    @property
    def primary_metric(self) -> str:
        """The metric in which the drop is measured."""
        return next(iter(self.metrics))

    @property
    def model_size_mb(self) -> float:
        """The size in MB of 2^20 bytes."""
        return self.size_bytes / BYTES_PER_MB

    @property
    def median_ms(self) -> float:
        """The median latency."""
        return _latency(self).median_ms

    @property
    def compression_ratio(self) -> float:
        """The teacher's bytes over the variant's."""
        return self.reference.size_bytes / self.size_bytes

    @property
    def speedup(self) -> float:
        """The teacher's latency over the variant's: the paired one, else that of the medians."""
        return self.timing.ratio

    @property
    def timing(self) -> Speedup:
        """The speedup with its interval; of medians alone nothing is known, so that it is doubtful."""
        if self.paired is not None:
            return self.paired
        if self.teacher is None:
            return EQUAL
        ratio = self.reference.median_ms / self.median_ms
        return Speedup(ratio, ratio, ratio, doubtful=True)

    @property
    def accuracy_drop(self) -> float:
        """Teacher minus variant in the primary metric, as a fraction."""
        primary = self.primary_metric
        return float(self.reference.metrics[primary] - self.metrics[primary])

    @property
    def logits(self) -> Array:
        """The logits for the evaluation rows: float32, (rows, labels).

        Raises:
            ValueError: the predictions are not at hand.
        """
        if self.evaluation is None:
            raise ValueError(f"{self.name}: the result was made without predictions")
        return self.evaluation.logits

    @cached_property
    def drop_interval(self) -> tuple[float, float]:
        """The 95 % interval of the drop; see `quantlib.data.scores.drop_interval`.

        Raises:
            ValueError: the predictions are not at hand.
        """
        if self.evaluation is None or self.task is None:
            raise ValueError(f"{self.name}: the result was made without predictions")
        return scores.drop_interval(self.task, self.logits, self.reference.logits, self.evaluation.truth)


def metric_columns(results: Sequence[VariantResult]) -> list[Column[VariantResult]]:
    """A column for each metric of the results, the primary one first."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    return [metric_column(name, number) for number, name in enumerate(names)]


def metric_column(name: str, number: int) -> Column[VariantResult]:
    """The column of a metric; number: 0 for the primary one."""
    return Column(
        name,
        METRIC_HELP,
        lambda result: float(result.metrics[name]),
        when=lambda result: name in result.metrics,
        heading=name,
        show=fixed(4),
        narrow=2 if number else None,
    )


def _drop_cell(result: VariantResult) -> str:
    points = round(100 * result.accuracy_drop, 2)  # as it is shown, so that colour and number agree
    return red(f"{points:z.2f}", points > _LARGE_DROP)


def _speedup_cell(result: VariantResult) -> str:
    """The ratio; the whole interval where that is wide, and a question mark where it is doubtful besides."""
    return speedup_cell(result.timing, known=result.paired is not None)


def speedup_cell(timing: Speedup, *, known: bool = True) -> str:
    """A speedup for a table; known: whether its interval is."""
    if timing.bare or not known:
        return red(f"{timing.ratio:.2f}x", round(timing.ratio, 2) < 1)
    return red(_range(timing, 1 if timing.low >= 1 else 2), timing.high < 1)


def _range(timing: Speedup, digits: int) -> str:
    return f"{timing.low:.{digits}f}-{timing.high:.{digits}f}x{'?' if timing.doubtful else ''}"


def speedup_words(timing: Speedup) -> str:
    """For example «3.0x faster [2.9, 3.1]», and what makes it doubtful."""
    interval = f"[{timing.low:.1f}, {timing.high:.1f}]"
    text = f"{timing.ratio:.1f}x faster {interval}"
    if not timing.bare:
        text = f"{timing.low:.1f} to {timing.high:.1f}x faster"
    if timing.note:
        text += f" ({timing.note})"
    elif timing.doubtful:
        text += f" (doubtful: other programs used {100 * timing.others:.0f} % of the machine)"
    return text


def _latency(result: VariantResult) -> LatencyStats:
    assert result.latency is not None
    return result.latency


def _has_latency(result: VariantResult) -> bool:
    return result.latency is not None


def _throughput(result: VariantResult) -> Throughput:
    assert result.throughput is not None
    return result.throughput


def _rows_cell(result: VariantResult) -> str:
    """At most four characters up to a million rows, so that the table keeps its width."""
    rate = _throughput(result).rows_per_s
    return f"{rate:.0f}" if rate < 9999.5 else f"{rate / 1000:.0f}k"


def _timed(result: VariantResult) -> bool:
    return result.throughput is not None


def _predicted(result: VariantResult) -> bool:
    return result.evaluation is not None


def _embeds(result: VariantResult) -> bool:
    return _predicted(result) and result.task is not None and result.task.output_mode == "embedding"


def _paired(result: VariantResult) -> bool:
    return result.paired is not None


def _throughput_paired(result: VariantResult) -> bool:
    return result.throughput_ratio is not None


def _throughput_ratio(result: VariantResult) -> PairedRatio:
    assert result.throughput_ratio is not None
    return result.throughput_ratio


def _compared(result: VariantResult) -> bool:
    return result.on_front or result.beaten_by is not None


# In the order in which they are written.
COLUMNS: tuple[Column[VariantResult], ...] = (
    Column(
        "eval_loss",
        "cross-entropy in nats, binary cross-entropy for sets of labels, or mean squared error; null without "
        "labels, and for embeddings",
        lambda result: None if result.eval_loss is None else float(result.eval_loss),
        required=True,
        nullable=True,
        show=fixed(4),
        label="loss",
    ),
    Column(
        "model_size",
        "MB of 2^20 bytes, external data included",
        lambda result: float(result.model_size_mb),
        required=True,
        heading="size\nMB",
        show=fixed(1),
        label="size",
        unit="MB",
        place=3,
    ),
    Column(
        "mean_ms",
        "mean latency: runs of one shape on real rows, spread over the turns with the other variants",
        lambda result: _latency(result).mean_ms,
        when=_has_latency,
        required=True,
        show=fixed(2),
        label="mean latency",
        unit="ms",
    ),
    Column(
        "std_ms",
        "standard deviation of these runs",
        lambda result: _latency(result).std_ms,
        when=_has_latency,
        required=True,
        show=fixed(2),
        label="standard deviation",
        unit="ms",
    ),
    Column(
        "min_ms",
        "the fastest run",
        lambda result: _latency(result).min_ms,
        when=_has_latency,
        required=True,
        show=fixed(2),
        label="fastest run",
        unit="ms",
    ),
    Column(
        "max_ms",
        "the slowest run",
        lambda result: _latency(result).max_ms,
        when=_has_latency,
        required=True,
        show=fixed(2),
        label="slowest run",
        unit="ms",
    ),
    Column(
        "median_ms",
        "the median of the runs",
        lambda result: result.median_ms,
        when=_has_latency,
        required=True,
        heading="median\nms",
        show=fixed(2),
        label="median latency",
        unit="ms",
        place=5,
    ),
    Column(
        "compression_ratio",
        "the teacher's bytes over the variant's",
        lambda result: float(result.compression_ratio),
        required=True,
        heading="size\nratio",
        show=fixed(2, "x"),
        label="size ratio",
        place=4,
        narrow=3,
    ),
    Column(
        "speedup",
        "the teacher's time over the variant's, the median of paired ratios; the table shows the interval "
        "where that is wider than ±10 %, with a question mark where the machine was too busy; red below 1",
        lambda result: result.speedup,
        when=_has_latency,
        required=True,
        show=fixed(2, "x"),
        interval=("speedup_low", "speedup_high"),
        heading="speed\nup",
        cell=_speedup_cell,
        place=6,
    ),
    Column(
        "accuracy_drop",
        "teacher minus variant in the primary metric: a fraction in the files, points (hundredths) in the "
        "table; of an error of regression in its own unit and in hundredths of it",
        lambda result: result.accuracy_drop,
        required=True,
        show=fixed(2, scale=100),
        label="drop",
        unit="points",
        interval=("drop_low", "drop_high"),
        heading="drop\npoints",
        cell=_drop_cell,
        place=1,
    ),
    Column(
        "agreement",
        "the share of rows with the teacher's label, or exactly its set of labels, percent in the table; for "
        "regression the correlation with the teacher's scores; for embeddings the share of texts (of the "
        "first 5000) whose nearest other text is the teacher's; the metric of a task without labels",
        lambda result: float(result.agreement),
        when=lambda result: AGREEMENT not in result.metrics,
        required=True,
        heading="agree\n%",
        show=fixed(1, scale=100),
        unit="%",
        place=2,
        narrow=4,
    ),
    Column(
        "rows_per_s",
        "throughput on evaluation rows as long as they are",
        lambda result: _throughput(result).rows_per_s,
        when=_timed,
        numeric=True,
        show=fixed(0),
        label="throughput",
        unit="rows/s",
        heading="rows\n/s",
        cell=_rows_cell,
        place=7,
        narrow=1,
    ),
    Column(
        "tokens_per_s",
        "the same in tokens, without padding",
        lambda result: _throughput(result).tokens_per_s,
        when=_timed,
        numeric=True,
        show=fixed(0),
        label="throughput in tokens",
        unit="tokens/s",
    ),
    Column(
        "padded_rows_per_s",
        "rows in a second with every row padded to `--seq-len`: what padding costs",
        lambda result: _throughput(result).padded_rows_per_s,
        when=_timed,
        numeric=True,
        show=fixed(0),
        label="throughput with padding",
        unit="rows/s",
    ),
    Column("engine", "what runs it", lambda result: result.engine),
    Column(
        "recipe",
        "how the variant was quantized, in words; missing for a float model",
        lambda result: result.recipe,
        when=lambda result: result.recipe is not None,
    ),
    Column(
        "logit_error",
        "mean absolute difference to the teacher's logits, or to each number of its embeddings",
        lambda result: scores.logit_error(result.logits, result.reference.logits),
        when=_predicted,
    ),
    Column(
        MEAN_COSINE,
        "the mean cosine of a text's embedding with the teacher's; the metric of texts without scores",
        lambda result: float(cosines(result.logits, result.reference.logits).mean()),
        when=lambda result: _embeds(result) and MEAN_COSINE not in result.metrics,
    ),
    Column(
        WORST_COSINE,
        "the smallest of them",
        lambda result: float(cosines(result.logits, result.reference.logits).min()),
        when=lambda result: _embeds(result) and WORST_COSINE not in result.metrics,
    ),
    Column(
        "drop_low",
        "the lower end of the drop's paired bootstrap 95 % interval",
        lambda result: result.drop_interval[0],
        when=_predicted,
        show=fixed(2, scale=100),
        unit="points",
    ),
    Column(
        "drop_high",
        "its upper end; small dev sets make wide intervals",
        lambda result: result.drop_interval[1],
        when=_predicted,
        show=fixed(2, scale=100),
        unit="points",
    ),
    Column(
        "standard_error_ms",
        "standard error of the mean latency; a run that is too noisy is reported while it runs",
        lambda result: _latency(result).standard_error_ms,
        when=lambda result: _predicted(result) and _has_latency(result),
        show=fixed(3),
        label="standard error",
        unit="ms",
    ),
    Column(
        "speedup_low",
        "the lower end of the speedup's 95 % interval, which covers the machine's known states",
        lambda result: result.timing.low,
        when=_paired,
        numeric=True,
        show=fixed(2, "x"),
    ),
    Column(
        "speedup_high",
        "its upper end",
        lambda result: result.timing.high,
        when=_paired,
        numeric=True,
        show=fixed(2, "x"),
    ),
    Column(
        "others",
        "the share of the machine that other programs used in the turns that count",
        lambda result: result.timing.others,
        when=_paired,
        numeric=True,
        show=fixed(1, scale=100),
        label="other programs",
        unit="%",
    ),
    Column(
        "trusted",
        "whether the speedup's interval is within ±5 %, and the machine was quiet enough",
        lambda result: result.timing.trusted,
        when=_paired,
    ),
    Column(
        "throughput_ratio",
        "the variant's rows per second over the teacher's, in turns",
        lambda result: _throughput_ratio(result).ratio,
        when=_throughput_paired,
        numeric=True,
        show=fixed(2, "x"),
        interval=("throughput_ratio_low", "throughput_ratio_high"),
    ),
    Column(
        "throughput_ratio_low",
        "the lower end of its 95 % interval",
        lambda result: _throughput_ratio(result).low,
        when=_throughput_paired,
        numeric=True,
        show=fixed(2, "x"),
    ),
    Column(
        "throughput_ratio_high",
        "its upper end",
        lambda result: _throughput_ratio(result).high,
        when=_throughput_paired,
        numeric=True,
        show=fixed(2, "x"),
    ),
    Column(
        "beaten_by",
        "a variant that is clearly as accurate, fast and small, and clearly better in one (half a point, or "
        "one row in a hundred with the teacher's label; 5 % of the time, 1 % of the size), intervals "
        "considered; null for a variant worth shipping, which the table marks with a star",
        lambda result: result.beaten_by,
        when=_compared,
    ),
)
