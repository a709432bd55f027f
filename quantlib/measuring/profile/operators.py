"""The time of every node, from a trace by ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency.process import Feeds, TimedProcess
from quantlib.measuring.latency.stats import NUM_RUNS, WAKE_SECONDS, WARMUP_RUNS
from quantlib.measuring.profile.operations import Operations, Tensor, count
from quantlib.onnx_model.roles import layer_number
from quantlib.onnx_model.roles import role as linear_role
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError

_KERNEL = "_kernel_time"
# Roles of nodes without a weight, which `onnx_model.roles` does not name.
_OTHER_ROLES = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("layernorm", r"LayerNorm"),
        ("attention", r"\battention\b"),
        ("activation", r"act_fn|activation|Gelu"),
    )
)

Event = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """A node of the optimized graph that the session runs; it may stand for several nodes of the model.

    operator: its type. ms: the median of its times over the runs. operations: of its matrix products.
    """

    name: str
    operator: str
    ms: float
    operations: Operations

    @property
    def role(self) -> str:
        """Its part in the network, by its name; a fused node keeps the name of one of its parts.

        One of `onnx_model.roles.ROLES`, or "attention", "layernorm" or "activation" for nodes without a
        weight.
        """
        role = linear_role(self.name)
        if role != "other":
            return role
        return next((other for other, pattern in _OTHER_ROLES if pattern.search(self.name)), role)

    @property
    def layer(self) -> int | None:
        """The number of its layer; None outside of layers, or if its name has no number."""
        return layer_number(self.name)


@dataclass(frozen=True)
class Trace:
    """The nodes of a model with their times.

    nodes: in the order of execution. wall_ms: the median of whole runs, tracing included. outside_ms: the
    median time that a run spends outside of kernels: dispatch, allocation, and part of the cost of tracing.
    The rest of that cost, some microseconds a node, is in the times of the nodes.
    """

    nodes: tuple[Node, ...]
    wall_ms: float
    outside_ms: float


def trace(
    onnx_path: Path,
    feeds: Feeds,
    config: SessionConfig,
    *,
    warmup_runs: int = WARMUP_RUNS,
    num_runs: int = NUM_RUNS,
    wake_seconds: float = WAKE_SECONDS,
) -> Trace:
    """Run a model with the profiler on, in a process of its own, and read the nodes of the last runs.

    Args:
        onnx_path: the model.
        feeds: arrays by input name, all of one shape; cycled through.
        config: the session's options, those of the timing that the trace explains.
        warmup_runs: runs before them that do not count; those of `wake_seconds` do not count either.

    Raises:
        InputError: the model cannot be loaded, or an input is missing.
        RuntimeError: the model failed while it ran.
    """
    with (
        temporary_dir() as directory,
        TimedProcess(onnx_path, feeds, config, profile_prefix=directory / "trace") as process,
    ):
        process.time(num_runs, warmup_runs=warmup_runs, wake_seconds=wake_seconds)
        return read_trace(process.end_profiling(), num_runs)


def read_trace(path: Path, num_runs: int) -> Trace:
    """Read the nodes of the last `num_runs` runs in a trace file.

    ONNX Runtime truncates times to whole microseconds; the rest counts as outside of kernels.

    Raises:
        InputError: no trace, or fewer runs in it.
    """
    try:
        events: list[Event] = json.loads(path.read_text(encoding="utf-8"))
        runs = sorted((event for event in events if event["name"] == "model_run"), key=_start)
        kernels = sorted((event for event in events if _is_kernel(event)), key=_start)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a trace of ONNX Runtime: {error}") from error
    if not 1 <= num_runs <= len(runs):
        raise InputError(f"{path}: the trace has {len(runs)} runs, not the {num_runs} to take apart")
    times: dict[str, list[float]] = {}
    last: dict[str, Event] = {}
    outside = []
    for run, events in _kernels_of(runs[-num_runs:], kernels):
        for event in events:
            index = event["args"]["node_index"]
            times.setdefault(index, []).append(event["dur"] / 1e3)
            last[index] = event
        outside.append((run["dur"] - sum(event["dur"] for event in events)) / 1e3)
    nodes = tuple(_node(event, median(times[index])) for index, event in last.items())
    return Trace(nodes, median(run["dur"] / 1e3 for run in runs[-num_runs:]), median(outside))


def _start(event: Event) -> int:
    return int(event["ts"])


def _is_kernel(event: Event) -> bool:
    return bool(event["cat"] == "Node" and event["name"].endswith(_KERNEL))


def _kernels_of(runs: list[Event], kernels: list[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Each run with its kernels; a kernel within the time of another (an If or Loop) belongs to that one."""
    position = 0
    for run in runs:
        end, busy_until = run["ts"] + run["dur"], run["ts"]
        outermost = []
        while position < len(kernels) and kernels[position]["ts"] <= end:
            event = kernels[position]
            position += 1
            if event["ts"] >= busy_until:
                outermost.append(event)
                busy_until = event["ts"] + event["dur"]
        yield run, outermost


def _node(event: Event, ms: float) -> Node:
    arguments = event["args"]
    operator = arguments["op_name"]
    inputs, outputs = (_tensors(arguments[f"{side}_type_shape"]) for side in ("input", "output"))
    return Node(event["name"].removesuffix(_KERNEL), operator, ms, count(operator, inputs, outputs))


def _tensors(shapes: list[dict[str, list[int]]]) -> list[Tensor]:
    return [Tensor(kind, tuple(shape)) for each in shapes for kind, shape in each.items()]
