"""What pytest loads: light flags, hooks and fixtures; `Harness` does the work once a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from quantlib.harness import flags

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from quantlib.harness.gate_run import GateVerdict
    from quantlib.harness.models import QuantModel
    from quantlib.harness.run import Harness

_NAME = "quantlib-harness"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the command, and those of the gate."""
    parser.addini("quantlib_bench", "the directory with limits.toml and baselines", default="bench")
    flags.add_flags(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Check the flags, if any is given: what is wrong is said before tests are collected."""
    if any(value not in (None, [], False) for value in flags.given(config).values()):
        _harness(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each variant and shape; their ids are the keys of baselines."""
    asked = {"quant_model", "quant_variant", "quant_shape", "quant_models", "quant_verdict"}
    if asked.intersection(metafunc.fixturenames):
        _harness(metafunc.config).parametrize(metafunc)


def _harness(config: pytest.Config) -> Harness:
    """This run's harness, made when it is first needed."""
    from quantlib.harness.run import Harness

    harness = config.pluginmanager.getplugin(_NAME)
    if harness is None:
        harness = Harness(config)
        config.pluginmanager.register(harness, _NAME)
    assert isinstance(harness, Harness)
    return harness


@pytest.fixture(scope="session")
def quant_models(pytestconfig: pytest.Config) -> Mapping[str, QuantModel]:
    """Every variant by name, the teacher first: each is built once in a session, and kept in the cache."""
    return _harness(pytestconfig).models


@pytest.fixture
def quant_model(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> QuantModel:
    """Each variant in turn, the teacher included."""
    return _harness(request.config).model(request.param, record_property)


@pytest.fixture
def quant_variant(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> QuantModel:
    """Each variant in turn that is compared with the teacher: all others, also those in float."""
    return _harness(request.config).model(request.param, record_property)


@pytest.fixture
def quant_verdict(pytestconfig: pytest.Config, record_property: Callable[[str, object], None]) -> GateVerdict:
    """What the gate found in this run. Tests that ask for it are collected with --gate and --gate-update."""
    return _harness(pytestconfig).verdict(record_property)
