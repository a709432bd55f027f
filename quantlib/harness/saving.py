"""pytest-benchmark's saved runs: those that failed are not saved."""

from __future__ import annotations

import pytest


def refuse_to_save(session: pytest.Session) -> None:
    """Keep a failed run from becoming the next baseline.

    pytest-benchmark saves before it checks, and whatever failed: the next run would compare with that.
    """
    benchmarks = getattr(session.config, "_benchmarksession", None)
    if benchmarks is None or not (benchmarks.save or benchmarks.autosave):
        return
    regressed = 0
    if benchmarks.compare_fail:
        list(benchmarks.prepare_benchmarks())
        regressed = len(benchmarks.performance_regressions)
        benchmarks.performance_regressions.clear()
    if session.testsfailed or regressed:
        benchmarks.save = benchmarks.autosave = None
        benchmarks.logger.warning(
            f"Not saving: {session.testsfailed} tests failed, {regressed} benchmarks regressed; "
            "a failed run must not become the next baseline."
        )
