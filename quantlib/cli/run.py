"""The command that runs an experiment and prints what each variant costs and wins."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quantlib.cli.parameters import offering
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.options import COMMAND, from_flags

if TYPE_CHECKING:
    from rich.console import Console

    from quantlib.experiment.running import RunResult

# As wide as the table of results with quantized students: a log needs no lines of 80 columns.
_LOG_COLUMNS = 100


def command() -> Callable[..., None]:
    """The command, with a parameter for each of `ExperimentOptions`."""
    return offering(ExperimentOptions, run)


def run(given: dict[str, Any]) -> None:
    """Quantize a teacher, measure every variant and a student, and print what each one costs and wins."""
    from rich.console import Console

    from quantlib import experiment

    options = from_flags(ExperimentOptions, given, COMMAND)
    started = time.perf_counter()
    out = Console()  # progress too: what is on stderr is what went wrong
    if not out.is_terminal:
        out.width = max(out.width, _LOG_COLUMNS)
    _print_results(options, experiment.run(options, out, lambda first: _print_first(first, out)), out)
    _print_notes(options, time.perf_counter() - started, out)


def _print_first(first: RunResult, out: Console) -> None:
    """The teacher's variants, while the student is yet to come."""
    from quantlib.report.tables import front_note, table

    out.print(table(first.results, out.width))
    out.print(front_note(first.results), highlight=False, markup=False, soft_wrap=True)
    out.print("The student's variants follow.\n")


def _print_choices(compared: RunResult, out: Console) -> None:
    for choice in compared.choices:
        out.print(f"{choice.wish}: {choice.variant or 'none'}", highlight=False, markup=False, style="bold")
        out.print(f"    {choice.why}", highlight=False, markup=False, soft_wrap=True)


def _print_results(options: ExperimentOptions, compared: RunResult, out: Console) -> None:
    from quantlib.data.tasks import get_task
    from quantlib.experiment import budget
    from quantlib.measuring import explain, profile
    from quantlib.report.tables import checks_table, front_note, table

    directory, results = options.output_dir / get_task(options.task).name, compared.results
    out.print(table(results, out.width))
    out.print(front_note(results), highlight=False, markup=False, soft_wrap=True)
    _print_choices(compared, out)
    out.print()
    out.print(checks_table(results))
    if options.max_drop is not None:
        out.print(budget.table(directory / budget.SENSITIVITY_FILE))
    if options.explain:
        layers = explain.read_explanation(directory / explain.JSON)
        out.print(explain.table(layers), crop=False)  # a line a layer, however narrow the place
    for variant in dict.fromkeys(options.profile):
        profile.show(profile.read_profile(directory / profile.file_name(variant)), out)


def _print_notes(options: ExperimentOptions, seconds: float, out: Console) -> None:
    from quantlib.data.tasks import get_task
    from quantlib.machine.hardware import describe, int8_note

    machine, task = describe(), get_task(options.task).name
    for note in (
        f"{task}, {options.batch_size}x{options.seq_len}, {options.threads} threads, {machine.cpu_model}. "
        f"{int8_note(machine)}",
        f"Done in {seconds:.0f} s; written to {options.output_dir / task}",
    ):
        out.print(note, highlight=False, markup=False, soft_wrap=True)
