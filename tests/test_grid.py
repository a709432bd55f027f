from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantlib.compression.grid import (
    Grid,
    activation_grid,
    levels,
    quantize_blocks,
    quantize_row_blocks,
    quantize_rows,
    quantize_weight,
)

# Rounding in float32 may put a value that lies between two levels on the other one.
HALF = 0.5 + 1e-4
ENDS = st.floats(-1e6, 1e6, width=32)
SHARES = hnp.arrays(np.float32, 50, elements=st.floats(0, 1, width=32))
WEIGHTS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 7)), elements=st.floats(-1e3, 1e3, width=32)
)


def within(low: float, high: float, shares: np.ndarray) -> np.ndarray:
    """Values of a range, its ends among them."""
    values = low + shares.astype(np.float64) * (high - low)
    return np.clip(np.append(values, [low, high]), low, high).astype(np.float32)


# Activations


@given(ENDS, ENDS, SHARES, st.booleans())
@example(0.0, 0.0, np.zeros(50, np.float32), False)
@example(-1.0, 1e-45, np.zeros(50, np.float32), True)
@settings(deadline=None)
def test_a_round_trip_is_off_by_half_a_step_at_most(
    a: float, b: float, shares: np.ndarray, signed: bool
) -> None:
    low, high = sorted((a, b))
    grid = activation_grid(low, high, signed=signed)
    values = within(low, high, shares)
    assert grid.scale >= np.finfo(np.float32).tiny
    assert (np.abs(levels(values, grid) - values) <= HALF * grid.scale).all()


@given(ENDS, ENDS, st.booleans())
@settings(deadline=None)
def test_zero_is_exact_and_the_grid_is_as_fine_as_can_be(a: float, b: float, signed: bool) -> None:
    low, high = sorted((a, b))
    grid = activation_grid(low, high, signed=signed)
    zero = np.zeros(1, np.float32)
    assert levels(zero, grid)[0] == 0
    wide = max(high, 0.0) - min(low, 0.0)
    assert float(grid.scale) == pytest.approx(wide / 255, rel=1e-6, abs=1e-37)
    assert grid.zero_point.dtype == (np.int8 if signed else np.uint8)
    assert type(grid.scale) is np.float32


@given(ENDS, ENDS, hnp.arrays(np.float32, 40, elements=st.floats(-2e6, 2e6, width=32)))
@settings(deadline=None)
def test_signed_and_unsigned_grids_are_the_same_values(a: float, b: float, values: np.ndarray) -> None:
    """Also for values outside, which are clipped."""
    low, high = sorted((a, b))
    signed, unsigned = (activation_grid(low, high, signed=signed) for signed in (True, False))
    assert (signed.scale, int(signed.zero_point)) == (unsigned.scale, int(unsigned.zero_point) - 128)
    np.testing.assert_array_equal(levels(values, signed), levels(values, unsigned))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(-1.0, 1.55, 0.01, 100), (0.0, 255.0, 1.0, 0), (51.0, 102.0, 0.4, 0), (-25.5, -5.0, 0.1, 255)],
    ids=["both_signs", "positive", "above_zero", "below_zero"],
)
def test_grids_by_hand(low: float, high: float, scale: float, zero: int) -> None:
    grid = activation_grid(low, high, signed=False)
    assert (float(grid.scale), int(grid.zero_point)) == (pytest.approx(scale), zero)


def test_levels_by_hand() -> None:
    values = np.array([-9.0, -1.0, -0.24, 0.0, 0.26, 1.0, 500.0])
    unsigned = Grid(np.float32(0.5), np.uint8(2))
    np.testing.assert_array_equal(levels(values, unsigned), [-1, -1, 0, 0, 0.5, 1, 126.5])
    signed = Grid(np.float32(0.5), np.int8(2))
    np.testing.assert_array_equal(levels(values, signed), [-9, -1, 0, 0, 0.5, 1, 62.5])


# Weights


@given(WEIGHTS, st.booleans(), st.sampled_from([4, 7, 8]))
@example(np.zeros((2, 3), np.float32), True, 8)
@settings(deadline=None)
def test_weights_are_symmetric_and_use_the_whole_grid(
    weight: np.ndarray, per_channel: bool, bits: int
) -> None:
    top = {4: 7, 7: 63, 8: 127}[bits]
    values, scale = quantize_weight(weight, per_channel=per_channel, bits=bits)
    assert (values.dtype, values.shape) == (np.int8, weight.shape)
    assert (scale.dtype, scale.shape) == (np.float32, weight.shape[1:] if per_channel else ())
    assert np.abs(values.astype(int)).max(initial=0) <= top
    assert (np.abs(values * scale - weight) <= HALF * scale).all()
    assert (values[weight == 0] == 0).all()
    np.testing.assert_array_equal(quantize_weight(-weight, per_channel=per_channel, bits=bits)[0], -values)
    for channel in range(weight.shape[1] if per_channel else 1):
        column = weight[:, channel] if per_channel else weight
        if np.abs(column).max() > 1e-30:
            used = values[:, channel] if per_channel else values
            assert np.abs(used.astype(int)).max() == top
            column_scale = scale[channel] if per_channel else scale
            assert float(column_scale) == pytest.approx(float(np.abs(column).max()) / top, rel=1e-6)


