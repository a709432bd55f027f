"""The pruned models of a run: units ranked, widths chosen, weights refitted; each step is cached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quantlib.compression import pruning
from quantlib.compression.calibration import GramFile, write_grams
from quantlib.compression.recipes import Recipe
from quantlib.data import features
from quantlib.experiment.compiling import compiled_model, normalized
from quantlib.experiment.work import Variant, Work, cached, cached_model, file_hash
from quantlib.machine.engines import Operators
from quantlib.measuring.accuracy import predict_onnx
from quantlib.measuring.neurons import block_sensitivities, first_rows
from quantlib.onnx_model.mapped import mapped
from quantlib.onnx_model.model import Model
from quantlib.support.cache import versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import write_json
from quantlib.support.progress import Step

NEURON = pruning.UNITS[pruning.FFN]


@dataclass(frozen=True)
class Study:
    """What is known of a model's neurons and heads: its blocks, files of a cache entry, and their hash."""

    blocks: tuple[pruning.Block, ...]
    grams: Path
    orders: Path

    @property
    def key(self) -> list[str]:
        """What decides all that is made of them."""
        return [file_hash(self.grams), file_hash(self.orders)]


@dataclass(frozen=True)
class Pruned:
    """A pruned model: what it is called in the steps of a run, and the units that its blocks keep."""

    name: str
    model: Model
    widths: Mapping[str, int]


def pruned(
    work: Work,
    fp32: Variant,
    recipe: Recipe,
    rows: Sequence[features.Feature],
    *,
    compile: bool,
    operators: Operators = "microsoft",
) -> Pruned:
    """The model that a recipe prunes, compiled to such operators if asked for.

    Args:
        fp32: the model as it was exported. rows: of calibration.

    Raises:
        InputError: the model has no blocks that can be pruned, or not as the recipe says.
    """
    fp32 = normalized(work, fp32)
    check_fits(fp32.path, recipe)
    study = study_of(work, fp32, rows)
    widths = recipe.kept or neurons_without(work, fp32, study, rows, recipe.prune)
    name = f"{fp32.name} without {lost(study.blocks, widths)}"
    key = {
        "model": fp32.model.sha256,
        "study": study.key,
        "widths": widths,
        "versions": versions_key("numpy", "scipy", "onnx-ir"),
    }

    def make(directory: Path, _: Step) -> None:
        grams, orders = GramFile(study.grams), _read_orders(study.orders)
        pruning.prune_onnx(fp32.path, directory / "model.onnx", widths, grams, orders)

    model = cached_model(work, f"prune {name}", "pruned", key, make)
    if not compile:
        return Pruned(name, model, widths)
    return Pruned(f"{name}, compiled", compiled_model(work, name, model, operators=operators)[0], widths)


def check_fits(onnx_path: Path, recipe: Recipe) -> None:
    """Check that a float model can be pruned as a recipe says, before anything takes long.

    Raises:
        InputError: it cannot; or it has no blocks that can be pruned.
    """
    if recipe.kept:
        problem = pruning.width_problem(onnx_path, recipe.kept)
    else:
        problem = pruning.share_problem(pruning.blocks_of(onnx_path, (pruning.FFN,)), recipe.prune)
    if problem:
        raise InputError(f"recipe {recipe.name}: {problem}")


def few_tokens(blocks: Sequence[pruning.Block], counts: Mapping[str, int]) -> str:
    """What to say of the widest block with more neurons than calibration tokens; empty where there is none.

    counts: of the tokens, by the name of the block.
    """
    scarce = [block for block in blocks if block.unit == NEURON and counts[block.name] < block.units]
    if not scarce:
        return ""
    block = max(scarce, key=lambda block: block.units)
    return scarcity(f"{counts[block.name]} calibration tokens", block.units, block.name)


def scarcity(tokens: str, neurons: int, where: str) -> str:
    """That so many tokens are fewer than the neurons that are weighed on them."""
    return f"{tokens} for the {neurons} neurons of {where}; at least {neurons} would do better"


def lost(blocks: Sequence[pruning.Block], widths: Mapping[str, int]) -> str:
    """What goes, in words: "50 % of its neurons and 8 % of its heads"."""
    words = []
    for unit in pruning.UNITS.values():
        alike = [block for block in blocks if block.unit == unit]
        if alike:
            left = sum(widths.get(block.name, block.units) for block in alike)
            gone = 1 - left / sum(block.units for block in alike)
            if gone or unit == NEURON:
                words.append(f"{100 * gone:.0f} % of its {unit}s")
    return " and ".join(words)


