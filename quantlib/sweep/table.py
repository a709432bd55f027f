"""The one table of a sweep: a row for each cell and machine, as JSON, as CSV, and for a person to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.support.columns import Column, Value
from quantlib.support.console import plain_table
from quantlib.support.errors import InputError
from quantlib.support.files import write_csv, write_json
from quantlib.support.typed import read_json
from quantlib.sweep.cells import Cell
from quantlib.sweep.driving import Failure, Result
from quantlib.sweep.graph import Job
from quantlib.sweep.inputs import hashes

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
JSON, CSV = "sweep.json", "sweep.csv"


@dataclass(frozen=True)
class Row:
    """What is known of a cell on a machine.

    machine: where latency was measured; None where it was not. values: as in results.json, the primary metric
    first; empty for a cell that failed. error: why it failed, or why it was not timed. provenance: what it
    was made of, by which code and where.
    """

    task: str
    teacher: str
    student: str | None
    variant: str
    machine: str | None = None
    error: str | None = None
    values: Mapping[str, Value] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        """Its cell."""
        return Cell(self.task, self.teacher, self.student, self.variant)

    @property
    def metric(self) -> str | None:
        """The name of the primary metric."""
        return next(iter(self.values), None)

    @property
    def score(self) -> float | None:
        """Its value; more is better."""
        return None if self.metric is None else _number(self, self.metric)


@dataclass(frozen=True)
class SweepTable:
    """What sweep.json holds.

    plan: the cells of the whole sweep; a shard has rows of some of them. provenance: of the sweep: the file,
    the code, the versions.
    """

    schema_version: int
    provenance: Mapping[str, Any]
    plan: tuple[Cell, ...]
    rows: tuple[Row, ...]

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows with an error."""
        return tuple(row for row in self.rows if row.error is not None)


def rows_of(
    cells: Iterable[Cell],
    jobs: Sequence[Job],
    refused: Mapping[Cell, str],
    results: Mapping[str, Result],
    machines: Sequence[str],
) -> list[Row]:
    """The rows of cells, for each machine on which latency is measured; one without a machine for none.

    refused: cells that no job is of, and why.
    """
    made = {cell: job for job in jobs if job.kind != "latency" for cell in job.cells}
    timed = {(cell, job.machine): job for job in jobs if job.kind == "latency" for cell in job.cells}
    return [
        Row(cell.task, cell.teacher, cell.student, cell.variant, machine, refused[cell])
        if cell in refused
        else _row(cell, machine, made[cell], timed.get((cell, machine)), results)
        for cell in cells
        for machine in (machines or (None,))
    ]


def _row(cell: Cell, machine: str | None, job: Job, timing: Job | None, results: Mapping[str, Result]) -> Row:
    place = (cell.task, cell.teacher, cell.student, cell.variant, machine)
    result = results[job.key]
    provenance: dict[str, Any] = {"key": job.key, "inputs": hashes(job.inputs)}
    if isinstance(result, Failure):
        return Row(*place, error=result.error, provenance=provenance | _trace(result))
    provenance |= {
        "model_sha256": result.models[cell.variant],
        "checkpoints": dict(result.hashes),
        "made_on": dict(result.where),
        "seconds": result.seconds,
        "cached": list(result.cached),
    }
    values = dict(result.rows[cell.variant])
    if timing is None:
        return Row(*place, None, values, provenance)
    times = results[timing.key]
    if isinstance(times, Failure):
        return Row(*place, f"not timed: {times.error}", values, provenance | _trace(times))
    provenance |= {"timed_key": timing.key, "timed_on": dict(times.where)}
    return Row(*place, None, values | dict(times.rows[cell.variant]), provenance)


def _trace(failure: Failure) -> dict[str, Any]:
    return {"trace": failure.trace} if failure.trace else {}


