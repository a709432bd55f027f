"""What more than 8 bits everywhere can be saved within `--max-drop`: neurons, and bits of the file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from quantlib.compression.pruning import FFN, blocks_of, largest_share
from quantlib.compression.recipes import Recipe, write_recipe
from quantlib.compression.recipes.recipe import Embeddings, Rounding, Storage
from quantlib.compression.variants import BUDGETED
from quantlib.data import features
from quantlib.experiment import quantizing
from quantlib.experiment.compiling import normalized
from quantlib.experiment.work import Variant, Work, cached
from quantlib.machine import hardware
from quantlib.measuring import accuracy, sensitivity
from quantlib.support.cache import versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import copy_file, sha256_json, write_json
from quantlib.support.progress import Step

RECIPE_FILE, SENSITIVITY_FILE = f"recipe_{BUDGETED}.toml", "sensitivity.json"

SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
"""The shares of the neurons that are tried."""

_SECOND_ORDER: dict[str, Any] = {"rounding": "second_order"}


@dataclass(frozen=True)
class Saving:
    """A recipe that saves more than 8 bits everywhere do, and what it loses on held-out rows.

    share: of the neurons that are pruned. embeddings, storage, rounding: of the recipe. widths: the neurons
    that blocks keep. size_bytes: of the file.
    """

    share: float
    embeddings: Embeddings
    storage: Storage
    rounding: Rounding
    widths: Mapping[str, int]
    size_bytes: int
    drop: float
    drop_high: float
    agreement: float
    meets: bool


def save_more(
    work: Work,
    fp32: Variant,
    compiled: Variant | None,
    rows: Sequence[features.Feature],
    problem: sensitivity.Problem,
    before: Path,
) -> Path:
    """The directory of the files of a choice that saves more than 8 bits everywhere do, within the budget.

    The largest of `SHARES` of the neurons that meets the budget is found by bisection, which takes it that a
    smaller share loses no more. The next share is tried with weights rounded by second order. Then, with as
    few neurons, the file is tried in 4 bits: words and weights, then either alone.

    Args:
        fp32, compiled: the float model. rows: of calibration.
        problem: one whose recipe meets the budget in 8 bits.
        before: the directory of the files of that choice.
    """
    tried: list[Saving] = []

    @cache
    def exact() -> sensitivity.Logits:
        return accuracy.predict_onnx(problem.onnx_path, problem.heldout, work.task, threads=problem.threads)

    def attempt(share: float, **changes: Any) -> bool:
        recipe = replace(problem.recipe, prune=share, **changes)
        tried.append(_saving(work, fp32, compiled, rows, problem, recipe, exact))
        return tried[-1].meets

    shares = _possible_shares(work, fp32)
    low, high = 0, len(shares)
    # The last share below `low` meets, the one at `high` does not.
    while low < high:
        middle = (low + high) // 2
        if attempt(shares[middle]):
            low = middle + 1
        else:
            high = middle
    careful: dict[str, Any] = {}
    if low < len(shares) and problem.recipe.rounding == "nearest" and attempt(shares[low], **_SECOND_ORDER):
        low, careful = low + 1, _SECOND_ORDER
    for fewer_bits in _fewer_bits(problem.recipe):
        if attempt(shares[low - 1] if low else 0.0, **(careful | fewer_bits)):
            break
    return _with_savings(work, problem, before, tried)


def _fewer_bits(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """What makes the file smaller at the same speed, the smallest first."""
    words = {"embeddings": "int4"} if recipe.embeddings == "per_row" else {}
    weights = _SECOND_ORDER | {"storage": "int4"}
    if not recipe.per_channel or recipe.mode == "weight_only" or recipe.storage == "int4":
        weights = {}
    if words and weights:
        yield words | weights
    yield from (bits for bits in (weights, words) if bits)


def _possible_shares(work: Work, fp32: Variant) -> tuple[float, ...]:
    try:
        blocks = blocks_of(normalized(work, fp32).path, (FFN,))
    except InputError as error:
        work.steps.say(f"not pruned within --max-drop: {error}")
        return ()
    return tuple(share for share in SHARES if share <= largest_share(blocks))


def _saving(
    work: Work,
    fp32: Variant,
    compiled: Variant | None,
    rows: Sequence[features.Feature],
    problem: sensitivity.Problem,
    recipe: Recipe,
    exact: Callable[[], sensitivity.Logits],
) -> Saving:
    """What a recipe loses on held-out rows, kept in the cache; `exact` gives the float model's logits."""
    max_drop = work.options.max_drop
    assert max_drop is not None
    made = quantizing.ready(work, fp32, compiled, rows, [recipe])[recipe.name]
    name = f"{recipe.name}, {', '.join(_words(recipe))}"
    model = quantizing.quantize(work, name, made.model, recipe, made.ranges, made.grams)

    def measure(directory: Path, _: Step) -> None:
        logits = accuracy.predict_onnx(model.path, problem.heldout, work.task, threads=problem.threads)
        lost = sensitivity.loss(work.task, logits, exact(), problem.heldout)
        write_json(directory / "loss.json", asdict(lost))

    key = problem_key(problem) | {
        "model": model.sha256,
        "exact": fp32.model.sha256,
        "rows": features.features_hash(problem.heldout),
        "labels": [row.label for row in problem.heldout],
    }
    path = cached(work, f"try {name}", "budget", key, measure) / "loss.json"
    lost = sensitivity.Loss(**json.loads(path.read_text(encoding="utf-8")))
    meets = lost.drop_high <= max_drop
    return Saving(
        recipe.prune,
        recipe.embeddings,
        recipe.storage,
        recipe.rounding,
        dict(made.widths),
        model.path.stat().st_size,
        **asdict(lost),
        meets=meets,
    )