def test_a_channel_of_zeros_has_a_scale() -> None:
    weight = np.array([[0.0, 127.0], [0.0, -3.0]], np.float32)
    values, scale = quantize_weight(weight)
    np.testing.assert_array_equal(values, [[0, 127], [0, -3]])
    assert 0 < scale[0] < 1e-30
    assert scale[1] == 1.0


@given(WEIGHTS)
@settings(deadline=None)
def test_a_scale_for_all_is_the_widest_of_those_for_each(weight: np.ndarray) -> None:
    (_, row_scales), (_, tensor_scale) = (
        quantize_weight(weight, per_channel=per_channel) for per_channel in (True, False)
    )
    assert tensor_scale == row_scales.max()


@given(WEIGHTS)
@settings(deadline=None)
def test_rows_have_scales_of_their_own(table: np.ndarray) -> None:
    values, scales = quantize_rows(table)
    assert (values.shape, scales.shape) == (table.shape, (len(table), 1))
    assert values.flags.c_contiguous
    for row, kept, scale in zip(table, values, scales, strict=True):
        quantized_column, column_scale = quantize_weight(row[:, None])
        np.testing.assert_array_equal(kept, quantized_column[:, 0])
        assert scale == column_scale
    assert (np.abs(values * scales - table) <= HALF * scales).all()


# Blocks


def unpacked(values: np.ndarray, bits: int) -> np.ndarray:
    """(out, blocks, block_size) whole numbers around zero, as ONNX Runtime reads MatMulNBits' weight."""
    out, blocks, size = values.shape
    if bits == 8:
        return values.astype(int) - 128
    numbers = np.empty((out, blocks, 2 * size), int)
    for i in range(size):
        numbers[:, :, 2 * i] = values[:, :, i] & 15
        numbers[:, :, 2 * i + 1] = values[:, :, i] >> 4
    return numbers - 8


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 70), st.integers(1, 4)), elements=st.floats(-1e3, 1e3, width=32)
    ),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 64]),
)
@settings(deadline=None)
def test_blocks_round_trip(weight: np.ndarray, bits: int, block_size: int) -> None:
    """Also a depth that is no multiple of the block."""
    depth, width = weight.shape
    values, scales = quantize_blocks(weight, bits=bits, block_size=block_size)
    blocks = -(-depth // block_size)
    assert (values.dtype, values.shape) == (np.uint8, (width, blocks, block_size * bits // 8))
    assert (scales.dtype, scales.shape) == (np.float32, (width, blocks))
    numbers = unpacked(values, bits)
    assert np.abs(numbers).max() <= {4: 7, 8: 127}[bits]
    back = (numbers * scales[:, :, None]).reshape(width, -1)
    assert not back[:, depth:].any(), "what fills up the last block is zero"
    steps = np.repeat(scales, block_size, axis=1)[:, :depth]
    assert (np.abs(back[:, :depth] - weight.T) <= HALF * steps).all()
    for i in range(blocks):
        part = np.abs(weight[i * block_size : (i + 1) * block_size]).max(axis=0)
        np.testing.assert_allclose(scales[:, i], part / {4: 7, 8: 127}[bits], rtol=1e-6, atol=1e-37)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40)).map(lambda shape: (shape[0], 2 * shape[1])),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    st.sampled_from([16, 32, 64]),
)
@settings(deadline=None)
def test_rows_in_blocks_of_4_bits_round_trip(table: np.ndarray, block_size: int) -> None:
    entries, width = table.shape
    values, scales, zeros = quantize_row_blocks(table, block_size=block_size)
    blocks = -(-width // block_size)
    assert (values.shape, scales.shape) == ((entries, width // 2), (entries, blocks))
    assert (values.dtype, scales.dtype, zeros.dtype) == (np.uint8, np.float32, np.uint8)
    assert zeros.shape == (entries, -(-blocks // 2))
    numbers, points = (
        np.stack([packed & 15, packed >> 4], 2).reshape(entries, -1) for packed in (values, zeros)
    )
    steps, middle = (
        np.repeat(array[:, :blocks], block_size, axis=1)[:, :width].astype(np.float64)
        for array in (scales, points)
    )
    back = (numbers - middle) * steps
    assert (np.abs(back - table) <= HALF * steps).all()
    assert (back[table == 0] == 0).all()
    for i in range(blocks):
        part = table[:, i * block_size : (i + 1) * block_size]
        span = np.maximum(part.max(axis=1), 0) - np.minimum(part.min(axis=1), 0)
        np.testing.assert_allclose(scales[:, i], span / 15, rtol=1e-5, atol=1e-37)


def test_four_bits_are_packed_low_half_first() -> None:
    weight = np.zeros((16, 1), np.float32)
    weight[:4, 0] = [7, -7, 1, 0]
    values, scales = quantize_blocks(weight, bits=4, block_size=16)
    assert scales.item() == 1.0
    assert values[0, 0].tolist() == [(1 << 4) | 15, (8 << 4) | 9, *[(8 << 4) | 8] * 6]


def test_eight_bits_are_stored_as_they_are() -> None:
    weight = np.zeros((3, 2), np.float32)
    weight[:, 1] = [127, -127, 5]
    values, scales = quantize_blocks(weight, bits=8, block_size=16)
    assert values[1, 0].tolist() == [255, 1, 133, *[128] * 13]
    assert (values[0] == 128).all()
    assert scales[1, 0] == 1.0
