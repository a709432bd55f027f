"""One pytest run that asks for models: its hooks, and the gate if it is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import pytest

from quantlib import gate
from quantlib.experiment.options import variant_names
from quantlib.harness.gate_run import GateRun, GateVerdict
from quantlib.harness.models import QuantModel
from quantlib.harness.saving import refuse_to_save
from quantlib.harness.session import Session, wrong_use
from quantlib.machine import hardware
from quantlib.support.cache import versions_key
from quantlib.support.errors import InputError


@contextmanager
def _ends_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends pytest as it does in a test; in its hooks it would give a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        pytest.exit("interrupted: the baseline is as it was", returncode=pytest.ExitCode.INTERRUPTED)


class Harness:
    """What quantlib does in a pytest run; pytest calls its hooks."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        with wrong_use():
            self.session = Session(config)
            self.gate = self._gate() if self.session.options.gating else None

    @cached_property
    def models(self) -> Mapping[str, QuantModel]:
        """Every variant by name."""
        return {variant.name: QuantModel(variant, self.session) for variant in self.session.built.variants}

    def model(self, name: str, record_property: Callable[[str, object], None]) -> QuantModel:
        """A variant for one test."""
        return replace(self.models[name], record_property=record_property)

    def verdict(self, record_property: Callable[[str, object], None]) -> GateVerdict:
        """Every finding of a gate run, for one test."""
        assert self.gate is not None, "the gate's tests are collected in a gate run only"
        if self.gate.judged is None:
            record, built = self.session.record, self.session.built
            with self.session.shown():
                self.gate.judge(record, built, self.session.steps)
        return GateVerdict(self.gate, record_property)

    def _gate(self) -> GateRun:
        if self.config.getoption("numprocesses", None) or hasattr(self.config, "workerinput"):
            raise InputError("--gate cannot run under pytest-xdist: timing is off there; leave -n out")
        if self.config.getoption("benchmark_only", False):
            raise InputError(
                "--gate and --benchmark-only exclude each other: the gate's tests are no benchmarks"
            )
        # An update answers to the limits alone.
        baseline = None if self.session.options.gate_update else gate.read_record(self.session.baseline_path)
        return GateRun(
            self.session.experiment,
            self.session.options,
            self.session.limits,
            baseline,
            self.session.baseline_path,
        )

    # Hooks

    def pytest_report_header(self) -> list[str]:
        """That timing is off, if it is."""
        if self.config.getoption("numprocesses", None):
            return ["quantlib: timing is OFF under pytest-xdist; only accuracy and size are checked"]
        return []

    def pytest_report_collectionfinish(self) -> str:
        """What is built, and on what."""
        names = ", ".join(variant_names(self.session.experiment))
        return (
            f"quantlib: task {self.session.experiment.task_name}, variants {names}, "
            f"{self.session.experiment.threads} threads, {hardware.describe().cpu_model}"
        )

    def parametrize(self, metafunc: pytest.Metafunc) -> None:
        """One test for each variant and shape that it asks for."""
        names = variant_names(self.session.experiment)
        if "quant_model" in metafunc.fixturenames:
            metafunc.parametrize("quant_model", names, indirect=True)
        if "quant_variant" in metafunc.fixturenames:
            metafunc.parametrize("quant_variant", names[1:], indirect=True)
        if "quant_shape" in metafunc.fixturenames:
            shapes = self.session.options.parsed_shapes
            metafunc.parametrize("quant_shape", shapes, ids=map(str, shapes))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """The gate's tests are there only in a gate run."""
        if self.gate is None:
            of_the_gate = [item for item in items if "quant_verdict" in getattr(item, "fixturenames", ())]
            items[:] = [item for item in items if item not in of_the_gate]
            if of_the_gate:
                self.config.hook.pytest_deselected(items=of_the_gate)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Fail a gate that gated nothing; do not save what failed as a future baseline."""
        if self.gate is not None and not self.config.option.collectonly:
            with wrong_use(), _ends_by_ctrl_c():
                self.gate.finish(session)
        refuse_to_save(session)
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The standard errors of the timed runs, the gate's verdict, and where results went."""
        if self.session.timings:
            terminalreporter.section("latency: mean ± standard error, ms")
            for name, shape, stats in self.session.timings:
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
        machine_info["threads"] = self.session.experiment.threads
        machine_info["versions"] = versions_key("onnxruntime", "onnx", "numpy")
