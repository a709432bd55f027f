"""A run of the gate without pytest: build, evaluate, judge."""

from __future__ import annotations

from pathlib import Path

from quantlib import gate
from quantlib.experiment.build import build
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.gating import record
from quantlib.experiment.judging import Judged, judge_run
from quantlib.experiment.measure import evaluate
from quantlib.experiment.options import ExperimentOptions
from quantlib.gate.limits import Tables
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps

# What holds where nobody wrote limits: a point of the metric, and 5 % of the time.
_MAX_DROP_POINTS, _MAX_SLOWDOWN = 1.0, 0.05


def run_gate(experiment: ExperimentOptions, options: GateOptions, path: Path, steps: Steps) -> Judged:
    """Judge a run by its limits and by a baseline.

    Args:
        experiment: what is built.
        options: how much is measured, and whether the run is to become the baseline.
        path: of the baseline.
        steps: where steps are shown.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    if experiment.max_size is not None:
        raise InputError(
            "--max-size chooses a variant of a run; the gate knows --limits with min_compression_ratio"
        )
    limits = limits_of(experiment, options)
    # An update answers to the limits alone.
    baseline = None if options.gate_update else gate.read_record(path)
    built = build(experiment, steps)
    made = record(built, evaluate(built, experiment, steps), experiment)
    return judge_run(built, made, experiment, options, limits, baseline, steps)


def limits_of(experiment: ExperimentOptions, options: GateOptions) -> gate.LimitTable:
    """The limits file that is named; else what the options say, and usual limits for the rest."""
    if options.limits is not None:
        return gate.read_limits(options.limits, experiment.resolved_recipes, experiment.task_name)
    drop = experiment.wishes.max_drop
    default = gate.Limits(
        max_drop_points=_MAX_DROP_POINTS if drop is None else 100 * drop,
        min_speedup=experiment.min_speedup,
        max_slowdown=_MAX_SLOWDOWN,
    )
    recipes = {recipe.name: recipe for recipe in experiment.resolved_recipes}
    return gate.LimitTable(Tables(default), recipes, (experiment.task_name,))