def study_of(work: Work, fp32: Variant, rows: Sequence[features.Feature]) -> Study:
    """Gram matrices of neurons and heads on calibration rows, and the order in which these go."""
    threads = work.options.threads

    def make(directory: Path, step: Step) -> None:
        reader = features.CalibrationReader(rows, batch_size=4)
        with mapped(fp32.path) as copy:
            blocks = pruning.blocks_of(copy)
            grams = pruning.collect_block_grams(copy, reader, threads=threads, progress=step.advance)
            orders = pruning.eliminations(copy, grams, threads=threads)
        write_json(directory / "counts.json", {name: gram.count for name, gram in grams.items()})
        write_json(directory / "blocks.json", [asdict(block) for block in blocks])
        write_grams(directory / "grams.npz", grams)
        _write_orders(directory / "orders.npz", orders)

    key = {
        "model": fp32.model.sha256,
        "rows": features.features_hash(rows),
        "threads": threads,
        "versions": versions_key("numpy", "scipy", "onnx", "onnxruntime", "onnx-ir"),
    }
    directory = cached(
        work, f"rank the neurons and heads of {fp32.name}", "neurons", key, make, total=len(rows)
    )
    counts, known = (
        json.loads((directory / file).read_text(encoding="utf-8")) for file in ("counts.json", "blocks.json")
    )
    blocks = tuple(pruning.Block(**block) for block in known)
    scarce = few_tokens(blocks, counts)
    if scarce:
        work.steps.say(f"pruning {fp32.name}: {scarce} (--calibration-samples)")
    return Study(blocks, directory / "grams.npz", directory / "orders.npz")


def neurons_without(
    work: Work, fp32: Variant, study: Study, rows: Sequence[features.Feature], share: float
) -> dict[str, int]:
    """The numbers of neurons that are expected to change the logits least when a share of all goes."""
    blocks = [block for block in study.blocks if block.unit == NEURON]
    sensitivities = _sensitivities(work, fp32, study, rows, blocks)
    return pruning.allocate(blocks, _read_orders(study.orders), sensitivities, share)


def units_without(
    work: Work,
    fp32: Variant,
    study: Study,
    rows: Sequence[features.Feature],
    share: float,
    costs: pruning.Costs,
) -> dict[str, int]:
    """The numbers of neurons and heads that change the logits least when a share of the cost goes."""
    sensitivities = _sensitivities(work, fp32, study, rows, study.blocks)
    return pruning.allocate(study.blocks, _read_orders(study.orders), sensitivities, share, costs=costs)


def _sensitivities(
    work: Work,
    fp32: Variant,
    study: Study,
    rows: Sequence[features.Feature],
    blocks: Sequence[pruning.Block],
) -> list[pruning.Sensitivity]:
    """What halving each of some blocks alone does to the logits."""
    names = [block.name for block in blocks]
    threads = work.options.threads

    def measure(directory: Path, step: Step) -> None:
        grams, orders = GramFile(study.grams), _read_orders(study.orders)
        few = first_rows(rows)
        sensitivities = block_sensitivities(
            fp32.path,
            lambda path: predict_onnx(path, few, work.task, threads=threads),
            grams,
            {name: orders[name] for name in names},
            progress=step.advance,
        )
        write_json(directory / "sensitivities.json", [asdict(each) for each in sensitivities])

    key = {
        "model": fp32.model.sha256,
        "study": study.key,
        "blocks": names,
        "rows": features.features_hash(rows),
        "task": work.task.name,
        "threads": threads,
        "versions": versions_key("numpy", "scipy", "onnxruntime", "onnx-ir"),
    }
    name, total = f"prune each block of {fp32.name} alone", len(names)
    path = cached(work, name, "neurons", key, measure, total=total)
    values = json.loads((path / "sensitivities.json").read_text(encoding="utf-8"))
    return [pruning.Sensitivity(**value) for value in values]


def _write_orders(path: Path, orders: Mapping[str, pruning.Elimination]) -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, elimination in orders.items():
        arrays |= {f"order {name}": elimination.order, f"errors {name}": elimination.errors}
        arrays[f"size {name}"] = np.array(elimination.group_size)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read_orders(path: Path) -> dict[str, pruning.Elimination]:
    with np.load(path, allow_pickle=False) as arrays:
        names = [key.removeprefix("order ") for key in arrays if key.startswith("order ")]
        return {
            name: pruning.Elimination(
                arrays[f"order {name}"], arrays[f"errors {name}"], int(arrays[f"size {name}"])
            )
            for name in names
        }
