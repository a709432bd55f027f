"""The front: comparisons that rest on intervals, ties that luck does not decide, and the first choices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.report.choices import Wishes, fastest, smallest
from quantlib.report.front import Field, Score
from quantlib.support.errors import InputError


def score(
    metric: float = 0.9,
    speedup: float = 1.0,
    size: int = 100,
    *,
    agreement: float = 1.0,
    logit_error: float = 0.1,
    launch: int = 0,
    noise: float = 0.0,
    seed: int = 0,
) -> Score:
    """A variant timed in 2 launches of 3 turns."""
    rng = np.random.default_rng(seed)
    places = [(launch + number, turn) for number in range(2) for turn in range(3)]
    ratios = {place: math.log(speedup) + noise * rng.standard_normal() for place in places}
    return Score(metric, agreement, logit_error, size, ratios)


def field(*, sure: bool = True, **scores: Score) -> Field:
    return Field(scores, next(iter(scores)), lambda _, __: sure)


def test_a_variant_that_is_worse_in_all_three_is_beaten() -> None:
    beaten = field(
        teacher=score(0.90, 1.0, 90),
        compiled=score(0.90, 1.4, 90),
        quant=score(0.89, 3.7, 23),
        slow_quant=score(0.88, 2.5, 24),
        student=score(0.85, 7.0, 60),
    ).beaten_by()
    assert beaten == {
        "teacher": "compiled",
        "compiled": None,
        "quant": None,
        "slow_quant": "quant",
        "student": None,
    }


def test_the_same_graph_does_not_beat_itself() -> None:
    same = field(teacher=score(), a=score(speedup=3.0, noise=0.02), b=score(speedup=3.05, noise=0.02, seed=1))
    assert not same.beats("a", "b")
    assert not same.beats("b", "a")


@pytest.mark.parametrize(
    ("better", "beats"),
    [
        (score(0.904), False),
        (score(0.91), True),
        (score(speedup=1.01), False),
        (score(speedup=1.12), True),
        (score(speedup=1.12, noise=0.3), False),
        (score(size=98), True),
        (score(0.89, 2.0, 50), False),
        (score(speedup=0.93, size=50), False),
        (score(speedup=1.0, size=50), True),
        (score(agreement=0.98, size=50), False),
        (score(logit_error=0.2, size=50), False),
    ],
)
def test_what_is_within_noise_does_not_beat(better: Score, beats: bool) -> None:
    assert field(teacher=score(0.95), better=better, it=score()).beats("better", "it") == beats


def test_a_metric_above_the_teachers_by_luck_is_no_merit() -> None:
    """weight_only_int4 came out half a point above the teacher, with 96.7 % of its labels."""
    scores = {
        "teacher": score(0.9767),
        "lucky": score(0.9817, speedup=1.0, agreement=0.967),
        "true": score(0.9767, speedup=1.0, agreement=0.998, logit_error=0.02),
    }
    unsure = Field(scores, "teacher", lambda _, __: False)
    assert unsure.accuracy("true", "lucky") == 1
    assert unsure.beats("true", "lucky")
    assert unsure.beaten_by()["true"] is None
    assert Field(scores, "teacher", lambda _, __: True).accuracy("lucky", "true") == 1


def test_what_the_order_of_sums_does_to_logits_is_no_error() -> None:
    pair = field(teacher=score(logit_error=0.0), compiled=score(speedup=1.2, logit_error=4e-7))
    assert pair.accuracy("teacher", "compiled") == 0
    assert pair.beaten_by() == {"teacher": "compiled", "compiled": None}


def test_a_difference_of_the_metric_that_is_not_sure_is_decided_by_agreement() -> None:
    pair = {"worse": score(0.91, agreement=0.95), "better": score(0.90, agreement=0.99)}
    assert field(sure=True, teacher=score(0.95), **pair).accuracy("better", "worse") == -1
    assert field(sure=False, teacher=score(0.95), **pair).accuracy("better", "worse") == 1


def test_variants_that_share_turns_are_compared_in_them() -> None:
    """What moves both alike is no difference; variants of other launches have their own intervals."""
    rng = np.random.default_rng(0)
    drift = {(launch, turn): 0.3 * rng.standard_normal() for launch in range(2) for turn in range(3)}
    a = Score(0.9, 1.0, 0.1, 100, {place: 1.0 + value for place, value in drift.items()})
    b = Score(0.9, 1.0, 0.1, 100, {place: 0.9 + value for place, value in drift.items()})
    other = Score(0.9, 1.0, 0.1, 100, {(place[0] + 2, place[1]): v for place, v in b.log_ratios.items()})
    compared = Field({"a": a, "b": b, "other": other}, "a")
    assert compared.speed("a", "b").center == pytest.approx(0.1)
    assert compared.beats("a", "b")
    assert compared.speed("a", "other").error > 5 * compared.speed("a", "b").error
    assert not compared.beats("a", "other")


SCORES = st.builds(
    score,
    metric=st.sampled_from([0.5, 0.897, 0.9]),
    speedup=st.sampled_from([1.0, 2.0, 2.02, 3.0]),
    size=st.sampled_from([100, 200, 201]),
    agreement=st.sampled_from([1.0, 0.98]),
)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), SCORES, min_size=1, max_size=6))
def test_nobody_beats_the_one_that_beats_it(scores: dict[str, Score]) -> None:
    compared = Field({"teacher": score(), **scores}, "teacher")
    for name, rival in compared.beaten_by().items():
        if rival is not None:
            assert compared.beats(rival, name)
            assert not compared.beats(name, rival)


def test_the_first_choices() -> None:
    compared = field(
        teacher=score(0.95),
        plain=score(0.95, 3.1, 25, agreement=0.97),
        smooth=score(0.95, 3.05, 25, agreement=0.995),
        small=score(0.95, 3.0, 15, agreement=0.98),
        slow=score(0.95, 1.5, 30, agreement=1.0),
    )
    names = ["plain", "smooth", "small", "slow"]
    assert fastest(compared, names) == "smooth", "as fast as the fastest, and more accurate"
    assert smallest(compared, names) == "small"
    assert compared.most_accurate(names) in ("smooth", "slow")


@pytest.mark.parametrize("wrong", [{"min_speedup": 0.0}, {"max_size_mb": -1.0}, {"min_speedup": math.nan}])
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be positive"):
        Wishes(**wrong)
