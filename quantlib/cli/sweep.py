"""`quantlib sweep`: many runs as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import offering_flags
from quantlib.cli.words import Json
from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND, from_flags
from quantlib.sweep.options import SweepOptions

if TYPE_CHECKING:
    from quantlib.sweep.estimate import Estimate
    from quantlib.sweep.table import SweepTable

_MERGE = "merge"


def command() -> Callable[..., None]:
    """The command, with a parameter for each option of a sweep."""
    return offering_flags(SweepOptions, sweep)


def sweep(
    given: Mapping[str, Any],
    words: Annotated[
        list[str],
        typer.Argument(
            help="The file that says what the cells are; or merge, and the directories of shards.",
            metavar="SWEEP.toml | merge DIR...",
        ),
    ],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say how many cells, what is there already, and about how long it takes."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Run tasks x checkpoints x students x recipes x engines as one, and print one table.

    Without --scheduler jobs run on the cores of this machine. A cell that fails is a row with its error (exit
    code 1). A sweep that was interrupted goes on when it is called again.

    Example: quantlib sweep sweep.toml --dry-run
    """
    if words[0] == _MERGE:
        _merge([Path(word) for word in words[1:]], given, json)
        return
    if len(words) > 1:
        raise InputError(
            f"{words[1]}: one sweep at a time; tables of shards are put together by: merge DIR..."
        )
    from quantlib.sweep import running
    from quantlib.sweep.configuration import read_sweep

    file = read_sweep(Path(words[0]))
    options = from_flags(SweepOptions, given, COMMAND, file.options)
    planned = running.plan(file, options)
    if dry_run:
        _show_estimate(running.look(planned), json)
        return
    out = wide_console()
    table = running.run(planned, None if json else out)
    _show(table, [], options.output_dir, json)


def _merge(directories: list[Path], given: Mapping[str, Any], json: bool) -> None:
    from quantlib.sweep import running

    if not directories:
        raise InputError("merge: name the directories of the shards, each with its sweep.json")
    options = from_flags(SweepOptions, given, COMMAND)
    table, remarks = running.merged(directories, options.output_dir)
    _show(table, remarks, options.output_dir, json)


def _show_estimate(estimate: Estimate, json: bool) -> None:
    if json:
        print_json(estimate.as_json())
    else:
        out = wide_console()
        for sentence in estimate.sentences():
            out.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if estimate.problems:
        raise typer.Exit(1)


def _show(table: SweepTable, remarks: list[str], directory: Path, json: bool) -> None:
    from quantlib.sweep.table import JSON, common, console_table, error_lines

    if json:
        print((directory / JSON).read_text(encoding="utf-8"), end="")
    else:
        out = wide_console()
        out.print(console_table(table.rows))
        same = ", ".join(f"{heading} {value}" for heading, value in common(table.rows).items() if value)
        last = f"{len(table.rows)} rows, {len(table.failed)} failed; written to {directory}"
        for line in [*([same] if same else []), *error_lines(table.rows), *remarks, last]:
            out.print(line, highlight=False, markup=False, soft_wrap=True)
    if table.failed:
        raise typer.Exit(1)
