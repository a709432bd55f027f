from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantlib.compression.calibration import (
    Statistics,
    TensorStatistics,
    merge,
    observe,
    read_statistics,
    write_statistics,
)
from quantlib.compression.calibration.histogram import Histogram, add, around_zero, count, magnitudes, widen
from quantlib.support.errors import InputError

LOWEST = float(np.finfo(np.float32).min)
# Whole float32 range: denormals, additive masks, and everything between.
VALUES = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(LOWEST, -LOWEST, width=32, allow_subnormal=True)
)
NORMAL = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32))
FEW = 16


def histogram_of(values: np.ndarray, bins: int = FEW) -> Histogram:
    return count(values, float(values.min()), float(values.max()), bins)


def as_dict(histogram: Histogram) -> dict[int, int]:
    filled = np.flatnonzero(histogram.counts)
    return {histogram.first + int(i): int(histogram.counts[i]) for i in filled}


def counted_slowly(values: np.ndarray, exponent: int) -> dict[int, int]:
    """Whole bin indices in exact integer arithmetic."""
    counts: dict[int, int] = {}
    for value in values.tolist():
        top, bottom = value.as_integer_ratio()
        index = (top << -exponent) // bottom if exponent < 0 else top // (bottom << exponent)
        counts[index] = counts.get(index, 0) + 1
    return counts


# Histograms


@given(VALUES)
def test_a_histogram_counts_every_value_where_it_is(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    assert as_dict(histogram) == counted_slowly(values, histogram.exponent)
    assert histogram.total == len(values)
    assert len(histogram.counts) <= FEW
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0


@given(VALUES)
def test_bins_are_as_narrow_as_they_can_be(values: np.ndarray) -> None:
    histogram = histogram_of(values)
    if histogram.exponent > -126 and float(np.abs(values).max()) < histogram.width * 2**23:
        assert len(count_span(values, histogram.exponent - 1)) > FEW


def count_span(values: np.ndarray, exponent: int) -> range:
    indices = counted_slowly(values, exponent)
    return range(min(indices), max(indices) + 1)


@given(VALUES, st.data())
def test_parts_in_any_order_add_up_to_the_whole(values: np.ndarray, data: st.DataObject) -> None:
    whole = histogram_of(values)
    order = data.draw(st.permutations(range(len(values))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values)))))
    parts = [part for part in np.split(values[np.array(order)], cuts) if len(part)]
    summed = histogram_of(parts[0])
    for part in parts[1:]:
        summed = add(summed, histogram_of(part), FEW)
    assert (summed.exponent, summed.first) == (whole.exponent, whole.first)
    np.testing.assert_array_equal(summed.counts, whole.counts)


@given(VALUES, st.integers(0, 12))
def test_widening_splits_no_count(values: np.ndarray, doublings: int) -> None:
    histogram = histogram_of(values)
    wider = widen(histogram, histogram.exponent + doublings)
    assert as_dict(wider) == counted_slowly(values, histogram.exponent + doublings)


@given(VALUES)
def test_around_zero(values: np.ndarray) -> None:
    histogram = around_zero(histogram_of(values), FEW)
    assert histogram.total == len(values)
    assert histogram.first <= 0 <= histogram.first + len(histogram.counts)
    assert as_dict(histogram) == counted_slowly(values, histogram.exponent)


@given(NORMAL)
def test_magnitudes(values: np.ndarray) -> None:
    histogram = magnitudes(histogram_of(values))
    assert histogram.first == 0
    assert histogram.total == len(values)
    # A negative value lies at the upper edge of its mirrored bin, not within: floor counts toward -infinity.
    index = np.floor(values / histogram.width)
    expected = np.where(index < 0, -index - 1, index).astype(int)
    np.testing.assert_array_equal(histogram.counts, np.bincount(expected, minlength=len(histogram.counts)))


def test_a_long_tensor_is_counted_in_chunks() -> None:
    values = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    histogram = histogram_of(values, 2048)
    assert 1024 <= len(histogram.counts) <= 2048
    np.testing.assert_array_equal(histogram.counts, np.histogram(values.astype(float), histogram.edges)[0])


@pytest.mark.parametrize(
    ("exponent", "counts", "words"),
    [
        (0, np.zeros(0, np.int64), "int64 counts"),
        (0, np.zeros(3), "int64 counts"),
        (0, np.array([1, -1]), "must not be negative"),
        (-127, np.array([1]), "too small for float32"),
    ],
    ids=["none", "floats", "negative", "narrow"],
)
def test_what_is_no_histogram(exponent: int, counts: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Histogram(exponent, 0, counts)


def test_bins_cannot_be_parted() -> None:
    with pytest.raises(ValueError, match="cannot be parted"):
        widen(Histogram(0, 0, np.array([1])), -1)


# Statistics of a tensor

ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.integers(1, 9)), elements=st.floats(-50, 50, width=32)
)