def write_table(directory: Path, table: SweepTable) -> None:
    """Write sweep.json and sweep.csv, each whole or not at all.

    Raises:
        InputError: the directory cannot be written.
    """
    write_json(
        directory / JSON,
        {
            "schema_version": table.schema_version,
            "provenance": dict(table.provenance),
            "plan": [vars(cell) for cell in table.plan],
            "rows": [{name: _plain(value) for name, value in vars(row).items()} for row in table.rows],
        },
    )
    flat = [_flat(row) for row in table.rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    write_csv(directory / CSV, [{key: row.get(key) for key in columns} for row in flat])


def read_table(path: Path) -> SweepTable:
    """Read a sweep.json.

    Raises:
        InputError: it is missing, or is none.
    """
    table = read_json(SweepTable, path, "a sweep's table")
    for number, row in enumerate(table.rows):
        for key in ("made_on", "timed_on"):
            if not isinstance(row.provenance.get(key, {}), Mapping):
                raise InputError(f"{path}: rows.{number}.provenance.{key} must be an object")
    return table


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _flat(row: Row) -> dict[str, Value]:
    """A row of the CSV file: of the provenance, what tells rows apart."""
    made, timed = row.provenance.get("made_on", {}), row.provenance.get("timed_on", {})
    columns: dict[str, Value] = {column.key: column.value(row) for column in _COLUMNS}
    columns |= {key: json.dumps(v) if isinstance(v, bool) else v for key, v in row.values.items()}
    return columns | {
        "model_sha256": row.provenance.get("model_sha256"),
        "made_on": made.get("host"),
        "made_on_cpu": made.get("cpu"),
        "timed_on_cpu": timed.get("cpu"),
    }


def _number(row: Row, key: str) -> float | None:
    value = row.values.get(key)
    return value if isinstance(value, float | int) else None


def _cell(key: str, form: str, scale: float = 1.0) -> Any:
    """How a number is shown; nothing where there is none."""

    def show(row: Row) -> str:
        number = _number(row, key)
        return "" if number is None else form.format(scale * number)

    return show


def _speedup(row: Row) -> str:
    low, high, ratio = (_number(row, key) for key in ("speedup_low", "speedup_high", "speedup"))
    if ratio is None or low is None or high is None:
        return ""
    return f"{ratio:.2f}x" if row.values.get("trusted") else f"{low:.1f}-{high:.1f}x"


# What a row says of itself; what was measured of a variant stands behind it, as in results.csv.
_COLUMNS: tuple[Column[Row], ...] = (
    Column("task", "the task", lambda row: row.task, heading="task", justify="left"),
    Column("teacher", "the checkpoint", lambda row: row.teacher, heading="checkpoint", justify="left"),
    Column(
        "student",
        "the student; empty for variants of the teacher",
        lambda row: row.student,
        heading="student",
        justify="left",
    ),
    Column(
        "variant",
        "the variant, as in results.json",
        lambda row: row.variant,
        heading="variant",
        justify="left",
    ),
    Column("metric", "the primary metric", lambda row: row.metric, heading="metric", justify="left"),
    Column("score", "its value", lambda row: row.score, heading="score", cell=lambda row: _shown_score(row)),
    Column(
        "machine", "where latency was measured", lambda row: row.machine, heading="machine", justify="left"
    ),
    Column("error", "why the cell failed, or was not timed", lambda row: row.error),
)
_MEASURED: tuple[tuple[str, Any], ...] = (
    ("drop\npoints", _cell("accuracy_drop", "{:z.2f}", 100)),
    ("agree\n%", _cell("agreement", "{:z.1f}", 100)),
    ("size\nMB", _cell("model_size", "{:.1f}")),
    ("median\nms", _cell("median_ms", "{:.2f}")),
    ("speed\nup", _speedup),
)


def _shown_score(row: Row) -> str:
    if row.score is None:
        return "failed" if row.error else ""
    return f"{row.score:z.4f}"


def console_table(rows: Sequence[Row]) -> Table:
    """The rows for a person to read; what is the same in all of them stands in `common`, not here.

    A cell that failed says why under the table, see `error_lines`.
    """
    from rich.markup import escape

    table, same = plain_table(), common(rows)
    shown = [column for column in _COLUMNS if column.heading and column.heading not in same]
    measured = [(heading, cell) for heading, cell in _MEASURED if any(cell(row) for row in rows)]
    for column in shown:
        table.add_column(column.heading, justify=column.justify, overflow="fold")
    for heading, _ in measured:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [escape(column.shown(row)) for column in shown]
        table.add_row(*cells, *(cell(row) for _, cell in measured))
    return table


def common(rows: Sequence[Row]) -> dict[str, str]:
    """{heading: value} of what all rows of a table have in common."""
    values = {
        column.heading: {column.shown(row) for row in rows if column.heading != "metric" or row.metric}
        for column in _COLUMNS
        if column.heading not in ("", "variant", "score")
    }
    return {heading: "".join(each) for heading, each in values.items() if len(each) <= 1}


def error_lines(rows: Sequence[Row]) -> list[str]:
    """A line for each error, with the cells that have it."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        if row.error is not None:
            cells.setdefault(row.error, []).append(str(row.cell))
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {error}"
        for error, names in cells.items()
    ]
