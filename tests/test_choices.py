"""The first choices of a run, from results: who is chosen for which wish, and the line that says why."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantlib.data.tasks import get_task
from quantlib.measuring.accuracy import Evaluation
from quantlib.measuring.checks import Checks, Invariance, Saturation
from quantlib.measuring.latency.speedup import EQUAL, Speedup
from quantlib.measuring.latency.stats import LatencyStats
from quantlib.report.choices import Choice, Wishes, as_json, choices, words
from quantlib.report.columns import VariantResult
from quantlib.report.front import Field, Score

PLACES = [(launch, turn) for launch in range(2) for turn in range(3)]
LABELS = np.arange(200) % 2


def result(
    name: str,
    speedup: Speedup,
    wrong: int,
    megabytes: float,
    teacher: VariantResult | None,
    recipe: str | None,
) -> VariantResult:
    """A variant of SST-2 that is wrong on the first `wrong` of 200 rows."""
    labels = np.where(np.arange(200) < wrong, 1 - LABELS, LABELS)
    logits = np.eye(2, dtype=np.float32)[labels]
    score = 1 - wrong / 200
    return VariantResult(
        name,
        metrics={"accuracy": score},
        eval_loss=0.1,
        size_bytes=round(megabytes * 2**20),
        latency=LatencyStats((10 / speedup.ratio,) * 3, 0),
        agreement=1 - wrong / 200,
        teacher=teacher,
        recipe=recipe,
        task=get_task("SST-2"),
        evaluation=Evaluation(logits, labels, LABELS, {"accuracy": score}, 0.1),
        paired=speedup,
    )


def around(ratio: float) -> Speedup:
    return Speedup(ratio, ratio * 0.97, ratio * 1.03)


TEACHER = result("teacher", EQUAL, 0, 86, None, None)
RESULTS = [
    TEACHER,
    result("quant_1", around(2.5), 10, 22, TEACHER, "S8S8"),
    result("quant_2", around(3.1), 2, 22, TEACHER, "U8S8"),
    result("static_u8s8_smooth", around(3.05), 0, 22, TEACHER, "smoothed"),
    result("static_u8s8_embed4", around(3.0), 1, 17, TEACHER, "4 bits"),
    result("student", around(2.0), 1, 66, TEACHER, None),
    result("student_quant_2", around(6.8), 4, 16.8, TEACHER, "U8S8"),
]
FIELD = Field(
    {
        r.name: Score(
            r.metrics["accuracy"],
            r.agreement,
            1.001 - r.agreement,
            r.size_bytes,
            dict.fromkeys(PLACES, math.log(r.speedup)),
        )
        for r in RESULTS
    },
    "teacher",
)


def chosen(wishes: Wishes) -> dict[str, str | None]:
    return {choice.wish: choice.variant for choice in choices(RESULTS, FIELD, wishes)}


def test_there_is_one_for_each_usual_wish() -> None:
    assert chosen(Wishes()) == {
        "most accurate at the speed of 8 bits": "static_u8s8_smooth",
        "fastest within half a point": "static_u8s8_smooth",
        "smallest within half a point": "static_u8s8_embed4",
    }


@pytest.mark.parametrize(
    ("wishes", "variant"),
    [
        (Wishes(max_drop=0.02), "student_quant_2"),
        (Wishes(min_speedup=3.0), "quant_2"),
        (Wishes(min_speedup=3.1), "student_quant_2"),
        (Wishes(min_speedup=2.9), "static_u8s8_smooth"),
        (Wishes(max_size_mb=20), "static_u8s8_embed4"),
        (Wishes(max_size_mb=20, min_speedup=5), "student_quant_2"),
        (Wishes(max_drop=0.0, min_speedup=5), None),
    ],
)
def test_the_users_own_limits_choose_too(wishes: Wishes, variant: str | None) -> None:
    assert chosen(wishes)["within your limits"] == variant


def test_a_line_says_what_it_costs_and_wins() -> None:
    line = words(RESULTS[2])
    assert line.startswith("3.1x faster [3.0, 3.2], 3.9x smaller, drop 1.0 points [")
    assert line.endswith("], agrees on 99.0 %")
    wide = VariantResult(
        "x", metrics={"accuracy": 1.0}, eval_loss=0.1, size_bytes=1, latency=TEACHER.latency, teacher=TEACHER,
        paired=Speedup(3.0, 2.6, 3.2, note="2.6x and 3.2x: this machine had two states"),
    )  # fmt: skip
    assert words(wide).startswith("2.6 to 3.2x faster (2.6x and 3.2x: this machine had two states), ")


def test_labels_that_change_with_the_batch_or_the_cpu_are_part_of_the_cost() -> None:
    checks = Checks((Saturation(False, 64, 9.0, 5), Invariance(32, 0.1, 0.2, 1)))
    assert words(replace(RESULTS[2], checks=checks)).endswith(
        "agrees on 99.0 %; 5 of 64 labels change by saturation; 1 of 32 labels change with the batch"
    )
    unmoved = Checks((Saturation(False, why_not="no products of integers"), Invariance(32, 0.1, 0.2, 0)))
    assert words(replace(RESULTS[2], checks=unmoved)) == words(RESULTS[2])


def test_of_equals_one_whose_labels_keep_still_is_chosen() -> None:
    """However small the error of its logits; a less accurate one is not chosen for that."""
    (first, *_) = (name for name in chosen(Wishes()).values() if name is not None)
    assert first == "static_u8s8_smooth"
    twin = replace(next(r for r in RESULTS if r.name == first), name="dynamic_u8s8")
    score = replace(FIELD.scores[first], logit_error=FIELD.scores[first].logit_error / 1.1)
    there = replace(FIELD, scores={**FIELD.scores, twin.name: score})

    def best(changed: int, results: list[VariantResult]) -> str | None:
        checked = replace(twin, checks=Checks((Invariance(32, 0.5, 0.5, changed),)))
        return choices([*results, checked], there, Wishes())[0].variant

    assert best(0, RESULTS) == "dynamic_u8s8"
    assert best(2, RESULTS) == first
    assert best(2, [r for r in RESULTS if r.name != first]) == "dynamic_u8s8"


def test_where_none_meets_a_wish_that_is_said() -> None:
    (*_, choice) = choices(RESULTS, FIELD, Wishes(min_speedup=100))
    assert choice == Choice("within your limits", None, "no variant of this run")
    assert as_json([choice]) == [
        {"wish": "within your limits", "variant": None, "why": "no variant of this run"}
    ]


def test_a_wide_interval_makes_nothing_as_fast() -> None:
    """A float model that could be as fast as 8 bits, for all that a restless machine can tell, is not."""
    shaken = {place: math.log(7.0) + 0.8 * (place[1] - 1) for place in PLACES}
    slower = dict.fromkeys(PLACES, math.log(4.5))
    scores = {name: FIELD.scores[name] for name in ("teacher", "student_quant_2", "student")}
    field = Field(
        scores
        | {
            "student_quant_2": replace(scores["student_quant_2"], log_ratios=shaken),
            "student": replace(scores["student"], log_ratios=slower),
        },
        "teacher",
        lambda *_: False,
    )
    assert field.speed("student", "student_quant_2").quantile(0.975) > 0, "it could be"
    assert field.about_as_fast(["student", "student_quant_2"]) == ["student_quant_2"]


def test_of_equally_accurate_ones_a_clearly_slower_one_is_not_chosen() -> None:
    """A hundredth of the logit error is no reason for a variant that takes 1.2 times as long."""
    scores = {
        name: Score(0.98, 0.998, error, 22, dict.fromkeys(PLACES, math.log(speedup)))
        for name, error, speedup in (("quant_1", 0.050, 1.71), ("quant_2", 0.0505, 2.01), ("slow", 0.2, 2.0))
    }
    teacher = {"teacher": FIELD.scores["teacher"]}
    assert Field(teacher | scores, "teacher").most_accurate(list(scores)) == "quant_2"
