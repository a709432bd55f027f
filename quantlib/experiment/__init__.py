"""The main job: from checkpoints to a table that can be believed.

`build.build` makes every model (and finds those made before in the cache), `measure.measure` evaluates and
times them, and `run` does both and writes it down. The names below load their modules when they are first
used, so that the options can be read without the packages that a run needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlib.experiment.build import Built
    from quantlib.experiment.measure import Measured
    from quantlib.experiment.options import ExperimentOptions
    from quantlib.experiment.running import provenance, run
    from quantlib.experiment.work import Variant

_MODULE_OF = {
    "Built": "build",
    "ExperimentOptions": "options",
    "Measured": "measure",
    "Variant": "work",
    "provenance": "running",
    "run": "running",
}

__all__ = ["Built", "ExperimentOptions", "Measured", "Variant", "provenance", "run"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'quantlib.experiment' has no attribute {name!r}")
    return getattr(importlib.import_module(f"quantlib.experiment.{_MODULE_OF[name]}"), name)
