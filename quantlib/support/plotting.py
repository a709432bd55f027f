"""Figures for plots, without pyplot's state of the process."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The message where plots are left out.
NO_PLOTS = "no plots: they need matplotlib (pip install 'bert-quantlib[plots]')"


def can_plot() -> bool:
    """Whether plots can be drawn: matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(inches: tuple[float, float], dots_per_inch: int = 150) -> Figure:
    """An empty figure to be saved as a PNG."""
    # Not through pyplot, which keeps every figure and chooses a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=dots_per_inch, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