def same(a: TensorStatistics, b: TensorStatistics) -> None:
    for name in ("rows", "count", "low", "high", "first_low", "first_high"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("moving_low", "moving_high", "total", "squares"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-9, abs=1e-9), name
    assert a.histogram is not None
    assert b.histogram is not None
    assert (a.histogram.exponent, a.histogram.first) == (b.histogram.exponent, b.histogram.first)
    np.testing.assert_array_equal(a.histogram.counts, b.histogram.counts)


@given(ROWS)
def test_statistics_are_those_of_all_values(rows: np.ndarray) -> None:
    statistics = observe(rows)
    assert (statistics.rows, statistics.count) == (len(rows), rows.size)
    assert (statistics.low, statistics.high) == (rows.min(), rows.max())
    low, high = float(rows[0].min()), float(rows[0].max())
    for row in rows[1:]:
        low, high = 0.99 * low + 0.01 * float(row.min()), 0.99 * high + 0.01 * float(row.max())
    assert (statistics.moving_low, statistics.moving_high) == pytest.approx((low, high))
    assert statistics.mean == pytest.approx(float(rows.astype(float).mean()))
    assert statistics.variance == pytest.approx(float(rows.astype(float).var()), abs=1e-6)


@given(ROWS, st.data())
def test_batches_merge_into_the_whole(rows: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)))))
    parts = [part for part in np.split(rows, cuts) if len(part)]
    merged = observe(parts[0])
    for part in parts[1:]:
        merged = merge(merged, observe(part))
    same(merged, observe(rows))


@given(ROWS)
def test_rows_may_differ_in_length(rows: np.ndarray) -> None:
    ragged = [row[: 1 + i % rows.shape[1]] for i, row in enumerate(rows)]
    one_by_one = observe(ragged[:1])
    for row in ragged[1:]:
        one_by_one = merge(one_by_one, observe([row]))
    same(observe(ragged), one_by_one)


def test_extremes_only() -> None:
    rows = np.ones((2, 3), np.float32)
    bare = observe(rows, bins=None)
    assert bare.histogram is None
    assert merge(bare, observe(rows)).histogram is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named_by_its_row(bad: float) -> None:
    rows = np.zeros((4, 50), np.float32)
    rows[2, 49] = bad
    with pytest.raises(InputError, match=r"^activation x is NaN or infinite at calibration row 12$"):
        observe(rows, what="activation x", first_row=10)


def test_the_square_of_an_additive_mask_is_finite() -> None:
    statistics = observe(np.array([[LOWEST, 0, LOWEST]], np.float32))
    assert np.isfinite([statistics.total, statistics.squares]).all()


# The file


def test_statistics_are_read_as_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    kept = {name: observe(rng.normal(size=(3, 100)).astype(np.float32)) for name in ("b", "a")}
    kept["bare"] = observe(np.ones((1, 1), np.float32), bins=None)
    path = tmp_path / "statistics.json"
    write_statistics(path, Statistics(kept))
    statistics_read = read_statistics(path).of
    assert list(statistics_read) == ["b", "a", "bare"]
    for name in ("a", "b"):
        same(statistics_read[name], kept[name])
        assert statistics_read[name].total == kept[name].total, "to the last bit"
    assert statistics_read["bare"].histogram is None
    before = path.read_bytes()
    write_statistics(path, read_statistics(path))
    assert path.read_bytes() == before


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    with pytest.raises(InputError, match="no such file of statistics"):
        read_statistics(path)
    write_statistics(path, Statistics({"a": observe(np.ones((2, 2), np.float32))}))
    record = json.loads(path.read_text())
    lost = json.loads(json.dumps(record))
    lost["tensors"]["a"]["count"] = 5
    lacking = json.loads(json.dumps(record))
    del lacking["tensors"]["a"]["low"]
    for value in (record | {"schema_version": 2}, lost, lacking, [], {"tensors": {}}):
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match="not a file of statistics") as caught:
            read_statistics(path)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(record)[:-10])
    with pytest.raises(InputError, match="not a file of statistics"):
        read_statistics(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 0}, "there must be some"),
        ({"low": 2.0, "high": 1.0}, "not a range"),
        ({"high": np.inf}, "not a range"),
        ({"histogram": Histogram(0, 0, np.array([7]))}, "a histogram of 7 values, not of 4"),
    ],
    ids=["no_rows", "turned", "infinite", "other_histogram"],
)
def test_what_are_no_statistics(changes: dict[str, object], words: str) -> None:
    good = {
        name: getattr(observe(np.ones((2, 2), np.float32)), name)
        for name in TensorStatistics.__dataclass_fields__
    }
    with pytest.raises(InputError, match=words):
        TensorStatistics(**(good | changes))
