"""How embeddings are compared: by cosine, and by which row is nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# Neighbours are looked for among so many rows, from the first: their number grows with the square of it.
NEIGHBOUR_ROWS = 5000
# Cosines closer than this are ties, as between a text and its copy: rounding decides them.
_TIE = 1e-6
# Rows whose cosines to all others are computed at once.
_ROWS_AT_ONCE = 512


def cosines(ours: Array, theirs: Array) -> FloatArray:
    """The cosine of the angle between embeddings, row by row: a·b / (|a| |b|).

    Args:
        ours, theirs: (rows, width).

    Returns:
        float64, (rows,); 1 where both are equal, and 0 where one alone is zero.

    Raises:
        ValueError: the shapes differ, or are no rows.
    """
    if ours.shape != theirs.shape or ours.ndim != 2:
        raise ValueError(f"embeddings of shape {ours.shape} and {theirs.shape} are no pairs of rows")
    a, b = _unit(ours), _unit(theirs)
    values = np.clip(np.einsum("ij,ij->i", a, b), -1.0, 1.0)
    return np.where((ours == theirs).all(axis=1), 1.0, values)


def pair_cosines(embeddings: Array) -> FloatArray:
    """The cosine of each pair of rows, 0 with 1, 2 with 3, ...: float64, (rows / 2,).

    Raises:
        ValueError: the number of rows is odd.
    """
    return cosines(embeddings[::2], embeddings[1::2])


def same_neighbours(ours: Array, theirs: Array) -> float:
    """The share of rows whose nearest other row, by cosine, is the same in both; 1 for a single row.

    Where several rows are equally near in `theirs` (texts that occur twice), any of them is right. Of more
    than `NEIGHBOUR_ROWS` rows, the first so many are looked at.

    Args:
        ours, theirs: embeddings of the same texts, (rows, width).
    """
    a, b = (_unit(each[:NEIGHBOUR_ROWS]).astype(np.float32) for each in (ours, theirs))
    if len(a) < 2:
        return 1.0
    same = 0
    for start in range(0, len(a), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(a))
        rows, itself = np.arange(stop - start), np.arange(start, stop)
        near, right = (each[start:stop] @ each.T for each in (a, b))
        near[rows, itself] = right[rows, itself] = -np.inf
        same += int(np.sum(right[rows, near.argmax(axis=1)] >= right.max(axis=1) - _TIE))
    return same / len(a)


def _unit(rows: Array) -> FloatArray:
    """Rows, each divided by its length; rows of zeros stay."""
    values = rows.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units: FloatArray = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    return units
