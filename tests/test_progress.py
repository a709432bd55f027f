from __future__ import annotations

import io

import pytest
from rich.console import Console

from quantlib.support.progress import Step, Steps


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def printed(steps: Steps) -> list[str]:
    assert steps.console is not None
    assert isinstance(steps.console.file, io.StringIO)
    return steps.console.file.getvalue().splitlines()


@pytest.fixture
def steps() -> Steps:
    """Steps on a console that is no terminal, 40 columns wide, timed by a clock that is moved by hand."""
    return Steps(Console(file=io.StringIO(), width=40), clock=FakeClock())


def work(steps: Steps, seconds: float) -> None:
    assert isinstance(steps.clock, FakeClock)
    steps.clock.now += seconds


def test_a_step_is_timed_and_gets_one_line(steps: Steps) -> None:
    with steps.step("export teacher") as step:
        work(steps, 12.34)
        step.note = "a note that is longer than the console is wide"
    assert steps.durations_s == {"export teacher": pytest.approx(12.34)}
    assert steps.cached == set()
    (line,) = printed(steps)
    assert " ".join(line.split()) == f"✓ export teacher 12.3 s {step.note}"


def test_a_step_whose_result_is_cached_says_so(steps: Steps) -> None:
    with steps.step("calibrate") as step:
        step.cached = True
        step.note = "loss 0.1"
    assert steps.cached == {"calibrate"}
    assert "cached  loss 0.1" in printed(steps)[0]


@pytest.mark.parametrize(
    ("cached", "all_cached"),
    [([False, True], False), ([True, False], False), ([True, True], True), ([True, False, True], False)],
    ids=str,
)
def test_steps_of_the_same_name_add_up(steps: Steps, cached: list[bool], all_cached: bool) -> None:
    for is_cached in cached:
        with steps.step("smooth teacher") as step:
            step.cached = is_cached
            work(steps, 0.5 if is_cached else 40.0)
    expected = sum(0.5 if is_cached else 40.0 for is_cached in cached)
    assert steps.durations_s == {"smooth teacher": pytest.approx(expected)}
    assert steps.cached == ({"smooth teacher"} if all_cached else set())
    seconds = [line.split()[3] for line in printed(steps)]
    assert seconds == ["0.5" if is_cached else "40.0" for is_cached in cached], "a line has its own time"


def test_a_step_that_raises_leaves_no_line_and_no_duration(steps: Steps) -> None:
    with pytest.raises(ZeroDivisionError), steps.step("broken"):
        work(steps, 1.0)
        raise ZeroDivisionError
    assert (steps.durations_s, steps.cached, printed(steps)) == ({}, set(), [])


def test_brackets_are_text_not_markup(steps: Steps) -> None:
    with steps.step("evaluate [red]x[/red]") as step:
        step.note = "/tmp/[bold]/run"
    assert "evaluate [red]x[/red]" in printed(steps)[0]
    assert printed(steps)[0].endswith("/tmp/[bold]/run")


def test_without_a_console_steps_are_only_timed(capfd: pytest.CaptureFixture[str]) -> None:
    steps = Steps()
    with steps.step("quiet", total=2) as step:
        step.advance()
        step.training(1, 2, 0.5)
    assert steps.durations_s["quiet"] >= 0
    assert capfd.readouterr() == ("", "")


def test_training_says_the_loss() -> None:
    calls = []
    step = Step(lambda count, **changes: calls.append((count, changes)))
    step.training(3, 10, 0.12345)
    assert step.note == "loss 0.123"
    assert calls == [(1, {"total": 10, "note": "loss 0.123"})]


def test_a_terminal_gets_a_bar_that_leaves_only_the_line() -> None:
    file = io.StringIO()
    steps = Steps(Console(file=file, width=120, force_terminal=True, color_system=None))
    with steps.step("train", total=4) as step:
        step.advance(2)
        step.training(3, 4, 1.5)
    *drawn, last = file.getvalue().splitlines()
    assert "75%" in "".join(drawn), "2 units and a training step of 4"
    assert last.endswith("loss 1.500")
    assert "%" not in last
