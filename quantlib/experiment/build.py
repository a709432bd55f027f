"""Every model of a run: found in the cache, or made and kept there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantlib import calibration, checkpoints, features, recipes, smoothing, tasks
from quantlib.cache import Cache, code_key, open_cache, versions_key
from quantlib.distillation import distil
from quantlib.errors import InputError
from quantlib.experiment.options import CALIBRATION_SAMPLES, ExperimentOptions
from quantlib.files import sha256_file, sha256_json, sha256_tree
from quantlib.progress import Step, Steps
from quantlib.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.results import TEACHER
from quantlib.runtime import default_threads
from quantlib.training import TrainingOptions, fine_tune

STUDENT = "student"
MADE_STUDENT = "half"


@dataclass(frozen=True)
class Variant:
    """A model file that is ready to be measured.

    name: the key of its results. file: where it goes under OUTPUT_DIR/TASK/. rows: the evaluation rows,
    tokenized for this model. recipe: None for an FP32 model.
    """

    name: str
    path: Path
    file: Path
    rows: Sequence[features.Feature]
    recipe: recipes.Recipe | None = None


@dataclass(frozen=True)
class Built:
    """Every variant of a run, the teacher first, and the hashes of what they were made from."""

    task: tasks.Task
    variants: tuple[Variant, ...]
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class _Work:
    """What every step of a build needs."""

    task: tasks.Task
    splits: tasks.Splits
    options: ExperimentOptions
    cache: Cache
    steps: Steps


def variant_names(options: ExperimentOptions) -> tuple[str, ...]:
    """The names of the variants that `build` will make, in their order, without building them."""
    count = 0 if options.no_student else max(1, len(options.students))
    students = tuple(STUDENT if number == 1 else f"{STUDENT}_{number}" for number in range(1, count + 1))
    return (TEACHER, *(recipe.name for recipe in recipes.get_recipes(options.recipes)), *students)


def build(options: ExperimentOptions, steps: Steps | None = None) -> Built:
    """Every model of the run, as files in the cache; what is there already is not made again.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    steps = steps or Steps()
    task = tasks.get_task(options.task)
    work = _Work(task, _read_rows(task, options, steps), options, open_cache(options.cache_dir), steps)
    given = [_given(work, name, STUDENT) for name in options.students]
    teacher = _teacher(work)
    students = _students(work, teacher, given)
    hashes = {"data": tasks.data_hash(work.splits), TEACHER: sha256_tree(teacher)}
    variants = [_fp32(work, TEACHER, Path("ts_teacher_bert"), teacher)]
    variants += _quantized(work, variants[0], teacher)
    for name, folder, student in students:
        hashes[name] = sha256_tree(student)
        variants.append(_fp32(work, name, folder, student))
    return Built(task, tuple(variants), hashes)


def _read_rows(task: tasks.Task, options: ExperimentOptions, steps: Steps) -> tasks.Splits:
    with steps.step("read rows") as step:
        splits = tasks.read_splits(task, options.data_dir, train_rows=options.train_rows)
        pool, wanted = len(splits.calibration), options.calibration_samples
        if wanted > pool and wanted != CALIBRATION_SAMPLES:
            raise InputError(f"--calibration-samples {wanted}: {task.name} has {pool} calibration rows")
        step.note = ", ".join(f"{name} {len(rows)}" for name, rows in splits.parts().items())
    return splits


def _cached(
    work: _Work,
    name: str,
    kind: str,
    key: Mapping[str, Any],
    make: Callable[[Path, Step], object],
    total: int | None = None,
) -> Path:
    """The directory of a cache entry, as a step of the run; `make(directory, step)` fills it if need be."""
    with work.steps.step(name, total) as step:
        entry = work.cache.get(kind, key, lambda directory: make(directory, step))
        step.found = entry.hit
    return entry.path


def _given(work: _Work, name: str, role: str) -> Path:
    """A checkpoint that the user named, checked before any step that takes long."""
    checkpoint = checkpoints.resolve(name, role)
    checkpoints.check_for_task(checkpoint, work.task)
    checkpoints.check_sequence_length(checkpoint, work.options.seq_len)
    return checkpoint


