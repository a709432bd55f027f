"""Looks after each launch: together they spend the error rate, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from quantlib.gate.sequential import confidence_at, spent


def test_the_whole_error_is_spent_at_the_end() -> None:
    assert spent(0.0, 0.01) == 0.0
    assert spent(1.0, 0.01) == pytest.approx(0.01)
    assert spent(2.0, 0.01) == pytest.approx(0.01)


@given(st.floats(0, 1), st.floats(0, 1))
def test_later_looks_may_spend_more(one: float, other: float) -> None:
    assert spent(min(one, other)) <= spent(max(one, other))


def test_bounds_are_those_that_are_published() -> None:
    # Lan and DeMets with Pocock's type of spending, five looks, one-sided 0.025: ldbounds for R,
    # ldBounds(1:5 / 5, iuse=2, alpha=0.025, sides=1).
    bounds = [norm.ppf(confidence_at(look, 1, 5, 0.025)) for look in range(1, 6)]
    assert bounds == pytest.approx([2.4380, 2.4268, 2.4102, 2.3966, 2.3860], abs=1e-3)


def test_one_look_has_the_whole_error() -> None:
    assert confidence_at(4, 4, 4, 0.01) == pytest.approx(0.99)


@pytest.mark.parametrize(("first", "last"), [(1, 4), (3, 12)])
def test_sums_cross_at_the_stated_rate(first: int, last: int) -> None:
    sums = np.random.default_rng(0).standard_normal((100_000, last)).cumsum(axis=1)
    values = (sums / np.sqrt(np.arange(1, last + 1)))[:, first - 1 :]
    bounds = norm.ppf([confidence_at(look, first, last, 0.05) for look in range(first, last + 1)])
    # The standard deviation of the rate is 0.0007.
    assert np.mean((values > bounds).any(axis=1)) == pytest.approx(0.05, abs=0.003)


@pytest.mark.parametrize(("look", "first", "last"), [(2, 3, 12), (13, 3, 12), (0, 0, 2)])
def test_looks_that_are_not_planned(look: int, first: int, last: int) -> None:
    with pytest.raises(ValueError, match="there is no look"):
        confidence_at(look, first, last)
