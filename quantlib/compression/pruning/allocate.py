"""How many neurons and heads each block keeps, so that the model loses least for what it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantlib.compression.pruning.costs import Costs
from quantlib.compression.pruning.prune import Block
from quantlib.compression.pruning.surgeon import Elimination
from quantlib.support.errors import InputError

# Costs are rounded to so many parts of the whole.
_PARTS = 4000


@dataclass(frozen=True)
class Sensitivity:
    """What pruning one block alone does to the model.

    block: its name. width: the units that it kept when it was tried. logit_error: the mean squared difference
    of the logits then.
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
    costs: Costs | None = None,
) -> dict[str, int]:
    """The widths that are expected to change the logits least when a share of the cost must go.

    The squared error of the logits is taken as the sum over the blocks, and each block's as proportional to
    the squared error of its own output, which `eliminate` gives for every width; one width was tried to know
    the factor. The best combination is found by dynamic programming over the widths that kernels like.

    Args:
        blocks: to choose widths for.
        orders: from `eliminations`.
        sensitivities: one for each block.
        share: of the cost of all units, from 0 to below 1, that has to go.
        costs: of each block; by default every neuron costs the same, and there are only neurons.

    Raises:
        InputError: the share is out of range, or more than what goes with the fewest units in each block.
    """
    problem = share_problem(blocks, share, costs)
    if problem:
        raise InputError(problem)
    options = {block.name: _widths(block) for block in blocks}
    prices = _prices(options, costs)
    budget = _budget(prices, share)
    factors = {
        each.block: each.logit_error / _at_least(orders[each.block].error(each.width))
        for each in sensitivities
    }
    errors = {
        name: np.array([factors[name] * orders[name].error(width) for width in widths])
        for name, widths in options.items()
    }
    chosen = _cheapest([(errors[name], prices[name]) for name in options], budget)
    return {name: widths[row] for (name, widths), row in zip(options.items(), chosen, strict=True)}


def share_problem(blocks: Sequence[Block], share: float, costs: Costs | None = None) -> str:
    """Why a share of the cost cannot be pruned; empty if it can. costs: as of `allocate`."""
    if not 0 <= share < 1:
        return f"a share of {share} to prune is out of range; it must be at least 0 and below 1"
    prices = _prices({block.name: _widths(block) for block in blocks}, costs)
    if sum(int(price.min()) for price in prices.values()) <= _budget(prices, share):
        return ""
    fewest = " or ".join(sorted({_fewest(block) for block in blocks}))
    return (
        f"a share of {share:g} cannot be pruned: with {fewest} left in each block "
        f"{largest_share(blocks, costs):.3f} are gone"
    )


def _budget(prices: Mapping[str, npt.NDArray[np.int_]], share: float) -> int:
    """What the widths may cost together when a share of the cost goes."""
    whole = sum(int(price[-1]) for price in prices.values())
    return int(np.floor((1 - share) * whole + 1e-9))


def largest_share(blocks: Sequence[Block], costs: Costs | None = None) -> float:
    """The share of the cost that goes where each block is as cheap as it can be; costs as of `allocate`."""
    prices = _prices({block.name: _widths(block) for block in blocks}, costs)
    cheapest = sum(int(price.min()) for price in prices.values())
    return 1 - cheapest / sum(int(price[-1]) for price in prices.values())


def _prices(options: Mapping[str, Sequence[int]], costs: Costs | None) -> dict[str, npt.NDArray[np.int_]]:
    """What each width of each block costs, in whole numbers: in neurons, or parts of the whole."""
    if costs is None:
        return {name: np.array(widths, np.int_) for name, widths in options.items()}
    exact = {name: np.array([costs[name].at(width) for width in widths]) for name, widths in options.items()}
    grain = sum(float(price[-1]) for price in exact.values()) / _PARTS
    return {name: np.rint(price / grain).astype(np.int_) for name, price in exact.items()}


def _fewest(block: Block) -> str:
    """The fewest units that a block keeps, in words."""
    return f"{min(block.multiple, block.units)} {block.unit}{'s' * (block.multiple > 1)}"


def _at_least(error: float) -> float:
    """Not zero, to divide by."""
    return max(error, float(np.finfo(np.float64).tiny))


def _widths(block: Block) -> list[int]:
    """The widths that a block may have, ascending: multiples below its units, and all of them."""
    return [*range(block.multiple, block.units, block.multiple), block.units]


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
