"""`quantlib gate`: the verdict against a baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import offering
from quantlib.cli.words import Json
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.progress import Steps


def command() -> Callable[..., None]:
    """The command, with the options of a run and of the gate."""
    return offering((ExperimentOptions, GateOptions), gate)


def gate(
    experiment: ExperimentOptions,
    options: GateOptions,
    baseline: Annotated[
        Path | None, typer.Argument(help="Default: baseline/TASK.json.", metavar="[BASELINE]")
    ] = None,
    json: Json = False,
) -> None:
    """Build everything, and compare accuracy, size and latency with the limits and with a baseline.

    Exit code 1 if a limit is broken or a variant got slower. `--gate-update` writes the baseline.

    Example: quantlib gate --gate-update, and after the change: quantlib gate
    """
    from quantlib.experiment.gate_running import run_gate
    from quantlib.gate import console_lines

    options.check_lengths(experiment.seq_len)
    out = wide_console()
    named = baseline or (Path(options.gate) if options.gate else None)
    path = named or Path("baseline") / f"{experiment.task_name}.json"
    judged = run_gate(experiment, options, path, Steps(None if json else out))
    verdict = judged.verdict
    failed = bool(verdict.violations) or (options.gate_strict and bool(verdict.undecided))
    if json:
        print_json(
            {"outcome": verdict.outcome, "findings": [asdict(finding) for finding in verdict.findings]}
        )
    else:
        for line in console_lines(verdict):
            print(line)
    if options.gate_update:
        failed = failed or judged.disturbed
        reason = "other programs used too much of the machine" if judged.disturbed else "limits are broken"
        if not failed:
            judged.write_baseline(path)
        if not json:
            print(f"baseline NOT written: {reason}" if failed else f"baseline written to {path}")
    if failed:
        raise typer.Exit(1)
