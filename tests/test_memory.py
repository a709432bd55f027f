"""Memory that is freed goes back to the system, where that can be done."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from quantlib.support.memory import giving_back, resident_bytes

MIB = 1 << 20


class Circle:
    """An array that only the search for garbage frees."""

    def __init__(self, size: int) -> None:
        self.array = np.ones(size, np.uint8)
        self.itself = self


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Nothing but `giving_back` looks for garbage."""
    gc.disable()
    yield
    gc.enable()


def test_what_the_system_says_follows_what_is_used() -> None:
    before = resident_bytes()
    array = np.ones(256 * MIB, np.uint8)
    assert resident_bytes() - before > 200 * MIB
    del array
    assert resident_bytes() - before < 100 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is given back")
def test_circles_are_freed_after_a_block_that_grew_much(no_collection: None) -> None:
    before = resident_bytes()
    with giving_back():
        Circle(256 * MIB)
        assert resident_bytes() - before > 200 * MIB
    assert resident_bytes() - before < 100 * MIB


def test_a_block_that_grew_little_costs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("garbage was searched for"))
    with giving_back():
        pass


def test_an_error_in_the_block_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), giving_back():
        raise ZeroDivisionError
