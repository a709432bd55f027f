"""Files of a commit to points of variants: baselines, results, and runs that pytest-benchmark saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from quantlib.compression.variants import TEACHER
from quantlib.gate.baseline import parse_record
from quantlib.gate.history.series import Machine, Point, Timing
from quantlib.gate.record import GateRecord, VariantRecord
from quantlib.gate.slowdown import estimate_speedup
from quantlib.measuring.latency.estimate import LogRatio, estimate_log_ratio
from quantlib.measuring.latency.speedup import TRUSTED
from quantlib.report.columns import BYTES_PER_MB
from quantlib.report.results import parse_results
from quantlib.support.commits import Commit
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json
from quantlib.support.typed import read_json_text

_NORMAL = 1.959964  # of a normal value's 95 % interval, from the middle to an end
_MANY = 1e6  # degrees of freedom of an error that is known


@dataclass(frozen=True)
class Recorded:
    """What one file says at one commit: points by variant, the teacher first."""

    task: str
    machine: Machine
    points: Mapping[str, Point]


def of_baseline(text: bytes, name: str, commit: Commit) -> Recorded:
    """The points of a baseline.

    Raises:
        InputError: it is none that this quantlib reads; `name` is in the message.
    """
    record = parse_record(text, name)
    return Recorded(
        record.task,
        _machine(record.machine),
        {variant: _of_variant(record, variant, commit) for variant in record.variants},
    )


def _of_variant(record: GateRecord, name: str, commit: Commit) -> Point:
    variant = record.variants[name]
    timings = {}
    for shape, latency in record.latency.get(name, {}).items():
        speedup = estimate_speedup(latency)
        log_ratio = estimate_log_ratio(latency.launches)
        timings[shape] = Timing(speedup.ratio, speedup.low, speedup.high, log_ratio, busy=latency.disturbed)
    return Point(
        commit,
        score=variant.score,
        drop=variant.accuracy_drop,
        size_bytes=variant.size_bytes,
        timings=timings,
        program=_program(record, variant),
        rows=record.data_hash,
        record=record,
        uncommitted=record.origin is not None and record.origin.changed,
    )


def _program(record: GateRecord, variant: VariantRecord) -> dict[str, str]:
    """What a speedup depends on beside the machine; nothing of a baseline that does not record all of it."""
    teacher = record.variants[TEACHER]
    if record.origin is None or not (variant.sha256 and teacher.sha256):
        return {}
    return {
        "model": variant.sha256,
        "teacher": teacher.sha256,
        "session": sha256_json(record.origin.session),
        "ONNX Runtime": str(record.machine.get("onnxruntime", "")),
        "code that times": record.origin.worker,
    }


@dataclass(frozen=True)
class _Run:
    """Of a run.json, what tells machine, task and models."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    sessions: Mapping[str, Any] = field(default_factory=dict)
    sha256: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


def of_results(text: bytes, run: bytes | None, path: str, name: str, commit: Commit) -> Recorded:
    """The points of a results.json.

    Args:
        text: of the file.
        run: the run.json beside it; None where there is none, so that the machine is unknown.
        path: of the file. Its directory is the task's name where no run.json says it.
        name: of the file, for messages.
        commit: that the file is of.

    Raises:
        InputError: one of both is none that this quantlib reads.
    """
    results = parse_results(text, name)
    beside = PurePosixPath(path).with_name("run.json")
    described = _Run() if run is None else read_json_text(_Run, run, f"{beside} beside {name}", "a run.json")
    arguments = described.arguments
    shape = f"{arguments.get('batch_size', '?')}x{arguments.get('seq_len', '?')}"
    points = {}
    for variant, values in results.items():
        try:
            points[variant] = Point(
                commit,
                score=_first_number(values),
                drop=_number(values, "accuracy_drop"),
                size_bytes=round(_number(values, "model_size") * BYTES_PER_MB),
                timings={} if variant == TEACHER else {shape: _timing(values)},
                drop_interval=_interval(values, "drop_low", "drop_high"),
                program=_program_of_run(described, variant),
                rows=str(described.sha256.get("data", "")),
            )
        except ValueError as error:
            raise InputError(f"{name}: {variant}: {error}") from error
    task = str(arguments.get("task") or PurePosixPath(path).parent.name)
    return Recorded(task, _machine({**described.hardware, "threads": described.threads}), points)


