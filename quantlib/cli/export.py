"""`quantlib export`: a checkpoint as an ONNX model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from quantlib.cli.app import print_json
from quantlib.cli.words import Json, Output


def command() -> Callable[..., None]:
    """The command."""
    return export


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(help="Fine-tuned checkpoint or embedding model, DIR or HUB_ID.", metavar="CHECKPOINT"),
    ],
    out: Output,
    seq_len: Annotated[int, typer.Option(help="Longest sequence in tokens.")] = 128,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 13 to 18.")] = 17,
    compile: Annotated[bool, typer.Option("--compile", help="Fuse operators for ONNX Runtime too.")] = False,
    json: Json = False,
) -> None:
    """Write a checkpoint as an ONNX model with dynamic batch and length; what it gives is compared.

    The tokenizer and config.json are put beside it. Needs the extra train.

    Example: quantlib export checkpoints/tickets tickets.onnx
    """
    from quantlib.experiment.files import export_checkpoint

    done = export_checkpoint(checkpoint, out, seq_len=seq_len, opset=opset, compiled=compile)
    if json:
        print_json(done)
    else:
        what = "logits are" if done["output"] == "logits" else "embeddings are"
        print(f"{out}: {done['size_bytes'] / 2**20:.1f} MB, opset {opset}; {what} those of {checkpoint}")
