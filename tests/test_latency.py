from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency import (
    LatencyStats,
    PairedRatio,
    TimedProcess,
    benchmark_onnx_model,
    process,
    ratio_interval,
    take_turns,
    time_calls,
    worker,
)
from quantlib.measuring.latency.limits import TimeLimits
from quantlib.measuring.latency.stats import wake
from quantlib.support.errors import InputError

ONE_THREAD = SessionConfig(threads=1)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", autouse=True)
def timed_here() -> None:
    """Here the processes are what is tested."""


class FakeClock:
    """A clock that moves only when work is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


# stats


def test_time_calls_wakes_warms_up_and_times() -> None:
    clock, calls = FakeClock(), []

    def call() -> None:
        calls.append(clock.now)
        clock.now += 0.01 * len(calls)

    stats = time_calls(call, warmup_runs=2, num_runs=3, wake_seconds=0.05, clock=clock)
    # 10 + 20 + 30 ms reach the 50 ms of waking; calls 4 and 5 warm up.
    assert stats.times_ms == pytest.approx((60, 70, 80))
    assert stats.warmup_runs == 2
    assert len(calls) == 8


def test_no_wake_time_means_no_call() -> None:
    calls: list[int] = []
    wake(lambda: calls.append(1), 0.0, FakeClock())
    assert calls == []


@pytest.mark.parametrize(
    ("counts", "words"),
    [({"num_runs": 1}, "num_runs must be at least 2, not 1"), ({"warmup_runs": -1}, "warmup_runs .* not -1")],
    ids=["one_run", "negative_warmup"],
)
def test_impossible_counts(counts: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        time_calls(FakeClock().work(0.01), **counts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        benchmark_onnx_model(Path("unused.onnx"), [], **counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("times", [(1.0,), (1.0, math.nan), (1.0, -1.0), (1.0, math.inf)], ids=str)
def test_times_are_checked(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"times_ms|needs at least 2"):
        LatencyStats(times, warmup_runs=0)


@given(st.lists(st.floats(0.01, 1e4), min_size=2, max_size=50))
def test_statistics_are_numpys(times: list[float]) -> None:
    stats = LatencyStats(tuple(times), warmup_runs=0)
    assert stats.mean_ms == pytest.approx(np.mean(times))
    assert stats.std_ms == pytest.approx(np.std(times, ddof=1))
    assert (stats.min_ms, stats.max_ms) == (np.min(times), np.max(times))
    assert stats.median_ms == pytest.approx(np.median(times))
    assert stats.iqr_ms == pytest.approx(np.subtract(*np.percentile(times, [75, 25])))
    assert stats.standard_error_ms == pytest.approx(np.std(times, ddof=1) / len(times) ** 0.5)
    assert stats.relative_error == pytest.approx(stats.standard_error_ms / stats.mean_ms)
    assert {type(value) for value in (stats.mean_ms, stats.std_ms, stats.median_ms)} == {float}


def test_times_of_zero_have_no_error() -> None:
    assert LatencyStats((0.0, 0.0), warmup_runs=0).relative_error == 0.0


@pytest.mark.parametrize(
    ("times", "noisy"),
    [
        ([10.0, 10.2] * 15, False),
        ([10.0] * 29 + [13.0], False),
        ([10.0] * 29 + [20.0], True),
        ([10.0] * 15 + [11.5] * 15, True),
    ],
    ids=["quiet", "small_spike", "spike_that_moves_the_mean", "two_speeds"],
)
def test_noisy(times: list[float], noisy: bool) -> None:
    assert LatencyStats(tuple(times), warmup_runs=5).noisy is noisy


# ratio intervals

POSITIVE = st.floats(0.1, 1000.0)
PAIRS = st.lists(st.tuples(POSITIVE, POSITIVE), min_size=2, max_size=30)


@settings(deadline=None)
@given(PAIRS, st.floats(0.01, 100.0))
def test_ratio_interval_contains_the_ratio_and_follows_scale(
    pairs: list[tuple[float, float]], scale: float
) -> None:
    numerator, denominator = np.array(pairs).T
    interval = ratio_interval(numerator, denominator, resamples=200)
    assert interval.low <= interval.ratio <= interval.high
    assert min(numerator / denominator) <= interval.low * (1 + 1e-9)
    assert interval.high <= max(numerator / denominator) * (1 + 1e-9)
    scaled = ratio_interval(scale * numerator, denominator, resamples=200)
    expected = (scale * interval.ratio, scale * interval.low, scale * interval.high)
    assert (scaled.ratio, scaled.low, scaled.high) == pytest.approx(expected)


@settings(deadline=None)
@given(PAIRS)
def test_the_inverse_ratio_has_the_inverse_interval(pairs: list[tuple[float, float]]) -> None:
    numerator, denominator = np.array(pairs).T
    interval = ratio_interval(numerator, denominator, resamples=200)
    inverse = ratio_interval(denominator, numerator, resamples=200)
    assert (1 / inverse.ratio, 1 / inverse.high, 1 / inverse.low) == pytest.approx(
        (interval.ratio, interval.low, interval.high)
    )


@settings(deadline=None)
@given(st.lists(POSITIVE, min_size=2, max_size=30))
def test_identical_series_have_ratio_one(times: list[float]) -> None:
    interval = ratio_interval(times, times)
    assert (interval.ratio, interval.low, interval.high, interval.turns) == (1.0, 1.0, 1.0, len(times))


def test_the_same_input_gives_the_same_interval() -> None:
    times = np.random.default_rng(3).lognormal(size=(2, 20))
    assert ratio_interval(*times) == ratio_interval(*times)
    assert ratio_interval(*times) != ratio_interval(*times, seed=1)


@pytest.mark.parametrize(("turns", "confidence"), [(2, 0.5), (3, 0.75), (5, 0.9375), (6, 0.95), (40, 0.95)])
def test_few_turns_do_not_claim_more_than_they_can(turns: int, confidence: float) -> None:
    times = np.random.default_rng(0).lognormal(size=(2, turns))
    assert ratio_interval(*times).confidence == confidence


@pytest.mark.parametrize(
    ("numerator", "denominator", "words"),
    [
        ([1.0], [1.0], "2 or more turns"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "same 2 or more"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "same 2 or more"),
        ([1.0, 0.0], [1.0, 1.0], "positive and finite"),
        ([1.0, 1.0], [1.0, math.nan], "positive and finite"),
    ],
    ids=["one_turn", "lengths", "dimensions", "zero", "nan"],
)
def test_series_without_a_ratio(numerator: Any, denominator: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ratio_interval(numerator, denominator)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_confidence_is_checked(confidence: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        ratio_interval([1.0, 2.0], [1.0, 2.0], confidence=confidence)


@pytest.mark.parametrize(
    "values",
    [
        {"low": 1.1},
        {"high": 0.9},
        {"low": 0.0},
        {"high": math.inf},
        {"ratio": math.nan},
        {"turns": 1},
        {"confidence": 1.0},
    ],
    ids=str,
)
def test_paired_ratio_is_checked(values: dict[str, Any]) -> None:
    fields = {"ratio": 1.0, "low": 0.9, "high": 1.1, "turns": 4, "confidence": 0.95}
    PairedRatio(**fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must lie|needs at least"):
        PairedRatio(**(fields | values))


class DriftingMachine:
    """Block times of processes on a machine that drifts and is interrupted: multiplicative, seeded.

    drift: linear, a block. wander: standard deviation of a random walk's step, a block.
    """

    def __init__(self, seed: int, drift: float, wander: float) -> None:
        self.rng = np.random.default_rng(seed)
        self.drift, self.wander, self.log_speed = drift, wander, 0.0

    def process(self, base_ms: float) -> FakeProcess:
        return FakeProcess(self, base_ms)

    def block_ms(self, base_ms: float) -> float:
        self.log_speed += self.drift + self.wander * self.rng.standard_normal()
        spike = self.rng.exponential(0.5) if self.rng.random() < 0.1 else 0.0
        return float(base_ms * math.exp(self.log_speed + spike + 0.02 * self.rng.standard_normal()))


class FakeProcess:
    def __init__(self, machine: DriftingMachine, base_ms: float) -> None:
        self.machine, self.base_ms = machine, base_ms

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = 0.0) -> list[float]:
        return [self.machine.block_ms(self.base_ms)] * runs


@pytest.mark.parametrize(
    ("turns", "drift", "wander", "most"),
    [
        (6, 0.0, 0.01, 1.0),
        (10, 0.0, 0.01, 1.0),
        (40, 0.0, 0.01, 0.985),
        (40, 0.0, 0.04, 0.985),
        (40, 0.02, 0.01, 1.0),
    ],
    ids=["6_turns", "10_turns", "40_turns", "40_turns_wandering", "40_turns_drifting"],
)
def test_intervals_cover_the_truth_at_their_rate(
    turns: int, drift: float, wander: float, most: float
) -> None:
    trials, covered = 300, 0
    for seed in range(trials):
        machine = DriftingMachine(seed, drift, wander)
        times = take_turns([machine.process(15.0), machine.process(10.0)], turns, block=1)
        interval = ratio_interval(times[0], times[1], resamples=500, seed=seed)
        covered += interval.low <= 1.5 <= interval.high
    # 300 trials at 95 % have a standard deviation of 1.3 %: at least 91 % is three of them. A steady drift
    # makes the interval wider than it need be, never narrower, and so do few turns.
    assert 0.91 <= covered / trials <= most


def test_steady_drift_favours_nobody() -> None:
    machine = DriftingMachine(0, drift=0.01, wander=0.0)
    times = take_turns([machine.process(10.0) for _ in range(3)], turns=200, block=1)
    for other in times[1:]:
        assert ratio_interval(times[0], other).ratio == pytest.approx(1.0, abs=0.01)


# turns


class Recorder:
    def __init__(self, name: str, log: list[tuple[str, int, float]]) -> None:
        self.name, self.log = name, log

    def time(self, runs: int, *, warmup_runs: int = 0, wake_seconds: float = 0.0) -> list[float]:
        self.log.append((self.name, runs, wake_seconds))
        return [1.0 * len(self.log), 100.0, 2.0 * len(self.log)][:runs]


def test_turns_are_reversed_woken_and_reduced_to_medians() -> None:
    log: list[tuple[str, int, float]] = []
    medians = take_turns([Recorder(name, log) for name in "ABC"], turns=3, block=3, wake_seconds=0.5)
    assert "".join(name for name, _, _ in log) == "ABCCBAABC"
    assert {entry[1:] for entry in log} == {(3, 0.5)}
    # The median of n, 100 and 2n is 2n for the n-th block.
    np.testing.assert_array_equal(medians, 2.0 * np.array([[1, 6, 7], [2, 5, 8], [3, 4, 9]]))


@pytest.mark.parametrize(("turns", "block"), [(0, 1), (1, 0)])
def test_turns_and_block_are_checked(turns: int, block: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        take_turns([], turns, block)


# the timing process


def save_model(path: Path, *, batch: int | str = "batch", operator: str = "MatMul") -> Path:
    """x @ weight, x float32 (batch, 4)."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "weight"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("latency") / "tiny.onnx")


