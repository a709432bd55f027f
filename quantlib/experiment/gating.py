"""From built and evaluated variants to the record that the gate judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from quantlib import gate
from quantlib.compression.variants import TEACHER
from quantlib.data import features
from quantlib.experiment.build import Built
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.work import Variant
from quantlib.machine import hardware
from quantlib.measuring import accuracy
from quantlib.measuring.latency import Launches, Sampling, TimedProcess, sample_ratios
from quantlib.measuring.latency.launches import Start
from quantlib.onnx_model.coverage import coverage
from quantlib.support.cache import versions_key
from quantlib.support.progress import Steps


def record(
    built: Built, evaluations: Mapping[str, accuracy.Evaluation], options: ExperimentOptions
) -> gate.GateRecord:
    """Accuracy and size of every variant, and the machine; latency is added by `with_latency`."""
    teacher = built.variants[0]
    bytes_of = {variant.name: variant.model.size_bytes for variant in built.variants}
    primary = built.task.primary_metric
    best = evaluations[TEACHER].metrics[primary]
    variants = {}
    for variant in built.variants:
        found = evaluations[variant.name]
        variants[variant.name] = gate.VariantRecord(
            metrics={name: float(value) for name, value in found.metrics.items()},
            eval_loss=float(found.eval_loss),
            accuracy_drop=float(best - found.metrics[primary]),
            predictions=tuple(float(f"{value:.6g}") for value in found.predictions),
            size_bytes=bytes_of[variant.name],
            compression_ratio=bytes_of[TEACHER] / bytes_of[variant.name],
            quantized_share=None if variant.recipe is None else coverage(variant.model).share,
            op_counts=dict(sorted(variant.model.op_counts.items())),
            recipe=None if variant.recipe is None else asdict(variant.recipe),
        )
    return gate.GateRecord(
        task=built.task.name,
        data_hash=built.hashes["data"],
        labels=tuple(float(row.label) for row in teacher.rows),
        machine=machine(options),
        settings=options.settings,
        variants=variants,
        latency={},
    )


def machine(options: ExperimentOptions) -> dict[str, object]:
    """What latencies depend on: processor, threads, runtime."""
    found = hardware.describe()
    return {
        "cpu_model": found.cpu_model,
        "instruction_sets": list(found.instruction_sets),
        "architecture": found.architecture,
        "threads": options.threads,
        **versions_key("onnxruntime", "onnx"),
    }


def with_latency(
    current: gate.GateRecord,
    built: Built,
    options: ExperimentOptions,
    shapes: Sequence[tuple[int, int]],
    *,
    baseline: gate.GateRecord | None,
    limits: gate.LimitTable,
    sampling: Sampling,
    steps: Steps,
) -> gate.GateRecord:
    """The record with the latency of every variant against the teacher, at each shape.

    A variant is sampled until its comparison with the baseline is decided or the budget is spent; without
    a baseline, for a fixed number of launches.
    """
    if baseline is None:
        sampling = for_baseline(sampling)
    latency: dict[str, dict[str, gate.LatencyRecord]] = {v.name: {} for v in built.variants[1:]}
    for batch, length in shapes:
        shape = f"{batch}x{length}"

        def decided(name: str, launches: Launches, shape: str = shape) -> bool:
            before = None if baseline is None else baseline.latency.get(name, {}).get(shape)
            limit = limits.of(name, built.task.name).max_slowdown
            if before is None or limit is None:
                return True
            if launches.disturbed:
                return False
            return gate.decide(gate.estimate_slowdown(latency_record(launches), before), limit) != "undecided"

        with steps.step(f"take turns at {shape}") as step:
            found = sample_ratios(
                start(built.variants[0], batch, length, options),
                {v.name: start(v, batch, length, options) for v in built.variants[1:]},
                sampling,
                decided,
            )
            step.note = f"{max(len(f.log_ratios) for f in found.values())} launches"
        for name, launches in found.items():
            latency[name][shape] = latency_record(launches)
    return replace(current, latency=latency)


def for_baseline(sampling: Sampling) -> Sampling:
    """The same sampling for what is to become a baseline: all launches, since there is nothing to decide."""
    return replace(sampling, min_launches=sampling.max_launches)


def latency_record(launches: Launches) -> gate.LatencyRecord:
    """What was sampled, as the gate's record keeps it."""
    return gate.LatencyRecord(
        launches=launches.log_ratios,
        teacher_ms=launches.teacher_ms,
        variant_ms=launches.variant_ms,
        others=launches.others,
        disturbed=launches.disturbed,
    )


def start(variant: Variant, batch: int, length: int, options: ExperimentOptions) -> Start:
    """How a variant's process is started, fed with real rows of exactly (batch, length)."""
    feeds = list(features.fixed_shape_feeds(variant.rows, batch, length, 8))
    path: Path = variant.path
    return lambda: TimedProcess(path, feeds, options.session)
