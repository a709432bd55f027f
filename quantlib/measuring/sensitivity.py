"""The cost of each group of layers in accuracy, and the fewest groups to lift out of 8 bits for a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantlib.compression.calibration import Gram, Ranges
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes.recipe import Precision, Recipe
from quantlib.data import scores
from quantlib.data.features import Feature
from quantlib.data.tasks import Task
from quantlib.measuring import accuracy
from quantlib.onnx_model import layers
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError

# A budget is met if the drop stays below it with this confidence. The upper end of a two-sided 80 % interval
# (paired bootstrap) is that of a one-sided 90 % interval.
CONFIDENCE = 0.9
_TWO_SIDED = 2 * CONFIDENCE - 1

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class GroupCost:
    """How much quantizing one group of layers, and nothing else, changes the teacher's logits.

    group: as `linear.group` names it. nodes: its layers. logit_error: mean absolute difference, in logits.
    """

    group: str
    nodes: tuple[str, ...]
    logit_error: float


@dataclass(frozen=True)
class Trial:
    """A recipe that was tried, and its drop on held-out rows.

    lifted: how many steps of the ladder were taken. drop: the teacher's primary metric minus the variant's,
    a fraction; drop_high: the upper end of its interval. agreement: with the teacher's labels.
    """

    lifted: int
    recipe: Recipe
    drop: float
    drop_high: float
    agreement: float


@dataclass(frozen=True)
class Choice:
    """The recipe that meets a budget, the costs that decided the order of groups, and all trials in order."""

    max_drop: float
    best: Trial
    costs: tuple[GroupCost, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Problem:
    """What to quantize, and the rows to judge it on.

    onnx_path: the FP32 model (smoothed if the recipe says so). recipe: where every group starts.
    ranges: for a static recipe. task: of the rows. calibration: the rows on which costs are measured.
    heldout: other rows, labelled if the task's are, on which a budget is verified. threads: of the sessions.
    grams: for a recipe with second-order rounding.
    """

    onnx_path: Path
    recipe: Recipe
    ranges: Ranges | None
    task: Task
    calibration: Sequence[Feature]
    heldout: Sequence[Feature]
    threads: int | None = None
    grams: Mapping[str, Gram] | None = None

    def __post_init__(self) -> None:
        if self.recipe.quantizer != "quantlib" or self.recipe.nodes:
            raise InputError(
                f"recipe {self.recipe.name} cannot be the start of a budget: it must be one of "
                "quantlib's own, without exceptions for nodes"
            )
        if not self.calibration or not self.heldout:
            raise InputError("a budget needs calibration rows and held-out rows; one of the two is empty")


def measure_costs(problem: Problem, progress: Callable[[int], None] | None = None) -> list[GroupCost]:
    """The cost of each group, the most expensive first: measured with one group quantized at a time.

    Args:
        problem: its calibration rows are run once for each group.
        progress: called after each group with 1.
    """
    groups = groups_of(problem)
    exact = _logits(problem, problem.onnx_path, problem.calibration)
    costs = []
    for group, nodes in groups.items():
        others: tuple[tuple[str, Precision], ...] = tuple((g, "float") for g in groups if g != group)
        logits = _variant_logits(problem, replace(problem.recipe, nodes=others), problem.calibration)
        costs.append(GroupCost(group, tuple(nodes), scores.logit_error(logits, exact)))
        if progress:
            progress(1)
    return sorted(costs, key=lambda cost: -cost.logit_error)


def groups_of(problem: Problem) -> dict[str, list[str]]:
    """{group: its nodes}, of the nodes that the recipe quantizes."""
    model = layers.load_ir(problem.onnx_path)
    names = layers.names(model)
    if problem.recipe.embeddings == "float":
        names = [layer.name for layer in layers.find_linears(model)]
    return layers.groups(names)


def ladder(recipe: Recipe, costs: Sequence[GroupCost]) -> list[Recipe]:
    """Recipes from the cheapest to the most careful: each lifts one group more than the one before.

    The most expensive group comes first. All groups are first lifted to 16-bit activations (if the recipe's
    format allows), which keeps their weights in 8 bits; then, in the same order, to float. The last group
    stays.
    """
    lifts: list[Precision] = ["float"] if recipe.format == "QDQ" else ["int16", "float"]
    if recipe.activation_type == "QUInt16" or recipe.mode == "weight_only":
        lifts = ["float"]
    now: dict[str, Precision] = {}
    rungs = [recipe]
    for precision in lifts:
        # Embeddings have no activation that could get more bits.
        able = [c.group for c in costs if precision == "float" or c.group != "embeddings"]
        for group in able[: len(costs) - 1] if precision == "float" else able:
            now[group] = precision
            rungs.append(replace(recipe, nodes=tuple(now.items())))
    return rungs


def choose(
    problem: Problem,
    max_drop: float,
    costs: Sequence[GroupCost],
    progress: Callable[[int], None] | None = None,
) -> Choice:
    """The first recipe of the ladder that meets a budget on held-out rows.

    A recipe meets it if its drop stays below `max_drop` with a confidence of `CONFIDENCE`. The search doubles
    the rung until one meets the budget, then bisects: the rung below the result was tried and does not meet
    it.

    Args:
        problem: its held-out rows are run once for each trial.
        max_drop: the budget, as a fraction of the primary metric.
        costs: from `measure_costs`.
        progress: called after each trial with 1.

    Raises:
        InputError: no rung meets the budget; the message says what the best one reached.
    """
    if not 0 <= max_drop < 1:
        raise InputError(f"a budget of {max_drop} is out of range; it must be at least 0 and below 1")
    rungs = ladder(problem.recipe, costs)
    exact = _logits(problem, problem.onnx_path, problem.heldout)
    trials: dict[int, Trial] = {}

    def meets(lifted: int) -> bool:
        if lifted not in trials:
            trials[lifted] = _try(problem, lifted, rungs[lifted], exact)
            if progress:
                progress(1)
        return trials[lifted].drop_high <= max_drop

    rung = _first(meets, len(rungs))
    if rung is None:
        best = min(trials.values(), key=lambda trial: trial.drop_high)
        more = ""
        if best.drop < max_drop:  # an interval is as wide as one over the root of the rows
            widths = (best.drop_high - best.drop) / (max_drop - best.drop)
            more = f"; about {np.ceil(widths**2 * len(problem.heldout)):.0f} rows would be enough to tell"
        raise InputError(
            f"no choice of nodes meets a drop of {100 * max_drop:g} points with {100 * CONFIDENCE:g} % "
            f"confidence on {len(problem.heldout)} held-out rows; the best reached {100 * best.drop:.2f} "
            f"points, at most {100 * best.drop_high:.2f}, with {best.lifted} of {len(rungs) - 1} steps taken"
            f"{more}"
        )
    return Choice(max_drop, trials[rung], tuple(costs), tuple(trials.values()))


def _first(meets: Callable[[int], bool], count: int) -> int | None:
    """The smallest number below `count` that meets, assuming all larger ones do too; None if none meets."""
    low, high = -1, 0
    while not meets(high):
        if high == count - 1:
            return None
        low, high = high, min(max(1, 2 * high), count - 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Loss:
    """What a variant loses on held-out rows; its fields are those of `Trial`."""

    drop: float
    drop_high: float
    agreement: float


def loss(task: Task, logits: Logits, exact: Logits, rows: Sequence[Feature]) -> Loss:
    """What a variant's logits lose against the teacher's, both (rows, labels), on these rows."""
    ours, teachers = (accuracy.score(task, each, rows, exact) for each in (logits, exact))
    primary = task.primary_metric
    _, high = scores.drop_interval(task, logits, exact, teachers.truth, confidence=_TWO_SIDED)
    return Loss(
        drop=teachers.metrics[primary] - ours.metrics[primary],
        drop_high=high,
        agreement=scores.agreement(task, logits, exact),
    )


def _try(problem: Problem, lifted: int, recipe: Recipe, exact: Logits) -> Trial:
    logits = _variant_logits(problem, recipe, problem.heldout)
    lost = loss(problem.task, logits, exact, problem.heldout)
    return Trial(lifted, recipe, lost.drop, lost.drop_high, lost.agreement)


def _variant_logits(problem: Problem, recipe: Recipe, rows: Sequence[Feature]) -> Logits:
    with temporary_dir() as scratch:
        out = scratch / "model.onnx"
        path = quantize_onnx(problem.onnx_path, out, recipe, problem.ranges, problem.grams)
        return _logits(problem, path, rows)


def _logits(problem: Problem, path: Path, rows: Sequence[Feature]) -> Logits:
    return accuracy.predict_onnx(path, rows, problem.task, threads=problem.threads)
