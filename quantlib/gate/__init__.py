"""The gate: compare a run with limits and a baseline, and tell a real regression from noise."""

from quantlib.gate.accuracy import judge_accuracy
from quantlib.gate.baseline import SCHEMA_VERSION, read_record, write_record
from quantlib.gate.findings import Finding, Verdict
from quantlib.gate.judge import judge, judge_presence
from quantlib.gate.latency import judge_latency
from quantlib.gate.limits import Limits, LimitTable, read_limits
from quantlib.gate.record import GateRecord, LatencyRecord, VariantRecord, machine_differences
from quantlib.gate.render import console_lines, markdown
from quantlib.gate.size import judge_size
from quantlib.gate.slowdown import LAUNCH_SD, Slowdown, decide, estimate_slowdown, estimate_speedup

__all__ = [
    "LAUNCH_SD",
    "SCHEMA_VERSION",
    "Finding",
    "GateRecord",
    "LatencyRecord",
    "LimitTable",
    "Limits",
    "Slowdown",
    "VariantRecord",
    "Verdict",
    "console_lines",
    "decide",
    "estimate_slowdown",
    "estimate_speedup",
    "judge",
    "judge_accuracy",
    "judge_latency",
    "judge_presence",
    "judge_size",
    "machine_differences",
    "markdown",
    "read_limits",
    "read_record",
    "write_record",
]
