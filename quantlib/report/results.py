"""What a run found out about each variant: results.json, results.csv, run.json, and the console's tables."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from quantlib.compression.variants import TEACHER
from quantlib.measuring.latency.stats import LatencyStats
from quantlib.support.console import plain_table
from quantlib.support.errors import InputError
from quantlib.support.files import write_json, write_text

if TYPE_CHECKING:
    from rich.table import Table

    from quantlib.measuring.checks import Checks
    from quantlib.measuring.throughput import Throughput

SCHEMA_VERSION = 1

Value = float | int | str | bool | None

BYTES_PER_MB = 2**20
_LATENCY_KEYS = ("mean_ms", "std_ms", "min_ms", "max_ms", "median_ms")
_TEACHER_KEYS = ("compression_ratio", "speedup", "accuracy_drop", "agreement")
_COMMON_KEYS = ("eval_loss", "model_size", *_LATENCY_KEYS, *_TEACHER_KEYS)
# Files of earlier versions have no throughput.
_THROUGHPUT_KEYS = ("rows_per_s", "tokens_per_s", "padded_rows_per_s")
_POINTS_WORTH_COLOUR = 1.0
_WIDER_THAN_ANY = 10_000
# Marks a variant that no other one beats in accuracy, latency and size.
ON_THE_FRONT = "*"


@dataclass(frozen=True)
class VariantResult:
    """One variant's accuracy, size and latency; `compare` computes the values against the teacher.

    metrics: the task's metrics by name, the primary one first. eval_loss: cross-entropy or MSE.
    size_bytes: external data included. compression_ratio: the teacher's bytes over the variant's.
    speedup: the teacher's median over the variant's. accuracy_drop: teacher minus variant in the primary
    metric, as a fraction. agreement: the share of rows with the teacher's label; for regression the
    correlation with the teacher's scores. recipe: how it was quantized, None for a float model.
    rows_per_s, tokens_per_s: throughput on rows as long as they are, padding not counted; padded_rows_per_s:
    with every row padded to one length. All three or none.
    extra: further values, written after these. checks: what was checked beyond them, written last.
    """

    name: str
    metrics: Mapping[str, float]
    eval_loss: float
    size_bytes: int
    mean_ms: float
    std_ms: float
    min_ms: float
    max_ms: float
    median_ms: float
    compression_ratio: float
    speedup: float
    accuracy_drop: float
    agreement: float
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    padded_rows_per_s: float | None = None
    recipe: str | None = None
    extra: Mapping[str, Value] = field(default_factory=dict)
    checks: Checks | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.metrics or self.size_bytes < 1:
            raise ValueError(f"variant {self.name!r} needs a name, a metric and a size")
        if len({getattr(self, key) is None for key in _THROUGHPUT_KEYS}) > 1:
            raise ValueError(f"{self.name}: {', '.join(_THROUGHPUT_KEYS)} must all be given, or none")
        taken = {"variant", "recipe", *_COMMON_KEYS, *_THROUGHPUT_KEYS, *self._check_values()}
        clashes = sorted((taken & {*self.metrics, *self.extra}) | (set(self.metrics) & set(self.extra)))
        if clashes:
            raise ValueError(f"{self.name}: names given twice: {', '.join(clashes)}")
        for key, value in self.values().items():
            if not isinstance(value, float | int | str | None):
                raise ValueError(f"{self.name}: {key} is a {type(value).__name__}, not a plain JSON value")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{self.name}: {key} is {value}, not a finite number")

    @property
    def primary_metric(self) -> str:
        """The metric in which the drop is measured."""
        return next(iter(self.metrics))

    @property
    def model_size_mb(self) -> float:
        """The size in MB of 2^20 bytes."""
        return self.size_bytes / BYTES_PER_MB

    def values(self) -> dict[str, Value]:
        """What is written of this variant, in the order in which it is written."""
        throughput = () if self.rows_per_s is None else _THROUGHPUT_KEYS
        common = {key: getattr(self, key) for key in (*_LATENCY_KEYS, *_TEACHER_KEYS, *throughput)}
        recipe = {} if self.recipe is None else {"recipe": self.recipe}
        head = {**self.metrics, "eval_loss": self.eval_loss, "model_size": self.model_size_mb}
        return {**head, **common, **recipe, **self.extra, **self._check_values()}

    def _check_values(self) -> Mapping[str, Value]:
        return {} if self.checks is None else self.checks.values()


def compare(
    name: str,
    *,
    metrics: Mapping[str, float],
    eval_loss: float,
    size_bytes: int,
    latency: LatencyStats,
    throughput: Throughput | None = None,
    agreement: float = 1.0,
    teacher: VariantResult | None = None,
    recipe: str | None = None,
    extra: Mapping[str, Value] | None = None,
    checks: Checks | None = None,
) -> VariantResult:
    """The result of a variant, with its ratios and drop against `teacher` (None: it is the teacher itself).

    Raises:
        ValueError: a value is not finite, or the teacher was measured in another primary metric.
    """
    primary = next(iter(metrics))
    if teacher is not None and teacher.primary_metric != primary:
        raise ValueError(f"{name}: primary metric {primary}, but the teacher's is {teacher.primary_metric}")
    ratio = teacher.size_bytes / size_bytes if teacher else 1.0
    speedup = teacher.median_ms / latency.median_ms if teacher else 1.0
    drop = teacher.metrics[primary] - metrics[primary] if teacher else 0.0
    return VariantResult(
        name=name,
        metrics={key: float(value) for key, value in metrics.items()},
        eval_loss=float(eval_loss),
        size_bytes=int(size_bytes),
        **{key: getattr(latency, key) for key in _LATENCY_KEYS},
        compression_ratio=ratio,
        speedup=speedup,
        accuracy_drop=float(drop),
        agreement=float(agreement),
        **({key: getattr(throughput, key) for key in _THROUGHPUT_KEYS} if throughput else {}),
        recipe=recipe,
        extra=dict(extra or {}),
        checks=checks,
    )


def write_results(directory: Path, results: Sequence[VariantResult]) -> None:
    """Write results.json and results.csv into `directory`, each whole or not at all.

    Raises:
        ValueError: the teacher is not the first variant, or a name occurs twice.
        InputError: the directory cannot be written.
    """
    names = [result.name for result in results]
    if not names or names[0] != TEACHER or len(set(names)) != len(names):
        raise ValueError(f"the variants must be {TEACHER!r} and then others, each once, not {names}")
    write_json(directory / "results.json", {result.name: result.values() for result in results})
    write_text(directory / "results.csv", _csv_text(results))


def _csv_text(results: Sequence[VariantResult]) -> str:
    """A row a variant; the columns are all keys in order of first appearance, empty where one is lacking."""
    rows = [{"variant": result.name, **result.values()} for result in results]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # JSON's words, so that both files spell the same value in the same way.
        writer.writerow({k: json.dumps(v) if isinstance(v, bool) else v for k, v in row.items()})
    return text.getvalue()


def read_results(path: Path) -> dict[str, dict[str, Value]]:
    """Read a results.json: the values by name, by variant, as they were written.

    Raises:
        InputError: the file is missing or not JSON, or a variant lacks one of the common values.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: not a results file: {reason}") from error
    if not isinstance(results, dict) or TEACHER not in results:
        raise InputError(f"{path}: expected an object of variants, one of them {TEACHER!r}")
    for variant, values in results.items():
        _check_values(path, variant, values)
    return results


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number that JSON knows")


