"""How many neurons a pruned block may have."""

from __future__ import annotations

NEURONS_MULTIPLE = 32
"""Numbers of neurons are multiples of this, as kernels like them."""


def rounded(width: float, units: int, multiple: int = NEURONS_MULTIPLE) -> int:
    """The nearest width that is a multiple, from one multiple to all units."""
    return min(units, max(multiple, round(width / multiple) * multiple))