def _program_of_run(run: _Run, variant: str) -> dict[str, str]:
    models = run.sha256.get("models")
    if not isinstance(models, dict) or not {variant, TEACHER} <= models.keys():
        return {}
    return {
        "model": str(models[variant]),
        "teacher": str(models[TEACHER]),
        "session": sha256_json(run.sessions),
        "ONNX Runtime": run.packages.get("onnxruntime", ""),
    }


@dataclass(frozen=True)
class _CommitInfo:
    id: str = ""
    dirty: bool = False


@dataclass(frozen=True)
class _Benchmark:
    group: str | None = None
    params: Mapping[str, Any] | None = None
    extra_info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Saved:
    """Of a run that pytest-benchmark saved."""

    benchmarks: tuple[_Benchmark, ...]
    machine_info: Mapping[str, Any]
    datetime: str
    commit_info: _CommitInfo = _CommitInfo()


@dataclass(frozen=True)
class SavedRun:
    """A run that pytest-benchmark saved. sha: of its commit, empty where there was none. when: it ended."""

    sha: str
    when: str
    saved: _Saved


def parse_saved_run(text: bytes, name: str) -> SavedRun:
    """A file of pytest-benchmark's storage, to be read on when its commit is known.

    Raises:
        InputError: it is none.
    """
    saved = read_json_text(_Saved, text, name, "a saved run of pytest-benchmark")
    return SavedRun(saved.commit_info.id, saved.datetime, saved)


def of_saved_run(run: SavedRun, name: str, commit: Commit) -> Recorded | None:
    """The points of a saved run; None where none of its benchmarks is of a variant.

    Raises:
        InputError: a value is no number.
    """
    task = ""
    points: dict[str, Point] = {}
    for benchmark in run.saved.benchmarks:
        values = benchmark.extra_info
        variant = values.get("variant") or (benchmark.params or {}).get("quant_model")
        if not isinstance(variant, str) or not {"accuracy_drop", "size_bytes"} <= values.keys():
            continue  # a benchmark of something else
        task = str(values.get("task", task))
        try:
            timings = dict(points[variant].timings) if variant in points else {}
            if variant != TEACHER and "speedup" in values:
                timings[benchmark.group or "?"] = _timing(values)
            points[variant] = Point(
                commit,
                score=_first_number(values),
                drop=_number(values, "accuracy_drop"),
                size_bytes=round(_number(values, "size_bytes")),
                timings=timings,
                uncommitted=run.saved.commit_info.dirty,
            )
        except ValueError as error:
            raise InputError(f"{name}: {variant}: {error}") from error
    machine = run.saved.machine_info
    cpu = machine.get("cpu")
    described = {**(cpu if isinstance(cpu, dict) else {}), "threads": machine.get("threads")}
    return Recorded(task, _machine(described), points) if points else None


def _timing(values: Mapping[str, Any]) -> Timing:
    """The recorded speedup; its error from its interval, which covers the machine's known states."""
    ratio = _number(values, "speedup")
    low, high = _interval(values, "speedup_low", "speedup_high") or (ratio, ratio)
    timing = Timing(ratio, low, high, covers_states=True)
    if low == high:
        return timing
    # The wider side, since the interval of a machine with states may lie on one side.
    half = max(math.log(high / ratio), math.log(ratio / low))
    log_ratio = LogRatio(math.log(ratio), half / _NORMAL, _MANY, turns=2)
    # What is narrow and still not trusted was measured beside other programs.
    busy = values.get("trusted") is False and half <= math.log1p(TRUSTED)
    return replace(timing, log_ratio=log_ratio, busy=busy)


def _first_number(values: Mapping[str, Any]) -> float | None:
    """The primary metric, which is the first number of a variant."""
    numbers = (value for value in values.values() if isinstance(value, int | float))
    return next((float(value) for value in numbers if not isinstance(value, bool)), None)


def _interval(values: Mapping[str, Any], low: str, high: str) -> tuple[float, float] | None:
    if values.get(low) is None or values.get(high) is None:
        return None
    return _number(values, low), _number(values, high)


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{key} must be a number, not {value!r}")
    return float(value)


def _machine(values: Mapping[str, Any]) -> Machine:
    threads, sets = values.get("threads"), values.get("instruction_sets") or ()
    return Machine(
        str(values.get("cpu_model") or values.get("brand_raw") or ""),
        tuple(map(str, sets)) if isinstance(sets, list | tuple) else (),
        threads if isinstance(threads, int) else None,
    )
