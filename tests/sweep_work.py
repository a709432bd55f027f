"""What workers of other processes do in the tests of sweeps."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from quantlib.experiment.options import ExperimentOptions
from quantlib.sweep.graph import Job
from quantlib.sweep.work import Outcome, run

KILLED = "QUANTLIB_TEST_KILLED"
"""The variable that names a directory with a mark for each job whose worker was killed once."""


def empty(job: Job, options: ExperimentOptions) -> Outcome:
    """Do nothing, and say so of every cell."""
    return Outcome(
        rows={cell.variant: {"accuracy": 1.0} for cell in job.cells},
        models={cell.variant: "0" * 64 for cell in job.cells},
        where={"host": str(os.getpid())},
    )


def killed_always(job: Job, options: ExperimentOptions) -> Outcome:
    """Do nothing, but for variants of quant_2: they kill their process each time."""
    if job.cells[0].variant == "quant_2":
        os.kill(os.getpid(), signal.SIGKILL)
    return empty(job, options)


def run_killed_once(job: Job, options: ExperimentOptions) -> Outcome:
    """Do the job; the process of the first one that makes a variant dies in the middle, once."""
    if job.kind == "variant":
        _die_once(job, "variant")
    return run(job, options)


def failing(job: Job, options: ExperimentOptions) -> Outcome:
    """A bug in each variant of quant_2."""
    if job.cells[0].variant == "quant_2":
        raise ZeroDivisionError("division by zero\nof two lines")
    return empty(job, options)


def _die_once(job: Job, name: str) -> None:
    mark = Path(os.environ[KILLED]) / name
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)