def _teacher(work: _Work) -> Path:
    if work.options.teacher is not None:
        return _given(work, work.options.teacher, TEACHER)
    base = checkpoints.packaged_minilm()
    checkpoints.check_sequence_length(base, work.options.seq_len)

    def train(directory: Path, step: Step) -> None:
        rows = _tokenize(work, work.splits.train, base)
        fine_tune(base, work.task, rows, directory, _training_options(work.options), step.training)

    key = _training_key(work) | {"base": sha256_tree(base)}
    return _cached(work, "fine-tune the teacher", TEACHER, key, train)


def _students(work: _Work, teacher: Path, given: Sequence[Path]) -> list[tuple[str, Path, Path]]:
    """(result key, folder, checkpoint) of each student: those given, else one made from the teacher."""
    if work.options.no_student:
        return []
    if not given:
        return [(STUDENT, Path(f"ts_student_{MADE_STUDENT}"), _distilled(work, teacher))]
    folders: list[Path] = []
    for name, checkpoint in zip(work.options.students, given, strict=True):
        stem = re.sub(r"[^\w.-]+", "_", Path(name).name or checkpoint.resolve().name)
        folder, number = Path(f"ts_student_{stem}"), 1
        while folder in folders:
            number += 1
            folder = Path(f"ts_student_{stem}_{number}")
        folders.append(folder)
    return list(zip(variant_names(work.options)[-len(given) :], folders, given, strict=True))


def _distilled(work: _Work, teacher: Path) -> Path:
    order = checkpoints.check_for_task(teacher, work.task)

    def train(directory: Path, step: Step) -> None:
        rows = _tokenize(work, work.splits.train, teacher)
        options = _training_options(work.options)
        distil(teacher, work.task, rows, directory, options, step.training, logit_order=order)

    key = _training_key(work) | {"teacher": sha256_tree(teacher), "order": order}
    return _cached(work, "train the student", STUDENT, key, train)


def _training_options(options: ExperimentOptions) -> TrainingOptions:
    # Not options.threads: how a model is timed must not decide how it is trained.
    return TrainingOptions(seed=options.seed, threads=default_threads())


def _training_key(work: _Work) -> dict[str, Any]:
    """Everything but the checkpoint that decides the weights of a trained model."""
    return {
        "task": work.task.name,
        "rows": sha256_json([[row.text_a, row.text_b, row.label] for row in work.splits.train]),
        "options": asdict(_training_options(work.options)),
        "seq_len": work.options.seq_len,
        "versions": versions_key("torch", "transformers", "tokenizers"),
        "code": code_key("training", "distillation", "features", "checkpoints"),
    }


def _fp32(work: _Work, name: str, folder: Path, checkpoint: Path) -> Variant:
    """Export a checkpoint, and tokenize the evaluation rows for it."""
    order = checkpoints.check_for_task(checkpoint, work.task)
    seq_len, opset = work.options.seq_len, work.options.opset
    key = {
        "checkpoint": sha256_tree(checkpoint),
        "seq_len": seq_len,
        "opset": opset,
        "order": order,
        "versions": versions_key("torch", "transformers", "onnx", "onnxscript"),
        "code": code_key("export", "checkpoints"),
    }

    def export(directory: Path, _: Step) -> None:
        from quantlib.export import export_bert_to_onnx

        export_bert_to_onnx(checkpoint, directory / "model.onnx", seq_len, opset, logit_order=order)

    path = _cached(work, f"export {name}", "export", key, export) / "model.onnx"
    return Variant(name, path, folder / "model.onnx", _tokenize(work, work.splits.evaluation, checkpoint))


def _quantized(work: _Work, fp32: Variant, checkpoint: Path) -> list[Variant]:
    """One variant of `fp32` for each recipe."""
    samples = work.splits.calibration[: work.options.calibration_samples]
    rows = _tokenize(work, samples, checkpoint)
    asked = recipes.get_recipes(work.options.recipes)
    sources = {False: fp32.path}
    if any(recipe.smooth for recipe in asked):
        sources[True] = _smoothed(work, fp32.path, rows)
    ranges: dict[str, calibration.Ranges] = {}
    for smooth, padded in ((False, False), (True, False), (False, True)):
        static = [
            recipe
            for recipe in asked
            if recipe.mode == "static" and (recipe.smooth, recipe.pad_calibration) == (smooth, padded)
        ]
        if static:
            ranges |= _ranges(work, _statistics(work, sources[smooth], rows, static), static)
    variants = []
    for recipe in asked:
        path = _quantize(work, sources[recipe.smooth], recipe, ranges.get(recipe.name))
        file = fp32.file.with_name(f"model_{recipe.name}.onnx")
        variants.append(Variant(recipe.name, path, file, fp32.rows, recipe))
    return variants


