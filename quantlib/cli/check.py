"""`quantlib check`: what a run would read and do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import offering
from quantlib.cli.words import Json
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.progress import Steps

if TYPE_CHECKING:
    from rich.console import Console

    from quantlib.experiment.inspecting import Report


def command() -> Callable[..., None]:
    """The command, with the options of a run."""
    return offering(ExperimentOptions, check)


def check(options: ExperimentOptions, json: Json = False) -> None:
    """Show what a run would read and do: rows, labels, lengths, variants, and about how long it takes.

    Example: quantlib check
    """
    from quantlib.experiment.inspecting import inspect

    report = inspect(options, Steps())
    if json:
        print_json(report.as_json())
    else:
        _show(report, options, wide_console())


def _show(report: Report, options: ExperimentOptions, out: Console) -> None:
    from rich.markup import escape

    from quantlib.support.console import plain_table

    def line(name: str, text: str) -> None:
        out.print(f"{name:<12} {text}", highlight=False, markup=False, soft_wrap=True)

    line("task", f"{report.task}: {report.kind}; {', '.join(report.metrics)}")
    line("rows", ", ".join(f"{name} {count}" for name, count in report.rows.items() if count))
    for note in report.notes:
        line("", note)
    lengths = report.lengths
    line("tokens", f"median {lengths.median}, 95 % within {lengths.p95}, longest {lengths.longest}")
    share = lengths.truncated / report.rows["evaluation"]
    line("", f"{lengths.truncated} rows ({100 * share:.1f} %) are cut to --seq-len {options.seq_len}")
    line("duplicates", f"{report.duplicates} of the evaluation rows")
    line("variants", ", ".join(report.variants))
    minutes = sum(report.seconds.values()) / 60
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    line("takes about", f"{minutes:.0f} min with nothing cached: {parts}")
    if not report.labels:
        return
    table = plain_table()
    columns = list(next(iter(report.labels.values())))
    for heading in ("label", "checkpoint", *columns):
        table.add_column(heading, justify="left" if heading in ("label", "checkpoint") else "right")
    for label, counts in list(report.labels.items())[:50]:
        name = report.names.get(label, "")
        table.add_row(escape(label), escape(name), *(str(counts[column]) for column in columns))
    out.print(table)
    if len(report.labels) > 50:
        line("", f"and {len(report.labels) - 50} more labels")
