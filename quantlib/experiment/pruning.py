"""The pruned models of a run: neurons ranked, widths chosen, weights refitted; each step is cached."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from quantlib.compression import pruning
from quantlib.compression.calibration import read_grams, write_grams
from quantlib.compression.recipes import Recipe
from quantlib.data import features
from quantlib.experiment.compiling import compiled_model
from quantlib.experiment.work import Variant, Work, cached, cached_model, file_hash
from quantlib.measuring.accuracy import predict_onnx
from quantlib.measuring.neurons import block_sensitivities, first_rows
from quantlib.onnx_model.model import Model
from quantlib.support.cache import versions_key
from quantlib.support.files import write_json
from quantlib.support.progress import Step


@dataclass(frozen=True)
class Study:
    """What is known of the neurons of a model: its blocks, files of a cache entry, and their hash."""

    blocks: tuple[pruning.Block, ...]
    grams: Path
    orders: Path

    @property
    def key(self) -> list[str]:
        """What decides all that is made of them."""
        return [file_hash(self.grams), file_hash(self.orders)]


@dataclass(frozen=True)
class Pruned:
    """A pruned model: what it is called in the steps of a run, and the neurons that its blocks keep."""

    name: str
    model: Model
    widths: Mapping[str, int]


def pruned(
    work: Work, fp32: Variant, recipe: Recipe, rows: Sequence[features.Feature], *, compile: bool
) -> Pruned:
    """The model that a recipe prunes, compiled if asked for.

    Args:
        fp32: the model as it was exported. rows: of calibration.

    Raises:
        InputError: the model has no blocks that can be pruned, or not as the recipe says.
    """
    study = _study(work, fp32, rows)
    widths = dict(recipe.widths) if recipe.widths else _widths(work, fp32, study, rows, recipe.prune)
    share = _share(study.blocks, widths)
    name = f"{fp32.name} without {100 * share:.0f} % of its neurons"
    key = {
        "model": fp32.model.sha256,
        "study": study.key,
        "widths": widths,
        "versions": versions_key("numpy", "scipy", "onnx-ir"),
    }

    def make(directory: Path, _: Step) -> None:
        grams, orders = read_grams(study.grams), _read_orders(study.orders)
        pruning.prune_onnx(fp32.path, directory / "model.onnx", widths, grams, orders)

    model = cached_model(work, f"prune {name}", "pruned", key, make)
    if not compile:
        return Pruned(name, model, widths)
    return Pruned(f"{name}, compiled", compiled_model(work, name, model)[0], widths)


def _share(blocks: Sequence[pruning.Block], widths: Mapping[str, int]) -> float:
    """The share of all neurons that goes."""
    whole = sum(block.neurons for block in blocks)
    return 1 - sum(widths.get(block.name, block.neurons) for block in blocks) / whole


def _study(work: Work, fp32: Variant, rows: Sequence[features.Feature]) -> Study:
    """Gram matrices of the neurons on calibration rows, and the order in which the neurons go."""
    threads = work.options.threads

    def make(directory: Path, step: Step) -> None:
        reader = features.CalibrationReader(rows, batch_size=4)
        grams = pruning.collect_ffn_grams(fp32.path, reader, threads=threads, progress=step.advance)
        orders = pruning.eliminations(fp32.path, grams, threads=threads)
        counts = {name: [gram.count, gram.channels] for name, gram in grams.items()}
        write_json(directory / "counts.json", counts)
        write_grams(directory / "grams.npz", grams)
        _write_orders(directory / "orders.npz", orders)

    key = {
        "model": fp32.model.sha256,
        "rows": features.features_hash(rows),
        "threads": threads,
        "versions": versions_key("numpy", "scipy", "onnx", "onnxruntime", "onnx-ir"),
    }
    directory = cached(work, f"rank the neurons of {fp32.name}", "neurons", key, make, total=len(rows))
    counts: dict[str, tuple[int, int]] = json.loads((directory / "counts.json").read_text(encoding="utf-8"))
    for name, (tokens, neurons) in counts.items():
        if tokens < neurons:
            work.steps.say(
                f"pruning {fp32.name}: {tokens} calibration tokens for the {neurons} neurons of {name}; at "
                f"least {neurons} would do better (--calibration-samples)"
            )
            break
    blocks = tuple(pruning.Block(name, neurons) for name, (_, neurons) in counts.items())
    return Study(blocks, directory / "grams.npz", directory / "orders.npz")


def _widths(
    work: Work, fp32: Variant, study: Study, rows: Sequence[features.Feature], share: float
) -> dict[str, int]:
    """The widths that are expected to change the logits least when a share of all neurons goes."""
    sensitivities = _sensitivities(work, fp32, study, rows)
    return pruning.allocate(study.blocks, _read_orders(study.orders), sensitivities, share)


def _sensitivities(
    work: Work, fp32: Variant, study: Study, rows: Sequence[features.Feature]
) -> list[pruning.Sensitivity]:
    threads = work.options.threads

    def measure(directory: Path, step: Step) -> None:
        grams, orders = read_grams(study.grams), _read_orders(study.orders)
        few = first_rows(rows)
        sensitivities = block_sensitivities(
            fp32.path,
            lambda path: predict_onnx(path, few, work.task, threads=threads),
            grams,
            orders,
            progress=step.advance,
        )
        write_json(directory / "sensitivities.json", [asdict(each) for each in sensitivities])

    key = {
        "model": fp32.model.sha256,
        "study": study.key,
        "rows": features.features_hash(rows),
        "task": work.task.name,
        "threads": threads,
        "versions": versions_key("numpy", "scipy", "onnxruntime", "onnx-ir"),
    }
    name, total = f"prune each block of {fp32.name} alone", len(study.blocks)
    path = cached(work, name, "neurons", key, measure, total=total)
    values = json.loads((path / "sensitivities.json").read_text(encoding="utf-8"))
    return [pruning.Sensitivity(**value) for value in values]


def _write_orders(path: Path, orders: Mapping[str, pruning.Elimination]) -> None:
    arrays = {f"order {name}": elimination.order for name, elimination in orders.items()}
    errors = {f"errors {name}": elimination.errors for name, elimination in orders.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays, **errors)


def _read_orders(path: Path) -> dict[str, pruning.Elimination]:
    with np.load(path, allow_pickle=False) as arrays:
        names = [key.removeprefix("order ") for key in arrays if key.startswith("order ")]
        return {
            name: pruning.Elimination(arrays[f"order {name}"], arrays[f"errors {name}"]) for name in names
        }
