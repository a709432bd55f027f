"""Engines that run ONNX files on a CPU, a row each. Nothing outside of this package knows one by its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantlib.machine import hardware
from quantlib.machine.engines.engine import Engine, Feed, LoadedModel, Operators, Session, feed_of
from quantlib.machine.engines.onnx_runtime import ONNX_RUNTIME
from quantlib.machine.engines.open_vino import OPENVINO, OPENVINO_BFLOAT16, without_telemetry
from quantlib.support.errors import InputError

__all__ = [
    "DEFAULT_ENGINE", "ENGINES", "Engine", "Feed", "LoadedModel", "Operators", "Session",
    "check_engines", "feed_of", "get_engine", "load_model", "without_telemetry",
]  # fmt: skip

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (ONNX_RUNTIME, OPENVINO, OPENVINO_BFLOAT16)}

DEFAULT_ENGINE = ONNX_RUNTIME.name
"""What every variant runs on whose name says nothing else; so does the teacher that all are compared with."""


def get_engine(name: str) -> Engine:
    """The engine of a name.

    Raises:
        InputError: there is none.
    """
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; known: {', '.join(ENGINES)}")
    return ENGINES[name]


def load_model(path: Path, engine: str = DEFAULT_ENGINE, **options: Any) -> LoadedModel:
    """Load an ONNX file by an engine.

    Args:
        path: the file.
        engine: its name.
        options: of the engine's sessions; each has `threads`, None for the physical cores.

    Raises:
        InputError: an unknown engine, one that is not installed, or a file that it cannot load.
    """
    row = get_engine(engine)
    row.need()
    return LoadedModel(row, path, row.open(path, **options))


def check_engines(names: Iterable[str]) -> None:
    """Check that engines can be used here.

    Raises:
        InputError: an unknown name, one given twice, no name, a package that is not installed, or a CPU that
            lacks what an engine needs.
    """
    names = list(names)
    if not names:
        raise InputError(f"no engine is named; known: {', '.join(ENGINES)}")
    for name in names:
        engine = get_engine(name)
        if names.count(name) > 1:
            raise InputError(f"the engine {name} is named twice")
        engine.need()
        lacking = "" if engine.lacks is None else engine.lacks(hardware.describe())
        if lacking:
            raise InputError(f"the engine {name} cannot be used here: {lacking}")
