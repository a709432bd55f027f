"""The command that runs an experiment and prints what each variant costs and wins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from quantlib.cli.app import new_app, run_app, wide_console
from quantlib.cli.parameters import offering
from quantlib.experiment.options import ExperimentOptions

if TYPE_CHECKING:
    from rich.console import Console

    from quantlib.experiment.running import RunResult


def command(*, whole: bool = False) -> Callable[..., None]:
    """The command, with a parameter for each of `ExperimentOptions`."""
    return offering(ExperimentOptions, run, whole=whole)


def run(
    options: ExperimentOptions,
    json: Annotated[bool, typer.Option("--json", help="Print results.json alone.")] = False,
) -> None:
    """Quantize a teacher, measure every variant and a student, and print what each one costs and wins.

    Example: quantlib run --evaluation test.csv --label category --teacher checkpoints/tickets
    """
    from quantlib import experiment

    started = time.perf_counter()
    if json:
        experiment.run(options)
        print((options.output_dir / options.task_name / "results.json").read_text(encoding="utf-8"), end="")
        return
    out = wide_console()
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
    from quantlib.experiment import budget
    from quantlib.measuring import explain, profile
    from quantlib.report.tables import checks_table, front_note, table

    directory, results = options.output_dir / options.task_name, compared.results
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
    from quantlib.machine.hardware import describe, int8_note
    from quantlib.report.page.report import FILE

    machine, task = describe(), options.task_name
    for note in (
        f"{task}, {options.batch_size}x{options.seq_len}, {options.threads} threads, {machine.cpu_model}. "
        f"{int8_note(machine)}",
        f"The page to look at: {options.output_dir / task / FILE}",
        f"Done in {seconds:.0f} s; written to {options.output_dir / task}",
    ):
        out.print(note, highlight=False, markup=False, soft_wrap=True)


app = new_app()
app.command()(command(whole=True))


def cli(arguments: Sequence[str] | None = None) -> int:
    """Run the main job alone, as from a clone, and return its exit code; see `run_app`."""
    return run_app(app, arguments)
