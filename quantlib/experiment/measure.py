"""Predict, time, compare."""

from __future__ import annotations

from dataclasses import dataclass

from quantlib import accuracy, features, results
from quantlib.experiment.build import TEACHER, Built, Variant
from quantlib.experiment.options import ExperimentOptions
from quantlib.latency import LatencyStats, benchmark_onnx_model
from quantlib.progress import Steps
from quantlib.runtime import size_bytes


@dataclass(frozen=True)
class Measured:
    """One variant's predictions and times."""

    evaluation: accuracy.Evaluation
    latency: LatencyStats


def measure(built: Built, options: ExperimentOptions, steps: Steps | None = None) -> dict[str, Measured]:
    """Predict all evaluation rows with each variant, then time each, one at a time."""
    steps = steps or Steps()
    evaluations = {variant.name: _evaluate(variant, built, options, steps) for variant in built.variants}
    return {
        variant.name: Measured(evaluations[variant.name], _time(variant, options, steps))
        for variant in built.variants
    }


def _evaluate(
    variant: Variant, built: Built, options: ExperimentOptions, steps: Steps
) -> accuracy.Evaluation:
    with steps.step(f"evaluate {variant.name}", total=len(variant.rows)) as step:
        evaluation = accuracy.evaluate_onnx(
            variant.path, variant.rows, built.task, threads=options.threads, progress=step.advance
        )
        primary = built.task.primary_metric
        step.note = f"{primary} {evaluation.metrics[primary]:.4f}"
    return evaluation


def _time(variant: Variant, options: ExperimentOptions, steps: Steps) -> LatencyStats:
    with steps.step(f"time {variant.name}") as step:
        latency = benchmark_onnx_model(
            variant.path,
            features.fixed_shape_feeds(variant.rows, options.batch_size, options.seq_len, options.num_runs),
            warmup_runs=options.warmup_runs,
            num_runs=options.num_runs,
            threads=options.threads,
        )
        step.note = f"median {latency.median_ms:.2f} ms, ± {100 * latency.relative_error:.1f} %"
        if latency.noisy:
            step.note += "  noisy: the machine was busy, time it again"
    return latency


def compare(built: Built, measured: dict[str, Measured]) -> list[results.VariantResult]:
    """The results of all variants against the teacher, in their order, the teacher first."""
    reference = measured[TEACHER].evaluation
    compared: list[results.VariantResult] = []
    for variant in built.variants:
        evaluation, latency = measured[variant.name].evaluation, measured[variant.name].latency
        low, high = accuracy.drop_interval(built.task, evaluation.logits, reference.logits, evaluation.labels)
        compared.append(
            results.compare(
                variant.name,
                metrics=evaluation.metrics,
                eval_loss=evaluation.eval_loss,
                size_bytes=size_bytes(variant.path),
                latency=latency,
                agreement=accuracy.agreement(built.task, evaluation.logits, reference.logits),
                teacher=compared[0] if compared else None,
                recipe=variant.recipe.summary if variant.recipe else None,
                extra={
                    "logit_error": accuracy.logit_error(evaluation.logits, reference.logits),
                    "drop_low": low,
                    "drop_high": high,
                    "standard_error_ms": latency.standard_error_ms,
                },
            )
        )
    return compared
