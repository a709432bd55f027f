"""ONNX Runtime as an engine: the default, and what the teacher runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.machine.engines.engine import Engine
from quantlib.machine.sessions import SessionConfig, input_types, open_session, runtime_errors, shorten

if TYPE_CHECKING:
    import onnxruntime


class OrtSession:
    """A session of ONNX Runtime; `run` is its own method, so that nothing is timed but the runtime."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.run: Any = session.run

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any] | None]:
        """The inputs by name, with the type that arrays are turned to; None for their own."""
        return input_types(self._session)

    @property
    def outputs(self) -> Mapping[str, Sequence[object]]:
        """The outputs by name, with their dimensions."""
        return {output.name: output.shape for output in self._session.get_outputs()}

    def end_profiling(self) -> str:
        """The path of the trace of all runs so far, of a session that was opened with a profile_prefix."""
        return str(self._session.end_profiling())


def _open(path: Path, **options: Any) -> OrtSession:
    return OrtSession(open_session(path, **options))


def _config(threads: int, stock: bool) -> SessionConfig:
    return SessionConfig.stock(threads) if stock else SessionConfig(threads)


ONNX_RUNTIME = Engine(
    "onnxruntime",
    "ONNX Runtime",
    package="onnxruntime",
    extra="",
    operators="microsoft",
    quantizers=("quantlib", "onnxruntime"),
    config=_config,
    open=_open,
    errors=runtime_errors,
    reason=shorten,
    profiles=True,
)
