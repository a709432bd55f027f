"""`quantlib benchmark`: latency of models, in turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.words import Json, Models, Threads
from quantlib.machine.engines import DEFAULT_ENGINE, ENGINES
from quantlib.support.options import split_names
from quantlib.support.progress import Steps


def command() -> Callable[..., None]:
    """The command."""
    return benchmark


def benchmark(
    models: Models,
    shapes: Annotated[str, typer.Option(help="BATCHxTOKENS to time.", metavar="SHAPE[,SHAPE]")] = "1x128",
    threads: Threads = None,
    engines: Annotated[
        str, typer.Option(help=f"What runs them: {', '.join(ENGINES)}.", metavar="ENGINE[,ENGINE]")
    ] = DEFAULT_ENGINE,
    seconds: Annotated[
        float, typer.Option(help="For each shape; two launches are timed at least.", min=0)
    ] = 30.0,
    json: Json = False,
) -> None:
    """Time ONNX models beside each other, in turns, on random words. No rows are needed.

    Example: quantlib benchmark tickets.onnx tickets-int8.onnx --shapes 1x32,1x128,8x128
    """
    from quantlib.experiment.comparing import time_models
    from quantlib.experiment.task_options import MeasuringOptions
    from quantlib.machine.sessions import default_threads
    from quantlib.measuring.latency.shapes import parse_shape
    from quantlib.report.columns import speedup_cell
    from quantlib.support.console import plain_table

    options = MeasuringOptions(
        timing_seconds=seconds, threads=threads or default_threads(), engines=split_names(engines)
    )
    out = wide_console()
    steps = Steps(None if json else out)
    timed = {
        str(shape): time_models(models, shape, options, steps)
        for shape in (parse_shape(text, "--shapes") for text in split_names(shapes))
    }
    if json:
        print_json(
            {
                shape: {
                    name: {
                        "median_ms": each.latency.median_ms,
                        "speedup": each.speedup.ratio,
                        "speedup_low": each.speedup.low,
                        "speedup_high": each.speedup.high,
                        "trusted": each.speedup.trusted,
                    }
                    for name, each in by_name.items()
                }
                for shape, by_name in timed.items()
            }
        )
        return
    table = plain_table()
    for heading in ("model", "shape", "median\nms", "std\nms", "speed\nup"):
        table.add_column(heading, justify="left" if heading in ("model", "shape") else "right")
    for shape, by_name in timed.items():
        for name, each in by_name.items():
            cell = speedup_cell(each.speedup)
            table.add_row(name, shape, f"{each.latency.median_ms:.2f}", f"{each.latency.std_ms:.2f}", cell)
    out.print(table)
