"""From built and evaluated variants to the record that the gate judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quantlib import gate
from quantlib.compression.variants import TEACHER
from quantlib.data.features import Feature, judged_rows
from quantlib.experiment.build import Built
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.rebuilding import CHECKOUT, arguments_of
from quantlib.experiment.work import Variant
from quantlib.machine import hardware
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.measuring import accuracy
from quantlib.onnx_model.coverage import coverage
from quantlib.support.cache import code_key, versions_key
from quantlib.support.files import sha256_json
from quantlib.support.git import revision_of


def record(
    built: Built, evaluations: Mapping[str, accuracy.Evaluation], options: ExperimentOptions
) -> gate.GateRecord:
    """Accuracy and size of every variant, and where it all comes from; `gate_timing` adds latency."""
    teacher = built.variants[0]
    bytes_of = {variant.name: variant.model.size_bytes for variant in built.variants}
    scoring, primary = built.task.scoring, built.task.primary_metric
    best = evaluations[TEACHER].metrics[primary]
    variants = {}
    for variant in built.variants:
        found = evaluations[variant.name]
        variants[variant.name] = gate.VariantRecord(
            metrics={name: float(value) for name, value in found.metrics.items()},
            eval_loss=None if found.eval_loss is None else float(found.eval_loss),
            accuracy_drop=float(best - found.metrics[primary]),
            predictions=gate.recorded_predictions(scoring, found.predictions),
            size_bytes=bytes_of[variant.name],
            compression_ratio=bytes_of[TEACHER] / bytes_of[variant.name],
            quantized_share=None if variant.recipe is None else _quantized_share(variant, options),
            op_counts=dict(sorted(variant.model.op_counts.items())),
            recipe=None if variant.recipe is None else asdict(variant.recipe),
            sha256=variant.model.sha256,
        )
    return gate.GateRecord(
        task=built.task.name,
        data_hash=built.hashes["data"],
        labels=tuple(_recorded_label(row) for row in judged_rows(teacher.rows, built.task))
        if scoring.labelled
        else (),
        machine=machine(options),
        settings=options.settings,
        variants=variants,
        latency={},
        origin=origin(options),
        scoring=scoring,
    )


def _quantized_share(variant: Variant, options: ExperimentOptions) -> float:
    products = get_engine(variant.engine).products
    computed = None if products is None else products(variant.path, options.threads)
    return coverage(variant.model, computed=computed).share


def _recorded_label(row: Feature) -> gate.Row:
    assert row.label is not None
    return row.label if isinstance(row.label, tuple) else float(row.label)


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


def origin(options: ExperimentOptions) -> gate.Origin:
    """What a later run needs to time these models again, or to make them again."""
    revision = revision_of(CHECKOUT)
    return gate.Origin(
        session=asdict(options.session),
        engines=engines_of(options),
        worker=worker_code(),
        commit="" if revision is None else revision.commit,
        changed=revision is not None and revision.changed,
        arguments=arguments_of(options, CHECKOUT),
    )


def engines_of(options: ExperimentOptions) -> dict[str, dict[str, Any]]:
    """{engine: its version and the options of its sessions} of the engines beside the default one."""
    return {
        name: {"version": get_engine(name).version, "session": asdict(options.session_on(name))}
        for name in options.every_engine
        if name != DEFAULT_ENGINE
    }


def worker_code() -> str:
    """The SHA-256 of the code of the process that times models.

    A later revision asks this one's by its name, to know whether it has the code that timed a baseline.
    """
    return sha256_json(code_key("measuring.latency.worker"))