def feed(batch: int = 2) -> dict[str, Array]:
    return {"x": np.ones((batch, 4), dtype=np.float32), "labels": np.zeros(batch)}


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[TimedProcess]:
    with TimedProcess(model, [feed(), feed()], ONE_THREAD) as timed:
        yield timed


def test_a_process_times_its_model(running: TimedProcess) -> None:
    times = running.time(3, warmup_runs=1, wake_seconds=0.0)
    assert len(times) == 3
    assert all(0 < time_ms < 1000 for time_ms in times)


def test_a_process_can_be_given_another_shape(running: TimedProcess) -> None:
    running.set_feeds([feed(batch=5)])
    assert len(running.time(2, wake_seconds=0.0)) == 2


def test_a_process_survives_what_it_refuses(running: TimedProcess) -> None:
    with pytest.raises(InputError, match=r"tiny\.onnx: the model has an input 'x'; there are only: y"):
        running.set_feeds([{"y": np.ones((1, 4))}])
    with pytest.raises(RuntimeError, match=r"tiny\.onnx: Got invalid dimensions") as caught:
        running.set_feeds([{"x": np.ones((1, 5))}])
        running.time(1, wake_seconds=0.0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no feeds"):
        running.set_feeds([])
    running.set_feeds([feed()])
    assert len(running.time(1, wake_seconds=0.0)) == 1


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_process_is_reaped_on_leaving(model: Path) -> None:
    with TimedProcess(model, [feed()], ONE_THREAD) as timed:
        pid = timed.pid
        assert not is_gone(pid)
    assert is_gone(pid)


def test_a_process_is_killed_by_an_exception(model: Path) -> None:
    with pytest.raises(KeyError), TimedProcess(model, [feed()], ONE_THREAD) as timed:
        pid = timed.pid
        raise KeyError
    assert is_gone(pid)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_process_that_dies_is_noticed(model: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"tiny\.onnx died with exit code -9: no message"),
        TimedProcess(model, [feed()], ONE_THREAD) as timed,
    ):
        os.kill(timed.pid, signal.SIGKILL)
        timed.time(1)
    assert is_gone(timed.pid)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_process_that_dies_while_it_works_is_noticed(model: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="died with exit code -15"),
        TimedProcess(model, [feed()], ONE_THREAD) as timed,
    ):
        # The request would take a minute; the signal comes while the answer is awaited, or just before.
        threading.Timer(0.1, os.kill, (timed.pid, signal.SIGTERM)).start()
        timed.time(1, wake_seconds=60.0)


