"""What the tests of a run share: each part is made when a test asks for it, once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest

from quantlib import gate
from quantlib.experiment import gating
from quantlib.experiment.build import Built, build
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.gate_running import limits_of
from quantlib.experiment.measure import check, evaluate
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.timing import time_speedups
from quantlib.harness import flags
from quantlib.measuring import accuracy
from quantlib.measuring.checks import Checks
from quantlib.measuring.latency import LatencyStats
from quantlib.measuring.latency.shapes import Shape
from quantlib.measuring.latency.speedup import Speedup
from quantlib.support.configuration import find_configuration
from quantlib.support.errors import InputError
from quantlib.support.options import PYTEST, from_flags, options_of
from quantlib.support.progress import Steps

# Of `[limits]` in the configuration file, what holds where there is no limits.toml.
_LIMITS = {"max_drop_points", "min_speedup"}


@contextlib.contextmanager
def wrong_use() -> Iterator[None]:
    """What the user got wrong ends the run with its one line and exit code 2."""
    try:
        yield
    except InputError as error:
        pytest.exit(f"error: {flags.as_in_pytest(str(error))}", returncode=2)


def root_of(config: pytest.Config) -> Path:
    """Where the user's repository begins.

    Without a configuration file of pytest's, its rootdir is the common ancestor of everything among the
    arguments that exists, also of the value of an option, such as `--gate-markdown ../gate.md`.
    """
    chosen = config.inipath is not None or config.getoption("rootdir") is not None
    return config.rootpath if chosen else config.invocation_params.dir


class Session:
    """The options of a run, its models, what is known of them, and what was timed.

    timings: (variant, shape, runs) of each benchmark.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        root = root_of(config)
        self.directory = root / config.getini("quantlib_bench")
        self.timings: list[tuple[str, str, LatencyStats]] = []
        self._speedups: dict[Shape, dict[str, Speedup]] = {}
        given = flags.given(config)
        found = find_configuration(root)
        of_run, of_gate = found.values(ExperimentOptions, GateOptions)
        offered = {item.name for item in options_of(ExperimentOptions, PYTEST)} | _LIMITS
        of_run = {name: value for name, value in of_run.items() if name in offered}
        self.experiment = from_flags(ExperimentOptions, given, PYTEST, of_run)
        self.options = from_flags(GateOptions, given, PYTEST, of_gate)
        self.options.check_lengths(self.experiment.seq_len)

    @property
    def baseline_path(self) -> Path:
        """Where the gate's baseline is."""
        named = self.options.gate
        return Path(named) if named else self.directory / "baseline" / f"{self.experiment.task_name}.json"

    @cached_property
    def steps(self) -> Steps:
        """Shows long steps on the terminal, also while pytest captures output."""
        from rich.console import Console

        return Steps(Console(stderr=True))

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Let what is printed reach the terminal; what the user got wrong ends the run."""
        capture = self.config.pluginmanager.getplugin("capturemanager")
        with wrong_use(), capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            yield

    @cached_property
    def built(self) -> Built:
        """Every model, exported and quantized once, shared with the main job through its cache."""
        with self.shown():
            return build(self.experiment, self.steps)

    @cached_property
    def evaluations(self) -> dict[str, accuracy.Evaluation]:
        """The predictions of every variant."""
        built = self.built
        with self.shown():
            return evaluate(built, self.experiment, self.steps)

    @cached_property
    def checks(self) -> dict[str, Checks]:
        """What was checked of every variant beyond its accuracy."""
        built = self.built
        with self.shown():
            return check(built, self.experiment, self.steps)

    @cached_property
    def record(self) -> gate.GateRecord:
        """What is known of every variant before anything is timed."""
        return gating.record(self.built, self.evaluations, self.experiment)

    @cached_property
    def limits(self) -> gate.LimitTable:
        """The table of limits."""
        beside = self.directory / "limits.toml"
        named = self.options.limits or (beside if beside.exists() else None)
        with wrong_use():
            return limits_of(self.experiment, replace(self.options, limits=named))

    def speedups(self, shape: Shape) -> dict[str, Speedup]:
        """The speedups of all variants at a shape, timed in turns with the teacher, once in a session."""
        if shape not in self._speedups:
            with self.shown():
                self._speedups[shape] = time_speedups(self.built.variants, shape, self.experiment, self.steps)
        return self._speedups[shape]
