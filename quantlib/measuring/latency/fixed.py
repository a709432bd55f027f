"""Time a model with a fixed number of runs, as the table of results shows it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from quantlib.machine.sessions import CPU_PROVIDERS, SessionConfig, default_threads
from quantlib.measuring.latency.process import Feeds, TimedProcess
from quantlib.measuring.latency.stats import NUM_RUNS, WARMUP_RUNS, LatencyStats, check_counts


def benchmark_onnx_model(
    onnx_path: Path,
    eval_dataloader: Iterable[Mapping[str, npt.NDArray[Any]]],
    providers: Sequence[str] = CPU_PROVIDERS,
    warmup_runs: int = WARMUP_RUNS,
    num_runs: int = NUM_RUNS,
    *,
    threads: int | None = None,
    session: SessionConfig | None = None,
) -> LatencyStats:
    """Time a model at a fixed shape, in a process of its own.

    Args:
        onnx_path: the model.
        eval_dataloader: batches by input name, (batch, length) each, all of one shape. A run takes a
            batch; at most `num_runs` batches are drawn, and they are cycled through.
        providers: execution providers in order of preference.
        warmup_runs: untimed runs right before the timed ones.
        num_runs: timed runs.
        threads: intra-op threads; by default one a physical core.
        session: all options of the session, in place of `providers` and `threads`.

    Raises:
        ValueError: the batches differ in shape, there are none, or the counts are too small; `session` is
            given beside `threads` or `providers`.
        InputError: the model cannot be loaded, a provider is unknown, or an input is missing.
        RuntimeError: the model failed while it ran.
    """
    check_counts(warmup_runs, num_runs)
    feeds = list(itertools.islice(eval_dataloader, num_runs))
    _check_shapes(feeds)
    if session is None:
        session = SessionConfig(default_threads() if threads is None else threads, providers=tuple(providers))
    elif threads is not None or tuple(providers) != CPU_PROVIDERS:
        raise ValueError("threads and providers are part of the session; give them there")
    with TimedProcess(Path(onnx_path), feeds, session) as process:
        return LatencyStats(tuple(process.time(num_runs, warmup_runs=warmup_runs)), warmup_runs)


def _check_shapes(feeds: Feeds) -> None:
    if not feeds:
        raise ValueError("no batches to time on")
    first = {name: array.shape for name, array in feeds[0].items()}
    for index, feed in enumerate(feeds):
        shapes = {name: array.shape for name, array in feed.items()}
        if shapes != first:
            raise ValueError(f"batch {index} has shapes {shapes}; the first has {first}; they must be equal")
