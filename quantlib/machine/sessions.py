"""Inference sessions: the same options for every variant, and errors that name the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.machine.hardware import on_x86, physical_cores
from quantlib.machine.unsigned import unsigned_model
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnxruntime

CPU_PROVIDERS = ("CPUExecutionProvider",)
# SkipLayerNormalization is what this makes of a residual sum and the LayerNormalization behind it. On x86 it
# is the slower of the two: without it a MiniLM of 6 layers is 1.03 to 1.10 times as fast in FP32, and 1.17 to
# 1.26 times in 8 bits, where products take less of the time (ONNX Runtime 1.32, 2 threads, 1x32 to 8x128).
DISABLED_OPTIMIZERS = ("SkipLayerNormFusion",)

_DTYPES: dict[str, Any] = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class SessionConfig:
    """How a session runs, as a value that can be recorded and sent to another process.

    threads: intra-op threads, the calling thread included.
    spinning: idle threads keep polling for work for a moment: faster, but they disturb other sessions.
    providers: execution providers in order of preference.
    disabled_optimizers: the graph optimizers of ONNX Runtime that are kept from running.
    unsigned_activations: on x86, S8 activations are turned to U8 (`machine.unsigned`), which is lossless.
    """

    threads: int
    spinning: bool = True
    providers: tuple[str, ...] = CPU_PROVIDERS
    disabled_optimizers: tuple[str, ...] = DISABLED_OPTIMIZERS
    unsigned_activations: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")
        if not self.providers:
            raise InputError("no execution provider is named; CPUExecutionProvider always exists")

    @classmethod
    def stock(cls, threads: int) -> SessionConfig:
        """ONNX Runtime's own defaults."""
        return cls(threads, disabled_optimizers=(), unsigned_activations=False)


def default_threads() -> int:
    """The number of threads a session gets when none is asked for: the usable physical cores."""
    return physical_cores()


def open_session(
    onnx_path: Path,
    *,
    threads: int | None = None,
    providers: Sequence[str] = CPU_PROVIDERS,
    spinning: bool = True,
    optimize: bool = True,
    disabled_optimizers: Sequence[str] = DISABLED_OPTIMIZERS,
    unsigned_activations: bool = True,
    quant_precision: bool = False,
    profile_prefix: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a model: sequential execution, one inter-op thread, `threads` intra-op threads.

    With `optimize` off the graph is run as it is written, no node fused: the values of an intermediate tensor
    then do not depend on which tensors are outputs. Otherwise all of ONNX Runtime's optimizers run but
    those in `disabled_optimizers`.

    With `unsigned_activations` on, an x86 CPU gets S8 activations as U8: the textbook's QDQ S8S8 is then
    twice as fast (a MiniLM of 6 layers, 1x128), with the same outputs.

    With `quant_precision` on (`session.x64quantprecision`) s8 weights beyond ±64 are turned to u8 on x86, in
    every integer product with a constant weight (MatMulInteger, MatMulIntegerToFloat, DynamicQuantizeMatMul,
    QLinearMatMul below opset 21, QGemm, QAttention, QDQ). Their u8·u8 kernels are slower and always sum in 32
    bits; the u8·s8 ones saturate at 16 bits on a CPU without VNNI. Elsewhere, on MatMulNBits, and with
    `optimize` off, it does nothing. Version 1.32 then cannot load a model in which weights share a
    zero point, or in which one is used twice.

    With a `profile_prefix` the session keeps a trace of all that it runs, and writes it to a file whose path
    begins so when its `end_profiling` is called.

    Raises:
        InputError: the file is missing or is no model that ONNX Runtime can run, `threads` is below 1, or
            a provider is not available here. ONNX Runtime's silent fallback to other providers is off.
    """
    import onnxruntime

    threads = default_threads() if threads is None else threads
    config = SessionConfig(
        threads, spinning, tuple(providers), tuple(disabled_optimizers), unsigned_activations
    )
    available = onnxruntime.get_available_providers()
    for provider in config.providers:
        if provider not in available:
            raise InputError(f"unknown execution provider {provider!r}; available: {', '.join(available)}")
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path}: no such ONNX model")
    options = session_options(config)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if quant_precision:
        options.log_severity_level = 4  # this mode fails on some models, and the exception says so
        options.add_session_config_entry("session.x64quantprecision", "1")
    unsigned = unsigned_model(onnx_path) if unsigned_activations and on_x86() else None
    if unsigned is not None:
        model: str | bytes = unsigned.SerializeToString()
    else:
        model = str(onnx_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    errors: tuple[type[Exception], ...] = (*runtime_errors(), ValueError, RuntimeError)
    try:
        return onnxruntime.InferenceSession(
            model,
            options,
            providers=list(config.providers),
            enable_fallback=0,
            disabled_optimizers=list(config.disabled_optimizers),
        )
    except errors as error:
        raise InputError(f"{onnx_path}: cannot be loaded: {shorten(str(error))}") from error


def open_configured(onnx_path: Path, config: SessionConfig) -> onnxruntime.InferenceSession:
    """`open_session` with all that a configuration says."""
    return open_session(onnx_path, **asdict(config))


def session_options(config: SessionConfig) -> onnxruntime.SessionOptions:
    """The options of ONNX Runtime for threads and logging."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if config.spinning else "0")
    return options


def runtime_errors() -> tuple[type[Exception], ...]:
    """The exception classes of ONNX Runtime; their only common base is `Exception`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


# The error code, the path (which our own messages name) and the C++ function: no help to a user.
_MESSAGE_PREFIX = re.compile(
    r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(Load model from .*? failed:)?(/\S+:\d+ .*?\) (?=[A-Z]))?"
)


def shorten(message: str, limit: int = 200) -> str:
    """ONNX Runtime's message as one line of at most `limit` characters, without its technical prefix."""
    line = (message.strip().splitlines() or [""])[0]
    line = _MESSAGE_PREFIX.sub("", line)
    return line if len(line) <= limit else line[: limit - 3] + "..."


def input_types(session: onnxruntime.InferenceSession) -> dict[str, np.dtype[Any] | None]:
    """The inputs of a session by name, with the type that arrays are turned to; None for their own."""
    return {
        node.name: np.dtype(_DTYPES[node.type]) if node.type in _DTYPES else None
        for node in session.get_inputs()
    }


def feed_for(
    session: onnxruntime.InferenceSession, arrays: Mapping[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """The arrays this session takes, each in the dtype it asks for; others (labels) are left out.

    Raises:
        InputError: the session has an input that is not among the arrays.
    """
    feed = {}
    for node in session.get_inputs():
        if node.name not in arrays:
            raise InputError(f"the model has an input {node.name!r}; there are only: {', '.join(arrays)}")
        array = np.asarray(arrays[node.name])
        feed[node.name] = array.astype(_DTYPES.get(node.type, array.dtype), copy=False)
    return feed


def run_session(
    session: onnxruntime.InferenceSession,
    onnx_path: Path,
    feed: Mapping[str, npt.NDArray[Any]],
    names: Sequence[str] | None = None,
) -> list[Any]:
    """The outputs of these names, or all of them, for a feed that `feed_for` made.

    Raises:
        InputError: the model cannot be run on it; the message names the file and the shape of the feed.
    """
    try:
        outputs: list[Any] = session.run(names, feed)
    except runtime_errors() as error:
        shape = next((array.shape for array in feed.values()), ())
        raise InputError(f"{onnx_path}: cannot be run on {shape}: {shorten(str(error))}") from error
    return outputs
