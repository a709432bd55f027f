"""Structured pruning of float models in one shot: neurons go, the weights behind them are refitted."""

from quantlib.compression.pruning.allocate import Sensitivity, allocate, largest_share
from quantlib.compression.pruning.prune import (
    MULTIPLE,
    Block,
    blocks_of,
    collect_ffn_grams,
    eliminations,
    even_widths,
    prune_onnx,
    rounded,
)
from quantlib.compression.pruning.surgeon import DAMPING, Elimination, eliminate, refit

__all__ = [
    "DAMPING",
    "MULTIPLE",
    "Block",
    "Elimination",
    "Sensitivity",
    "allocate",
    "blocks_of",
    "collect_ffn_grams",
    "eliminate",
    "eliminations",
    "even_widths",
    "largest_share",
    "prune_onnx",
    "refit",
    "rounded",
]
