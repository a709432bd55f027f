"""What pruning one block alone does to a model's logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantlib.compression import pruning
from quantlib.compression.calibration import Gram
from quantlib.data.features import Feature
from quantlib.onnx_model.mapped import mapped

Logits = npt.NDArray[np.float32]

MAX_TOKENS = 4096
"""Blocks are tried on the first rows with so many tokens: they only have to be ranked."""

# Of the squared error of a block without any unit: less is not seen in float32 logits.
_SEEN = 1e-9


def block_sensitivities(
    onnx_path: Path,
    predict: Callable[[Path], Logits],
    grams: Mapping[str, Gram],
    orders: Mapping[str, pruning.Elimination],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[pruning.Sensitivity]:
    """How much the logits change when one block keeps half of its units, for each block in `orders`.

    Where half of them go for nothing, as few are kept as can be: no change says nothing of the others.

    Args:
        onnx_path: the float model.
        predict: the logits of a model file on a few rows, (rows, labels); `first_rows` are enough.
        grams, orders: from `quantlib.compression.pruning`, of this model.
        progress: called after each block with 1.
    """
    sensitivities = []
    with mapped(onnx_path) as copy:
        exact, path = predict(copy), copy.with_name("pruned.onnx")
        for block in (each for each in pruning.blocks_of(copy) if each.name in orders):
            width = _width_to_try(block, orders[block.name])
            pruning.prune_onnx(copy, path, {block.name: width}, grams, orders, beside=True)
            error = float(np.square(np.subtract(predict(path), exact, dtype=np.float64)).mean())
            sensitivities.append(pruning.Sensitivity(block.name, width, error))
            if progress:
                progress(1)
    return sensitivities


def _width_to_try(block: pruning.Block, order: pruning.Elimination) -> int:
    if order.error(block.half) > _SEEN * order.error(0):
        return block.half
    return min(block.multiple, block.half)


def first_rows(rows: Sequence[Feature]) -> list[Feature]:
    """The first rows with `MAX_TOKENS` together, at least one."""
    few: list[Feature] = []
    tokens = 0
    for row in rows:
        tokens += len(row.input_ids)
        if few and tokens > MAX_TOKENS:
            break
        few.append(row)
    return few