def _words(saved: Recipe | Saving) -> list[str]:
    """What a recipe saves, in words."""
    share = saved.share if isinstance(saved, Saving) else saved.prune
    words = [f"{100 * share:g} % of the neurons pruned"] if share else []
    if saved.storage == "int4":
        words.append("weights in 4 bits on disk")
    if saved.embeddings == "int4":
        words.append("the embeddings of words in 4 bits")
    if saved.rounding == "second_order":
        words.append("rounded by second order")
    return words or ["nothing pruned"]


def _with_savings(work: Work, problem: sensitivity.Problem, before: Path, savings: Sequence[Saving]) -> Path:
    """The directory of the files of a choice that saves as much as it may."""
    text = (before / SENSITIVITY_FILE).read_text(encoding="utf-8")

    def write(directory: Path, _: Step) -> None:
        reasons = json.loads(text)
        met = [saving for saving in savings if saving.meets]
        if met:
            _write_saving(directory, problem, reasons, max(met, key=lambda s: (s.share, -s.size_bytes)))
        else:
            copy_file(before / RECIPE_FILE, directory / RECIPE_FILE)
        write_json(
            directory / SENSITIVITY_FILE, reasons | {"savings": [asdict(saving) for saving in savings]}
        )

    key = {
        "reasons": text,
        "base": asdict(problem.recipe),
        "savings": [asdict(saving) for saving in savings],
    }
    return cached(work, "save more within the drop", "budget", key, write)


def _write_saving(
    directory: Path, problem: sensitivity.Problem, reasons: dict[str, Any], best: Saving
) -> None:
    """Write the recipe that saves most, and say in `reasons` that it was chosen."""
    points = 100 * reasons["max_drop"]
    recipe = replace(
        problem.recipe,
        name=BUDGETED,
        summary=f"{problem.recipe.name}, {' and '.join(_words(best))}, to lose at most {points:g} points",
        embeddings=best.embeddings,
        storage=best.storage,
        rounding=best.rounding,
    ).keeping(best.widths)
    write_recipe(directory / RECIPE_FILE, recipe, {"": remark(problem, points, best)})
    reasons["chosen"] |= {
        "drop": best.drop,
        "drop_high": best.drop_high,
        "agreement": best.agreement,
        "widths": dict(best.widths),
        "embeddings": best.embeddings,
        "storage": best.storage,
        "rounding": best.rounding,
    }


def remark(problem: sensitivity.Problem, points: float, lost: Saving | sensitivity.Trial) -> str:
    """The comment at the top of a recipe file."""
    return (
        f"Meets a drop of {points:g} points on {len(problem.heldout)} held-out training rows of "
        f"{problem.task.name}:\n"
        f"{100 * lost.drop:.2f} points, at most {100 * lost.drop_high:.2f} with "
        f"{100 * sensitivity.CONFIDENCE:g} % confidence; {100 * lost.agreement:.1f} % of its labels are the "
        "teacher's.\n"
        "Edit it, and run it again with --recipes and the name of this file."
    )


def problem_key(problem: sensitivity.Problem) -> dict[str, Any]:
    """What decides the logits of a problem's recipes, but for the model and the rows."""
    machine = hardware.describe()
    return {
        "recipe": problem.recipe.file_key(),
        "ranges": None if problem.ranges is None else sha256_json(problem.ranges.of),
        "task": problem.task.name,
        "scoring": asdict(problem.task.scoring),
        "threads": problem.threads,
        "cpu": [machine.cpu_model, *machine.instruction_sets],
        "versions": versions_key("onnx", "onnxruntime", "onnx-ir", "numpy", "scipy", "scikit-learn"),
    }
