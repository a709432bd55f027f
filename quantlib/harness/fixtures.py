"""The fixtures of the benchmarks: every model is built once in a session."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from quantlib import gate
from quantlib.data import features
from quantlib.experiment import gating
from quantlib.experiment.build import Built, build
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.measure import check, evaluate
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.timing import time_speedups
from quantlib.experiment.work import Variant
from quantlib.harness.run import Harness, wrong_use
from quantlib.machine import sessions
from quantlib.measuring import accuracy
from quantlib.measuring.checks import Checks
from quantlib.measuring.latency import LatencyStats
from quantlib.measuring.latency.shapes import Shape
from quantlib.measuring.latency.speedup import Speedup
from quantlib.measuring.latency.stats import WAKE_SECONDS, wake
from quantlib.support.progress import Steps


@pytest.fixture(scope="session")
def harness(pytestconfig: pytest.Config) -> Harness:
    """This run's harness."""
    plugin = pytestconfig.pluginmanager.getplugin("quantlib-harness")
    assert isinstance(plugin, Harness)
    return plugin


@pytest.fixture(scope="session")
def harness_options(harness: Harness) -> GateOptions:
    """What is timed, and how this run gates."""
    return harness.options


@pytest.fixture(scope="session")
def experiment_options(harness: Harness) -> ExperimentOptions:
    """The options of this run."""
    return harness.experiment


@pytest.fixture(scope="session")
def steps() -> Steps:
    """Shows long steps on the terminal, also while pytest captures output."""
    from rich.console import Console

    return Steps(Console(stderr=True))


@contextlib.contextmanager
def shown(config: pytest.Config) -> Iterator[None]:
    """Let what is printed reach the terminal; what the user got wrong ends the run."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with wrong_use(), capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def built(pytestconfig: pytest.Config, experiment_options: ExperimentOptions, steps: Steps) -> Built:
    """Every model, exported and quantized once, shared with the main job through its cache."""
    with shown(pytestconfig):
        return build(experiment_options, steps)


@pytest.fixture(scope="session")
def evaluations(
    pytestconfig: pytest.Config, built: Built, experiment_options: ExperimentOptions, steps: Steps
) -> dict[str, accuracy.Evaluation]:
    """The predictions of every variant."""
    with shown(pytestconfig):
        return evaluate(built, experiment_options, steps)


@pytest.fixture(scope="session")
def checks(
    pytestconfig: pytest.Config, built: Built, experiment_options: ExperimentOptions, steps: Steps
) -> dict[str, Checks]:
    """What was checked of every variant beyond its accuracy."""
    with shown(pytestconfig):
        return check(built, experiment_options, steps)


@pytest.fixture(scope="session")
def limits(harness: Harness) -> gate.LimitTable:
    """The table of limits."""
    with wrong_use():
        return harness.read_limits()


@pytest.fixture
def variant(request: pytest.FixtureRequest, built: Built) -> Variant:
    """A variant, the teacher included."""
    return next(v for v in built.variants if v.name == request.param)


@pytest.fixture
def candidate(request: pytest.FixtureRequest, built: Built) -> Variant:
    """A variant that is compared with the teacher: any other, also one in float."""
    return next(v for v in built.variants if v.name == request.param)


@pytest.fixture(scope="session")
def accuracy_and_size(
    built: Built,
    evaluations: dict[str, accuracy.Evaluation],
    experiment_options: ExperimentOptions,
) -> gate.GateRecord:
    """What is known of every variant before anything is timed."""
    return gating.record(built, evaluations, experiment_options)


@pytest.fixture(scope="session")
def paired_speedups(
    pytestconfig: pytest.Config, built: Built, experiment_options: ExperimentOptions, steps: Steps
) -> Callable[[Shape], dict[str, Speedup]]:
    """The speedups of all variants at a shape, timed in turns with the teacher, once in a session."""

    @functools.cache
    def at(shape: Shape) -> dict[str, Speedup]:
        with shown(pytestconfig):
            return time_speedups(built.variants, shape, experiment_options, steps)

    return at


@pytest.fixture
def time_variant(
    benchmark: Any,
    experiment_options: ExperimentOptions,
    harness: Harness,
    paired_speedups: Callable[[Shape], dict[str, Speedup]],
) -> Callable[[Variant, Shape], None]:
    """Time a variant with `benchmark.pedantic`: real rows of the task, one session open at a time.

    The paired ratio to the teacher, which does not drift with the machine, is put into `extra_info`, but not
    in a run of the gate.
    """

    def timed(variant: Variant, shape: Shape) -> None:
        batch, length = shape
        session = sessions.open_configured(variant.path, experiment_options.session)
        rows = features.fixed_shape_feeds(variant.rows, batch, length, experiment_options.num_runs)
        feeds = [sessions.feed_for(session, feed) for feed in rows]
        if not benchmark.disabled:
            wake(lambda: session.run(None, feeds[0]), WAKE_SECONDS)
        turn = itertools.cycle(feeds)
        benchmark.pedantic(
            session.run,
            setup=lambda: ((None, next(turn)), {}),
            rounds=experiment_options.num_runs,
            warmup_rounds=experiment_options.warmup_runs,
            iterations=1,
        )
        if benchmark.stats is not None:
            times_ms = tuple(1000 * seconds for seconds in benchmark.stats.stats.data)
            stats = LatencyStats(times_ms, experiment_options.warmup_runs)
            benchmark.extra_info["standard_error_ms"] = stats.standard_error_ms
            benchmark.extra_info["noisy"] = stats.noisy
            if harness.gate is None:  # the gate times in turns itself, and only what has changed
                speedup = paired_speedups(shape)[variant.name]
                benchmark.extra_info["speedup"] = speedup.ratio
                benchmark.extra_info["speedup_low"] = speedup.low
                benchmark.extra_info["speedup_high"] = speedup.high
                benchmark.extra_info["trusted"] = speedup.trusted
            harness.timings.append((variant.name, str(shape), stats))

    return timed


@pytest.fixture(scope="session")
def verdict(
    harness: Harness,
    pytestconfig: pytest.Config,
    built: Built,
    accuracy_and_size: gate.GateRecord,
    steps: Steps,
) -> gate.Verdict:
    """Every finding of a gate run."""
    assert harness.gate is not None, "the gate's tests are collected in a gate run only"
    with shown(pytestconfig):
        return harness.gate.judge(accuracy_and_size, built, steps)


@pytest.fixture
def gated(harness: Harness) -> Callable[[str], None]:
    """Notes that an area of the gate was reached; a gate run that left one out fails."""
    assert harness.gate is not None
    return harness.gate.reached.add
