from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.compression.calibration import calibrate_min_max
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data.features import CalibrationReader, Feature, pad
from quantlib.machine.sessions import SessionConfig, feed_for, open_session
from quantlib.measuring import throughput
from quantlib.measuring.throughput import Throughput, measure_throughput, token_batches
from quantlib.support.errors import InputError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)
BUDGETS = st.integers(1, 200)


def rows_of(lengths: Sequence[int]) -> list[Feature]:
    """Rows of these lengths; all tokens of row i are 10 + i."""
    return [
        Feature(np.full(length, 10 + i, dtype=np.int64), np.zeros(length, dtype=np.int64), 0)
        for i, length in enumerate(lengths)
    ]


# Batches


@given(LENGTHS, BUDGETS)
def test_every_row_is_in_one_batch_as_it_is(lengths: list[int], budget: int) -> None:
    rows, indices = rows_of(lengths), []
    for index, feed in token_batches(rows, budget):
        for row, ids, mask in zip(index, feed["input_ids"], feed["attention_mask"], strict=True):
            assert ids[mask == 1].tolist() == rows[row].input_ids.tolist()
        indices += index.tolist()
    assert sorted(indices) == list(range(len(rows)))
    assert [lengths[i] for i in indices] == sorted(lengths)


@given(LENGTHS, BUDGETS)
def test_batches_are_full_and_no_fuller(lengths: list[int], budget: int) -> None:
    shapes = [feed["input_ids"].shape for _, feed in token_batches(rows_of(lengths), budget)]
    assert all(count == 1 or count * length <= budget for count, length in shapes)
    order, end = sorted(lengths), 0
    for count, _ in shapes[:-1]:
        end += count
        assert (count + 1) * order[end] > budget, "the next row would have fitted"


@given(LENGTHS, BUDGETS)
def test_padding_is_bounded_however_many_rows(lengths: list[int], budget: int) -> None:
    padding = sum(
        int((1 - feed["attention_mask"]).sum()) for _, feed in token_batches(rows_of(lengths), budget)
    )
    assert padding <= budget * math.log(max(lengths) / min(lengths)) + 1e-9


def test_a_batch_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="a batch of 0 tokens is out of range"):
        next(token_batches(rows_of([3]), 0))
    assert list(token_batches([])) == []


# Predictions


