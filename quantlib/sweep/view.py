"""A sweep in the words and numbers of its page; the template only lays them out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from markupsafe import Markup

from quantlib.report.columns import COLUMNS
from quantlib.report.page.html import own_direction
from quantlib.report.page.view import Shown
from quantlib.support.columns import Column, Value, fixed
from quantlib.sweep.cells import Cell
from quantlib.sweep.fronts import TaskFront, fronts_of
from quantlib.sweep.table import Row, SweepTable, common

SCORE = Column[Row](
    "score", "the task's primary metric; more is better", lambda row: row.score, show=fixed(4)
)
_KEY_CHARACTERS = 12
_WHOLE_SWEEP = "1/1"


@dataclass(frozen=True)
class SweepView:
    """The table of a sweep, as its page shows it."""

    table: SweepTable

    @property
    def rows(self) -> Sequence[Row]:
        """Its rows."""
        return self.table.rows

    @cached_property
    def tasks(self) -> list[str]:
        """The names of its tasks."""
        return list(dict.fromkeys(row.task for row in self.rows))

    @cached_property
    def common(self) -> dict[str, str]:
        """{what: value} of what says the same of every row."""
        return {what: value for what, value in common(self.rows).items() if value}

    @cached_property
    def parts(self) -> list[str]:
        """What, beside the variant, tells rows apart: keys of a row."""
        keys = {"task": "task", "checkpoint": "teacher", "student": "student", "machine": "machine"}
        return [key for heading, key in keys.items() if heading not in common(self.rows)]

    @cached_property
    def metrics_differ(self) -> bool:
        """Whether scores are of several metrics."""
        return "metric" not in common(self.rows)

    @cached_property
    def columns(self) -> list[Shown]:
        """The columns of the table; the other ones are in sweep.csv."""
        present = {key for row in self.rows for key in row.values}
        known = sorted((column for column in COLUMNS if column.heading), key=lambda column: column.place)
        columns: list[Column[Any]] = [SCORE, *(column for column in known if column.key in present)]
        return [Shown(column, main=True) for column in columns]

    def identity(self, row: Row) -> Markup:
        """The cells that say which row it is, behind the variant."""
        parts = [getattr(row, key) or "" for key in self.parts]
        parts += [row.metric or ""] if self.metrics_differ else []
        return Markup("").join(
            Markup('<td class="key">{}</td>').format(own_direction(part)) for part in parts
        )

    def cells(self, row: Row) -> Markup:
        """The cells of what was measured; not in the template, which takes seconds for thousands of them."""
        values = dict(row.values) | ({} if row.score is None else {SCORE.key: row.score})
        return Markup("\n").join(_cell(shown.column, values) for shown in self.columns)

    @cached_property
    def fronts(self) -> list[TaskFront]:
        """The tasks that were timed, each on each machine."""
        return fronts_of(self.rows)

    @cached_property
    def on_front(self) -> set[tuple[Cell, str | None]]:
        """The cells and machines that no other beats."""
        return {(each.row.cell, each.row.machine) for of_task in self.fronts for each in of_task.front}

    @cached_property
    def failures(self) -> list[tuple[str, list[Row], str]]:
        """(what is wrong, the rows of which it is, the trace of a bug), each once."""
        rows: dict[str, list[Row]] = {}
        for row in self.table.failed:
            rows.setdefault(str(row.error), []).append(row)
        return [(error, of, str(of[0].provenance.get("trace", ""))) for error, of in rows.items()]

    # Where it comes from

    @property
    def shard(self) -> str:
        """Which share of the sweep this is, "2/4"; empty for all of it."""
        shard = str(self.table.provenance.get("shard", _WHOLE_SWEEP))
        return "" if shard == _WHOLE_SWEEP else shard

    def origin(self, row: Row) -> Markup:
        """The cells of a row's provenance."""
        provenance = row.provenance
        made, timed = (_mapping(provenance, name) for name in ("made_on", "timed_on"))
        seconds = provenance.get("seconds")
        texts = [
            provenance.get("model_sha256", ""),
            made.get("host", ""),
            timed.get("host", ""),
            provenance.get("key", "")[:_KEY_CHARACTERS],
        ]
        cells = [Markup('<td class="key">{}</td>').format(own_direction(text)) for text in texts]
        took = f"{seconds:.1f}" if isinstance(seconds, float | int) else ""
        cells.append(Markup('<td data-value="{}">{}</td>').format("" if seconds is None else seconds, took))
        cached = provenance.get("cached")
        cells.append(Markup('<td data-value="{0}">{0}</td>').format("" if cached is None else len(cached)))
        return Markup("").join(cells)

    @cached_property
    def machines(self) -> list[Mapping[str, str]]:
        """The machines that made or timed something, each once."""
        places = [_mapping(row.provenance, name) for row in self.rows for name in ("made_on", "timed_on")] + [
            _mapping(self.table.provenance, "started_on")
        ]
        words = [{what: _words(value) for what, value in place.items()} for place in places if place]
        return list({json.dumps(each, sort_keys=True): each for each in words}.values())

    @cached_property
    def sources(self) -> list[tuple[str, list[tuple[str, str]]]]:
        """For each model the hashes of its inputs and checkpoints."""
        sources: dict[str, dict[str, str]] = {}
        for row in self.rows:
            name = " / ".join(part for part in (row.task, row.teacher, row.student) if part)
            of = sources.setdefault(name, {})
            of |= {f"input {what}": str(d) for what, d in _mapping(row.provenance, "inputs").items()}
            of |= {
                f"checkpoint of the {what}": str(d)
                for what, d in _mapping(row.provenance, "checkpoints").items()
            }
        return [(name, list(of.items())) for name, of in sources.items() if of]

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        """The sweep's file, its code and its arguments, a line each."""
        provenance = self.table.provenance
        code = _mapping(provenance, "code")
        packages = _mapping(code, "packages")
        arguments = _mapping(provenance, "arguments")
        lines = [
            ("file", str(provenance.get("file", ""))),
            ("its SHA-256", str(provenance.get("file_sha256", ""))),
            ("shard", self.shard),
            ("sources of quantlib", str(code.get("quantlib", ""))),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)),
            ("arguments", ", ".join(f"{n} {_words(v)}" for n, v in arguments.items() if v not in (None, []))),
        ]
        return [(what, words) for what, words in lines if words]


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _cell(column: Column[Any], values: Mapping[str, Value]) -> Markup:
    """A value with its interval."""
    value = values.get(column.key)
    if value is None:
        return Markup('<td data-value=""></td>')
    ends = [values.get(end) for end in column.interval or ()]
    interval = Markup("")
    if ends and None not in ends and set(ends) != {value}:
        interval = Markup(' <span class="range">{} to {}</span>').format(*map(column.show, ends))
    return Markup('<td data-value="{}">{}{}</td>').format(json.dumps(value), column.show(value), interval)
