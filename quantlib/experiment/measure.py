"""Predict, check, time, compare."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.compression.variants import TEACHER
from quantlib.data import features, scores
from quantlib.experiment.build import Built
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.work import Variant
from quantlib.machine import hardware
from quantlib.measuring import accuracy
from quantlib.measuring.checks import CHECKED_ROWS, Checks, Subject, run_checks
from quantlib.measuring.latency import LatencyStats, benchmark_onnx_model
from quantlib.measuring.throughput import Throughput, measure_throughput
from quantlib.onnx_model.coverage import coverage
from quantlib.report import front
from quantlib.report.columns import VariantResult
from quantlib.support.cache import Cache, code_key, open_cache, versions_key
from quantlib.support.files import place_errors, write_json
from quantlib.support.progress import Steps

Evaluations = dict[str, accuracy.Evaluation]


@dataclass(frozen=True)
class Measured:
    """One variant's predictions, checks and times."""

    evaluation: accuracy.Evaluation
    checks: Checks
    latency: LatencyStats
    throughput: Throughput


def measure(built: Built, options: ExperimentOptions, steps: Steps | None = None) -> dict[str, Measured]:
    """Predict all evaluation rows with each variant, check each, then time each, one at a time."""
    steps = steps or Steps()
    evaluations = evaluate(built, options, steps)
    checks = check(built, options, steps)
    return {
        name: Measured(
            evaluations[name],
            checks[name],
            _time(variant, options, steps),
            _throughput(variant, options, steps),
        )
        for name, variant in ((variant.name, variant) for variant in built.variants)
    }


def evaluate(built: Built, options: ExperimentOptions, steps: Steps | None = None) -> Evaluations:
    """The predictions of each variant for all evaluation rows, by name.

    Predictions are deterministic, so those made before by the same file on the same rows, with the same
    runtime, processor and threads, are taken from the cache.
    """
    cache, steps = open_cache(options.cache_dir), steps or Steps()
    return {variant.name: _evaluate(variant, built, options, cache, steps) for variant in built.variants}


def _evaluate(
    variant: Variant, built: Built, options: ExperimentOptions, cache: Cache, steps: Steps
) -> accuracy.Evaluation:
    with steps.step(f"evaluate {variant.name}", total=len(variant.rows)) as step:

        def predict(directory: Path) -> None:
            evaluation = accuracy.evaluate_onnx(
                variant.path, variant.rows, built.task, threads=options.threads, progress=step.advance
            )
            np.save(directory / "logits.npy", evaluation.logits)

        key = _key(variant, built, options) | {"code": code_key(predict)}
        entry = cache.get("predictions", key, predict)
        step.cached = entry.hit
        evaluation = accuracy.score(built.task, np.load(entry.path / "logits.npy"), variant.rows)
        primary = built.task.primary_metric
        step.note = f"{primary} {evaluation.metrics[primary]:.4f}"
    return evaluation


def _key(variant: Variant, built: Built, options: ExperimentOptions) -> dict[str, Any]:
    """What decides a variant's logits, but for our own code."""
    machine = hardware.describe()
    return {
        "model": variant.model.sha256,
        "rows": features.features_hash(variant.rows),
        "labels": built.task.num_labels,
        "threads": options.threads,
        "cpu": [machine.cpu_model, *machine.instruction_sets],
        "versions": versions_key("onnxruntime", "onnx", "numpy"),
    }


def check(built: Built, options: ExperimentOptions, steps: Steps | None = None) -> dict[str, Checks]:
    """What is checked of each variant beyond its accuracy, by name; cached as predictions are."""
    cache, steps = open_cache(options.cache_dir), steps or Steps()
    return {variant.name: _check(variant, built, options, cache, steps) for variant in built.variants}


def _check(variant: Variant, built: Built, options: ExperimentOptions, cache: Cache, steps: Steps) -> Checks:
    quantized, kept = variant.recipe is not None, sorted(_kept(variant))
    with steps.step(f"check {variant.name}", total=CHECKED_ROWS) as step:

        def run(directory: Path) -> None:
            subject = Subject(
                variant.path,
                variant.rows,
                built.task,
                quantized=quantized,
                kept=kept,
                threads=options.threads,
                progress=step.advance,
            )
            write_json(directory / "checks.json", run_checks(subject).to_json())

        key = _key(variant, built, options) | {"quantized": quantized, "kept": kept, "code": code_key(run)}
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


def _time(variant: Variant, options: ExperimentOptions, steps: Steps) -> LatencyStats:
    with steps.step(f"time {variant.name}") as step:
        feeds = features.fixed_shape_feeds(
            variant.rows, options.batch_size, options.seq_len, options.num_runs
        )
        with place_errors(Path(tempfile.gettempdir())):  # the feeds reach the timing process as files
            latency = benchmark_onnx_model(
                variant.path,
                feeds,
                warmup_runs=options.warmup_runs,
                num_runs=options.num_runs,
                session=options.session,
            )
        step.note = f"median {latency.median_ms:.2f} ms, ± {100 * latency.relative_error:.1f} %"
        if latency.noisy:
            step.note += "  noisy: the machine was busy, time it again"
    return latency


def _throughput(variant: Variant, options: ExperimentOptions, steps: Steps) -> Throughput:
    with steps.step(f"throughput {variant.name}") as step:
        with place_errors(Path(tempfile.gettempdir())):
            found = measure_throughput(
                variant.path, variant.rows, options.seq_len, session=options.session, progress=step.advance
            )
        step.note = (
            f"{found.rows_per_s:.0f} rows/s, {found.tokens_per_s:.0f} tokens/s, "
            f"{found.gain:.1f} times as fast as padded to {options.seq_len}"
        )
    return found


def compare(built: Built, measured: dict[str, Measured]) -> list[VariantResult]:
    """The results of all variants against the teacher, in their order, the teacher first.

    Of each one it says whether it is on the front, or which one beats it.
    """
    sizes = {variant.name: variant.model.size_bytes for variant in built.variants}
    beaten_by = front.beaten_by(
        {
            name: front.Score(
                each.evaluation.metrics[built.task.primary_metric], each.latency.median_ms, sizes[name]
            )
            for name, each in measured.items()
        }
    )
    reference = measured[TEACHER].evaluation
    compared: list[VariantResult] = []
    for variant in built.variants:
        each = measured[variant.name]
        compared.append(
            VariantResult(
                variant.name,
                metrics=each.evaluation.metrics,
                eval_loss=each.evaluation.eval_loss,
                size_bytes=sizes[variant.name],
                latency=each.latency,
                throughput=each.throughput,
                agreement=scores.agreement(built.task, each.evaluation.logits, reference.logits),
                teacher=compared[0] if compared else None,
                recipe=variant.recipe.summary if variant.recipe else None,
                task=built.task,
                evaluation=each.evaluation,
                on_front=beaten_by[variant.name] is None,
                beaten_by=beaten_by[variant.name],
                checks=each.checks,
            )
        )
    return compared
