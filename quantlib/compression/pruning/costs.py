"""What the units of each block cost: in operations, or in whatever somebody measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlib.compression.pruning.parts import ATTENTION, Part, rows_of
from quantlib.compression.pruning.prune import KINDS, Block, block_of, find_groups
from quantlib.onnx_model.compile.row import products_of_one_row
from quantlib.onnx_model.layers import load_ir, skeleton_ir
from quantlib.onnx_model.model import Model


@dataclass(frozen=True)
class Cost:
    """What a block costs, by its width; between two known widths on the line through them.

    widths: ascending. values: at these, in any unit that all blocks share.
    """

    widths: tuple[int, ...]
    values: tuple[float, ...]

    def at(self, width: int) -> float:
        """The cost of a width."""
        return float(np.interp(width, self.widths, self.values))


Costs = Mapping[str, Cost]
"""By the name of the block."""


@dataclass(frozen=True)
class Form:
    """What decides the operations of a block but for its width, and where it runs.

    kind: `FFN` or `ATTENTION`. channels: that it reads, and that it gives. units, multiple: as of `Block`.
    size: channels of a unit. copies: 2 for a gated block, else 1. one_row: whether the block, or all of an
    attention but for keys and values, runs for the classifier's row alone.
    """

    kind: str
    channels: tuple[int, int]
    units: int
    multiple: int
    size: int
    copies: int
    one_row: bool

    def operations(self, tokens: int) -> float:
        """Of one unit on one row of so many tokens, a multiplication and an addition each."""
        into, out = self.channels
        rows = 1 if self.one_row else tokens
        if self.kind != ATTENTION:
            return 2.0 * rows * (self.copies * into + out)
        # Keys and values, always of all tokens; queries and output; scores, and what they weigh.
        return 2.0 * self.size * (2 * tokens * into + rows * (into + out) + 2 * rows * tokens)


def forms_of(
    onnx_path: Path, kinds: Collection[str] = KINDS, *, compiled: bool = True
) -> dict[str, list[Form]]:
    """The form of each block, once for each time that its weights are used.

    Args:
        onnx_path: the float model, before it is compiled.
        kinds: of blocks.
        compiled: whether the model will be compiled, so that the last layer runs for one row.

    Raises:
        InputError: as `quantlib.compression.pruning.blocks_of`.
    """
    alone = products_of_one_row(load_ir(onnx_path)) if compiled else frozenset[str]()
    groups = find_groups(skeleton_ir(Model(onnx_path)), onnx_path, kinds)
    return {
        group.name: [_form(part, block_of(group), part.output.name in alone) for part in group.parts]
        for group in groups
    }


def _form(part: Part, block: Block, one_row: bool) -> Form:
    channels = (rows_of(part.inputs[0]), part.output.width)
    copies = 1 if part.kind == ATTENTION else part.copies(part.inputs[0])
    return Form(part.kind, channels, block.units, block.multiple, part.size, copies, one_row)


def operation_costs(
    onnx_path: Path, tokens: int, kinds: Collection[str] = KINDS, *, compiled: bool = True
) -> dict[str, Cost]:
    """The operations of each block on one row.

    Args:
        onnx_path, kinds, compiled: as of `forms_of`. tokens: of the row.

    Raises:
        InputError: as `forms_of`.
    """
    return {
        name: Cost((0, forms[0].units), (0.0, sum(form.units * form.operations(tokens) for form in forms)))
        for name, forms in forms_of(onnx_path, kinds, compiled=compiled).items()
    }