def _check_values(path: Path, variant: str, values: Any) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{path}: {variant}: expected an object of values, not {values!r}")
    for key in (*_COMMON_KEYS, *(key for key in _THROUGHPUT_KEYS if key in values)):
        if key not in values:
            raise InputError(f"{path}: {variant}: {key!r} is missing")
        if isinstance(values[key], bool) or not isinstance(values[key], float | int):
            raise InputError(f"{path}: {variant}: {key!r} must be a number, not {values[key]!r}")
    for key, value in values.items():
        if not isinstance(value, float | int | str | None):
            raise InputError(f"{path}: {variant}: {key!r} must be a single value, not {value!r}")


def write_run(directory: Path, run: Mapping[str, Any]) -> None:
    """Write run.json, the provenance of the results, with the schema version first.

    Raises:
        ValueError: `run` brings a `schema_version` of its own, or holds a NaN.
        InputError: the directory cannot be written.
    """
    if "schema_version" in run:
        raise ValueError("schema_version is written by write_run")
    write_json(directory / "run.json", {"schema_version": SCHEMA_VERSION, **run})


def table(results: Sequence[VariantResult], width: int | None = None) -> Table:
    """The results for a person to read, in the order given; drops in points, agreement in percent.

    Colour (red for slower than the teacher or a drop above one point) repeats what the numbers say. A star
    marks a variant that no other one beats (`front_note` says which do the rest).

    Args:
        results: of a run, the teacher first.
        width: characters in a line; a column that others tell less about is left out if names do not fit.
    """
    from rich.console import Console

    columns = _columns(results)
    ruler = Console(width=_WIDER_THAN_ANY)
    found = _table_of(results, columns)
    secondary = [name for name in reversed(columns) if any(name in r.metrics for r in results)][:-1]
    for heading in ("rows\n/s", *secondary, "size\nratio", "agree\n%"):
        if width is None or ruler.measure(found).maximum <= width:
            break
        columns.pop(heading)
        found = _table_of(results, columns)
    return found