@pytest.fixture(scope="module")
def models(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("throughput") / "quant_2.onnx"
    ranges = calibrate_min_max(tiny_onnx, CalibrationReader(tiny_rows, batch_size=4))
    return {"fp32": tiny_onnx, "static": quantize_onnx(tiny_onnx, path, RECIPES["quant_2"], ranges)}


@pytest.mark.parametrize("name", ["fp32", "static"])
@pytest.mark.parametrize("budget", [1, 40, 512])
def test_predictions_do_not_depend_on_the_batches(
    models: dict[str, Path], tiny_rows: list[Feature], name: str, budget: int
) -> None:
    session = open_session(models[name], threads=1)

    def logits(feed: dict[str, Any]) -> Any:
        return session.run(None, feed_for(session, feed))[0]

    unpadded = np.concatenate([logits(pad([row], len(row))) for row in tiny_rows])
    padded = logits(pad(tiny_rows, 64))
    batched = np.empty_like(unpadded)
    for index, feed in token_batches(tiny_rows, budget):
        batched[index] = logits(feed)
    for reference in (unpadded, padded):
        np.testing.assert_allclose(batched, reference, atol=1e-4)
        assert batched.argmax(axis=1).tolist() == reference.argmax(axis=1).tolist()


# The measurement


class LinearMachine:
    """A timing process in which a batch takes 1 ms, and 1 ms more for each 100 tokens, padding included."""

    def __init__(self, path: Path, feeds: Sequence[dict[str, Any]], config: Any) -> None:
        self.times = [1 + feed["input_ids"].size / 100 for feed in feeds]
        self.asked: list[tuple[int, int]] = []
        started.append(self)

    def __enter__(self) -> LinearMachine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def time(self, runs: int, *, warmup_runs: int) -> list[float]:
        assert runs == len(self.times)
        self.asked.append((runs, warmup_runs))
        spike = 50.0 if len(self.asked) == 2 else 1.0  # somebody used the machine during the second pass
        return [spike * time_ms for time_ms in self.times]


started: list[LinearMachine] = []


class Seconds:
    """A clock that moves on by a quarter of a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> list[LinearMachine]:
    started.clear()
    monkeypatch.setattr(throughput, "TimedProcess", LinearMachine)
    return started


def measured(rows: list[Feature], **options: Any) -> Throughput:
    return measure_throughput(Path("model.onnx"), rows, 64, clock=Seconds(), **options)


def test_rows_tokens_and_times_of_all_batches(linear: list[LinearMachine]) -> None:
    rows = rows_of([10] * 20 + [20] * 10)
    result = measured(rows, max_tokens=100, sample_batches=None)
    # Two batches of 10 x 10 and two of 5 x 20, 2 ms each; padded, one row of 64 takes 1.64 ms.
    assert (result.rows, result.tokens, result.batches) == (30, 400, 4)
    assert result.seconds == pytest.approx(0.008)
    assert (result.rows_per_s, result.tokens_per_s) == pytest.approx((3750, 50_000))
    assert result.padded_rows_per_s == pytest.approx(1000 / 1.64)
    assert result.gain == pytest.approx(3.75 * 1.64)
    # A warm-up of all six feeds, then passes until the second is over.
    assert linear[0].asked == [(6, 6), *[(6, 0)] * (result.passes - 1)]
    assert 3 <= result.passes <= 5


def test_a_slow_model_has_two_passes_and_a_fast_one_a_limited_number(linear: list[LinearMachine]) -> None:
    assert measured(rows_of([5] * 9), seconds=0.001).passes == 2
    assert measured(rows_of([5] * 9), seconds=1e6).passes == 9


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(300, 1000))
def test_the_sample_is_as_fast_as_all_rows(seed: int, count: int) -> None:
    """Within 3 %, for lengths as those of sentences are spread."""
    lengths = np.clip(np.random.default_rng(seed).lognormal(3.1, 0.45, count), 4, 128).astype(int)
    rows = rows_of(lengths.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "TimedProcess", LinearMachine)
        sample, all_rows = measured(rows), measured(rows, sample_batches=None)
    assert sample.batches == throughput.SAMPLE_BATCHES < all_rows.batches
    assert sample.rows == all_rows.rows == count
    assert sample.tokens_per_s == pytest.approx(all_rows.tokens_per_s, rel=0.03)
    assert sample.rows_per_s == pytest.approx(all_rows.rows_per_s, rel=0.03)


def test_a_real_model_is_timed(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    progress: list[int] = []
    result = measure_throughput(
        tiny_onnx,
        tiny_rows,
        64,
        max_tokens=64,
        seconds=0.001,
        session=SessionConfig(1),
        progress=progress.append,
    )
    assert (result.passes, result.batches) == (2, throughput.SAMPLE_BATCHES)
    assert len(progress) == 2
    assert 0 < result.seconds < 60
    assert result.padded_rows_per_s > 0


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([], {}, "model.onnx: no rows to time"),
        ([4], {"sample_batches": 0}, "must be at least 1"),
        ([4], {"max_tokens": 0}, "a batch of 0 tokens"),
        ([4], {}, "no such ONNX model"),
    ],
    ids=["no_rows", "no_sample", "no_tokens", "no_model"],
)
def test_what_cannot_be_timed(rows: list[int], options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure_throughput(Path("model.onnx"), rows_of(rows), 64, **options)


@pytest.mark.parametrize(
    "changes",
    [{"rows": 3}, {"tokens": 7}, {"batches": 0}, {"passes": 0}, {"seconds": 0.0}, {"seconds": math.nan}],
    ids=str,
)
def test_throughput_is_checked(changes: dict[str, Any]) -> None:
    fields = {"rows": 8, "tokens": 20, "batches": 4, "passes": 2, "seconds": 0.5, "padded_rows_per_s": 1.0}
    Throughput(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"needs a row|must be positive"):
        Throughput(**(fields | changes))
