"""The variant that meets a budget, its recipe file, and the costs behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.compression.calibration import read_grams
from quantlib.compression.recipes.file import read_recipe, write_recipe
from quantlib.compression.variants import BUDGETED
from quantlib.data import features
from quantlib.experiment import quantizing
from quantlib.experiment.savings import RECIPE_FILE, SENSITIVITY_FILE, problem_key, remark, save_more
from quantlib.experiment.work import Variant, Work, cached, file_hash, tokenize
from quantlib.measuring import sensitivity
from quantlib.support.files import write_json
from quantlib.support.progress import Step

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["RECIPE_FILE", "SENSITIVITY_FILE", "budgeted", "table"]

# Costs are measured on so many calibration rows: they only have to rank the groups.
COST_ROWS = 128


def budgeted(
    work: Work, fp32: Variant, compiled: Variant | None, checkpoint: Path
) -> tuple[Variant, dict[str, Path]]:
    """The variant that meets `--max-drop`, and the files that say how it was found.

    Costs are measured on calibration rows, the budget is verified on validation rows; evaluation rows are
    not looked at.

    Raises:
        InputError: no choice of nodes meets the budget.
    """
    base = work.options.resolved_base
    rows = tokenize(work, "calibration", checkpoint)
    heldout = tokenize(work, "validation", checkpoint)
    start = quantizing.source(work, quantizing.start_of(compiled or fp32), rows, base.smooth)
    ranges = quantizing.ranges_of(work, start, rows, [base])[base.name] if base.mode == "static" else None
    grams = quantizing.grams_for(work, start, rows, base)
    few = rows[:: max(1, len(rows) // COST_ROWS)][:COST_ROWS]
    problem = sensitivity.Problem(
        start.model.path,
        base,
        ranges,
        work.task,
        few,
        heldout,
        threads=work.options.threads,
        grams=None if grams is None else read_grams(grams),
    )
    key = problem_key(problem) | {
        "model": start.model.sha256,
        "grams": None if grams is None else file_hash(grams),
    }
    costs = _costs(work, problem, key)
    directory = _choice(work, problem, costs, key)
    recipe = read_recipe(directory / RECIPE_FILE)
    model = start.model
    if not recipe.nodes:  # 8 bits everywhere lose less than they may: more can be saved
        directory = save_more(work, fp32, compiled, rows, problem, directory)
        recipe = read_recipe(directory / RECIPE_FILE)
        made = quantizing.ready(work, fp32, compiled, rows, [recipe])[recipe.name]
        model, ranges, grams = made.model, made.ranges, made.grams
    files = {name: directory / name for name in (RECIPE_FILE, SENSITIVITY_FILE)}
    return quantizing.variant(work, fp32, model, recipe, ranges, grams), files


def _costs(
    work: Work, problem: sensitivity.Problem, problem_key: Mapping[str, Any]
) -> list[sensitivity.GroupCost]:
    count = len(sensitivity.groups_of(problem))

    def measure(directory: Path, step: Step) -> None:
        costs = sensitivity.measure_costs(problem, step.advance)
        write_json(directory / "costs.json", [asdict(cost) for cost in costs])

    key = {**problem_key, "rows": features.features_hash(problem.calibration)}
    path = cached(work, "measure the cost of each group", "costs", key, measure, total=count) / "costs.json"
    costs = json.loads(path.read_text(encoding="utf-8"))
    return [sensitivity.GroupCost(**(cost | {"nodes": tuple(cost["nodes"])})) for cost in costs]


def _choice(
    work: Work,
    problem: sensitivity.Problem,
    costs: Sequence[sensitivity.GroupCost],
    problem_key: Mapping[str, Any],
) -> Path:
    max_drop = work.options.max_drop
    assert max_drop is not None

    def choose(directory: Path, step: Step) -> None:
        choice = sensitivity.choose(problem, max_drop, costs, step.advance)
        _write(directory, problem, choice)

    key = {
        **problem_key,
        "rows": features.features_hash(problem.heldout),
        "labels": [row.label for row in problem.heldout],
        "costs": [asdict(cost) for cost in costs],
        "max_drop": max_drop,
        "base": asdict(problem.recipe),  # its name and words become part of the new recipe
    }
    return cached(work, f"meet a drop of {100 * max_drop:g} points", "budget", key, choose)


def _write(directory: Path, problem: sensitivity.Problem, choice: sensitivity.Choice) -> None:
    best, points = choice.best, 100 * choice.max_drop
    summary = f"{problem.recipe.name}, {best.lifted} steps more careful, to lose at most {points:g} points"
    recipe = replace(best.recipe, name=BUDGETED, summary=summary)
    comments = {cost.group: f"costs {cost.logit_error:.4f} in 8 bits" for cost in choice.costs}
    comments[""] = remark(problem, points, best)
    write_recipe(directory / RECIPE_FILE, recipe, comments)
    write_json(
        directory / SENSITIVITY_FILE,
        {
            "base": problem.recipe.name,
            "max_drop": choice.max_drop,
            "confidence": sensitivity.CONFIDENCE,
            "calibration_rows": len(problem.calibration),
            "heldout_rows": len(problem.heldout),
            "costs": [asdict(cost) for cost in choice.costs],
            "trials": [_trial(trial) for trial in choice.trials],
            "chosen": _trial(best) | {"nodes": dict(best.recipe.nodes)},
        },
    )


def _trial(trial: sensitivity.Trial) -> dict[str, float | int]:
    return {key: value for key, value in asdict(trial).items() if key != "recipe"}


def table(sensitivity_path: Path, rows: int = 12) -> Table:
    """The dearest groups, and what was done about them, for a person to read."""
    from rich import box
    from rich.table import Table

    sensitivities = json.loads(sensitivity_path.read_text(encoding="utf-8"))
    nodes, costs = sensitivities["chosen"]["nodes"], sensitivities["costs"]
    result = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("group", no_wrap=True)
    result.add_column("logit error\nin 8 bits", justify="right")
    result.add_column("chosen")
    for cost in costs[:rows]:
        result.add_row(cost["group"], f"{cost['logit_error']:.4f}", nodes.get(cost["group"], "8 bits"))
    if len(costs) > rows:
        result.add_row(f"and {len(costs) - rows} more, in {SENSITIVITY_FILE}", "", "")
    return result
