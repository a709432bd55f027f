"""How a command ends, and what a plain table looks like."""

from __future__ import annotations

import io

import pytest
import typer
from rich.console import Console

from quantlib.cli.app import new_app, run_app
from quantlib.support.console import plain_table
from quantlib.support.errors import InputError

app = new_app()


@app.command()
def end(how: str) -> None:
    if how == "bad input":
        raise InputError("model.onnx: not an ONNX file:\nthe second line of a long story")
    if how == "bug":
        raise ValueError("nobody's fault but ours")
    if how == "code":
        raise typer.Exit(3)
    print("done")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bad input"], 2, "error: model.onnx: not an ONNX file: the second line of a long story\n"),
        ([], 2, "error: Missing argument 'how'.\n"),
        (["well", "--fast"], 2, "error: No such option: --fast\n"),
        (["code"], 3, ""),
        (["well"], 0, ""),
    ],
    ids=["bad_input", "no_argument", "unknown_option", "exit_code", "success"],
)
def test_the_end_of_a_command(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(app, arguments) == code
    printed = capsys.readouterr()
    assert printed.err == message
    assert printed.out == ("" if code else "done\n")


def test_a_bug_is_not_called_bad_input() -> None:
    with pytest.raises(ValueError, match="nobody's fault"):
        run_app(app, ["bug"])


def test_a_plain_table() -> None:
    table = plain_table(caption="2 more")
    table.add_column("name")
    table.add_column("ms", justify="right")
    table.add_row("quant_1", "8.25")
    written = io.StringIO()
    Console(width=60, file=written).print(table)
    lines = [line.rstrip() for line in written.getvalue().splitlines() if line.strip()]
    assert lines == [" name       ms", " ─────────────", " quant_1  8.25", "2 more"]
