"""sweep.html: the cells of a sweep, what of them to look at, and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantlib.report.page.figures import front_of
from quantlib.report.page.html import render
from quantlib.support.cache import installed_version
from quantlib.support.files import write_text
from quantlib.support.plotting import NO_PLOTS, can_plot
from quantlib.sweep.fronts import TaskFront
from quantlib.sweep.table import SweepTable
from quantlib.sweep.view import SweepView

FILE = "sweep.html"


def write_page(directory: Path, table: SweepTable) -> Path:
    """Write sweep.html beside the table, whole or not at all.

    Raises:
        InputError: the directory cannot be written.
    """
    # An error may name a file whose name is no text.
    write_text(directory / FILE, page(table).encode("utf-8", "replace").decode("utf-8"))
    return directory / FILE


def page(table: SweepTable) -> str:
    """The page of a sweep."""
    view = SweepView(table)
    return render(
        "sweep.html.j2",
        view=view,
        figures={each.id: _figures(each) for each in view.fronts} if can_plot() else {},
        no_plots=NO_PLOTS,
        version=installed_version("bert-quantlib"),
    )


def _figures(of_task: TaskFront) -> dict[str, Any]:
    """The plot of a task, wide and narrow."""
    return {
        size: front_of(
            of_task.points,
            of_task.metric,
            of_task.named,
            f"{of_task.id}-{size}-plot",
            reference=of_task.reference,
            called="On the front",
            narrow=size == "narrow",
        )
        for size in ("wide", "narrow")
    }
