"""report.html: of a task, and of all tasks of an output directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quantlib.report.page import figures
from quantlib.report.page.files import TaskRun, read_task, task_directories
from quantlib.report.page.html import render
from quantlib.report.page.view import TaskView, explanations
from quantlib.support.cache import installed_version
from quantlib.support.directories import replacing
from quantlib.support.files import write_text
from quantlib.support.plotting import NO_PLOTS, can_plot

FILE = "report.html"


def write_report(directory: Path, name: str | None = None, run: Mapping[str, Any] | None = None) -> Path:
    """Write report.html of a task beside its results.

    Args:
        directory: of the task, with its results.json.
        name, run: as for `quantlib.report.page.files.read_task`.

    Raises:
        InputError: a file is missing or damaged, or the directory cannot be written.
    """
    write_text(directory / FILE, page([view_of(read_task(directory, name, run))]))
    return directory / FILE


def write_reports(output_dir: Path) -> list[Path]:
    """Write report.html of each task of an output directory and, of several, one over all of them.

    Args:
        output_dir: what a run was given, or the directory of one task.

    Returns:
        The pages, the one to open first at the end.

    Raises:
        InputError: no results, a file is missing or damaged, or the directory cannot be written.
    """
    directories = task_directories(output_dir)
    views, pages = [], [directory / FILE for directory in directories]
    for number, directory in enumerate(directories):
        with replacing(directory):
            views.append(view_of(read_task(directory), number))
            write_text(pages[number], page(views[-1:]))
    if len(views) > 1:
        pages.append(output_dir / FILE)
        write_text(pages[-1], page(views))
    return pages


def view_of(run: TaskRun, number: int = 0) -> TaskView:
    """A run with its plots; number: unlike that of any other run of a page."""
    name = f"task-{number}"
    return TaskView(run, name, _figures(run, name))


def page(views: Sequence[TaskView]) -> str:
    """The page of one run, or of several."""
    return render(
        "report.html.j2",
        views=views,
        explanations=explanations(views),
        no_plots=NO_PLOTS,
        version=installed_version("bert-quantlib"),
    )


def _figures(run: TaskRun, name: str) -> dict[str, Any]:
    """The plots of a run by what they show, all None without matplotlib."""
    if not can_plot():
        return dict.fromkeys(("front", "front_narrow", "far", "ratios", "layers", "profiles", "scaling"))
    return {
        "front": figures.front(run, f"{name}-plot"),
        "front_narrow": figures.front(run, f"{name}-small-plot", narrow=True),
        "far": [point.variant for point in figures.far_off(figures.points_of(run))],
        "ratios": figures.ratios(run, f"{name}-ratios"),
        "layers": figures.layers(run, f"{name}-noise") if run.layers else None,
        "profiles": [figures.operators(p, f"{name}-operators-{n}") for n, p in enumerate(run.profiles)],
        "scaling": figures.scaling(run, f"{name}-lengths") if run.scaling else None,
    }
