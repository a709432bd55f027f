"""`quantlib compare`: classifiers of any origin beside each other."""

from __future__ import annotations

from collections.abc import Callable

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import offering
from quantlib.cli.words import Json, Models
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.support.progress import Steps


def command() -> Callable[..., None]:
    """The command, with a parameter for each option of the rows and of measuring."""
    return offering(MeasuringOptions, compare)


def compare(options: MeasuringOptions, models: Models, json: Json = False) -> None:
    """Compare ONNX classifiers on the same rows: accuracy or agreement, size, and latency in turns.

    Example: quantlib compare tickets.onnx tickets-int8.onnx --evaluation texts.csv
    """
    from quantlib.experiment.comparing import compare_models
    from quantlib.report.tables import front_note, table

    out = wide_console()
    results, notes = compare_models(models, options, Steps(None if json else out))
    if json:
        print_json({"models": {result.name: result.values() for result in results}, "notes": list(notes)})
        return
    out.print(table(results, out.width))
    out.print(front_note(results), highlight=False, markup=False, soft_wrap=True)
