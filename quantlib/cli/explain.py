"""`quantlib explain`: where 8 bits cost accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import offering
from quantlib.cli.words import Json
from quantlib.compression.variants import STUDENT
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.options import options_of
from quantlib.support.progress import Steps


def command() -> Callable[..., None]:
    """The command, with the options of a run."""
    return offering(ExperimentOptions, explain)


def explain(options: ExperimentOptions, json: Json = False) -> None:
    """Show what 8 bits cost each layer of the teacher, worst first, and what would help.

    Example: quantlib explain --evaluation test.csv --label category --teacher checkpoints/tickets
    """
    from quantlib.experiment.build import build
    from quantlib.measuring import explain as explaining

    out = wide_console()
    # What is only about students, recipes and budgets plays no part here.
    declared = options_of(ExperimentOptions)
    of_students = {item.name: item.default for item in declared if item.trains == STUDENT}
    asked = replace(
        options,
        explain=True,
        no_student=True,
        students=(),
        recipes=("dynamic_u8s8",),
        profile=(),
        max_drop=None,
        target_speedup=None,
        **of_students,
    )
    built = build(asked, Steps(None if json else out))
    layers = explaining.read_explanation(built.files[explaining.JSON])
    if json:
        print_json([asdict(layer) for layer in layers])
    else:
        out.print(explaining.table(layers), crop=False)
