"""Structured pruning of float models in one shot: neurons and attention heads go, the weights behind them are
refitted.
"""

from quantlib.compression.pruning.allocate import Sensitivity, allocate, largest_share, share_problem
from quantlib.compression.pruning.costs import Cost, Costs, Form, forms_of, operation_costs
from quantlib.compression.pruning.parts import ATTENTION, FFN, UNITS
from quantlib.compression.pruning.prune import (
    KINDS,
    Block,
    blocks_of,
    collect_block_grams,
    eliminations,
    prune_onnx,
    width_problem,
)
from quantlib.compression.pruning.surgeon import DAMPING, Elimination, eliminate, refit

__all__ = [
    "ATTENTION",
    "DAMPING",
    "FFN",
    "KINDS",
    "UNITS",
    "Block",
    "Cost",
    "Costs",
    "Elimination",
    "Form",
    "Sensitivity",
    "allocate",
    "blocks_of",
    "collect_block_grams",
    "eliminate",
    "eliminations",
    "forms_of",
    "largest_share",
    "operation_costs",
    "prune_onnx",
    "refit",
    "share_problem",
    "width_problem",
]
