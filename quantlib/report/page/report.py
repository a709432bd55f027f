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
    write_text(directory / FILE, page([read_task(directory, name, run)]))
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
    runs = {directory: read_task(directory) for directory in task_directories(output_dir)}
    pages = []
    for directory, run in runs.items():
        write_text(directory / FILE, page([run]))
        pages.append(directory / FILE)
    if len(runs) > 1:
        write_text(output_dir / FILE, page(list(runs.values())))
        pages.append(output_dir / FILE)
    return pages


def page(runs: Sequence[TaskRun]) -> str:
    """The page of one run, or of several."""
    views = [
        TaskView(run, f"task-{number}", _figures(run, f"task-{number}")) for number, run in enumerate(runs)
    ]
    return render(
        "report.html.j2",
        views=views,
        explanations=explanations(views),
        no_plots=NO_PLOTS,
        version=installed_version("bert-quantlib"),
    )


def _figures(run: TaskRun, name: str) -> dict[str, Any]:
    """The plots of a run by what they show; none without matplotlib."""
    if not can_plot():
        return {}
    return {
        "front": figures.front(run, f"{name}-plot"),
        "front_narrow": figures.front(run, f"{name}-small-plot", narrow=True),
        "far": [point.words for point in figures.far_off(figures.points_of(run))],
        "ratios": figures.ratios(run, f"{name}-ratios"),
        "layers": figures.layers(run, f"{name}-noise") if run.layers else None,
        "profiles": [figures.operators(p, f"{name}-operators-{n}") for n, p in enumerate(run.profiles)],
        "scaling": figures.scaling(run, f"{name}-lengths") if run.scaling else None,
    }
