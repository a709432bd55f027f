"""The time of a variant by operator, and how close its products come to the machine's peak.

The session that is timed runs once more under ONNX Runtime's profiler. The operations of its products,
divided by the peak that large products reach on this machine, are the least time that a kernel can need.
"""

from __future__ import annotations

from pathlib import Path

from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency.fixed import benchmark_onnx_model
from quantlib.measuring.latency.process import Feeds
from quantlib.measuring.latency.stats import NUM_RUNS, WARMUP_RUNS
from quantlib.measuring.profile.files import file_name, read_profile, write_profile
from quantlib.measuring.profile.operations import Operations
from quantlib.measuring.profile.operators import Node, Trace, trace
from quantlib.measuring.profile.peak import Peak, measure_peak
from quantlib.measuring.profile.result import Line, Profile
from quantlib.measuring.profile.table import operator_table, role_table, show

__all__ = [
    "Line", "Node", "Operations", "Peak", "Profile", "Trace", "file_name", "measure_peak", "operator_table",
    "profile_onnx", "read_profile", "role_table", "show", "trace", "write_profile",
]  # fmt: skip

# Each node takes a kilobyte of the trace in each run: thousands of runs would fill a disk.
_MOST_TRACED_RUNS = 100


def profile_onnx(
    onnx_path: Path,
    feeds: Feeds,
    peak: Peak,
    *,
    session: SessionConfig | None = None,
    variant: str | None = None,
    warmup_runs: int = WARMUP_RUNS,
    num_runs: int = NUM_RUNS,
) -> Profile:
    """Time a model, then trace it, each in a process of its own.

    Args:
        onnx_path: the model.
        feeds: arrays by input name, (batch, length) each, all of one shape; cycled through.
        peak: of this machine, by `measure_peak`.
        session: the options of both; by default every variant's, with as many threads as the peak's.
        variant: its name in the profile; by default the file's.
        warmup_runs, num_runs: untimed runs, and timed ones after them; of these at most 100 are traced.

    Raises:
        ValueError: the feeds differ in shape, there are none, or the counts are too small.
        InputError: the model cannot be loaded, or an input is missing.
        RuntimeError: the model failed while it ran.
    """
    session = session or SessionConfig(peak.threads)
    timed = benchmark_onnx_model(
        onnx_path, feeds, warmup_runs=warmup_runs, num_runs=num_runs, session=session
    )
    traced = trace(
        onnx_path, feeds, session, warmup_runs=warmup_runs, num_runs=min(num_runs, _MOST_TRACED_RUNS)
    )
    batch, length = next(iter(feeds[0].values())).shape[:2]
    return Profile(
        variant or onnx_path.stem,
        (batch, length),
        timed.median_ms,
        traced.wall_ms,
        traced.outside_ms,
        peak,
        traced.nodes,
    )
