"""The latencies of a gate run: what is unchanged is not timed; the rest takes turns with the old models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantlib import gate
from quantlib.compression.variants import TEACHER
from quantlib.experiment.build import Built
from quantlib.experiment.old_models import OldModels
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.timing import feeds_of, start
from quantlib.experiment.work import Variant
from quantlib.measuring.latency import Launches, Sampling, sample_ratios
from quantlib.measuring.latency.others import Watch, watch_others
from quantlib.measuring.latency.paired import Start
from quantlib.measuring.latency.shapes import Shape
from quantlib.support.errors import Unavailable
from quantlib.support.progress import Steps

_SAME = "its model, session, runtime, CPU, threads and the code that times it are the baseline's"
_SAME_HERE = "the baseline's model would run in the same way here"


@dataclass(frozen=True)
class GateTiming:
    """What a gate run measures against, and how much.

    baseline: None for a run that is to become one. old_models: where its models come from, None without one.
    sampling: how much to measure for each comparison. remeasure: also what is unchanged. across_machines:
    ratios to the teacher may be compared with those of another machine. spread: by how much, on the log
    scale, they may differ because a machine has states. watch: tells what other programs use.
    """

    built: Built
    options: ExperimentOptions
    limits: gate.LimitTable
    sampling: Sampling
    steps: Steps
    baseline: gate.GateRecord | None = None
    old_models: OldModels | None = None
    remeasure: bool = False
    across_machines: bool = False
    spread: float = 0.0
    watch: Watch = watch_others

    def measure(
        self, current: gate.GateRecord, shapes: Sequence[Shape]
    ) -> tuple[gate.GateRecord, gate.Comparisons]:
        """The record with its latencies, and how each was compared with the baseline's.

        What would run as it ran for the baseline is not timed, and keeps the baseline's latency. Other
        variants take turns with their old models, where those can be had. The teacher takes part in what is
        left: variants without an old model, limits on the speedup, and everything that is to be a baseline.
        """
        latency: dict[str, dict[str, gate.LatencyRecord]] = {v.name: {} for v in self.built.variants[1:]}
        compared: dict[str, dict[str, gate.Comparison]] = {v.name: {} for v in self.built.variants[1:]}
        for shape in shapes:
            with_teacher: dict[str, Variant] = {}
            for variant in self.built.variants[1:]:
                comparison = self._compare(variant, current, shape)
                if comparison is not None:
                    compared[variant.name][str(shape)] = comparison
                kept = self._carried_over(variant, current, shape, comparison)
                if kept is not None:
                    latency[variant.name][str(shape)] = kept
                elif self._needs_teacher(variant, comparison):
                    with_teacher[variant.name] = variant
            for name, record in self._against_teacher(with_teacher, shape, compared).items():
                latency[name][str(shape)] = record
        return replace(current, latency=latency), compared

    def _compare(self, variant: Variant, current: gate.GateRecord, shape: Shape) -> gate.Comparison | None:
        """The comparison with the old model, if one is needed and can be had; else what is left to do.

        None where the baseline has no such latency.
        """
        if self.baseline is None or str(shape) not in self.baseline.latency.get(variant.name, {}):
            return None
        assert self.old_models is not None
        changes = gate.changes_since(variant.name, current, self.baseline)
        if changes.same_program and not self.remeasure:
            words = f"{_SAME_HERE} ({changes.processor})" if changes.processor else _SAME
            return gate.Comparison("unchanged", words)
        feeds = feeds_of(variant, shape)
        try:
            old = self.old_models.find(variant, changes, feeds)
        except Unavailable as error:
            elsewhere = bool(gate.machine_differences(current, self.baseline)) and not self.across_machines
            return gate.Comparison("not compared" if elsewhere else "teacher", str(error), spread=self.spread)
        return self._in_turns(variant, shape, lambda: old.start(feeds), old.words)

    def _in_turns(self, variant: Variant, shape: Shape, old: Start, words: str) -> gate.Comparison:
        """The old and the new model take turns, until it can be told whether the new one is too slow."""
        limit = self.limits.of(variant.name, self.built.task.name).max_slowdown

        def decided(_: str, launches: Launches) -> bool:
            comparison = paired_comparison(launches, words, self.sampling)
            return limit is None or gate.decide_pair(comparison, limit) != "undecided"

        with self.steps.step(f"{variant.name} at {shape}, in turns with the {words}") as step:
            new = start(variant, shape, self.options)
            launches = sample_ratios(old, {variant.name: new}, self.sampling, decided, watch=self.watch)[
                variant.name
            ]
            step.note = f"{len(launches.log_ratios)} launches"
        return paired_comparison(launches, words, self.sampling)

    def _carried_over(
        self, variant: Variant, current: gate.GateRecord, shape: Shape, comparison: gate.Comparison | None
    ) -> gate.LatencyRecord | None:
        """The baseline's latency, where the teacher has not changed either, nor the machine."""
        if comparison is None or comparison.how != "unchanged" or self.baseline is None:
            return None
        names = (variant.name, TEACHER)
        if any(gate.changes_since(name, current, self.baseline).words for name in names):
            return None
        return self.baseline.latency[variant.name][str(shape)]

    def _needs_teacher(self, variant: Variant, comparison: gate.Comparison | None) -> bool:
        limits = self.limits.of(variant.name, self.built.task.name)
        by_ratio = comparison is None or comparison.how in ("teacher", "not compared")
        return by_ratio or limits.min_speedup is not None

    def _against_teacher(
        self,
        variants: Mapping[str, Variant],
        shape: Shape,
        compared: dict[str, dict[str, gate.Comparison]],
    ) -> dict[str, gate.LatencyRecord]:
        """The latencies of variants in turns with the teacher; sets the confidence of their comparisons."""
        if not variants:
            return {}
        sampling = self.sampling if self.baseline is not None else for_baseline(self.sampling)

        def comparison_of(name: str, launches: Launches) -> gate.Comparison | None:
            comparison = compared[name].get(str(shape))
            if comparison is None or comparison.how != "teacher":
                return None
            return replace(comparison, confidence=confidence_of(launches, sampling))

        def decided(name: str, launches: Launches) -> bool:
            confidence = confidence_of(launches, sampling)
            return self._is_decided(
                name, shape, latency_record(launches), comparison_of(name, launches), confidence
            )

        with self.steps.step(f"take turns with the teacher at {shape}") as step:
            launches = sample_ratios(
                start(self.built.variants[0], shape, self.options),
                {name: start(variant, shape, self.options) for name, variant in variants.items()},
                sampling,
                decided,
                watch=self.watch,
            )
            step.note = f"{max(len(of_variant.log_ratios) for of_variant in launches.values())} launches"
        for name, of_variant in launches.items():
            comparison = comparison_of(name, of_variant)
            if comparison is not None:
                compared[name][str(shape)] = comparison
        return {name: latency_record(of_variant) for name, of_variant in launches.items()}

    def _is_decided(
        self,
        name: str,
        shape: Shape,
        record: gate.LatencyRecord,
        comparison: gate.Comparison | None,
        confidence: float,
    ) -> bool:
        """Whether the ratios to the teacher tell what is asked; without a comparison, a limit alone."""
        limits = self.limits.of(name, self.built.task.name)
        if limits.min_speedup is not None and self.baseline is not None:
            speedup = gate.estimate_speedup(record, confidence)
            if record.disturbed or speedup.low < limits.min_speedup <= speedup.high:
                return False
        if self.baseline is None or comparison is None or limits.max_slowdown is None:
            return True
        before = self.baseline.latency[name][str(shape)]
        slowdown = gate.estimate_slowdown(record, before, confidence=confidence, spread=comparison.spread)
        return not record.disturbed and gate.decide(slowdown, limits.max_slowdown) != "undecided"


def for_baseline(sampling: Sampling) -> Sampling:
    """The same sampling for what is to become a baseline: all launches, since there is nothing to decide."""
    return replace(sampling, min_launches=sampling.max_launches)


def confidence_of(launches: Launches, sampling: Sampling) -> float:
    """The confidence of each bound of what was measured so far."""
    first, last = sampling.min_launches, sampling.max_launches
    return gate.confidence_at(min(last, max(first, len(launches.log_ratios))), first, last)


def paired_comparison(launches: Launches, words: str, sampling: Sampling) -> gate.Comparison:
    """What the turns of an old and a new model gave so far."""
    return gate.Comparison(
        "old model",
        words,
        launches.log_ratios,
        confidence_of(launches, sampling),
        others=launches.others,
        disturbed=launches.disturbed,
    )


def latency_record(launches: Launches) -> gate.LatencyRecord:
    """What was sampled beside the teacher, as the gate's record keeps it."""
    return gate.LatencyRecord(
        launches=launches.log_ratios,
        teacher_ms=launches.teacher_ms,
        variant_ms=launches.variant_ms,
        others=launches.others,
        disturbed=launches.disturbed,
    )
