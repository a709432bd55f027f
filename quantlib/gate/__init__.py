"""The gate: compare a run with limits and a baseline, and tell a real regression from noise."""

from quantlib.gate.accuracy import judge_accuracy
from quantlib.gate.baseline import SCHEMA_VERSION, read_record, write_record
from quantlib.gate.comparison import CONFIDENCE, Comparison, Comparisons
from quantlib.gate.findings import Finding, Verdict
from quantlib.gate.identity import Changes, changes_since
from quantlib.gate.judge import judge, judge_presence
from quantlib.gate.latency import judge_latency
from quantlib.gate.limits import Limits, LimitTable, read_limits
from quantlib.gate.record import (
    GateRecord,
    LatencyRecord,
    Origin,
    Row,
    VariantRecord,
    machine_differences,
    recorded_array,
    recorded_predictions,
)
from quantlib.gate.render import console_lines, markdown
from quantlib.gate.sequential import ERROR, confidence_at
from quantlib.gate.size import judge_size
from quantlib.gate.slowdown import (
    Slowdown,
    decide,
    decide_pair,
    estimate_paired_slowdown,
    estimate_slowdown,
    estimate_speedup,
)

__all__ = [
    "CONFIDENCE",
    "ERROR",
    "SCHEMA_VERSION",
    "Changes",
    "Comparison",
    "Comparisons",
    "Finding",
    "GateRecord",
    "LatencyRecord",
    "LimitTable",
    "Limits",
    "Origin",
    "Row",
    "Slowdown",
    "VariantRecord",
    "Verdict",
    "changes_since",
    "confidence_at",
    "console_lines",
    "decide",
    "decide_pair",
    "estimate_paired_slowdown",
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
    "recorded_array",
    "recorded_predictions",
    "write_record",
]
