"""OpenVINO's CPU plugin as an engine.

Its packages can send usage data. Nothing is sent from here: their telemetry is kept from being imported, and
they go on without.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from quantlib.machine.engines.engine import Engine, Feed, first_line
from quantlib.machine.hardware import Hardware, has_bfloat16
from quantlib.support.errors import InputError

TELEMETRY = "openvino_telemetry"
_DEVICE = "CPU"


@dataclass(frozen=True)
class OpenVinoConfig:
    """How a model is compiled, as a value that can be recorded and sent to another process.

    threads: that work on one run; runs are one after the other. precision: what floats are computed in, "f32"
    or "bf16"; said outright, since the plugin takes bfloat16 by itself where a CPU has it.
    """

    threads: int
    precision: Literal["f32", "bf16"] = "f32"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")

    @property
    def properties(self) -> dict[str, Any]:
        """The same in OpenVINO's words."""
        return {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
        }


def without_telemetry() -> None:
    """Keep the telemetry of OpenVINO and NNCF from being imported in this process; both then do without."""
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]


def openvino_module() -> ModuleType:
    """The package openvino, without its telemetry."""
    without_telemetry()
    return importlib.import_module("openvino")


class OpenVinoSession:
    """A compiled model and one request of it."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._ports = {_name(port): port for port in compiled.outputs}

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any] | None]:
        """The inputs by name, with the type that each takes."""
        return {_name(port): np.dtype(port.element_type.to_dtype()) for port in self._compiled.inputs}

    @property
    def outputs(self) -> Mapping[str, Sequence[object]]:
        """The outputs by name, with their dimensions."""
        return {
            name: [size.get_length() if size.is_static else str(size) for size in port.partial_shape]
            for name, port in self._ports.items()
        }

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[Any]:
        """The outputs of these names, or all of them. Inputs are read where they lie."""
        results = self._request.infer(feed, share_inputs=True)
        return [results[self._ports[name]] for name in names or self._ports]


def _name(port: Any) -> str:
    return str(port.get_any_name())


def compile_model(path: Path, config: OpenVinoConfig) -> Any:
    """Load an ONNX file (or OpenVINO's own .xml) and compile it for the CPU.

    Raises:
        InputError: it is missing, cannot be loaded, or the package is not installed.
    """
    OPENVINO.need()
    if not path.is_file():
        raise InputError(f"{path}: no such ONNX model")
    core = openvino_module().Core()
    try:
        return core.compile_model(core.read_model(path), _DEVICE, config.properties)
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be loaded by OpenVINO: {_reason(str(error))}") from error


def _reason(message: str) -> str:
    """What of a message tells most: the operators it does not know, else its last line."""
    unknown = [line for line in message.splitlines() if "No conversion rule" in line]
    return first_line(unknown[0] if unknown else message)


def _open(path: Path, *, threads: int | None = None, **options: Any) -> OpenVinoSession:
    from quantlib.machine.sessions import default_threads

    config = OpenVinoConfig(default_threads() if threads is None else threads, **options)
    return OpenVinoSession(compile_model(path, config))


def _open_bfloat16(path: Path, **options: Any) -> OpenVinoSession:
    return _open(path, **{"precision": "bf16", **options})


def _products(path: Path, threads: int) -> dict[str, str]:
    """What each node of the file is computed in ("u8", "i8", "f32"), by the graph that is really executed."""
    precisions = {}
    for operation in compile_model(path, OpenVinoConfig(threads)).get_runtime_model().get_ordered_ops():
        info = operation.get_rt_info()
        if "originalLayersNames" in info and "runtimePrecision" in info:
            precision = str(info["runtimePrecision"].astype(str))
            for name in str(info["originalLayersNames"].astype(str)).split(","):
                precisions[name] = precision
    return precisions


def _lacks_bfloat16(machine: Hardware) -> str:
    return "" if has_bfloat16(machine) else "this CPU has neither amx_bf16 nor avx512_bf16"


def _bfloat16_config(threads: int, _stock: bool) -> OpenVinoConfig:
    return OpenVinoConfig(threads, "bf16")


OPENVINO = Engine(
    "openvino",
    "OpenVINO",
    package="openvino",
    extra="openvino",
    operators="standard",
    quantizers=("quantlib", "nncf"),
    config=lambda threads, _stock: OpenVinoConfig(threads),
    open=_open,
    errors=lambda: (RuntimeError,),
    reason=_reason,
    products=_products,
)

OPENVINO_BFLOAT16 = Engine(
    "openvino_bf16",
    "OpenVINO in bfloat16",
    package="openvino",
    extra="openvino",
    operators="standard",
    quantizers=(),
    config=_bfloat16_config,
    open=_open_bfloat16,
    errors=lambda: (RuntimeError,),
    reason=_reason,
    lacks=_lacks_bfloat16,
)

__all__ = ["OPENVINO", "OPENVINO_BFLOAT16", "TELEMETRY", "OpenVinoConfig", "without_telemetry"]
