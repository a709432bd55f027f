"""`quantlib quantize`: one recipe on an ONNX model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from quantlib.cli.app import print_json
from quantlib.cli.words import Json, Model, Output
from quantlib.support.options import split_names


def command() -> Callable[..., None]:
    """The command."""
    return quantize


def quantize(
    model: Model,
    out: Output,
    recipe: Annotated[
        str, typer.Option(help="A name (`quantlib recipes` lists them) or a recipe file.")
    ] = "dynamic_u8s8",
    calibration: Annotated[
        str | None,
        typer.Option(help="Texts to calibrate a static recipe on; no labels needed.", metavar="FILE"),
    ] = None,
    text: Annotated[
        str,
        typer.Option(
            help="The column with the text, or two; default: usual names.", metavar="COLUMN[,COLUMN]"
        ),
    ] = "",
    samples: Annotated[int, typer.Option(help="Rows to calibrate on, at most.", min=1)] = 512,
    seq_len: Annotated[int, typer.Option(help="Longest sequence in tokens.", min=8)] = 128,
    compile: Annotated[
        bool, typer.Option("--no-compile", help="Quantize the graph as it is, without fusing operators.")
    ] = False,
    json: Json = False,
) -> None:
    """Quantize an ONNX model by a recipe. Static recipes need texts like those of production.

    Example: quantlib quantize tickets.onnx int8.onnx --recipe static_u8s8_smooth --calibration texts.csv
    """
    from quantlib.experiment.files import quantize_file

    done = quantize_file(
        model,
        out,
        recipe,
        calibration=calibration,
        text=split_names(text),
        samples=samples,
        seq_len=seq_len,
        compiled=not compile,
    )
    if json:
        print_json(done)
        return
    for sentence in done["notes"]:
        print(f"  {sentence}")
    ratio = done["size_before_bytes"] / done["size_bytes"]
    print(
        f"{out}: {done['size_bytes'] / 2**20:.1f} MB, {ratio:.2f}x smaller; {done['quantized']} of "
        f"{done['products']} products with a weight are quantized"
    )
