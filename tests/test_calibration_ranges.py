from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantlib.compression.calibration import CalibrationMethod, Statistics, derive, observe, parse_method
from quantlib.compression.calibration.histogram import Histogram, count
from quantlib.compression.calibration.search import FACTORS, divergence, entropy, squared_errors
from quantlib.support.errors import InputError

METHODS = ("MinMax", "MovingAverage", "Percentile:99.9", "Percentile:60", "Entropy", "MSE")
RNG = np.random.default_rng(7)
# Distributions of the kind that BERT's activations have: bell, heavy tails, one-sided, off zero.
SHAPES: dict[str, np.ndarray] = {
    "bell": RNG.normal(size=20_000),
    "tails": RNG.standard_t(3, size=20_000),
    "outlier": np.append(RNG.normal(size=20_000), [-60.0, 25.0]),
    "softmax": RNG.dirichlet(np.full(40, 0.3), size=500).ravel(),
    "positive": RNG.gamma(2, 3, size=20_000) + 4,
    "negative": -RNG.gamma(2, 3, size=20_000) - 4,
}
SHAPES = {name: values.astype(np.float32) for name, values in SHAPES.items()}
each_shape = pytest.mark.parametrize("values", SHAPES.values(), ids=list(SHAPES))
both = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])

ROWS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 40)), elements=st.floats(-1e4, 1e4, width=32)
)


def derived(rows: np.ndarray, method: str, symmetric: bool = False) -> tuple[float, float]:
    return derive(Statistics({"x": observe(np.atleast_2d(rows))}), method, symmetric=symmetric).of["x"]


def histogram_of(values: np.ndarray) -> Histogram:
    return count(values, float(values.min()), float(values.max()))


# Every method


