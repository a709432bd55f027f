"""`quantlib report`: the page of a run, or of all tasks; the same, shorter, as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quantlib.support.errors import InputError


def command() -> Callable[..., None]:
    """The command."""
    return report


def report(
    output_dir: Annotated[
        Path,
        typer.Argument(
            help="What a run or a sweep wrote into, or the directory of one task.", metavar="[OUTPUT_DIR]"
        ),
    ] = Path("runs"),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a summary in GitHub's Markdown instead of making pages.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            help="An earlier output directory: with --markdown, show what differs from it.",
            metavar="OUTPUT_DIR",
        ),
    ] = None,
) -> None:
    """Make report.html of each task again from its results, and one page over several tasks.

    Of a sweep's output directory: sweep.html, from its sweep.json.

    Example: quantlib report runs, or in a workflow: quantlib report runs --markdown >> "$GITHUB_STEP_SUMMARY"
    """
    from quantlib.report.page.report import write_reports
    from quantlib.report.page.summary import summary
    from quantlib.sweep.page import write_page
    from quantlib.sweep.table import JSON, read_table

    if against is not None and not markdown:
        raise InputError("--against compares in Markdown; add --markdown")
    if (output_dir / JSON).is_file():
        if markdown:
            raise InputError(f"{output_dir / JSON}: of a sweep; --markdown is for runs")
        print(write_page(output_dir, read_table(output_dir / JSON)))
        return
    if markdown:
        print(summary(output_dir, against), end="")
        return
    for path in write_reports(output_dir):
        print(path)
