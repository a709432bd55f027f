"""bench/scaling.py, on a tiny model and few shapes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bench import scaling
from bench.scaling import (
    Cost,
    Grid,
    Point,
    as_csv,
    cli,
    costs,
    exponents,
    fit_cost,
    random_feed,
    sweep,
    thread_speedups,
)
from quantlib.support.errors import InputError

SHAPES = [(batch, length) for batch in (1, 4, 16) for length in (16, 64, 256)]
GRID = Grid((1, 2), (8, 16, 100), (1,), turns=2)


def points_of(cost: Cost, model: str = "teacher", threads: int = 1, faster: float = 1.0) -> list[Point]:
    times = [(shape, cost.ms(*shape) / faster) for shape in SHAPES]
    return [Point(model, threads, *shape, ms, ms, ms) for shape, ms in times]


# The fit

TERM = st.one_of(st.just(0.0), st.floats(0.05, 50))


@settings(deadline=None)
@given(TERM, TERM, TERM)
def test_the_fit_finds_the_cost_that_made_the_times(fixed: float, token: float, pair: float) -> None:
    assume(fixed + token + pair > 0)
    cost = Cost(fixed, token, pair, 0.0)
    fit = fit_cost(SHAPES, [cost.ms(*shape) for shape in SHAPES])
    assert fit is not None
    terms = fit.fixed_ms, fit.token_us, fit.pair_ns
    assert terms == pytest.approx((fixed, token, pair), rel=1e-4, abs=1e-6)
    assert fit.error == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_noise_moves_the_fit_little(seed: int) -> None:
    cost = Cost(1.0, 20.0, 100.0, 0.0)
    noise = 1 + np.random.default_rng(seed).uniform(-0.05, 0.05, len(SHAPES))
    fit = fit_cost(SHAPES, [cost.ms(*shape) * n for shape, n in zip(SHAPES, noise, strict=True)])
    assert fit is not None
    assert fit.error <= 0.06
    assert fit.ms(8, 128) == pytest.approx(cost.ms(8, 128), rel=0.1)


def test_shapes_that_tell_nothing_apart() -> None:
    assert fit_cost([(1, 16), (1, 32)], [1.0, 2.0]) is None
    # One length: what a token costs and what a pair costs are the same thing.
    assert fit_cost([(1, 16), (2, 16), (4, 16)], [1.0, 2.0, 4.0]) is None


def test_what_attention_takes() -> None:
    assert Cost(1.0, 2.0, 4.0, 0.0).attention_share(500) == pytest.approx(0.5)
    assert Cost(1.0, 0.0, 0.0, 0.0).attention_share(500) == 0.0


@given(st.floats(0.1, 3.0), st.floats(0.01, 100.0))
def test_exponents_of_a_power_law(power: float, factor: float) -> None:
    lengths = [16, 32, 100, 512]
    fitted = exponents(lengths, [factor * length**power for length in lengths])
    assert fitted == pytest.approx([power] * 3)


def test_threads_are_compared_shape_by_shape() -> None:
    cost = Cost(1.0, 20.0, 100.0, 0.0)
    points = points_of(cost) + points_of(cost, threads=2, faster=1.6) + points_of(cost, "student")
    speedups = thread_speedups(points)
    assert list(speedups) == [("teacher", 2)]
    assert speedups["teacher", 2] == pytest.approx({f"{b}x{n}": 1.6 for b, n in SHAPES})
    assert costs(points)["teacher", 2].token_us == pytest.approx(20 / 1.6)


# The grid


def test_shapes_come_by_tokens_and_within_the_limit() -> None:
    assert Grid((1, 8), (16, 64), max_tokens=200).shapes == [(1, 16), (1, 64), (8, 16)]


@pytest.mark.parametrize(
    "changes",
    [{"batches": ()}, {"lengths": (0,)}, {"threads": (1, 1)}, {"seconds": 0}, {"turns": 0}],
    ids=str,
)
def test_the_grid_is_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="must be"):
        Grid(**changes)


def test_tokens_are_in_any_vocabulary() -> None:
    feed = random_feed(3, 50)
    assert {array.shape for array in feed.values()} == {(3, 50)}
    assert feed["input_ids"].max() < len(tiny.VOCABULARY)
    assert feed["attention_mask"].all()


# A real model


def test_every_shape_that_fits_is_timed(tiny_onnx: Path) -> None:
    result = sweep({"a": tiny_onnx, "b": tiny_onnx}, GRID)
    assert {(p.model, p.batch, p.length) for p in result.points} == {
        (name, batch, length) for name in "ab" for batch in (1, 2) for length in (8, 16)
    }
    assert all(0 < p.ms <= p.median_ms <= p.max_ms for p in result.points)
    # The model has 64 positions.
    assert list(result.left_out) == ["a from 100 tokens a row", "b from 100 tokens a row"]
    assert all("\n" not in reason and str(tiny_onnx) in reason for reason in result.left_out.values())


def test_what_the_budget_does_not_reach_is_named(tiny_onnx: Path) -> None:
    class Seconds:
        now = 0.0

        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    result = sweep({"a": tiny_onnx}, Grid((1,), (8, 16, 32), seconds=5, turns=1), clock=Seconds())
    assert [p.length for p in result.points] == [8, 16]
    assert result.left_out == {"1x32": "the time budget of 5 s is spent"}


def test_the_command_writes_tables_files_and_a_plot(
    tiny_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--batches", "1,2", "--lengths", "8,16,32", "--threads", "1,2", "--turns", "1"]
    assert cli([str(tmp_path), "--model", f"mine={tiny_onnx}", *grid]) == 0
    out = capsys.readouterr().out
    assert "mine, 2 threads" in out
    assert "…" not in out, "a number that is cut off tells nothing"
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert len(written["points"]) == 12
    assert [len(series["exponents"]) for series in written["series"]] == [2, 2]
    assert set(written["series"][1]["speedup_of_threads"]) == {"1x8", "1x16", "1x32", "2x8", "2x16", "2x32"}
    rows = list(csv.DictReader((tmp_path / "scaling.csv").read_text().splitlines()))
    assert [float(row["ms"]) for row in rows] == [point["ms"] for point in written["points"]]
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"scaling.json", "scaling.csv", "scaling.png"}


def test_one_point_can_be_drawn(tmp_path: Path) -> None:
    point = Point("teacher", 1, 1, 16, 2.0, 2.0, 2.0)
    scaling.write(tmp_path, scaling.Sweep((point,)), Grid((1,), (16,)))
    assert json.loads((tmp_path / "scaling.json").read_text())["series"][0]["cost"] is None
    assert as_csv([point]).splitlines()[1] == "teacher,1,1,16,2.0,2.0,2.0,8000.0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "a.onnx"], "--model 'a.onnx' is not NAME=MODEL.onnx"),
        (["--model", "a=b", "--model", "a=c"], "--model a: the name is given twice"),
        (["--model", "a=missing.onnx"], "missing.onnx: no such ONNX model"),
        (["--lengths", "1-9"], "--lengths '1-9' is not a list of numbers"),
        (["--model", "a=b", "--max-tokens", "8"], "no shape"),
    ],
    ids=["no_name", "twice", "missing", "lengths", "no_shape"],
)
def test_wrong_use_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli([str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
