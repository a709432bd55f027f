"""A variant as tests see it: what is known of it, and whether it is within its limits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantlib import gate
from quantlib.compression.recipes import Recipe
from quantlib.data import features
from quantlib.experiment.work import Variant
from quantlib.harness.session import Session
from quantlib.machine.engines import load_model
from quantlib.measuring.checks import Checks
from quantlib.measuring.latency import LatencyStats
from quantlib.measuring.latency.shapes import Shape
from quantlib.measuring.latency.stats import WAKE_SECONDS, wake


@dataclass(frozen=True)
class QuantModel:
    """A model of the run: the teacher, its student, or a variant of one of them.

    record_property: takes a name and a value for JUnit's report.
    """

    variant: Variant
    session: Session = field(repr=False)
    record_property: Callable[[str, object], None] = field(default=lambda *_: None, repr=False)

    @property
    def name(self) -> str:
        """Its name, as in results.json."""
        return self.variant.name

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.variant.path

    @property
    def recipe(self) -> Recipe | None:
        """The recipe that it was quantized by; None for a model in float."""
        return self.variant.recipe

    @property
    def record(self) -> gate.VariantRecord:
        """Metrics on the evaluation rows, the drop against the teacher, size, and the operators."""
        return self.session.record.variants[self.name]

    @property
    def checks(self) -> Checks:
        """What was checked beyond accuracy: saturation, and whether labels depend on the batch."""
        return self.session.checks[self.name]

    def check_accuracy(self) -> None:
        """Fail if it loses more against the teacher than its limit allows."""
        self.record_property("accuracy_drop", self.record.accuracy_drop)
        _fail_on(gate.judge_accuracy(self.name, self.session.record, None, self.session.limits))

    def check_size(self) -> None:
        """Fail if it is larger than its limit allows, or fewer of its products are quantized."""
        self.record_property("compression_ratio", self.record.compression_ratio)
        self.record_property("quantized_share", self.record.quantized_share)
        _fail_on(gate.judge_size(self.name, self.session.record, None, self.session.limits))

    def check_batch(self) -> None:
        """Fail if labels depend on what else is in the batch, and the recipe is not one that makes it so."""
        for name, value in self.checks.values().items():
            self.record_property(name, value)
        # A dynamic recipe takes its ranges from the batch, so its labels may; the property tells how many.
        dynamic = self.recipe is not None and self.recipe.mode == "dynamic"
        if self.checks.failed(dynamic=dynamic):
            pytest.fail(f"{self.name}: {self.checks.note}", pytrace=False)

    def time(self, benchmark: Any, shape: Shape) -> None:
        """Time it with pytest-benchmark: real rows of the task, one session open at a time.

        What is known of it, and the paired ratio to the teacher, which does not drift with the machine, go
        into `extra_info`; the ratio does not in a run of the gate.
        """
        options = self.session.experiment
        benchmark.group = str(shape)
        benchmark.extra_info.update(self._extra_info())
        engine = self.variant.engine
        session = options.session_on(engine, stock=self.variant.stock_session)
        model = load_model(self.path, engine, **asdict(session))
        opened = model.session
        rows = features.fixed_shape_feeds(self.variant.rows, *shape, options.num_runs)
        feeds = [model.feed(feed) for feed in rows]
        if not benchmark.disabled:
            wake(lambda: opened.run(None, feeds[0]), WAKE_SECONDS)
        turn = itertools.cycle(feeds)
        benchmark.pedantic(
            opened.run,
            setup=lambda: ((None, next(turn)), {}),
            rounds=options.num_runs,
            warmup_rounds=options.warmup_runs,
            iterations=1,
        )
        if benchmark.stats is None:
            return
        times_ms = tuple(1000 * seconds for seconds in benchmark.stats.stats.data)
        stats = LatencyStats(times_ms, options.warmup_runs)
        benchmark.extra_info |= {"standard_error_ms": stats.standard_error_ms, "noisy": stats.noisy}
        if not self.session.options.gating:  # the gate times in turns itself, and only what has changed
            speedup = self.session.speedups(shape)[self.name]
            benchmark.extra_info |= {
                "speedup": speedup.ratio,
                "speedup_low": speedup.low,
                "speedup_high": speedup.high,
                "trusted": speedup.trusted,
            }
        self.session.timings.append((self.name, str(shape), stats))

    def _extra_info(self) -> dict[str, Any]:
        return {
            "task": self.session.record.task,
            "variant": self.name,
            **{name: float(value) for name, value in self.record.metrics.items()},
            "accuracy_drop": float(self.record.accuracy_drop),
            "size_bytes": int(self.record.size_bytes),
            "compression_ratio": float(self.record.compression_ratio),
            "recipe": self.recipe.name if self.recipe else None,
            "op_counts": dict(self.record.op_counts),
        }


def _fail_on(findings: Iterable[gate.Finding]) -> None:
    violations = [finding.text for finding in findings if finding.kind == "violation"]
    if violations:
        pytest.fail("\n".join(violations), pytrace=False)
