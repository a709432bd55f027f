"""How many neurons each block keeps, so that the model loses least for what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantlib.compression.pruning.prune import MULTIPLE, Block
from quantlib.compression.pruning.surgeon import Elimination
from quantlib.support.errors import InputError


@dataclass(frozen=True)
class Sensitivity:
    """What pruning one block alone does to the model.

    block: its name. width: the neurons that it kept when it was tried. logit_error: the mean squared
    difference of the logits then.
    """

    block: str
    width: int
    logit_error: float


def allocate(
    blocks: Sequence[Block],
    orders: Mapping[str, Elimination],
    sensitivities: Sequence[Sensitivity],
    share: float,
    *,
    costs: Mapping[str, float] | None = None,
    multiple: int = MULTIPLE,
) -> dict[str, int]:
    """The widths that are expected to change the logits least when a share of the cost must go.

    The squared error of the logits is taken as the sum over the blocks, and each block's as proportional to
    the squared error of its own output, which `eliminate` gives for every width; one width was tried to know
    the factor. The best combination is found by dynamic programming over multiples of neurons.

    Args:
        blocks: of the model.
        orders: from `eliminations`.
        sensitivities: one for each block.
        share: of the cost of all neurons, from 0 to below 1, that has to go.
        costs: of one neuron of each block, by its name; by default every neuron costs the same.
        multiple: widths are multiples of it, or all neurons.

    Raises:
        InputError: the share is out of range, or more than what goes with one multiple left in each block.
    """
    if not 0 <= share < 1:
        raise InputError(f"a share of {share} to prune is out of range; it must be at least 0 and below 1")
    options = {block.name: _widths(block, multiple) for block in blocks}
    prices = {
        block.name: np.array(options[block.name]) * (1.0 if costs is None else costs[block.name])
        for block in blocks
    }
    whole = sum(float(price[-1]) for price in prices.values())
    # Whole numbers: of multiples, where all neurons cost the same, else of thousandths.
    grain = float(multiple) if costs is None else whole / 1000
    rounded_up = {name: np.ceil(price / grain - 1e-9).astype(int) for name, price in prices.items()}
    budget = int(np.floor((1 - share) * whole / grain + 1e-9))
    least = sum(int(price[0]) for price in rounded_up.values())
    if least > budget:
        raise InputError(
            f"a share of {share:g} cannot be pruned: with {multiple} neurons left in each block "
            f"{1 - least * grain / whole:.3f} are gone"
        )
    factors = {
        each.block: each.logit_error / _at_least(orders[each.block].error(each.width))
        for each in sensitivities
    }
    errors = {
        name: np.array([factors[name] * orders[name].error(width) for width in widths])
        for name, widths in options.items()
    }
    chosen = _cheapest([(errors[name], rounded_up[name]) for name in options], budget)
    return {name: widths[row] for (name, widths), row in zip(options.items(), chosen, strict=True)}


def largest_share(blocks: Sequence[Block], multiple: int = MULTIPLE) -> float:
    """The share of all neurons that goes where each block keeps one multiple, or all if it has fewer."""
    return 1 - sum(min(multiple, block.neurons) for block in blocks) / sum(block.neurons for block in blocks)


def _at_least(error: float) -> float:
    """Not zero, to divide by."""
    return max(error, float(np.finfo(np.float64).tiny))


def _widths(block: Block, multiple: int) -> list[int]:
    """The widths that a block may have, ascending: multiples below its neurons, and all of them."""
    return [*range(multiple, block.neurons, multiple), block.neurons]


def _cheapest(
    tables: Sequence[tuple[npt.NDArray[np.float64], npt.NDArray[np.int_]]], budget: int
) -> list[int]:
    """The row of each table so that prices sum to at most the budget and errors to the least."""
    best = np.zeros(budget + 1)  # the least error of the tables so far, for each budget
    choices: list[npt.NDArray[np.intp]] = []
    for errors, prices in tables:
        totals = np.full((len(prices), budget + 1), np.inf)
        for row, (error, price) in enumerate(zip(errors, prices.tolist(), strict=True)):
            if price <= budget:
                totals[row, price:] = best[: budget + 1 - price] + error
        choices.append(np.argmin(totals, axis=0))
        best = totals.min(axis=0)
    rows: list[int] = []
    left = budget
    for (_, prices), choice in zip(reversed(tables), reversed(choices), strict=True):
        row = int(choice[left])
        rows.append(row)
        left -= int(prices[row])
    return rows[::-1]
