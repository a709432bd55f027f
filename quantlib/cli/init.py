"""`quantlib init`: a configuration file from rows and a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quantlib.cli.app import print_json
from quantlib.cli.words import Json
from quantlib.support.options import split_names


def command() -> Callable[..., None]:
    """The command."""
    return init


def init(
    data: Annotated[
        str,
        typer.Argument(
            help="Evaluation rows: .csv, .tsv, .jsonl, .parquet, .txt, a data set.", metavar="DATA"
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(help="Fine-tuned checkpoint or embedding model, DIR or HUB_ID, or an ONNX file."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The column with labels; default: a usual name.")] = None,
    text: Annotated[
        str,
        typer.Option(
            help="The column with the text, or two; default: usual names.", metavar="COLUMN[,COLUMN]"
        ),
    ] = "",
    task: Annotated[str | None, typer.Option(help="A name for the task; default: the data's.")] = None,
    config: Annotated[Path | None, typer.Option(help="The file to write; default: quantlib.toml.")] = None,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Write no tests for pytest, and no workflow for CI.")
    ] = False,
    json: Json = False,
) -> None:
    """Look at rows and a checkpoint, and write quantlib.toml, tests for pytest and a workflow for CI.

    It asks nothing that it can find out.

    Example: quantlib init data/test.csv --teacher checkpoints/tickets
    """
    from quantlib.experiment.proposing import default_path, propose
    from quantlib.experiment.scaffold import requirement_of, write_tests

    made = propose(data, teacher, config or default_path(), label=label, text=split_names(text), name=task)
    tests = {} if config_only else write_tests(made.path.parent, requirement_of(teacher, made.rows))
    if json:
        written = [str(path) for path, is_new in tests.items() if is_new]
        print_json(
            {"path": str(made.path), "tests": written, "notes": list(made.notes), "open": list(made.open)}
        )
        return
    print(made.text, end="")
    print()
    for note in made.notes:
        print(f"# {note}")
    for sentence in made.open:
        print(f"! {sentence}")
    for path, is_new in tests.items():
        print(f"written to {path}" if is_new else f"left as it is: {path}")
    print(f"written to {made.path}; next: quantlib check")
