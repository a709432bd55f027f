"""The variant that `--target-speedup` asks for: as little pruned as makes it fast enough here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from quantlib.compression.pruning import Costs, largest_share
from quantlib.compression.recipes import Recipe, read_recipe, write_recipe
from quantlib.compression.variants import TARGETED
from quantlib.data import features
from quantlib.experiment import quantizing
from quantlib.experiment.compiling import normalized
from quantlib.experiment.pruning import lost, study_of, units_without
from quantlib.experiment.timing import time_speedups
from quantlib.experiment.weighing import block_costs
from quantlib.experiment.work import Variant, Work, tokenize
from quantlib.machine import hardware
from quantlib.measuring.latency.shapes import Shape
from quantlib.support.cache import code_key, versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import write_json

RECIPE_FILE, ATTEMPTS_FILE = f"recipe_{TARGETED}.toml", f"{TARGETED}.json"

# A share this much smaller makes no difference that could be measured.
_GRAIN = 1 / 32
_MOST_ATTEMPTS = 6


@dataclass(frozen=True)
class Attempt:
    """A share of the blocks' cost that was pruned, and how fast the variant was then: a 95 % interval.

    doubtful: whether other programs used so much of the machine that nothing is sure.
    """

    share: float
    speedup: float
    low: float
    high: float
    doubtful: bool = False


def targeted(
    work: Work, fp32: Variant, compiled: Variant | None, checkpoint: Path
) -> tuple[Variant, dict[str, Path]]:
    """The variant that is as fast as `--target-speedup` asks, and the files that say how it was found.

    What was found is kept in the cache for this machine, as times of another one say nothing here.

    Raises:
        InputError: the model cannot be pruned, or is not fast enough with the fewest neurons it can have.
    """
    target = work.options.target_speedup
    assert target is not None
    rows = tokenize(work, "calibration", checkpoint)
    fp32 = normalized(work, fp32)
    study = study_of(work, fp32, rows)
    costs = block_costs(work, fp32, compiled=compiled is not None)

    def recipe_of(share: float) -> Recipe:
        base = replace(work.options.resolved_base, name=TARGETED)
        return base.keeping(units_without(work, fp32, study, rows, share, costs)) if share else base

    def search(directory: Path) -> None:
        attempts = search_share(
            target,
            largest_share(study.blocks, costs),
            lambda share: _attempt(work, fp32, compiled, rows, share, recipe_of(share)),
        )
        recipe = recipe_of(attempts[-1].share)
        _write(work, directory, target, attempts, recipe, lost(study.blocks, recipe.kept), costs)

    machine = hardware.describe()
    key = {
        "model": fp32.model.sha256,
        "compile": compiled is not None,
        "base": asdict(work.options.resolved_base),
        "target": target,
        "study": study.key,
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "rows": features.features_hash(rows),
        "shape": [work.options.batch_size, work.options.seq_len],
        "session": asdict(work.options.session),
        "cpu": [machine.cpu_model, *machine.instruction_sets],
        "versions": versions_key("onnxruntime", "numpy", "scipy", "onnx", "onnx-ir"),
        "code": code_key(search),
    }
    directory = work.cache.get("target", key, search).path
    recipe = read_recipe(directory / RECIPE_FILE)
    made = quantizing.ready(work, fp32, compiled, rows, [recipe])[recipe.name]
    files = {name: directory / name for name in (RECIPE_FILE, ATTEMPTS_FILE)}
    return quantizing.variant(work, fp32, made.model, recipe, made.ranges, made.grams), files


def search_share(target: float, largest: float, attempt: Callable[[float], Attempt]) -> list[Attempt]:
    """Attempts, the last of which is the smallest share that was found to reach a speedup.

    The time that a model takes falls about linearly with the cost that goes. So the line through what was
    measured says what to try next, until the share below is known not to do.

    Args:
        target: the speedup over the teacher.
        largest: the largest share of the blocks' cost that can be pruned.
        attempt: prunes a share and measures.

    Raises:
        InputError: the largest share does not reach the target, or an attempt is doubtful.
    """

    def sure(share: float) -> Attempt:
        tried = attempt(share)
        if tried.doubtful:
            raise InputError(
                f"--target-speedup {target:g}: nothing is sure while other programs use this machine; "
                "run it again when they have ended"
            )
        return tried

    attempts = [sure(0.0)]
    shares = [min(0.5, largest), largest]
    while True:
        reached = [each for each in attempts if each.speedup >= target]
        below = [each.share for each in attempts if each.speedup < target]
        if reached:
            best = min(reached, key=lambda each: each.share)
            lower = max((share for share in below if share < best.share), default=0.0)
            if best.share - lower <= _GRAIN or len(attempts) >= _MOST_ATTEMPTS:
                return [*(each for each in attempts if each is not best), best]
            attempts.append(sure(_between(attempts, target, lower, best.share)))
        elif shares:
            attempts.append(sure(shares.pop(0)))
        else:
            best = max(attempts, key=lambda each: each.speedup)
            raise InputError(
                f"--target-speedup {target:g} is not reached: the fastest, with {100 * best.share:.0f} % of "
                f"what its blocks cost pruned, was {best.speedup:.2f}x [{best.low:.2f}, {best.high:.2f}]"
            )


def _between(attempts: Sequence[Attempt], target: float, low: float, high: float) -> float:
    """A share between two, where the line through all attempts reaches the target."""
    shares, times = zip(*((each.share, 1 / each.speedup) for each in attempts), strict=True)
    slope, start = np.polyfit(shares, times, 1)
    guess = (1 / target - start) / slope if slope < 0 else (low + high) / 2
    # Not beside an end that is known already.
    return float(np.clip(guess + _GRAIN / 4, low + _GRAIN / 2, high - _GRAIN / 2))


def _attempt(
    work: Work,
    fp32: Variant,
    compiled: Variant | None,
    rows: Sequence[features.Feature],
    share: float,
    recipe: Recipe,
) -> Attempt:
    made = quantizing.ready(work, fp32, compiled, rows, [recipe])[recipe.name]
    name = f"{TARGETED} without {100 * share:.0f} % of its blocks' cost"
    model = quantizing.quantize(work, name, made.model, recipe, made.ranges, made.grams)
    variant = replace(fp32, name=name, model=model, recipe=recipe)
    shape = Shape(work.options.batch_size, work.options.seq_len)
    speedup = time_speedups([fp32, variant], shape, work.options, work.steps)[name]
    return Attempt(share, speedup.ratio, speedup.low, speedup.high, speedup.doubtful)


def _write(
    work: Work,
    directory: Path,
    target: float,
    attempts: Sequence[Attempt],
    recipe: Recipe,
    words: str,
    costs: Costs,
) -> None:
    base, best = work.options.resolved_base, attempts[-1]
    recipe = replace(recipe, summary=f"{base.name}, {words} pruned, to be {target:g}x as fast")
    remark = (
        f"{best.speedup:.2f}x as fast as the teacher [{best.low:.2f}, {best.high:.2f}] where it was made: "
        f"{hardware.describe().cpu_model}, {work.options.batch_size}x{work.options.seq_len}, "
        f"{work.options.threads} threads.\n"
        "Edit it, and run it again with --recipes and the name of this file."
    )
    write_recipe(directory / RECIPE_FILE, recipe, {"": remark})
    write_json(
        directory / ATTEMPTS_FILE,
        {
            "base": base.name,
            "target": target,
            "attempts": [asdict(attempt) for attempt in attempts],
            "costs": {name: asdict(cost) for name, cost in costs.items()},
        },
    )