def _smoothed(work: _Work, fp32: Path, rows: Sequence[features.Feature]) -> Path:
    """The same model with smooth activations."""
    key = {
        "model": sha256_file(fp32),
        "rows": features.features_hash(rows),
        "versions": versions_key("numpy", "onnx", "onnxruntime", "onnx-ir"),
        "code": code_key("smoothing", "folding", "grid", "linear", "calibration", "features"),
    }

    def make(directory: Path, step: Step) -> None:
        reader = features.CalibrationReader(rows, batch_size=4)
        found = smoothing.search_smoothing(fp32, reader, progress=step.advance)
        smoothing.smooth_onnx(fp32, directory / "model.onnx", found)

    return _cached(work, "smooth", "smoothed", key, make, total=len(rows)) / "model.onnx"


def _statistics(
    work: _Work, model: Path, rows: Sequence[features.Feature], static: Sequence[recipes.Recipe]
) -> Path:
    """The file of statistics that all these recipes take their ranges from.

    They share `pad_calibration`, and are made from the same model.
    """
    padded, smooth = static[0].pad_calibration, static[0].smooth
    pad_to = work.options.seq_len if padded else None
    reader = features.CalibrationReader(rows, batch_size=4, pad_to=pad_to)
    wanted = (tensors_to_calibrate(model, recipe) for recipe in static)
    tensors = sorted({name for names in wanted for name in names})
    methods = [calibration.parse_method(recipe.calibration_method or "") for recipe in static]
    histograms = any(method.needs_histograms for method in methods)

    def collect(directory: Path, step: Step) -> None:
        found = calibration.collect(
            model,
            reader,
            tensors,
            histograms=histograms,
            skip_padding=not padded,
            progress=step.advance,
        )
        calibration.write_statistics(directory / "statistics.json", found)

    key = {
        "model": sha256_file(model),
        "rows": features.features_hash(rows),
        "pad_to": pad_to,
        "tensors": tensors,
        "histograms": histograms,
        "versions": versions_key("numpy", "onnx", "onnxruntime"),
        "code": code_key("calibration", "features"),
    }
    name = "calibrate" + (
        f" on rows padded to {pad_to}" if padded else " the smoothed model" if smooth else ""
    )
    return _cached(work, name, "statistics", key, collect, total=len(rows)) / "statistics.json"


def _ranges(work: _Work, statistics: Path, static: Sequence[recipes.Recipe]) -> dict[str, calibration.Ranges]:
    """The ranges of each recipe, by its name. They are kept: a search takes seconds, reading them none."""
    found = {}
    digest = sha256_file(statistics)
    for recipe in static:
        method = recipe.calibration_method or ""
        key = {"statistics": digest, "method": method, "code": code_key("calibration")}

        def derive(directory: Path, method: str = method) -> None:
            ranges = calibration.derive(calibration.read_statistics(statistics), method)
            calibration.write_ranges(directory / "ranges.json", ranges)

        entry = work.cache.get("ranges", key, derive)
        found[recipe.name] = calibration.read_ranges(entry.path / "ranges.json")
    return found


def _quantize(work: _Work, model: Path, recipe: recipes.Recipe, ranges: calibration.Ranges | None) -> Path:
    key = {
        "model": sha256_file(model),
        "recipe": asdict(recipe),
        "ranges": None if ranges is None else sha256_json(ranges.of),
        "versions": versions_key("onnx", "onnxruntime", "onnx-ir"),
        "code": code_key("quantize", "grid", "linear"),
    }

    def make(directory: Path, _: Step) -> None:
        quantize_onnx(model, directory / "model.onnx", recipe, ranges)

    return _cached(work, f"quantize {recipe.name}", "quantized", key, make) / "model.onnx"


def _tokenize(work: _Work, rows: Sequence[tasks.Example], checkpoint: Path) -> list[features.Feature]:
    return features.convert_examples_to_features(
        rows,
        work.task.labels,
        work.options.seq_len,
        features.load_tokenizer(checkpoint),
        work.task.output_mode,
    )
