"""`quantlib history`: speedup, drop and size of each variant over the commits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quantlib import __version__
from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import configuration, of_class
from quantlib.cli.words import Json
from quantlib.support.errors import InputError
from quantlib.support.files import make_dir


def command() -> Callable[..., None]:
    """The command."""
    return history


def history(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Baselines and results files; default: every baseline/*.json and results.json.",
            metavar="[FILE...]",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="List the steps after a commit, or from a date on.", metavar="REV_OR_DATE"),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Also write a page for a browser.", metavar="FILE.html")
    ] = None,
    repository: Annotated[Path, typer.Option(help="A directory of the repository.", metavar="DIR")] = Path(),
    storage: Annotated[
        Path | None,
        typer.Option(help="Runs that pytest-benchmark saved; default: .benchmarks.", metavar="DIR"),
    ] = None,
    gate_state_spread: Annotated[
        float | None,
        typer.Option(
            help="By how much a ratio to the teacher may differ, on the log scale, because a machine has "
            "states; default: the gate's.",
            metavar="SPREAD",
            min=0.0,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show each variant's speedup, drop and size over the commits, and where they changed.

    Reads baselines, results.json where it is committed, and runs that pytest-benchmark saved. Exit code 1 if
    a listed step is a sure regression that is still there.

    Example: quantlib history --since 2026-01-31 --page history.html
    """
    from quantlib.experiment.gate_options import GateOptions
    from quantlib.experiment.judging import STATE_SPREAD
    from quantlib.gate.history.history import read_history
    from quantlib.gate.history.text import as_json, groups_of, lines_of, table_of

    if page is not None and page.suffix != ".html":
        raise InputError(f"--page {page}: must end with .html")
    if page is not None:
        make_dir(page.parent)  # what cannot be written is told before anything is read
    given = {} if gate_state_spread is None else {"gate_state_spread": gate_state_spread}
    configured = of_class(configuration(None), GateOptions)
    options = GateOptions(**configured | given)
    spread = STATE_SPREAD if options.gate_state_spread is None else options.gate_state_spread
    of_commits = read_history(
        repository, files=files or [], storage=storage, since=since, state_spread=spread
    )
    if page is not None:
        from quantlib.gate.history.page import write_page

        write_page(page, of_commits, since, spread, __version__)
    if json:
        print_json(as_json(of_commits))
    else:
        out = wide_console()
        for group in groups_of(of_commits):
            out.print(group.title, highlight=False, markup=False, soft_wrap=True)
            out.print(table_of(group))
        for line in lines_of(of_commits, since):
            out.print(line, highlight=False, markup=False, soft_wrap=True)
        if page is not None:
            out.print(f"written to {page}", highlight=False, markup=False, soft_wrap=True)
    if of_commits.regressions:
        raise typer.Exit(1)
