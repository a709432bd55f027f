"""Parts of a run, each made and measured on its own: a float model, a variant of it, the times of both.

What parts have in common is found in the cache, so that they may be made in any order, on any machine, and in
any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantlib.compression.variants import TEACHER
from quantlib.data import scores
from quantlib.experiment import given_models
from quantlib.experiment.build import (
    TEACHER_FOLDER,
    Built,
    begin,
    compiled_of,
    compiled_on,
    exported,
    floats_on,
    students_of,
)
from quantlib.experiment.measure import check, evaluate
from quantlib.experiment.options import ExperimentOptions, engines_for
from quantlib.experiment.quantizing import quantized
from quantlib.experiment.timing import Timing, time_variants
from quantlib.onnx_model.compile import Compiled
from quantlib.report.columns import COLUMNS, VariantResult
from quantlib.support.columns import Value
from quantlib.support.progress import Steps


@dataclass(frozen=True)
class Part:
    """What is made of a model.

    model: the teacher, or the first student. recipes: (as the options name it, engine) of each. floats: also
    the float variants that the options ask for, on each of their engines.
    """

    model: str
    recipes: tuple[tuple[str, str], ...] = ()
    floats: bool = False


def make(options: ExperimentOptions, part: Part, steps: Steps | None = None) -> Built:
    """The teacher as it is exported, which the others are compared with, and the variants of a part.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    begun = begin(options, steps)
    work, reports = begun.work, dict[str, Compiled]()
    hashes = {TEACHER: given_models.hash_of(begun.teacher)}
    reference = fp32 = exported(work, TEACHER, TEACHER_FOLDER, begun.teacher)
    checkpoint = begun.teacher
    if part.model != TEACHER:
        name, folder, checkpoint = students_of(work, begun.teacher, begun.students)[0]
        fp32 = exported(work, name, folder, checkpoint)
        hashes[name] = given_models.hash_of(checkpoint)
    fast = compiled_of(work, reports, fp32) if options.compile else None
    variants = {reference.name: reference}
    for engine in engines_for(options, part.model) if part.floats else ():
        compiled_here = compiled_on(work, reports, fp32, fast, engine)
        variants |= {variant.name: variant for variant in floats_on(work, fp32, compiled_here, engine)}
    for recipe, engine in part.recipes:  # one by one: together they would be calibrated under another key
        alone = replace(work, options=replace(options, recipes=(recipe,), engines=(engine,)))
        compiled_here = compiled_on(work, reports, fp32, fast, engine)
        made = quantized(alone, fp32, compiled_here, checkpoint, engine)
        variants |= {variant.name: variant for variant in made}
    return Built(work.task, tuple(variants.values()), hashes)


def score(
    built: Built, part: Part, options: ExperimentOptions, steps: Steps | None = None
) -> list[VariantResult]:
    """What can be said of each variant of a part without timing it."""
    evaluations = evaluate(built, options, steps)
    own = built.variants if part.model == TEACHER and part.floats else built.variants[1:]
    checks = check(replace(built, variants=own), options, steps)
    reference = evaluations[built.reference]
    teacher: VariantResult | None = None
    results: dict[str, VariantResult] = {}
    for variant in built.variants:
        evaluation = evaluations[variant.name]
        results[variant.name] = VariantResult(
            variant.name,
            metrics=evaluation.metrics,
            eval_loss=evaluation.eval_loss,
            size_bytes=variant.model.size_bytes,
            agreement=scores.agreement(built.task, evaluation.logits, reference.logits),
            teacher=teacher,
            recipe=variant.recipe.summary if variant.recipe else None,
            task=built.task,
            evaluation=evaluation,
            checks=checks.get(variant.name),
            engine=variant.engine,
            report_only=variant.recipe is not None and bool(variant.recipe.report_only),
        )
        teacher = teacher or results[variant.name]
    return [results[variant.name] for variant in own]


def time_part(
    built: Built, options: ExperimentOptions, steps: Steps | None = None
) -> dict[str, dict[str, Value]]:
    """Time the variants of a part in turns with the teacher: {variant: its columns of times}.

    options: how they are timed; the models may have been made with others, as to threads.
    """
    timings = time_variants(built.variants, options, steps or Steps())
    teacher = _timed(built.reference, timings, None)
    return {name: _columns(_timed(name, timings, teacher)) for name in timings}


def _timed(name: str, timings: Mapping[str, Timing], teacher: VariantResult | None) -> VariantResult:
    """A result of which only the times mean something."""
    timing = timings[name]
    return VariantResult(
        name,
        metrics={"none": 0.0},
        eval_loss=None,
        size_bytes=1,
        latency=timing.latency,
        throughput=timing.throughput,
        teacher=None if teacher is None or teacher.name == name else teacher,
        paired=timing.speedup,
        throughput_ratio=timing.throughput_ratio,
    )


def _columns(result: VariantResult) -> dict[str, Value]:
    """The columns that a result has because it was timed."""
    without = replace(result, latency=None, throughput=None, paired=None, throughput_ratio=None)
    columns = {c.key: c.value(result) for c in COLUMNS if c.when(result) and not c.when(without)}
    assert result.latency is not None
    # Results are written with it where predictions are at hand, as they are for all that is timed here.
    return columns | {"standard_error_ms": result.latency.standard_error_ms}
