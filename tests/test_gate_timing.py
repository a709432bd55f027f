"""What a gate run times: nothing that is unchanged, old and new in turns, the teacher for the rest."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from test_gate import MACHINE, table
from test_gate_identity import known

from quantlib import gate
from quantlib.experiment import gate_timing, judging
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.gate_timing import GateTiming, confidence_of
from quantlib.measuring.latency import Launches, Sampling
from quantlib.measuring.latency.shapes import Shape
from quantlib.support.errors import Unavailable
from quantlib.support.progress import Steps

SAMPLING = Sampling(min_launches=2, max_launches=4)
OLD = "2" * 64
BOTH = {"max_slowdown": 0.05, "min_speedup": 1.2}


class Starts:
    """Processes of the teacher, the new and the old model, whose times do not vary; counts their launches."""

    def __init__(self, **times_ms: float) -> None:
        self.times_ms = {"teacher": 16.0, "quant_2": 10.0, "old": 10.0} | times_ms
        self.launches = Counter[str]()

    @contextlib.contextmanager
    def launch(self, name: str) -> Iterator[Any]:
        self.launches[name] += 1
        yield SimpleNamespace(time=lambda runs, **_: [self.times_ms[name]] * runs)


class Old:
    """Where old models come from: a store that has them, or not."""

    def __init__(self, starts: Starts, why_not: str = "") -> None:
        self.starts, self.why_not, self.asked = starts, why_not, Counter[str]()

    def find(self, variant: Any, changes: gate.Changes, feeds: Any) -> Any:
        self.asked[changes.words] += 1
        if self.why_not:
            raise Unavailable(self.why_not)
        return SimpleNamespace(start=lambda _: self.starts.launch("old"), words="old model from the store")


def measured(
    starts: Starts,
    baseline: gate.GateRecord | None,
    monkeypatch: pytest.MonkeyPatch,
    *,
    limits: dict[str, float] | None = None,
    why_not: str = "",
    current: gate.GateRecord | None = None,
    **options: Any,
) -> tuple[gate.GateRecord, gate.Comparison | None]:
    """One run at one shape."""
    monkeypatch.setattr(gate_timing, "feeds_of", lambda *_: [])
    monkeypatch.setattr(gate_timing, "start", lambda v, *_: lambda: starts.launch(v.name))
    variants = tuple(SimpleNamespace(name=name) for name in ("teacher", "quant_2"))
    timing = GateTiming(
        SimpleNamespace(task=SimpleNamespace(name="SST-2"), variants=variants),  # type: ignore[arg-type]
        SimpleNamespace(),  # type: ignore[arg-type]
        table(**({"max_slowdown": 0.05} if limits is None else limits)),
        SAMPLING,
        Steps(),
        baseline=baseline,
        old_models=Old(starts, why_not),  # type: ignore[arg-type]
        watch=lambda _: lambda: 0.0,
        **options,
    )
    record, compared = timing.measure(current or known(latency={}), [Shape(1, 128)])
    return record, compared["quant_2"].get("1x128")


def test_what_is_unchanged_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(quant_2=100.0)
    record, comparison = measured(starts, known(), monkeypatch, limits=BOTH)
    assert comparison is not None
    assert comparison.how == "unchanged"
    assert starts.launches == {}
    assert record.latency == known().latency


def test_what_is_unchanged_is_timed_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts()
    _, comparison = measured(starts, known(), monkeypatch, remeasure=True)
    assert comparison is not None
    assert comparison.how == "old model"
    assert starts.launches == {"old": 2, "quant_2": 2}


def test_on_another_processor_the_same_is_unchanged_but_its_speedup_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other_processor = known(machine=MACHINE | {"cpu_model": "EPYC"})
    starts = Starts()
    record, comparison = measured(starts, other_processor, monkeypatch)
    assert comparison is not None
    assert comparison.words.endswith("would run in the same way here (cpu_model: Xeon, baseline EPYC)")
    assert (starts.launches, record.latency["quant_2"]) == ({}, {})
    record, comparison = measured(starts, other_processor, monkeypatch, limits=BOTH)
    assert comparison is not None
    assert comparison.how == "unchanged"
    assert starts.launches == {"teacher": 2, "quant_2": 2}
    assert gate.estimate_speedup(record.latency["quant_2"]["1x128"]).ratio == pytest.approx(1.6)


def test_a_new_teacher_s_speedup_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = known()
    teacher = replace(baseline.variants["teacher"], sha256="9" * 64)
    baseline = replace(baseline, variants={**baseline.variants, "teacher": teacher})
    starts = Starts()
    record, comparison = measured(starts, baseline, monkeypatch, limits=BOTH)
    assert comparison is not None
    assert comparison.how == "unchanged"
    assert starts.launches == {"teacher": 2, "quant_2": 2}
    assert record.latency["quant_2"]["1x128"].teacher_ms == 16.0


@pytest.mark.parametrize(("new_ms", "outcome"), [(10.0, "pass"), (12.0, "fail"), (10.5, "undecided")])
def test_old_and_new_take_turns_without_the_teacher(
    monkeypatch: pytest.MonkeyPatch, new_ms: float, outcome: str
) -> None:
    starts = Starts(quant_2=new_ms)
    record, comparison = measured(starts, known(OLD), monkeypatch)
    assert comparison is not None
    assert (comparison.how, comparison.words) == ("old model", "old model from the store")
    assert gate.decide_pair(comparison, 0.05) == outcome
    assert starts.launches["teacher"] == 0
    assert starts.launches["old"] == starts.launches["quant_2"]
    assert (starts.launches["old"] == 4) or outcome != "undecided"
    assert record.latency["quant_2"] == {}


def test_a_limit_on_the_speedup_needs_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts()
    record, comparison = measured(starts, known(OLD), monkeypatch, limits=BOTH)
    assert comparison is not None
    assert comparison.how == "old model"
    assert starts.launches["teacher"] == 2
    assert "1x128" in record.latency["quant_2"]


def test_without_an_old_model_the_teacher_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts()
    record, comparison = measured(starts, known(OLD), monkeypatch, why_not="no such model", spread=0.4)
    assert comparison is not None
    assert (comparison.how, comparison.words, comparison.spread) == ("teacher", "no such model", 0.4)
    assert comparison.confidence == gate.confidence_at(4, 2, 4)
    assert starts.launches == {"teacher": 4, "quant_2": 4}
    assert "1x128" in record.latency["quant_2"]


def test_that_way_does_not_lead_across_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    other_machine = known(OLD, machine=MACHINE | {"cpu_model": "EPYC"})
    for across, how in ((False, "not compared"), (True, "teacher")):
        _, comparison = measured(
            Starts(), other_machine, monkeypatch, why_not="no such model", across_machines=across
        )
        assert comparison is not None
        assert comparison.how == how


def test_the_old_model_works_across_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    other_machine = known(OLD, machine=MACHINE | {"cpu_model": "EPYC"})
    _, comparison = measured(Starts(quant_2=12.0), other_machine, monkeypatch)
    assert comparison is not None
    assert gate.decide_pair(comparison, 0.05) == "fail"


def test_a_baseline_takes_all_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts()
    record, comparison = measured(starts, None, monkeypatch)
    assert comparison is None
    assert starts.launches == {"teacher": 4, "quant_2": 4}
    assert len(record.latency["quant_2"]["1x128"].launches) == 4


def test_a_variant_that_the_baseline_lacks_is_timed_as_little_as_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts = Starts()
    _, comparison = measured(starts, known(latency={}), monkeypatch)
    assert comparison is None
    assert starts.launches == {"teacher": 2, "quant_2": 2}


@pytest.mark.parametrize(("launches", "look"), [(1, 2), (2, 2), (3, 3), (4, 4), (5, 4)])
def test_the_confidence_is_that_of_the_look(launches: int, look: int) -> None:
    sampled = Launches(((0.0, 0.0),) * launches, 1.0, 1.0, 0.0, False)
    assert confidence_of(sampled, SAMPLING) == gate.confidence_at(look, 2, 4)


def test_an_old_baseline_takes_the_weaker_way(monkeypatch: pytest.MonkeyPatch) -> None:
    _, comparison = measured(Starts(), known("", None), monkeypatch, why_not="not recorded")
    assert comparison is not None
    assert (comparison.how, comparison.words) == ("teacher", "not recorded")


@pytest.mark.parametrize(
    ("said", "known_spread", "elsewhere", "expected"),
    [
        (None, 0.25, False, 0.25),
        (None, None, False, judging.STATE_SPREAD),
        (None, 0.25, True, judging.STATE_SPREAD),
        (0.0, 0.25, False, 0.0),
    ],
)
def test_states_widen_by_what_is_known_of_this_machine(
    said: float | None,
    known_spread: float | None,
    elsewhere: bool,
    expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(judging, "known_state_spread", lambda _: known_spread)
    machine = MACHINE | {"cpu_model": "EPYC"} if elsewhere else MACHINE
    current, baseline = known(machine=machine), known(machine=MACHINE)
    options = GateOptions(gate="", gate_state_spread=said)
    spread = judging._state_spread(current, baseline, SimpleNamespace(), options)  # type: ignore[arg-type]
    assert spread == expected