# Answers a number of requests as the worker does, and then nothing more; it ends when its stdin is closed.
HANGING_WORKER = """
import json, sys
for number, line in enumerate(sys.stdin):
    if number < int(sys.argv[1]):
        runs = json.loads(line).get("runs", 0)
        print(json.dumps({"result": [1.0] * runs or None}), flush=True)
"""
IMPATIENT = TimeLimits(answer_s=0.2, first_run_s=0.05, slowdown=2.0)


def hanging(model: Path, answers: int) -> TimedProcess:
    worker = (sys.executable, "-c", HANGING_WORKER, str(answers))
    # Starting Python takes longer than the limit where no request may hang.
    limits = replace(IMPATIENT, answer_s=60.0 if answers else 0.2)
    return TimedProcess(model, [feed()], ONE_THREAD, limits=limits, worker=worker)


def test_a_process_that_hangs_while_it_loads_is_killed(model: Path) -> None:
    threads = threading.active_count()
    timed = hanging(model, 0)
    with pytest.raises(RuntimeError, match=r'tiny\.onnx did not answer .*"load".* within 0.2 s; it was'):
        timed.__enter__()
    assert is_gone(timed.pid)
    assert threading.active_count() == threads


@pytest.mark.parametrize("timed_before", [0, 1], ids=["first_runs", "later_runs"])
def test_a_process_that_hangs_while_it_runs_is_killed(model: Path, timed_before: int) -> None:
    threads = threading.active_count()
    with hanging(model, 2 + timed_before) as timed:
        for _ in range(timed_before):
            assert timed.time(3) == [1.0] * 3
        timed._limits = IMPATIENT
        with pytest.raises(RuntimeError, match=r'tiny\.onnx did not answer .*"time", "runs": 2.* within'):
            timed.time(2, wake_seconds=0.0)
    assert is_gone(timed.pid)
    assert threading.active_count() == threads


