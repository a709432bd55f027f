"""The Pareto front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quantlib.pareto import Worth, beaten_by

WORTHS = st.builds(
    Worth,
    score=st.sampled_from([0.5, 0.8, 0.9]),
    median_ms=st.sampled_from([1.0, 2.0, 3.0]),
    size_bytes=st.integers(1, 3),
)
VARIANTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), WORTHS, min_size=1, max_size=8)


def test_a_variant_that_is_worse_in_all_three_is_beaten() -> None:
    variants = {
        "teacher": Worth(0.90, 15.0, 90),
        "compiled": Worth(0.90, 11.0, 90),
        "quant": Worth(0.89, 4.0, 23),
        "slow_quant": Worth(0.88, 6.0, 24),
        "student": Worth(0.85, 2.0, 60),
    }
    assert beaten_by(variants) == {
        "teacher": "compiled",
        "compiled": None,
        "quant": None,
        "slow_quant": "quant",
        "student": None,
    }


def test_equals_do_not_beat_each_other() -> None:
    assert beaten_by({"a": Worth(0.9, 1.0, 1), "b": Worth(0.9, 1.0, 1)}) == {"a": None, "b": None}


@given(VARIANTS)
def test_who_beats_is_on_the_front(variants: dict[str, Worth]) -> None:
    found = beaten_by(variants)
    assert list(found) == list(variants)
    assert None in found.values(), "the front is never empty"
    for name, rival in found.items():
        if rival is not None:
            assert found[rival] is None
            assert variants[rival].beats(variants[name])
            assert not variants[name].beats(variants[rival])


@given(VARIANTS)
def test_a_variant_on_the_front_is_best_in_something(variants: dict[str, Worth]) -> None:
    for name, rival in beaten_by(variants).items():
        if rival is None:
            for other in variants.values():
                worth = variants[name]
                better = worth.score > other.score or worth.median_ms < other.median_ms
                assert better or worth.size_bytes < other.size_bytes or other == worth