@given(ROWS, st.sampled_from(METHODS), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_range_holds_zero_and_has_a_scale(rows: np.ndarray, method: str, symmetric: bool) -> None:
    low, high = derived(rows, method, symmetric)
    assert low <= 0 <= high
    scale = np.float32((high - low) / 255)
    assert np.isfinite(scale)
    assert scale >= np.finfo(np.float32).tiny
    assert (float(np.float32(low)), float(np.float32(high))) == (low, high)
    if symmetric:
        assert low == -high
    elif np.abs(rows).max() > 1e-3:
        assert low >= min(rows.min(), 0)
        assert high <= max(rows.max(), 0)


@pytest.mark.parametrize("method", METHODS)
@both
@pytest.mark.parametrize("value", [0.0, 1e-44, -1e-44, 3.0, -0.25, 3e38, -3e38])
def test_a_constant_tensor(value: float, method: str, symmetric: bool) -> None:
    low, high = derived(np.full((2, 30), value, np.float32), method, symmetric)
    assert low <= 0 <= high
    assert (high - low) / 255 >= np.finfo(np.float32).tiny
    if method in ("MinMax", "Percentile:99.9") and abs(value) > 1e-3:
        assert low <= np.float32(value) <= high


@given(ROWS)
def test_min_max_and_moving_average(rows: np.ndarray) -> None:
    assert derived(rows + 1000, "MinMax") == (0.0, max(0.0, (rows + 1000).max())) or (rows + 1000).min() < 0
    if rows.min() < -1e-3 and rows.max() > 1e-3:
        assert derived(rows, "MinMax") == (rows.min(), rows.max())
        assert derived(rows, "MinMax", symmetric=True)[1] == np.abs(rows).max()
    low, high = rows.min(axis=1).astype(float), rows.max(axis=1).astype(float)
    weights = 0.01 * 0.99 ** np.arange(len(rows))[::-1]
    weights[0] = 0.99 ** (len(rows) - 1)
    if low @ weights < -1e-3 and high @ weights > 1e-3:
        assert derived(rows, "MovingAverage") == pytest.approx((low @ weights, high @ weights), rel=1e-6)


def test_histograms_are_needed_where_extremes_do_not_tell() -> None:
    bare = Statistics({"x": observe(np.ones((1, 3), np.float32), bins=None)})
    assert derive(bare, "MinMax").of["x"] == (0.0, 1.0)
    assert derive(bare, "MovingAverage").of["x"] == (0.0, 1.0)
    for method in ("Percentile:99", "Entropy", "MSE"):
        with pytest.raises(InputError, match=f"x: {method} needs a histogram"):
            derive(bare, method)


# Names


def test_methods_are_parsed() -> None:
    assert parse_method("Percentile:99.99") == CalibrationMethod("Percentile", 99.99)
    assert parse_method("MSE") == CalibrationMethod("MSE")
    assert not parse_method("MovingAverage").needs_histograms
    assert parse_method("Percentile:100").needs_histograms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "minmax",
        "Percentile",
        "Percentile:",
        "Percentile:x",
        "Percentile:0",
        "Percentile:100.1",
        "Percentile:nan",
        "Percentile:-1",
        "Percentile:99:9",
        "MSE:1",
    ],
)
def test_a_method_that_is_none(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_method(text)
    assert str(caught.value).startswith(f"calibration method {text!r} is unknown; known: MinMax, ")


@pytest.mark.parametrize(
    ("kind", "percent", "words"),
    [("Max", None, "unknown"), ("Percentile", None, "out of range"), ("MSE", 99.0, "takes no percentile")],
)
def test_a_wrong_method_fails_when_it_is_built(kind: str, percent: float | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        CalibrationMethod(kind, percent)


# Percentile


@each_shape
@pytest.mark.parametrize("percent", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
def test_percentiles_are_those_of_the_sorted_values(values: np.ndarray, percent: float) -> None:
    width = histogram_of(values).width
    ordered = np.sort(values)
    tail = math.floor(round((100 - percent) / 200 * len(values), 6))
    expected = min(ordered[tail], 0.0), max(ordered[-1 - tail], 0.0)
    np.testing.assert_allclose(derived(values, f"Percentile:{percent}"), expected, rtol=0, atol=width)
    top = np.sort(np.abs(values))[-1 - math.floor(round((100 - percent) / 100 * len(values), 6))]
    symmetric_range = derived(values, f"Percentile:{percent}", symmetric=True)
    # Around zero the histogram may be wider: zero lies outside what was seen.
    np.testing.assert_allclose(symmetric_range, (-top, top), rtol=0, atol=4 * width)


@given(ROWS, st.lists(st.floats(1, 100), min_size=2, max_size=2), st.booleans())
@example(np.array([[-1, -2, 0, 0, 0]], np.float32), [1.0, 21.0], False)
@settings(deadline=None)
def test_a_larger_percentile_is_no_narrower(rows: np.ndarray, percents: list[float], symmetric: bool) -> None:
    if np.abs(rows).max() > 1:
        narrow, wide = (derived(rows, f"Percentile:{p}", symmetric) for p in sorted(percents))
        # A percentile that would clip all but zeros gives the range of all values.
        if narrow != derived(rows, "MinMax", symmetric):
            assert wide[0] <= narrow[0]
            assert narrow[1] <= wide[1]


def test_a_percentile_that_would_clip_everything_but_zeros_clips_nothing() -> None:
    rows = np.array([[-1, -2, 0, 0, 0]], np.float32)
    assert derived(rows, "Percentile:1") == (-2.0, 0.0)


# Entropy


def divergence_slowly(counts: list[int], start: int, end: int, levels: int) -> float:
    """Bin by bin, level by level, as the slides have it."""
    inside = counts[start:end]
    p = [float(c) for c in inside]
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[end:])
    q = [0.0] * len(inside)
    for level in range(levels):
        members = [j for j in range(len(inside)) if j * levels // len(inside) == level]
        filled = [j for j in members if inside[j]]
        for j in filled:
            q[j] = sum(inside[k] for k in members) / len(filled)
    if not sum(q):
        return math.inf
    q = [max(b, 1e-4) if a > 0 else 0.0 for a, b in zip(p, q, strict=True)]
    return sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True) if a > 0)


PAIRS = st.tuples(st.integers(0, 30), st.integers(0, 30))


@example(counts=[3, 0, 5, 1, 2], levels=2, ends=(1, 5)).via("an outermost bin that is empty itself")
@given(st.lists(st.sampled_from([0, 0, 1, 7, 20]), min_size=4, max_size=30), st.integers(1, 8), PAIRS)
def test_divergence_is_that_of_the_formula(counts: list[int], levels: int, ends: tuple[int, int]) -> None:
    start, end = min(ends) % len(counts), min(max(ends), len(counts))
    end = max(end, start + 1)
    expected = divergence_slowly(counts, start, end, levels)
    assert divergence(np.array(counts), start, end, levels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_entropy_takes_the_best_of_the_windows() -> None:
    for name in ("tails", "softmax"):
        histogram = histogram_of(SHAPES[name])
        low, high = entropy(histogram, symmetric=False)
        zero, counts = -histogram.first, histogram.counts.tolist()
        start, end = (round(edge / histogram.width) + zero for edge in (low, high))
        chosen = divergence_slowly(counts, start, end, 256)
        # Neither end alone can be moved to a better place (each tenth of those tried, the slow way).
        others = [(start, b) for b in range(len(counts), max(zero, start + 256) - 1, -80)]
        others += [(a, end) for a in range(0, min(zero, end - 256) + 1, 80)]
        assert chosen <= (1 + 1e-9) * min(divergence_slowly(counts, a, b, 256) for a, b in others)


def test_entropy_clips_an_outlier() -> None:
    low, high = derived(SHAPES["outlier"], "Entropy")
    assert -30 < low < -2
    assert 2 < high < 15
    top = derived(SHAPES["outlier"], "Entropy", symmetric=True)[1]
    assert 2 < top < 30


def test_few_bins_are_not_clipped() -> None:
    assert derived(np.array([[0, 1, 2, 3] * 9], np.float32), "Entropy")[1] == 3


# Mean squared error


def quantized(values: np.ndarray, low: float, high: float, symmetric: bool) -> np.ndarray:
    """To 8 bits and back, as ONNX's QuantizeLinear and DequantizeLinear do."""
    if symmetric:
        scale = high / 127
        return np.clip(np.rint(values / scale), -127, 127) * scale
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


@each_shape
@both
@pytest.mark.parametrize("factor", [1.0, 0.5, 0.1])
def test_the_expected_error_is_that_of_the_values(values: np.ndarray, symmetric: bool, factor: float) -> None:
    values = values.astype(float)
    low, high = min(values.min(), 0) * factor, max(values.max(), 0) * factor
    if symmetric:
        high = max(-low, high)
        low = -high
    expected = np.mean((values - quantized(values, low, high, symmetric)) ** 2)
    histogram = histogram_of(values.astype(np.float32))
    (error,) = squared_errors(histogram, np.array([low]), np.array([high]), symmetric)
    assert error == pytest.approx(expected, rel=0.1)


@each_shape
@both
def test_mse_is_as_good_as_trying_every_range(values: np.ndarray, symmetric: bool) -> None:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    top = max(-low, high)
    tried = FACTORS[3::8]
    if symmetric:
        ranges = [(-top * f, top * f) for f in FACTORS]
    else:
        lows, highs = ([end * f for f in tried] if end else [0.0] for end in (float(low), float(high)))
        ranges = list(product([*lows, low], [*highs, high]))
    values = values.astype(float)
    best = min(np.mean((values - quantized(values, a, b, symmetric)) ** 2) for a, b in ranges)
    a, b = derived(values.astype(np.float32), "MSE", symmetric)
    assert np.mean((values - quantized(values, a, b, symmetric)) ** 2) <= 1.05 * best