def _table_of(results: Sequence[VariantResult], columns: Mapping[str, Sequence[str]]) -> Table:
    from rich.markup import escape

    found = plain_table()
    found.add_column("variant", justify="left", overflow="fold")
    for heading in columns:
        found.add_column(heading, justify="right", no_wrap=True)
    for number, result in enumerate(results):
        name = escape(result.name) + (ON_THE_FRONT if result.extra.get("beaten_by", "") is None else "")
        found.add_row(name, *(cells[number] for cells in columns.values()))
    return found


def _columns(results: Sequence[VariantResult]) -> dict[str, list[str]]:
    """The cells of each column by its heading."""
    metrics = list(dict.fromkeys(name for result in results for name in result.metrics))
    found: dict[str, list[str]] = {}
    for result in results:
        # Rounded as they are shown, so that the colour never contradicts the number.
        drop_points, speedup = round(100 * result.accuracy_drop, 2), round(result.speedup, 2)
        row = {name: f"{result.metrics[name]:z.4f}" if name in result.metrics else "" for name in metrics}
        row |= {
            "drop\npoints": _red(f"{drop_points:z.2f}", drop_points > _POINTS_WORTH_COLOUR),
            "agree\n%": f"{100 * result.agreement:z.1f}",
            "size\nMB": f"{result.model_size_mb:.1f}",
            "size\nratio": f"{result.compression_ratio:.2f}x",
            "median\nms": f"{result.median_ms:.2f}",
            "speed\nup": _red(f"{speedup:.2f}x", speedup < 1),
            "rows\n/s": _per_second(result.rows_per_s),
        }
        for heading, cell in row.items():
            found.setdefault(heading, []).append(cell)
    return found


def front_note(results: Sequence[VariantResult]) -> str:
    """What the stars of the table mean, and which variants are beaten, in one sentence each."""
    beaten = [f"{r.name} by {r.extra['beaten_by']}" for r in results if r.extra.get("beaten_by")]
    front = f"{ON_THE_FRONT} worth shipping: no other is as accurate, fast and small, and clearly better."
    return f"{front} Beaten: {', '.join(beaten)}." if beaten else front


def checks_table(results: Sequence[VariantResult]) -> Table:
    """What was checked of each variant, in their order: the largest change of a logit, and changed labels.

    Colour (red for labels that change) repeats what the words say.
    """
    from rich.markup import escape

    found = plain_table()
    found.add_column("checks", justify="left", overflow="fold")
    found.add_column("quantized", justify="right", no_wrap=True)
    for name in ("saturation", "invariance"):
        found.add_column(name, justify="right", no_wrap=True)
        found.add_column("labels", justify="left", no_wrap=True)
    for result in results:
        if result.checks is not None:
            found.add_row(escape(result.name), *_check_row(result.checks))
    return found


def _check_row(checks: Checks) -> list[str]:
    coverage, saturation, invariance = checks.coverage, checks.saturation, checks.invariance
    return [
        "" if coverage is None else f"{coverage.quantized}/{coverage.total}",
        "" if saturation.max_diff is None else f"{saturation.max_diff:.2g}",
        "n/a" if saturation.max_diff is None else _labels(saturation.labels_changed, saturation.rows),
        f"{invariance.max_diff:.2g}",
        _labels(invariance.labels_changed, invariance.rows),
    ]


def _labels(changed: int | None, rows: int) -> str:
    return "" if changed is None else _red(f"{changed}/{rows}{' change' if changed else ''}", changed > 0)


def _per_second(rate: float | None) -> str:
    """At most four characters up to a million, so that the table keeps its width."""
    if rate is None:
        return ""
    return f"{rate:.0f}" if rate < 9999.5 else f"{rate / 1000:.0f}k"


def _red(text: str, on: bool) -> str:
    return f"[red]{text}[/red]" if on else text
