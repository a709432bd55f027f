"""`quantlib profile`: where the time of a model goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from quantlib.cli.app import wide_console
from quantlib.cli.words import Json, Model, Threads
from quantlib.support.directories import temporary_dir
from quantlib.support.progress import Steps


def command() -> Callable[..., None]:
    """The command."""
    return profile


def profile(
    model: Model,
    shape: Annotated[
        str, typer.Option(help="Rows in a batch, and tokens in a row.", metavar="BATCHxTOKENS")
    ] = "1x128",
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Show where the time of an ONNX model goes, and how near that is to the machine's peak.

    Example: quantlib profile tickets-int8.onnx --shape 8x128
    """
    from quantlib.experiment.comparing import made_up_feeds
    from quantlib.experiment.given_models import try_shape
    from quantlib.machine.sessions import SessionConfig, default_threads
    from quantlib.measuring import profile as profiling
    from quantlib.measuring.latency.shapes import parse_shape
    from quantlib.onnx_model.interface import interface_of

    out = wide_console()
    parsed = parse_shape(shape, "--shape")
    interface_of(model)
    try_shape(model, parsed)
    steps = Steps(None if json else out)
    session = SessionConfig(threads or default_threads())
    with steps.step("measure the machine's peak"):
        peak = profiling.measure_peak(session)
    with steps.step(f"profile {model.name}"):
        found = profiling.profile_onnx(model, made_up_feeds(model, parsed, 8), peak, session=session)
    if json:
        with temporary_dir() as scratch:
            profiling.write_profile(scratch, found)
            print((scratch / profiling.file_name(found.variant)).read_text(encoding="utf-8"), end="")
        return
    profiling.show(found, out)
