"""The int8 variants of a run: smoothed, calibrated, quantized, each step kept in the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantlib.compression import calibration, recipes, smoothing
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate, tensors_to_correlate
from quantlib.compression.quantize.nncf_library import nncf_versions, quantize_with_nncf
from quantlib.compression.variants import VariantName
from quantlib.data import features
from quantlib.experiment.options import recipes_for
from quantlib.experiment.pruning import pruned
from quantlib.experiment.work import Variant, Work, cached, cached_model, file_hash, tokenize
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.onnx_model.model import Model
from quantlib.support.cache import code_key, versions_key
from quantlib.support.files import sha256_json
from quantlib.support.progress import Step


@dataclass(frozen=True)
class Source:
    """A float model that recipes start from; `name` says which in the steps of a run."""

    name: str
    model: Model


def quantized(
    work: Work,
    fp32: Variant,
    compiled: Variant | None,
    checkpoint: Path,
    engine: str = DEFAULT_ENGINE,
) -> list[Variant]:
    """One variant of `fp32` for each recipe for an engine: quantlib's own from its compiled graph, if any.

    Other quantizers get the graph as it was exported, as everybody who uses them by hand would.

    Raises:
        InputError: a recipe does not fit the model; said before anything is calibrated.
    """
    rows = tokenize(work, "calibration", checkpoint)
    every = recipes_for(work.options, fp32.name, engine)
    made = ready(work, fp32, compiled, rows, [r for r in every if r.quantizer != "nncf"], engine)
    return [
        nncf_variant(work, fp32, recipe, rows, engine)
        if recipe.quantizer == "nncf"
        else _variant(work, fp32, made[recipe.name], recipe, engine)
        for recipe in every
    ]


@dataclass(frozen=True)
class Ready:
    """What a recipe is about to quantize, what it needs for that, and the units that its blocks keep.

    ranges: for a static recipe. grams: the file of Gram matrices for second-order rounding.
    """

    model: Model
    ranges: calibration.Ranges | None
    grams: Path | None
    widths: Mapping[str, int]


def ready(
    work: Work,
    fp32: Variant,
    compiled: Variant | None,
    rows: Sequence[features.Feature],
    asked: Sequence[recipes.Recipe],
    engine: str = DEFAULT_ENGINE,
) -> dict[str, Ready]:
    """A model on the way to each recipe's variant: pruned, compiled, smoothed and calibrated as it asks for.

    What recipes have in common is done once.

    Raises:
        InputError: a recipe does not fit the model; said before anything is calibrated.
    """
    starts = {r.name: start_of(fp32 if r.quantizer != "quantlib" else compiled or fp32) for r in asked}
    for recipe in asked:
        if recipe.nodes:  # refuses a node that the model does not have
            tensors_to_calibrate(starts[recipe.name].model, recipe)
    widths: dict[str, Mapping[str, int]] = {}
    for recipe in asked:
        if recipe.prunes:
            compile = compiled is not None and recipe.quantizer == "quantlib"
            operators = get_engine(engine).operators
            made = pruned(work, fp32, recipe, rows, compile=compile, operators=operators)
            starts[recipe.name], widths[recipe.name] = Source(made.name, made.model), made.widths
    sources = _sources(work, asked, starts, rows)
    alike: dict[tuple[Source, bool], list[recipes.Recipe]] = {}
    for recipe in asked:
        if recipe.mode == "static":
            alike.setdefault((sources[recipe.name], recipe.pad_calibration), []).append(recipe)
    ranges: dict[str, calibration.Ranges] = {}
    for (model, _), static in alike.items():
        ranges |= ranges_of(work, model, rows, static)
    correlated: dict[Source, list[recipes.Recipe]] = {}
    for recipe in asked:
        if recipe.rounding == "second_order":
            correlated.setdefault(sources[recipe.name], []).append(recipe)
    grams: dict[str, Path] = {}
    for start, rounded in correlated.items():
        grams |= dict.fromkeys((r.name for r in rounded), grams_of(work, start, rows, rounded))
    return {
        name: Ready(source.model, ranges.get(name), grams.get(name), widths.get(name, {}))
        for name, source in sources.items()
    }


def start_of(model: Variant) -> Source:
    """A float model as a source of recipes."""
    return Source(model.name, model.model)


def _sources(
    work: Work,
    asked: Sequence[recipes.Recipe],
    starts: Mapping[str, Source],
    rows: Sequence[features.Feature],
) -> dict[str, Source]:
    """What each recipe starts from, by its name; a model is smoothed once for all that ask for it."""
    needed = dict.fromkeys((starts[recipe.name], recipe.smooth) for recipe in asked)
    made = {(start, smooth): source(work, start, rows, smooth) for start, smooth in needed}
    return {recipe.name: made[starts[recipe.name], recipe.smooth] for recipe in asked}


def source(work: Work, start: Source, rows: Sequence[features.Feature], smooth: bool) -> Source:
    """The FP32 model that a recipe starts from."""
    return _smoothed(work, start, rows) if smooth else start


def variant(
    work: Work,
    fp32: Variant,
    model: Model,
    recipe: recipes.Recipe,
    ranges: calibration.Ranges | None,
    grams: Path | None,
    engine: str = DEFAULT_ENGINE,
) -> Variant:
    """What a recipe makes of a model, to stand beside `fp32`, which is not the compiled one.

    Args:
        ranges: from `ranges_of`, for a static recipe. grams: from `grams_of`, for second-order rounding.
    """
    name = replace(VariantName.parse(fp32.name), step=recipe.name, engine=engine)
    quantized = quantize(work, str(name), model, recipe, ranges, grams)
    return Variant(str(name), quantized, fp32.file.with_name(name.file_name), fp32.rows, recipe, engine)


def _variant(work: Work, fp32: Variant, made: Ready, recipe: recipes.Recipe, engine: str) -> Variant:
    return variant(work, fp32, made.model, recipe, made.ranges, made.grams, engine)


def nncf_variant(
    work: Work, fp32: Variant, recipe: recipes.Recipe, rows: Sequence[features.Feature], engine: str
) -> Variant:
    """What NNCF makes of a model by itself, calibrated on the same rows."""
    name = replace(VariantName.parse(fp32.name), step=recipe.name, engine=engine)

    def make(directory: Path, step: Step) -> None:
        feeds = features.CalibrationReader(rows, batch_size=1)
        quantize_with_nncf(fp32.path, directory / "model.onnx", recipe, feeds, step.advance)

    key = {
        "model": fp32.model.sha256,
        "rows": features.features_hash(rows),
        "recipe": recipe.file_key(),
        "versions": nncf_versions(),
    }
    model = cached_model(work, f"quantize {name}", "quantized", key, make, total=len(rows))
    return Variant(str(name), model, fp32.file.with_name(name.file_name), fp32.rows, recipe, engine)


def ranges_of(
    work: Work, start: Source, rows: Sequence[features.Feature], static: Sequence[recipes.Recipe]
) -> dict[str, calibration.Ranges]:
    """The ranges of static recipes that share the model and `pad_calibration`, by their names."""
    tensors = {name for recipe in static for name in tensors_to_calibrate(start.model, recipe)}
    if not tensors:  # all that is left to quantize are embeddings, or weights
        return {recipe.name: calibration.Ranges({}) for recipe in static}
    padded = static[0].pad_calibration
    methods = [calibration.parse_method(recipe.calibration_method or "") for recipe in static]
    histograms = any(method.needs_histograms for method in methods)
    name = f"calibrate {start.name}" + f" on rows padded to {work.options.seq_len}" * padded
    path = statistics(work, name, start.model, rows, tensors, histograms=histograms, padded=padded)
    return {recipe.name: _ranges(work, path, recipe.calibration_method or "") for recipe in static}


def _smoothed(work: Work, start: Source, rows: Sequence[features.Feature]) -> Source:
    """The same model with smooth activations."""
    threads = work.options.threads

    def make(directory: Path, step: Step) -> None:
        reader = features.CalibrationReader(rows, batch_size=4)
        factors = smoothing.search_smoothing(start.model.path, reader, threads=threads, progress=step.advance)
        smoothing.smooth_onnx(start.model.path, directory / "model.onnx", factors)

    key = {
        "model": start.model.sha256,
        "rows": features.features_hash(rows),
        "threads": threads,
        "versions": versions_key("numpy", "onnx", "onnxruntime", "onnx-ir"),
    }
    model = cached_model(work, f"smooth {start.name}", "smoothed", key, make, total=len(rows))
    return Source(f"smoothed {start.name}", model)


def statistics(
    work: Work,
    name: str,
    model: Model,
    rows: Sequence[features.Feature],
    tensors: Collection[str],
    *,
    histograms: bool,
    padded: bool,
) -> Path:
    """The file of statistics of these activations over rows, padded to the full length or not at all."""
    wanted, threads = sorted(tensors), work.options.threads
    pad_to = work.options.seq_len if padded else None

    def collect(directory: Path, step: Step) -> None:
        observed = calibration.collect(
            model.path,
            features.CalibrationReader(rows, batch_size=4, pad_to=pad_to),
            wanted,
            histograms=histograms,
            skip_padding=pad_to is None,
            threads=threads,
            progress=step.advance,
        )
        calibration.write_statistics(directory / "statistics.json", observed)

    key = {
        "model": model.sha256,
        "rows": features.features_hash(rows),
        "pad_to": pad_to,
        "tensors": wanted,
        "histograms": histograms,
        "threads": threads,
        "versions": versions_key("numpy", "onnx", "onnxruntime"),
    }
    return cached(work, name, "statistics", key, collect, total=len(rows)) / "statistics.json"


def grams_of(
    work: Work, start: Source, rows: Sequence[features.Feature], rounded: Sequence[recipes.Recipe]
) -> Path:
    """The file of Gram matrices for recipes with second-order rounding that start from the same model."""
    tensors = sorted({name for recipe in rounded for name in tensors_to_correlate(start.model, recipe)})
    threads = work.options.threads

    def collect(directory: Path, step: Step) -> None:
        reader = features.CalibrationReader(rows, batch_size=4)
        grams = {}  # what is left to quantize may be embeddings alone
        if tensors:
            grams = calibration.collect_grams(
                start.model.path, reader, tensors, threads=threads, progress=step.advance
            )
        calibration.write_grams(directory / "grams.npz", grams)

    key = {
        "model": start.model.sha256,
        "rows": features.features_hash(rows),
        "tensors": tensors,
        "threads": threads,
        "versions": versions_key("numpy", "onnx", "onnxruntime"),
    }
    name = f"correlate the activations of {start.name}"
    return cached(work, name, "grams", key, collect, total=len(rows)) / "grams.npz"


def grams_for(
    work: Work, start: Source, rows: Sequence[features.Feature], recipe: recipes.Recipe
) -> Path | None:
    """The file of Gram matrices for one recipe; None if it rounds to the nearest."""
    return grams_of(work, start, rows, [recipe]) if recipe.rounding == "second_order" else None


def _ranges(work: Work, path: Path, method: str) -> calibration.Ranges:
    """The ranges of a file of statistics by one method: a search takes seconds, reading its result none."""

    def derive(directory: Path) -> None:
        ranges = calibration.derive(calibration.read_statistics(path), method)
        calibration.write_ranges(directory / "ranges.json", ranges)

    key = {
        "statistics": file_hash(path),
        "method": method,
        "versions": versions_key("numpy"),
        "code": code_key(derive),
    }
    return calibration.read_ranges(work.cache.get("ranges", key, derive).path / "ranges.json")


def quantize(
    work: Work,
    name: str,
    model: Model,
    recipe: recipes.Recipe,
    ranges: calibration.Ranges | None,
    grams: Path | None,
) -> Model:
    """What a recipe makes of a model; `name` is the variant's, in the steps of the run."""
    key = {
        "model": model.sha256,
        "recipe": recipe.file_key(),
        "ranges": None if ranges is None else sha256_json(ranges.of),
        "grams": None if grams is None else file_hash(grams),
        "versions": versions_key("onnx", "onnxruntime", "onnx-ir", "numpy", "scipy"),
    }

    def make(directory: Path, _: Step) -> None:
        moments = None if grams is None else calibration.read_grams(grams)
        quantize_onnx(model, directory / "model.onnx", recipe, ranges, moments)

    return cached_model(work, f"quantize {name}", "quantized", key, make)
