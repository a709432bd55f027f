"""The hooks that every pytest run calls; they import nothing heavy, and leave the rest to `Harness`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command's options, and those of the harness."""
    from quantlib.experiment.gate_options import GateOptions
    from quantlib.experiment.options import ExperimentOptions
    from quantlib.support.options import PYTEST, Option, options_of

    def add(group: pytest.OptionGroup, item: Option) -> None:
        # What is not given is None or empty, so that the configuration file can say it.
        words: dict[str, Any] = {"type": item.kind, "default": None, "metavar": item.metavar}
        if item.is_switch:
            words = {"action": "store_true"}
        elif item.pairs or (item.many and not item.comma):
            words = {"action": "append", "default": [], "metavar": item.metavar}
        elif item.bare is not None:
            words |= {"nargs": "?", "const": item.bare}
        elif item.comma:
            words |= {"type": str}
        shown = f" Default: {item.shown_default}." if item.shown_default and not item.is_switch else ""
        group.addoption(item.flag, dest=item.name, help=(item.help + shown).replace("%", "%%"), **words)

    parser.addini("quantlib_bench", "the directory with benchmarks, limits and baselines", default="bench")
    group = parser.getgroup("quantlib", "quantized models (the options of quantization_experiments.py)")
    for item in options_of(ExperimentOptions, PYTEST):
        add(group, item)
    gate = parser.getgroup(
        "gate", "the harness, and the gate: fail on a real regression, and on nothing else"
    )
    for item in options_of(GateOptions, PYTEST):
        add(gate, item)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options and register the harness, if this run has something for it to do."""
    directory = config.rootpath / config.getini("quantlib_bench")
    gating = config.getoption("gate") is not None or config.getoption("gate_update")
    if not (gating or any(_touches(config, argument, directory) for argument in config.args)):
        return
    from quantlib.harness import fixtures
    from quantlib.harness.run import Harness

    config.pluginmanager.register(Harness(config, directory), "quantlib-harness")
    config.pluginmanager.register(fixtures, "quantlib-harness-fixtures")


def _touches(config: pytest.Config, argument: str, directory: Path) -> bool:
    """Whether an argument of the command line is in the directory or above it."""
    path = (config.invocation_params.dir / argument.partition("::")[0]).resolve()
    directory = directory.resolve()
    return path.is_relative_to(directory) or directory.is_relative_to(path)
