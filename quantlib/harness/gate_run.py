"""One run of the gate: its verdict, and whether everything was judged that should have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantlib import gate
from quantlib.experiment.build import Built
from quantlib.experiment.gate_timing import GateTiming
from quantlib.experiment.old_models import STORE, OldModels
from quantlib.experiment.options import ExperimentOptions
from quantlib.harness.options import HarnessOptions
from quantlib.support.cache import open_cache
from quantlib.support.files import write_text
from quantlib.support.progress import Steps
from quantlib.support.store import FileStore

AREAS = frozenset({"accuracy", "size", "latency", "presence"})


class GateRun:
    """What a gate run compares with, and what it came to.

    baseline: None in an update, which answers to the limits alone. reached: the areas whose tests were run.
    current, verdict: None until the latencies were sampled. last_words: the line that ends the summary.
    """

    def __init__(
        self,
        experiment: ExperimentOptions,
        options: HarnessOptions,
        limits: gate.LimitTable,
        baseline: gate.GateRecord | None,
        path: Path,
    ) -> None:
        self.experiment, self.options, self.limits = experiment, options, limits
        self.baseline, self.path = baseline, path
        self.reached: set[str] = set()
        self.current: gate.GateRecord | None = None
        self.verdict: gate.Verdict | None = None
        self.last_words = ""
        self.store: FileStore | None = None
        self.built: Built | None = None

    def judge(self, record: gate.GateRecord, built: Built, steps: Steps) -> gate.Verdict:
        """Every finding of this run; sampling the latencies is what takes its time."""
        options = self.options
        cache = open_cache(self.experiment.cache_dir)
        self.store = FileStore(options.gate_store or cache.root / STORE, ".onnx")
        self.built = built
        old_models = None
        if self.baseline is not None:
            old_models = OldModels(self.baseline, self.experiment, cache, self.store, steps)
            self._keep_models(self.baseline)
        timing = GateTiming(
            built,
            self.experiment,
            self.limits,
            options.sampling,
            steps,
            baseline=self.baseline,
            old_models=old_models,
            remeasure=options.gate_remeasure,
            across_machines=options.gate_across_machines,
            spread=options.gate_state_spread,
        )
        current, compared = timing.measure(record, options.parsed_shapes)
        verdict = gate.judge(
            current,
            self.baseline,
            self.limits,
            compared=compared,
            across_machines=options.gate_across_machines,
        )
        if options.gate_markdown:
            write_text(options.gate_markdown, gate.markdown(verdict, current, self.baseline, compared))
        self.current, self.verdict = current, verdict
        return verdict

    def finish(self, session: pytest.Session) -> None:
        """Fail a run that left something out; write the baseline of an update that holds.

        Raises:
            InputError: the baseline cannot be written.
        """
        if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
            return  # it says so itself
        missing = AREAS - self.reached
        if missing and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            self._fail(session, f"{', '.join(sorted(missing))} not gated: tests were left out")
            return
        # The verdict is on every variant, also on those whose tests were left out.
        violations = self.verdict.violations if self.verdict else ()
        if violations and not session.testsfailed:
            self._fail(session, f"{len(violations)} violations, in tests that were left out")
        elif self.options.gate_update:
            self._update(session)

    def _update(self, session: pytest.Session) -> None:
        if session.testsfailed or self.current is None:
            self.last_words = "gate: baseline NOT written: the run has failures"
        elif any(r.disturbed for shapes in self.current.latency.values() for r in shapes.values()):
            self._fail(session, "baseline NOT written: other programs used too much of the machine")
        else:
            self._keep_models(self.current)
            gate.write_record(self.path, self.current)
            self.last_words = f"gate: baseline written to {self.path}"

    def _keep_models(self, baseline: gate.GateRecord) -> None:
        """Put into the store what a baseline names and this run has made."""
        assert self.store is not None
        assert self.built is not None
        for variant in self.built.variants:
            record = baseline.variants.get(variant.name)
            if record is None or record.sha256 != variant.model.sha256 or self.store.has(record.sha256):
                continue
            self.store.put(variant.path, variant.model.sha256)

    def _fail(self, session: pytest.Session, words: str) -> None:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.last_words = f"gate: {words}"

    def summarize(self, terminalreporter: Any) -> None:
        """Print the verdict, and the last words."""
        if self.verdict is not None:
            terminalreporter.section("gate")
            for line in gate.console_lines(self.verdict):
                terminalreporter.line(line)
        if self.last_words:
            terminalreporter.line(self.last_words)
