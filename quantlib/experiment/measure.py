"""Predict, check, time, compare."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.data import features, scores
from quantlib.data.metrics import Array
from quantlib.experiment.build import Built
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.experiment.timing import Timing, time_variants
from quantlib.experiment.work import Variant
from quantlib.machine import hardware
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.measuring import accuracy
from quantlib.measuring.checks import CHECKED_ROWS, Checks, Subject, run_checks
from quantlib.onnx_model.coverage import coverage
from quantlib.report import front
from quantlib.report.columns import VariantResult
from quantlib.support.cache import Cache, code_key, open_cache, versions_key
from quantlib.support.files import write_json
from quantlib.support.progress import Steps

Evaluations = dict[str, accuracy.Evaluation]


@dataclass(frozen=True)
class Measured:
    """One variant's predictions and times."""

    evaluation: accuracy.Evaluation
    timing: Timing


def measure(
    built: Built,
    options: MeasuringOptions,
    steps: Steps | None = None,
    known: Mapping[str, Measured] | None = None,
) -> dict[str, Measured]:
    """Predict all evaluation rows with each variant, then time them in turns with the teacher.

    known: variants that were measured already; they are taken over.
    """
    steps, known = steps or Steps(), known or {}
    evaluations = evaluate(built, options, steps, known)
    new = [v for v in built.variants if v.name not in known or v.name == built.reference]
    launches = {place[0] for each in known.values() for place in each.timing.log_ratios}
    timings = time_variants(new, options, steps, 1 + max(launches, default=-1))
    return {
        variant.name: known[variant.name]
        if variant.name in known
        else Measured(evaluations[variant.name], timings[variant.name])
        for variant in built.variants
    }


def evaluate(
    built: Built,
    options: MeasuringOptions,
    steps: Steps | None = None,
    known: Mapping[str, Measured] | None = None,
) -> Evaluations:
    """The predictions of each variant that is not known yet for all evaluation rows, by name.

    Predictions are deterministic, so those made before by the same file on the same rows, with the same
    runtime, processor and threads, are taken from the cache.
    """
    cache, steps, known = open_cache(options.cache_dir), steps or Steps(), known or {}
    evaluations: Evaluations = {}
    reference = known[built.reference].evaluation.logits if built.reference in known else None
    for variant in (each for each in built.variants if each.name not in known):
        # The teacher comes first: without labels the others are scored against it.
        evaluation = _evaluate(variant, built, options, cache, steps, reference)
        reference = evaluation.logits if variant.name == built.reference else reference
        evaluations[variant.name] = evaluation
    return evaluations


def _evaluate(
    variant: Variant,
    built: Built,
    options: MeasuringOptions,
    cache: Cache,
    steps: Steps,
    reference: Array | None,
) -> accuracy.Evaluation:
    with steps.step(f"evaluate {variant.name}", total=len(variant.rows)) as step:

        def predict(directory: Path) -> None:
            logits = accuracy.predict_onnx(
                variant.path,
                variant.rows,
                built.task,
                engine=variant.engine,
                threads=options.threads,
                progress=step.advance,
            )
            np.save(directory / "logits.npy", logits)

        key = _key(variant, built, options) | {"code": code_key(predict)}
        entry = cache.get("predictions", key, predict)
        step.cached = entry.hit
        logits = np.load(entry.path / "logits.npy")
        teachers = logits if variant.name == built.reference else reference
        evaluation = accuracy.score(built.task, logits, variant.rows, teachers)
        primary = built.task.primary_metric
        step.note = f"{primary} {evaluation.metrics[primary]:.4f}"
    return evaluation


def _key(variant: Variant, built: Built, options: MeasuringOptions) -> dict[str, Any]:
    """What decides a variant's logits, but for our own code."""
    machine = hardware.describe()
    engine = get_engine(variant.engine)
    other = {} if variant.engine == DEFAULT_ENGINE else {"engine": [engine.name, engine.version]}
    return other | {
        "model": variant.model.sha256,
        "rows": features.features_hash(variant.rows),
        "labels": built.task.num_labels,
        "threads": options.threads,
        "cpu": [machine.cpu_model, *machine.instruction_sets],
        "versions": versions_key("onnxruntime", "onnx", "numpy"),
    }


