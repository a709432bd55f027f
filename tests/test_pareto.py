"""The Pareto front."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.report.front import Score, beaten_by

WORTHS = st.builds(
    Score,
    metric=st.sampled_from([0.5, 0.897, 0.9]),
    median_ms=st.sampled_from([1.0, 2.0, 2.02, 3.0]),
    size_bytes=st.sampled_from([100, 200, 201]),
)
VARIANTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), WORTHS, min_size=1, max_size=8)


def test_a_variant_that_is_worse_in_all_three_is_beaten() -> None:
    variants = {
        "teacher": Score(0.90, 15.0, 90),
        "compiled": Score(0.90, 11.0, 90),
        "quant": Score(0.89, 4.0, 23),
        "slow_quant": Score(0.88, 6.0, 24),
        "student": Score(0.85, 2.0, 60),
    }
    assert beaten_by(variants) == {
        "teacher": "compiled",
        "compiled": None,
        "quant": None,
        "slow_quant": "quant",
        "student": None,
    }


def test_equals_do_not_beat_each_other() -> None:
    assert beaten_by({"a": Score(0.9, 1.0, 1), "b": Score(0.9, 1.0, 1)}) == {"a": None, "b": None}


@given(VARIANTS)
def test_who_beats_is_on_the_front(variants: dict[str, Score]) -> None:
    found = beaten_by(variants)
    assert list(found) == list(variants)
    assert None in found.values(), "the front is never empty"
    for name, rival in found.items():
        if rival is not None:
            assert found[rival] is None
            assert variants[rival].beats(variants[name])
            assert not variants[name].beats(variants[rival])


@pytest.mark.parametrize(
    ("better", "beaten"),
    [
        (Score(0.901, 1.0, 100), None),
        (Score(0.91, 1.0, 100), "better"),
        (Score(0.9, 0.99, 100), None),
        (Score(0.9, 0.9, 100), "better"),
        (Score(0.9, 1.0, 100), None),
        (Score(0.9, 1.0, 98), "better"),
        (Score(0.899, 0.5, 50), None),
    ],
)
def test_what_is_within_noise_does_not_beat(better: Score, beaten: str | None) -> None:
    assert beaten_by({"better": better, "it": Score(0.9, 1.0, 100)})["it"] == beaten
