"""One run of the gate: its verdict, and whether everything was judged that should have been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantlib import gate
from quantlib.experiment.build import Built
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.judging import Judged, judge_run
from quantlib.experiment.options import ExperimentOptions
from quantlib.gate.findings import Area
from quantlib.support.progress import Steps

AREAS: frozenset[Area] = frozenset({"accuracy", "size", "latency", "presence"})


class GateRun:
    """What a gate run compares with, and what it came to.

    baseline: None in an update, which answers to the limits alone. reached: the areas whose tests were run.
    judged: None until the latencies were sampled. last_words: the line that ends the summary.
    """

    def __init__(
        self,
        experiment: ExperimentOptions,
        options: GateOptions,
        limits: gate.LimitTable,
        baseline: gate.GateRecord | None,
        path: Path,
    ) -> None:
        self.experiment, self.options, self.limits = experiment, options, limits
        self.baseline, self.path = baseline, path
        self.reached: set[str] = set()
        self.judged: Judged | None = None
        self.last_words = ""

    def judge(self, record: gate.GateRecord, built: Built, steps: Steps) -> None:
        """Find everything there is to find; sampling the latencies is what takes its time."""
        self.judged = judge_run(
            built, record, self.experiment, self.options, self.limits, self.baseline, steps
        )

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
        violations = self.judged.verdict.violations if self.judged else ()
        if violations and not session.testsfailed:
            self._fail(session, f"{len(violations)} violations, in tests that were left out")
        elif self.options.gate_update:
            self._update(session)

    def _update(self, session: pytest.Session) -> None:
        if session.testsfailed or self.judged is None:
            self.last_words = "gate: baseline NOT written: the run has failures"
        elif self.judged.disturbed:
            self._fail(session, "baseline NOT written: other programs used too much of the machine")
        else:
            self.judged.write_baseline(self.path)
            self.last_words = f"gate: baseline written to {self.path}"

    def _fail(self, session: pytest.Session, words: str) -> None:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self.last_words = f"gate: {words}"

    def summarize(self, terminalreporter: Any) -> None:
        """Print the verdict, and the last words."""
        if self.judged is not None:
            terminalreporter.section("gate")
            for line in gate.console_lines(self.judged.verdict):
                terminalreporter.line(line)
        if self.last_words:
            terminalreporter.line(self.last_words)


@dataclass(frozen=True)
class GateVerdict:
    """What the gate found, as a test sees it."""

    gate: GateRun
    record_property: Callable[[str, object], None]

    def check(self, area: Area | None = None, *names: str) -> None:
        """Fail on the violations; with --gate-strict, on the undecided comparisons of latency too.

        area: one of `AREAS`, by default all of them. names: of a variant, and of a shape. A gate run in which
        an area was never checked fails.
        """
        assert self.gate.judged is not None
        areas = AREAS if area is None else {area}
        self.gate.reached |= areas
        verdict, texts = self.gate.judged.verdict, []
        for finding in (finding for area in sorted(areas) for finding in verdict.of(area, *names)):
            if finding.area == "latency":
                self.record_property(finding.metric, finding.text)
            strict = finding.area == "latency" and self.gate.options.gate_strict
            if finding.kind == "violation" or (strict and finding.kind == "undecided"):
                texts.append(finding.text)
        if texts:
            pytest.fail("\n".join(texts), pytrace=False)
