"""Parameters that several commands have, with the same words everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines, and nothing else.")]
Model = Annotated[Path, typer.Argument(help="An ONNX file, its tokenizer beside it.", metavar="MODEL.onnx")]
Models = Annotated[
    list[Path],
    typer.Argument(
        help="ONNX files; the first is what the others are compared with.", metavar="MODEL.onnx..."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of a session; default: the physical cores.", min=1, max=512)
]
Output = Annotated[Path, typer.Argument(help="The file to write.", metavar="OUT.onnx")]
