"""Throughput on rows as long as they are: batches of like length, filled to a number of tokens.

Padded to a fixed length, a model spends most of its time on padding; here the work follows the tokens. The
logits of a float or static variant stay the same up to rounding. A dynamic variant takes its ranges from
the whole batch, so its logits depend on the batches (`measuring.checks.invariance` measures by how much).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, Feed, IntArray, pad
from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency.process import TimedProcess
from quantlib.measuring.latency.stats import Clock
from quantlib.support.errors import InputError

T = TypeVar("T")

# Measured on SST-2 with 2 threads, rows/s at 64, 256, 512, 1024 and 4096 tokens: FP32 283, 363, 398, 364 and
# 311; dynamic 936, 1217, 1421, 1370 and 978; static 951, 1336, 1415, 1408 and 1017. Small batches pay for
# each call, and the activations of large ones leave the cores' caches.
MAX_TOKENS = 512
SAMPLE_BATCHES = 8
SECONDS = 1.0
_PADDED_BATCHES = 2
_PASSES = range(2, 10)


@dataclass(frozen=True)
class Throughput:
    """How fast rows of real lengths go through a model.

    rows, tokens: the totals, without padding. batches: how many were timed. seconds: for all rows once, from
    the medians of the timed batches over `passes`. padded_rows_per_s: the speed with every row
    padded to a fixed length.
    """

    rows: int
    tokens: int
    batches: int
    passes: int
    seconds: float
    padded_rows_per_s: float

    def __post_init__(self) -> None:
        if not 1 <= self.batches <= self.rows <= self.tokens or self.passes < 1:
            raise ValueError(
                f"{self.batches} batches of {self.rows} rows and {self.tokens} tokens, {self.passes} passes: "
                "a batch needs a row, a row a token"
            )
        for name in ("seconds", "padded_rows_per_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")

    @property
    def rows_per_s(self) -> float:
        """Rows in a second."""
        return self.rows / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Real tokens in a second; padding does not count."""
        return self.tokens / self.seconds

    @property
    def gain(self) -> float:
        """How many times as fast as with every row padded."""
        return self.rows_per_s / self.padded_rows_per_s


def token_batches(
    features: Sequence[Feature], max_tokens: int = MAX_TOKENS
) -> Iterator[tuple[IntArray, Feed]]:
    """Rows sorted by length, in batches of at most `max_tokens` tokens, padding included.

    A row longer than that is a batch of its own. However many rows there are, all batches together hold at
    most max_tokens * ln(longest / shortest) tokens of padding: a batch of lengths s to l has at most
    max_tokens / l rows, hence max_tokens * (1 - s / l) <= max_tokens * ln(l / s) of it, and lengths only grow
    from batch to batch.

    Yields the indices of the rows, int64 (rows,), and the feed, as `quantlib.data.features.batches` does.

    Raises:
        InputError: `max_tokens` is below 1.
    """
    if max_tokens < 1:
        raise InputError(f"a batch of {max_tokens} tokens is out of range; it must be at least 1")
    for index in _groups([len(feature) for feature in features], max_tokens):
        yield index, pad([features[i] for i in index], len(features[index[-1]]))


def _groups(lengths: Sequence[int], max_tokens: int) -> Iterator[IntArray]:
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    start = 0
    for end, row in enumerate(order):
        # Each row is at least as long as those before it, so it decides what the batch is padded to.
        if end > start and (end - start + 1) * lengths[row] > max_tokens:
            yield order[start:end]
            start = end
    if len(order):
        yield order[start:]