def check(built: Built, options: MeasuringOptions, steps: Steps | None = None) -> dict[str, Checks]:
    """What is checked of each variant beyond its accuracy, by name; cached as predictions are."""
    cache, steps = open_cache(options.cache_dir), steps or Steps()
    return {variant.name: _check(variant, built, options, cache, steps) for variant in built.variants}


def _check(variant: Variant, built: Built, options: MeasuringOptions, cache: Cache, steps: Steps) -> Checks:
    quantized, kept = variant.recipe is not None, sorted(_kept(variant))
    with steps.step(f"check {variant.name}", total=CHECKED_ROWS) as step:

        def run(directory: Path) -> None:
            subject = Subject(
                variant.path,
                variant.rows,
                built.task,
                quantized=quantized,
                kept=kept,
                engine=variant.engine,
                threads=options.threads,
                progress=step.advance,
            )
            write_json(directory / "checks.json", run_checks(subject).to_json())

        key = _key(variant, built, options) | {
            "quantized": quantized,
            "kept": kept,
            "scoring": asdict(built.task.scoring),
            "code": code_key(run),
        }
        entry = cache.get("checks", key, run)
        step.cached = entry.hit
        checks = Checks.from_json(json.loads((entry.path / "checks.json").read_text(encoding="utf-8")))
        step.note = checks.note
    return checks


def _kept(variant: Variant) -> set[str]:
    """The products that a recipe keeps in float by their names."""
    recipe = variant.recipe
    if recipe is None or not recipe.nodes:
        return set()
    in_float = coverage(variant.model).in_float
    return {name for name in in_float if recipe.precision(name) == "float"}


def compare(
    built: Built, measured: Mapping[str, Measured], checks: Mapping[str, Checks] | None = None
) -> list[VariantResult]:
    """The results of all variants against the teacher, in their order, the teacher first.

    Of each one it says whether it is on the front, or which one beats it. checks: by name, if they were made.
    """
    beaten_by = field_of(built, measured).beaten_by()
    reference = measured[built.reference].evaluation
    compared: list[VariantResult] = []
    for variant in built.variants:
        each = measured[variant.name]
        compared.append(
            VariantResult(
                variant.name,
                metrics=each.evaluation.metrics,
                eval_loss=each.evaluation.eval_loss,
                size_bytes=variant.model.size_bytes,
                latency=each.timing.latency,
                throughput=each.timing.throughput,
                agreement=scores.agreement(built.task, each.evaluation.logits, reference.logits),
                teacher=compared[0] if compared else None,
                recipe=variant.recipe.summary if variant.recipe else None,
                task=built.task,
                evaluation=each.evaluation,
                on_front=beaten_by[variant.name] is None and not _is_report_only(variant),
                beaten_by=beaten_by[variant.name],
                checks=(checks or {}).get(variant.name),
                paired=each.timing.speedup,
                throughput_ratio=each.timing.throughput_ratio,
                engine=variant.engine,
                report_only=_is_report_only(variant),
            )
        )
    return compared


def field_of(built: Built, measured: Mapping[str, Measured]) -> front.Field:
    """The variants, to be compared with each other."""
    task, reference = built.task, measured[built.reference].evaluation

    @functools.cache
    def sure(ours: str, theirs: str) -> bool:
        evaluation, other = measured[ours].evaluation, measured[theirs].evaluation
        low, high = scores.drop_interval_of_predictions(
            task, evaluation.predictions, other.predictions, evaluation.truth
        )
        return low > 0 or high < 0

    return front.Field(
        {
            variant.name: front.Score(
                metric=measured[variant.name].evaluation.metrics[task.primary_metric],
                agreement=scores.agreement(task, measured[variant.name].evaluation.logits, reference.logits),
                logit_error=scores.logit_error(measured[variant.name].evaluation.logits, reference.logits),
                size_bytes=variant.model.size_bytes,
                log_ratios=measured[variant.name].timing.log_ratios,
            )
            for variant in built.variants
        },
        built.reference,
        sure,
        frozenset(variant.name for variant in built.variants if _is_report_only(variant)),
    )


def _is_report_only(variant: Variant) -> bool:
    return variant.recipe is not None and bool(variant.recipe.report_only)