def test_runs_may_take_a_multiple_of_the_slowest_one_so_far() -> None:
    limits = TimeLimits(answer_s=600.0, first_run_s=60.0, slowdown=100.0)
    assert limits.for_runs(10, 0.5, None) == 1200.5
    assert limits.for_runs(10, 0.5, 20.0) == pytest.approx(620.5)


def test_the_last_words_of_a_process_are_repeated(model: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"exit code 1: Traceback(.|\n)*unknown command 'dance'"),
        TimedProcess(model, [feed()], ONE_THREAD) as timed,
    ):
        timed._ask("dance")


def test_a_corrupt_model_is_input_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"garbage" * 30)
    monkeypatch.chdir(tmp_path)
    timed = TimedProcess(Path("bad.onnx"), [feed()], ONE_THREAD)
    with pytest.raises(InputError, match=r"bad\.onnx: cannot be loaded: Protobuf parsing failed") as caught:
        timed.__enter__()
    assert str(caught.value).count("bad.onnx") == 1
    assert is_gone(timed.pid)


def test_the_child_finds_this_quantlib_whatever_the_working_directory_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "quantlib"
    other.mkdir()
    (other / "__init__.py").write_text("raise SystemExit('the wrong quantlib')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with TimedProcess(model, [feed()], ONE_THREAD) as timed:
        assert timed.time(1, wake_seconds=0.0)


def test_an_installed_quantlib_leaves_the_path_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "mine")
    assert process._environment()["PYTHONPATH"].endswith(f"{os.pathsep}mine")
    parent = Path(process.__file__).resolve().parents[3]
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(parent))
    assert process._environment()["PYTHONPATH"] == "mine"


def test_what_the_worker_prints_stays_out_of_the_answers(model: Path) -> None:
    load = {"command": "load", "onnx_path": str(model), "threads": 1, "spinning": True}
    code = (
        "import os, quantlib.measuring.latency.worker as w;"
        "import dataclasses;"
        "noisy = lambda *a, **k: (print('noise'), os.system('echo more noise'));"
        "row = dataclasses.replace(w.get_engine('onnxruntime'), open=noisy);"
        "w.get_engine = lambda name: row;"
        "w.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(load | {"providers": ["CPUExecutionProvider"]}) + "\n",
        capture_output=True,
        text=True,
        check=True,
        env=process._environment(),
    )
    assert result.stdout == '{"result": null}\n'
    assert "noise" in result.stderr


