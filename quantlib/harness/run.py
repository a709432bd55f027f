"""One run of `pytest bench`: its state in one object, and the hooks that use it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from quantlib import gate
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.options import ExperimentOptions, variant_names
from quantlib.harness.gate_run import GateRun
from quantlib.harness.saving import refuse_to_save
from quantlib.machine import hardware
from quantlib.measuring.latency import LatencyStats
from quantlib.support.cache import versions_key
from quantlib.support.configuration import find_configuration
from quantlib.support.errors import InputError
from quantlib.support.options import PYTEST, from_flags, options_of


@contextlib.contextmanager
def wrong_use() -> Iterator[None]:
    """What the user got wrong ends the run with its one line and exit code 2."""
    try:
        yield
    except InputError as error:
        pytest.exit(f"error: {error}", returncode=2)


class Harness:
    """A run of the benchmarks in `directory`: options, limits, what was timed, and the gate if it is on."""

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self.config = config
        self.directory = directory
        self.timings: list[tuple[str, str, LatencyStats]] = []
        with wrong_use():
            found = find_configuration(config.rootpath)
            of_run, of_gate = found.values(ExperimentOptions, GateOptions)
            offered = {item.name for item in options_of(ExperimentOptions, PYTEST)}
            of_run = {name: value for name, value in of_run.items() if name in offered}
            self.experiment = from_flags(ExperimentOptions, vars(config.option), PYTEST, of_run)
            self.options = from_flags(GateOptions, vars(config.option), PYTEST, of_gate)
            self.options.check_lengths(self.experiment.seq_len)
            task = self.experiment.task_name
            named = self.options.gate
            self.baseline_path = Path(named) if named else directory / "baseline" / f"{task}.json"
            self.gate = self._gate() if self.options.gating else None

    def read_limits(self) -> gate.LimitTable:
        """The table of limits."""
        path = self.options.limits or self.directory / "limits.toml"
        return gate.read_limits(path, self.experiment.resolved_recipes, self.experiment.task_name)

    def _gate(self) -> GateRun:
        if self.config.getoption("numprocesses", None) or hasattr(self.config, "workerinput"):
            raise InputError("--gate cannot run under pytest-xdist: timing is off there; leave -n out")
        if self.config.getoption("benchmark_only", False):
            raise InputError(
                "--gate and --benchmark-only exclude each other: the gate's tests are no benchmarks"
            )
        # An update answers to the limits alone.
        baseline = None if self.options.gate_update else gate.read_record(self.baseline_path)
        return GateRun(self.experiment, self.options, self.read_limits(), baseline, self.baseline_path)

    def pytest_report_header(self) -> list[str]:
        """What is built, on what, and whether timing is on."""
        names = ", ".join(variant_names(self.experiment))
        lines = [
            f"quantlib: task {self.experiment.task_name}, variants {names}, "
            f"{self.experiment.threads} threads, {hardware.describe().cpu_model}"
        ]
        if self.config.getoption("numprocesses", None):
            lines.append("quantlib: timing is OFF under pytest-xdist; only accuracy and size are checked")
        return lines

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each variant and shape; their ids are the keys of baselines."""
        if not metafunc.definition.path.is_relative_to(self.directory):
            return
        names = variant_names(self.experiment)
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", names, indirect=True)
        if "candidate" in metafunc.fixturenames:
            metafunc.parametrize("candidate", names[1:], indirect=True)
        if "shape" in metafunc.fixturenames:
            shapes = self.options.parsed_shapes
            metafunc.parametrize("shape", shapes, ids=map(str, shapes))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The gate's tests are there only in a gate run."""
        if self.gate is None:
            of_the_gate = [item for item in items if item.get_closest_marker("gate")]
            items[:] = [item for item in items if item not in of_the_gate]
            if of_the_gate:
                self.config.hook.pytest_deselected(items=of_the_gate)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Fail a gate that gated nothing; do not save what failed as a future baseline."""
        if self.gate is not None and not self.config.option.collectonly:
            with wrong_use():
                self.gate.finish(session)
        refuse_to_save(session)
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The standard errors of the timed runs, the gate's verdict, and where results went."""
        if self.timings:
            terminalreporter.section("latency: mean ± standard error, ms")
            for name, shape, stats in self.timings:
                warning = "  NOISY: the machine was busy; these runs tell little" if stats.noisy else ""
                terminalreporter.line(
                    f"{name:<28} {shape:>7}  {stats.mean_ms:9.3f} ± {stats.standard_error_ms:.3f}{warning}"
                )
        if self.gate is not None:
            self.gate.summarize(terminalreporter)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """The processor, threads and versions; no host name, and no clock that changes from run to run."""
        machine = hardware.describe()
        for key in ("node", "release", "python_build"):
            machine_info.pop(key, None)
        machine_info["cpu"] = {"brand_raw": machine.cpu_model, **asdict(machine)}
        machine_info["threads"] = self.experiment.threads
        machine_info["versions"] = versions_key("onnxruntime", "onnx", "numpy")
