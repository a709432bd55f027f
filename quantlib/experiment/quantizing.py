"""The int8 variants of a run: smoothed, calibrated, quantized, each step kept in the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantlib.compression import calibration, recipes, smoothing
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.variants import VariantName
from quantlib.data import features
from quantlib.experiment.options import recipes_for
from quantlib.experiment.work import Variant, Work, cached, tokenize
from quantlib.support.cache import code_key, versions_key
from quantlib.support.files import sha256_file, sha256_json
from quantlib.support.progress import Step


@dataclass(frozen=True)
class Source:
    """A float model that recipes start from; `name` says which in the steps of a run."""

    name: str
    path: Path


def quantized(work: Work, fp32: Variant, compiled: Variant | None, checkpoint: Path) -> list[Variant]:
    """One variant of `fp32` for each recipe: quantlib's own from the compiled graph, if there is one.

    ONNX Runtime's quantizer gets the graph as it was exported, as everybody who uses it by hand would.

    Raises:
        InputError: a recipe does not fit the model; said before anything is calibrated.
    """
    rows = calibration_rows(work, checkpoint)
    asked = recipes_for(work.options, fp32.name)
    begun = {r.name: fp32 if compiled is None or r.quantizer == "onnxruntime" else compiled for r in asked}
    for recipe in asked:
        if recipe.nodes:
            tensors_to_calibrate(
                begun[recipe.name].path, recipe
            )  # refuses a node that the model does not have
    sources = _sources(work, asked, begun, rows)
    alike: dict[tuple[Source, bool], list[recipes.Recipe]] = {}
    for recipe in asked:
        if recipe.mode == "static":
            alike.setdefault((sources[recipe.name], recipe.pad_calibration), []).append(recipe)
    ranges: dict[str, calibration.Ranges] = {}
    for (model, _), static in alike.items():
        ranges |= ranges_of(work, model, rows, static)
    return [variant(work, fp32, sources[r.name].path, r, ranges.get(r.name)) for r in asked]


def _sources(
    work: Work,
    asked: Sequence[recipes.Recipe],
    begun: Mapping[str, Variant],
    rows: Sequence[features.Feature],
) -> dict[str, Source]:
    """What each recipe starts from, by its name; a model is smoothed once for all that ask for it."""
    made: dict[tuple[str, bool], Source] = {}
    for recipe in asked:
        start = begun[recipe.name]
        if (start.name, recipe.smooth) not in made:
            made[start.name, recipe.smooth] = source(work, start, rows, recipe.smooth)
    return {recipe.name: made[begun[recipe.name].name, recipe.smooth] for recipe in asked}


def calibration_rows(work: Work, checkpoint: Path) -> list[features.Feature]:
    """The rows that static recipes are calibrated on, tokenized for a checkpoint."""
    return tokenize(work, work.splits.calibration[: work.options.calibration_samples], checkpoint)


def source(work: Work, fp32: Variant, rows: Sequence[features.Feature], smooth: bool) -> Source:
    """The FP32 model that a recipe starts from."""
    return _smoothed(work, fp32, rows) if smooth else Source(fp32.name, fp32.path)


def variant(
    work: Work, fp32: Variant, model: Path, recipe: recipes.Recipe, ranges: calibration.Ranges | None
) -> Variant:
    """What a recipe makes of a model, to stand beside `fp32`, which is not the compiled one."""
    name = replace(VariantName.parse(fp32.name), step=recipe.name)
    path = _quantize(work, str(name), model, recipe, ranges)
    return Variant(str(name), path, fp32.file.with_name(name.file_name), fp32.rows, recipe)


def ranges_of(
    work: Work, model: Source, rows: Sequence[features.Feature], static: Sequence[recipes.Recipe]
) -> dict[str, calibration.Ranges]:
    """The ranges of static recipes that share the model and `pad_calibration`, by their names."""
    tensors = sorted({name for recipe in static for name in tensors_to_calibrate(model.path, recipe)})
    if not tensors:  # all that is left to quantize are embeddings, or weights
        return {recipe.name: calibration.Ranges({}) for recipe in static}
    return _ranges(work, _statistics(work, model, rows, static, tensors), static)


def _smoothed(work: Work, fp32: Variant, rows: Sequence[features.Feature]) -> Source:
    """The same model with smooth activations."""
    key = {
        "model": sha256_file(fp32.path),
        "rows": features.features_hash(rows),
        "versions": versions_key("numpy", "onnx", "onnxruntime", "onnx-ir"),
        "code": code_key(
            "compression.smoothing",
            "compression.folding",
            "compression.grid",
            "onnx_model.layers",
            "onnx_model.roles",
            "compression.calibration",
            "data.features",
        ),
    }

    def make(directory: Path, step: Step) -> None:
        reader = features.CalibrationReader(rows, batch_size=4)
        found = smoothing.search_smoothing(fp32.path, reader, progress=step.advance)
        smoothing.smooth_onnx(fp32.path, directory / "model.onnx", found)

    path = cached(work, f"smooth {fp32.name}", "smoothed", key, make, total=len(rows)) / "model.onnx"
    return Source(f"smoothed {fp32.name}", path)


def _statistics(
    work: Work,
    model: Source,
    rows: Sequence[features.Feature],
    static: Sequence[recipes.Recipe],
    tensors: Sequence[str],
) -> Path:
    """The file of statistics that all these recipes take the ranges of these tensors from.

    They share `pad_calibration`, and are made from the same model.
    """
    padded = static[0].pad_calibration
    pad_to = work.options.seq_len if padded else None
    reader = features.CalibrationReader(rows, batch_size=4, pad_to=pad_to)
    methods = [calibration.parse_method(recipe.calibration_method or "") for recipe in static]
    histograms = any(method.needs_histograms for method in methods)

    def collect(directory: Path, step: Step) -> None:
        found = calibration.collect(
            model.path,
            reader,
            tensors,
            histograms=histograms,
            skip_padding=not padded,
            progress=step.advance,
        )
        calibration.write_statistics(directory / "statistics.json", found)

    key = {
        "model": sha256_file(model.path),
        "rows": features.features_hash(rows),
        "pad_to": pad_to,
        "tensors": list(tensors),
        "histograms": histograms,
        "versions": versions_key("numpy", "onnx", "onnxruntime"),
        "code": code_key("compression.calibration", "data.features"),
    }
    name = f"calibrate {model.name}" + f" on rows padded to {pad_to}" * padded
    return cached(work, name, "statistics", key, collect, total=len(rows)) / "statistics.json"


def _ranges(work: Work, statistics: Path, static: Sequence[recipes.Recipe]) -> dict[str, calibration.Ranges]:
    """The ranges of each recipe, by its name. They are kept: a search takes seconds, reading them none."""
    found = {}
    digest = sha256_file(statistics)
    for recipe in static:
        method = recipe.calibration_method or ""
        key = {"statistics": digest, "method": method, "code": code_key("compression.calibration")}

        def derive(directory: Path, method: str = method) -> None:
            ranges = calibration.derive(calibration.read_statistics(statistics), method)
            calibration.write_ranges(directory / "ranges.json", ranges)

        entry = work.cache.get("ranges", key, derive)
        found[recipe.name] = calibration.read_ranges(entry.path / "ranges.json")
    return found


def _quantize(
    work: Work, name: str, model: Path, recipe: recipes.Recipe, ranges: calibration.Ranges | None
) -> Path:
    key = {
        "model": sha256_file(model),
        "recipe": recipe.file_key(),
        "ranges": None if ranges is None else sha256_json(ranges.of),
        "versions": versions_key("onnx", "onnxruntime", "onnx-ir"),
        "code": code_key(
            "compression.quantize",
            "compression.grid",
            "onnx_model.layers",
            "onnx_model.roles",
            "compression.recipes.recipe",
        ),
    }

    def make(directory: Path, _: Step) -> None:
        quantize_onnx(model, directory / "model.onnx", recipe, ranges)

    return cached(work, f"quantize {name}", "quantized", key, make) / "model.onnx"