def test_the_worker_starts_light() -> None:
    heavy = {"torch", "transformers", "sklearn", "scipy", "onnx", "psutil", "cpuinfo", "rich"}
    code = "import sys, onnxruntime, quantlib.measuring.latency.worker; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=process._environment()
    )
    assert not heavy & set(result.stdout.split())


class CountingSession:
    def __init__(self) -> None:
        self.seen: list[int] = []

    def run(self, _outputs: None, number: int) -> None:
        self.seen.append(number)


def test_timed_runs_cycle_through_the_feeds_whatever_ran_untimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = CountingSession()
    obedient = worker.Worker()
    obedient._session = session
    monkeypatch.setattr(worker, "feed_of", lambda _session, arrays: int(arrays["n"]))
    for number in range(3):
        np.savez(tmp_path / f"{number}.npz", n=number)
    obedient.obey({"command": "feeds", "directory": str(tmp_path)})
    for warmup_runs in (0, 2, 1):
        obedient.obey({"command": "time", "runs": 2, "warmup_runs": warmup_runs, "wake_seconds": 0.0})
    untimed, timed = [[], [0, 1], [2]], [[0, 1], [2, 0], [1, 2]]
    assert session.seen == [n for both in zip(untimed, timed, strict=True) for block in both for n in block]


def test_the_protocol() -> None:
    answers = io.StringIO()
    bad = {"command": "load", "onnx_path": "missing.onnx", "threads": 1, "spinning": True, "providers": ["X"]}
    worker.serve([json.dumps(bad)], answers)
    answer = json.loads(answers.getvalue())
    assert answer["input"] is True
    assert "unknown execution provider 'X'" in answer["error"]


# the fixed number of runs


def test_benchmark_onnx_model(model: Path) -> None:
    stats = benchmark_onnx_model(model, [feed(), feed()], warmup_runs=1, num_runs=4, threads=1)
    assert len(stats.times_ms) == 4
    assert stats.warmup_runs == 1
    assert stats.median_ms > 0


def test_benchmark_draws_no_more_batches_than_it_runs(model: Path) -> None:
    def endless() -> Iterator[dict[str, Array]]:
        while True:
            yield feed()

    assert len(benchmark_onnx_model(model, endless(), warmup_runs=0, num_runs=2, threads=1).times_ms) == 2


@pytest.mark.parametrize(
    ("feeds", "words"),
    [([], "no batches"), ([feed(2), feed(3)], "batch 1 has shapes .*must be equal")],
    ids=["none", "two_shapes"],
)
def test_benchmark_needs_one_shape(model: Path, feeds: list[dict[str, Array]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        benchmark_onnx_model(model, feeds)


def test_benchmark_in_a_session_as_described(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[SessionConfig | None] = []

    class Seen(TimedProcess):
        def __init__(self, path: Path, feeds: Any, config: SessionConfig | None = None) -> None:
            configs.append(config)
            super().__init__(path, feeds, config)

    monkeypatch.setattr("quantlib.measuring.latency.fixed.TimedProcess", Seen)
    session = SessionConfig(1, spinning=False, disabled_optimizers=(), unsigned_activations=False)
    stats = benchmark_onnx_model(model, [feed()], warmup_runs=0, num_runs=2, session=session)
    assert len(stats.times_ms) == 2
    benchmark_onnx_model(model, [feed()], warmup_runs=0, num_runs=2, threads=1)
    assert configs == [session, SessionConfig(1)]


@pytest.mark.parametrize("more", [{"threads": 1}, {"providers": ("Nope",)}], ids=["threads", "providers"])
def test_a_session_says_it_all(model: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="threads and providers are part of the session; give them there"):
        benchmark_onnx_model(model, [feed()], session=SessionConfig(1), **more)
    with pytest.raises(InputError, match="unknown execution provider 'Nope'"):
        benchmark_onnx_model(model, [feed()], session=SessionConfig(1, providers=("Nope",)))


def test_benchmark_refuses_what_it_cannot_run(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="threads must be at least 1"):
        benchmark_onnx_model(model, [feed()], threads=0)
    with pytest.raises(InputError, match=r"none\.onnx: no such ONNX model"):
        benchmark_onnx_model(tmp_path / "none.onnx", [feed()])
    with pytest.raises(InputError, match="unknown execution provider 'Nope'"):
        benchmark_onnx_model(model, [feed()], providers=["Nope"])