def measure_throughput(
    onnx_path: Path,
    features: Sequence[Feature],
    pad_to: int,
    *,
    max_tokens: int = MAX_TOKENS,
    sample_batches: int | None = SAMPLE_BATCHES,
    seconds: float = SECONDS,
    session: SessionConfig | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> Throughput:
    """Time batches of real lengths, and padded ones beside them, in a process of its own.

    Batches are made of all rows, and every k-th batch is timed: batches of sampled rows would have more
    padding, since their lengths differ more. The other batches are assumed to take the same time a token,
    padding included. The padded batches hold rows of all lengths, as many as fit `max_tokens`. All batches
    take turns: one pass to warm up, then at least two until `seconds` are over.

    Args:
        onnx_path: the model.
        features: the rows, at least one.
        pad_to: the fixed length of the padded batches; longer rows are cut.
        max_tokens: in a batch, padding included.
        sample_batches: how many batches are timed, spread evenly over the lengths; None for all.
        seconds: after which no further pass starts.
        session: how the session runs; by default with one thread a physical core.
        progress: called after each pass with the number of batches run.
        clock: in seconds; it only ends the measurement.

    Raises:
        InputError: no rows, an option out of range, a model that cannot be loaded or misses an input.
        RuntimeError: the model failed while it ran.
    """
    if not features:
        raise InputError(f"{onnx_path}: no rows to time it on; the evaluation split is empty")
    batches = throughput_batches(features, pad_to, max_tokens=max_tokens, sample_batches=sample_batches)
    feeds = batches.feeds
    with TimedProcess(onnx_path, feeds, session) as process:
        passes: list[list[float]] = []
        warmup_runs, started = len(feeds), clock()
        while len(passes) < _PASSES.start or (clock() - started < seconds and len(passes) < _PASSES[-1]):
            passes.append(process.time(len(feeds), warmup_runs=warmup_runs))
            warmup_runs = 0
            if progress is not None:
                progress(len(feeds))
    return batches.throughput(passes)


@dataclass(frozen=True)
class ThroughputBatches:
    """What is timed to learn how fast rows of real lengths go through a model.

    feeds: the sampled batches of real lengths, then the padded ones. real: how many are of real lengths.
    rows, tokens: of all rows, without padding. share: the padded tokens of the sampled batches over those of
    all. padded_rows: in the padded batches.
    """

    feeds: tuple[Feed, ...]
    real: int
    rows: int
    tokens: int
    share: float
    padded_rows: int

    def seconds(self, times_ms: Sequence[float]) -> float:
        """For all rows once, from the times of all feeds."""
        return float(np.sum(times_ms[: self.real])) / 1e3 / self.share

    def throughput(self, passes_ms: Sequence[Sequence[float]]) -> Throughput:
        """From the times of the feeds in each pass, (passes, feeds)."""
        batch_ms: npt.NDArray[np.float64] = np.median(np.asarray(passes_ms, dtype=np.float64), axis=0)
        return Throughput(
            rows=self.rows,
            tokens=self.tokens,
            batches=self.real,
            passes=len(passes_ms),
            seconds=self.seconds(batch_ms.tolist()),
            padded_rows_per_s=float(1e3 * self.padded_rows / batch_ms[self.real :].sum()),
        )


def throughput_batches(
    features: Sequence[Feature],
    pad_to: int,
    *,
    max_tokens: int = MAX_TOKENS,
    sample_batches: int | None = SAMPLE_BATCHES,
) -> ThroughputBatches:
    """The batches by which `measure_throughput` judges a model; its arguments are explained there.

    Raises:
        InputError: no rows, or an option out of range.
    """
    if not features:
        raise InputError("no rows to time a model on; the evaluation split is empty")
    if pad_to < 1 or (sample_batches is not None and sample_batches < 1):
        raise InputError(f"pad_to {pad_to} and sample_batches {sample_batches} must be at least 1")
    batches = [feed for _, feed in token_batches(features, max_tokens)]
    real = _every_kth(batches, sample_batches)
    padded = _padded_feeds(features, pad_to, max(1, max_tokens // pad_to))
    return ThroughputBatches(
        feeds=(*real, *padded),
        real=len(real),
        rows=len(features),
        tokens=sum(map(len, features)),
        share=_tokens(real) / _tokens(batches),
        padded_rows=_rows(padded),
    )


def _rows(feeds: Sequence[Feed]) -> int:
    return sum(len(feed["input_ids"]) for feed in feeds)


def _tokens(feeds: Sequence[Feed]) -> int:
    """Padding included."""
    return sum(feed["input_ids"].size for feed in feeds)


def _every_kth(items: Sequence[T], count: int | None) -> list[T]:
    """`count` of the items, each from the middle of an equal part of them; all if there are fewer."""
    if count is None or len(items) <= count:
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _padded_feeds(features: Sequence[Feature], pad_to: int, batch_size: int) -> list[Feed]:
    rows = _every_kth(features, _PADDED_BATCHES * batch_size)
    return [pad(rows[start : start + batch_size], pad_to) for start in range(0, len(rows), batch_size)]
