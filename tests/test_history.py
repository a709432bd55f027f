"""Variants over the commits of a repository: what is read, what is a step, and what is shown."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gate import MACHINE, flipped, gate_record, int8_record, latency, variant_record
from test_gate_identity import known
from test_git import commit, git

from quantlib.cli.main import quantlib
from quantlib.gate import GateRecord, write_record
from quantlib.gate.history.history import History, read_history
from quantlib.gate.history.series import Machine, Point, Series, Timing
from quantlib.gate.history.steps import pooled, steps_of
from quantlib.measuring.latency.estimate import LogRatio
from quantlib.support.commits import Commit
from quantlib.support.errors import InputError

ROOT = Path(__file__).resolve().parent.parent

# Steps


def log_ratio(center: float, error: float = 0.02, degrees: float = 6.0) -> LogRatio:
    return LogRatio(center, error, degrees, turns=12)


def timing(speedup: float, **changes: Any) -> Timing:
    return Timing(speedup, speedup * 0.96, speedup * 1.04, log_ratio(math.log(speedup)), **changes)


def point(place: int, speedup: float = 2.0, **changes: Any) -> Point:
    values: dict[str, Any] = {
        "commit": Commit(f"{place:040x}", 1_700_000_000 + 86_400 * place, f"commit {place}", place),
        "score": 0.9,
        "drop": 0.01,
        "size_bytes": 22_000_000,
        "timings": {"1x128": timing(speedup)},
        "rows": "r",
    }
    return Point(**(values | changes))


def series(points: Sequence[Point], variant: str = "quant_2") -> Series:
    return Series("baseline", "b.json", "SST-2", variant, Machine("Xeon", ("avx2",), 2), tuple(points))


def steps_in(points: Sequence[Point], spread: float = 0.0) -> list[tuple[int, str, bool, bool, bool]]:
    """(place, measure, worse, sure, lasts) of each step."""
    steps = steps_of(series(points), spread)
    return [(s.at.place, s.measure, s.worse, s.sure, s.lasts) for s in steps]


def test_a_slowdown_is_a_step_at_its_commit() -> None:
    assert steps_in([point(k, 2.0 if k < 4 else 1.6) for k in range(8)]) == [(4, "speedup", True, True, True)]


def test_one_that_was_mended_does_not_last() -> None:
    speedups = [2.0, 2.0, 1.6, 1.6, 2.01, 2.0]
    assert steps_in([point(k, s) for k, s in enumerate(speedups)]) == [
        (2, "speedup", True, True, False),
        (4, "speedup", False, True, True),
    ]


def test_slow_drift_is_a_step_once_it_is_clear() -> None:
    """From one commit to the next nothing can be seen."""
    drifting = [point(k, 2.0 * 0.98**k) for k in range(12)]
    assert all(steps_in(drifting[k : k + 2]) == [] for k in range(11))
    assert steps_in(drifting)[0][1:] == ("speedup", True, True, True)


def test_little_that_is_sure_is_no_step() -> None:
    exact = {"log_ratio": log_ratio(math.log(1.93), 1e-4)}
    points = [point(0), replace(point(1), timings={"1x128": replace(timing(1.93), **exact)})]
    assert steps_in(points) == []


def test_a_step_of_speed_without_a_recorded_interval_is_none() -> None:
    bare = {"1x128": Timing(1.0, 1.0, 1.0)}
    assert steps_in([point(0), point(1, timings=bare), point(2)]) == []


def test_a_series_that_never_changed_has_a_step_once_in_a_hundred() -> None:
    rng = np.random.default_rng(3)
    draws = 0.02 * rng.standard_t(6, (1000, 8))
    histories = [
        series(
            [
                point(k, timings={"1x128": replace(timing(2.0), log_ratio=log_ratio(v))})
                for k, v in enumerate(row)
            ]
        )
        for row in draws
    ]
    with_steps = sum(bool(steps_of(each, 0.0)) for each in histories)
    assert with_steps <= 10 + 3 * math.sqrt(10)


@pytest.mark.parametrize(
    ("changes", "spread", "note"),
    [
        ({}, 0.4, "not sure: the states of a machine may do as much"),
        ({"timings": {"1x128": timing(1.6, busy=True)}}, 0.0, "not sure: other programs used the machine"),
        ({"uncommitted": True}, 0.0, "not sure: the code that ran was not the commit's"),
        ({"program": {"model": "m"}}, 0.0, "the machine's: models, session and runtime are the same"),
        ({"timings": {"1x128": timing(1.6, covers_states=True)}}, 0.4, ""),
        ({"program": {"model": "n"}}, 0.0, "changed: model"),
    ],
)
def test_what_may_have_done_it(changes: dict[str, Any], spread: float, note: str) -> None:
    points = [point(0, program={"model": "m"}), point(1, **({"speedup": 1.6} | changes))]
    (step,) = steps_of(series(points), spread)
    assert step.note == note
    assert step.sure == (not note.startswith(("not sure", "the machine's")))


def test_a_change_beyond_the_states_of_a_machine_is_sure() -> None:
    assert steps_in([point(0, 2.0), point(1, 1.0)], 0.4) == [(1, "speedup", True, True, True)]


def test_the_level_weighs_points_by_their_errors() -> None:
    mean = pooled([log_ratio(0.0, 0.01), log_ratio(1.0, 0.02)])
    assert mean.center == pytest.approx(0.2)
    assert mean.error == pytest.approx(0.01 * math.sqrt(0.8))
    assert 6.0 < mean.degrees < 12.0


def test_sizes_are_exact() -> None:
    sizes = [22_000_000, 22_050_000, 22_200_000, 22_200_000]
    assert steps_in([point(k, size_bytes=size) for k, size in enumerate(sizes)]) == [
        (2, "size", True, True, True)
    ]


def test_a_drop_is_compared_on_the_same_rows() -> None:
    wide, narrow = (0.0, 0.04), (0.019, 0.021)
    low = (0.009, 0.011)
    first = point(0, drop_interval=low)
    assert steps_in([first, point(1, drop=0.014)]) == []
    assert steps_in([first, point(1, drop=0.02, drop_interval=narrow)]) == [(1, "drop", True, True, True)]
    assert steps_in([first, point(1, drop=0.02, drop_interval=wide)]) == [(1, "drop", True, False, True)]
    assert steps_in([first, point(1, drop=0.02, drop_interval=narrow, rows="s")]) == [
        (1, "drop", True, False, True)
    ]
    assert steps_in([first, point(1, drop=0.02, drop_interval=narrow), point(2, drop=0.01)]) == [
        (1, "drop", True, True, False),
        (2, "drop", False, False, True),
    ]


def of_record(place: int, record: GateRecord, variant: str = "quant_2") -> Point:
    entry = record.variants[variant]
    return point(place, score=entry.score, drop=entry.accuracy_drop, record=record)


def test_predictions_of_two_commits_are_paired() -> None:
    """The same four rows wrong as the teacher, then 8 more: the interval leaves out 0."""
    records = [gate_record(int8_record(flipped(1, 2, 3, 4, *range(11, stop)))) for stop in (11, 19)]
    (step,) = steps_of(series([of_record(k, each) for k, each in enumerate(records)]), 0.0)
    assert (step.measure, step.worse, step.sure) == ("drop", True, True)
    assert 0 < step.low <= step.new - step.old <= step.high
    other = replace(
        records[1], variants=records[1].variants | {"teacher": variant_record(flipped(1, 2, 3, 5))}
    )
    (step,) = steps_of(series([of_record(0, records[0]), of_record(1, other)]), 0.0)
    assert step.note == "not sure: another teacher"


def test_a_worse_teacher_is_a_step() -> None:
    worse = variant_record(flipped(*range(1, 21)), accuracy_drop=0.0)
    after = replace(gate_record(), variants={"teacher": worse}, latency={})
    points = [of_record(0, gate_record(), "teacher"), of_record(1, after, "teacher")]
    (step,) = steps_of(series(points, "teacher"), 0.0)
    assert (step.measure, step.worse, step.sure, step.lasts) == ("score", True, True, True)
    assert step.high < 0
    unlike = [points[0], replace(points[1], rows="other")]
    assert [s.sure for s in steps_of(series(unlike, "teacher"), 0.0)] == [False]


def test_a_negative_spread_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        steps_of(series([point(0)]), -1.0)


# A repository

HOSTILE = "<script>alert('x')</script> \u202e & \"quoted\""


def save(root: Path, record: GateRecord, message: str = "change", name: str = "bench/baseline/b.json") -> str:
    """Commit a baseline."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    write_record(root / name, record)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", message)
    return git(root, "rev-parse", "HEAD")


def faster(speedup: float, **changes: Any) -> GateRecord:
    return known(times=latency(speedup), **changes)


RESULTS = {
    "eval_loss": 0.2, "model_size": 86.0, "mean_ms": 1.0, "std_ms": 0.1, "min_ms": 1.0, "max_ms": 1.0,
    "median_ms": 1.0, "compression_ratio": 1.0, "speedup": 1.0, "accuracy_drop": 0.0, "agreement": 1.0,
}  # fmt: skip


def results(speedup: float, drop: float = 0.0) -> str:
    """A results.json, whose variant has a hostile name."""
    faster = {
        "model_size": 20.0, "speedup": speedup, "speedup_low": 0.98 * speedup, "speedup_high": 1.02 * speedup,
        "accuracy_drop": drop, "drop_low": drop - 0.001, "drop_high": drop + 0.001,
    }  # fmt: skip
    return json.dumps(
        {
            "teacher": {"accuracy": 0.9, **RESULTS},
            f"quant_{HOSTILE}": {"accuracy": 0.9 - drop, **RESULTS, **faster},
        }
    )


def run_json(cpu: str = "EPYC") -> str:
    return json.dumps(
        {
            "arguments": {"task": "tickets", "batch_size": 1, "seq_len": 64},
            "hardware": {"cpu_model": cpu, "instruction_sets": ["avx2"]},
            "packages": {"onnxruntime": "1.32.0"},
            "sha256": {"data": "d"},
            "threads": 2,
        }
    )


def saved_run(sha: str, speedup: float, when: str, **changes: Any) -> str:
    extra = {
        "task": "tickets", "variant": "quant_2", "accuracy": 0.9, "accuracy_drop": 0.01,
        "size_bytes": 20_000_000, "speedup": speedup, "speedup_low": speedup * 0.99,
        "speedup_high": speedup * 1.01, "trusted": True,
    }  # fmt: skip
    other = {"group": None, "params": None, "extra_info": {}}
    benchmark = {"group": "1x128", "params": {"quant_model": "quant_2"}, "extra_info": extra | changes}
    return json.dumps(
        {
            "machine_info": {"cpu": {"brand_raw": "EPYC", "instruction_sets": ["avx2"]}, "threads": 2},
            "commit_info": {"id": sha, "dirty": False, "branch": "main"},
            "benchmarks": [benchmark, other],
            "datetime": when,
            "version": "5.3.1",
        }
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Baselines on two machines, damaged ones, results, saved runs. Not to be changed.

    Commits: 0 baseline, 1 results, 2 a damaged baseline, 3 another schema, 4 slower with another model, 5 the
    other machine and better results, 6 worse results.
    """
    root = tmp_path_factory.mktemp("history") / "bert"
    commit(root, {"notes.txt": "a"})
    git(root, "remote", "add", "origin", "https://me:secret@example.org/team/bert.git")
    first = save(root, faster(3.0), HOSTILE)
    commit(root, {"runs/tickets/results.json": results(2.0), "runs/tickets/run.json": run_json()})
    commit(root, {"bench/baseline/b.json": '{"schema_version": 1, "task": '})
    text = json.dumps({"schema_version": 99})
    commit(root, {"bench/baseline/b.json": text})
    slower = save(root, faster(1.5, sha256="e" * 64))
    write_record(root / "bench/baseline/b.json", faster(2.0, machine=MACHINE | {"cpu_model": "EPYC"}))
    commit(root, {"runs/tickets/results.json": results(2.5)})
    commit(root, {"runs/tickets/results.json": results(2.5, 0.02)})
    storage = root / ".benchmarks" / "Linux"
    storage.mkdir(parents=True)
    for number, (sha, speedup) in enumerate([(first, 2.0), (slower, 1.5), ("f" * 40, 3.0)]):
        (storage / f"000{number}.json").write_text(saved_run(sha, speedup, f"2026-01-0{3 - number}"))
    (storage / "0009.json").write_text("[]")
    return root


@pytest.fixture(scope="module")
def history(repository: Path) -> History:
    return read_history(repository, state_spread=0.4)


def test_series_are_by_file_task_machine_and_variant(history: History) -> None:
    keys = [(s.source, s.file, s.task, s.machine.cpu_model, s.variant, len(s.points)) for s in history.series]
    hostile = f"quant_{HOSTILE}"
    assert keys == [
        ("baseline", "bench/baseline/b.json", "SST-2", "Xeon", "teacher", 2),
        ("baseline", "bench/baseline/b.json", "SST-2", "Xeon", "quant_2", 2),
        ("results", "runs/tickets/results.json", "tickets", "EPYC", "teacher", 3),
        ("results", "runs/tickets/results.json", "tickets", "EPYC", hostile, 3),
        ("baseline", "bench/baseline/b.json", "SST-2", "EPYC", "teacher", 1),
        ("baseline", "bench/baseline/b.json", "SST-2", "EPYC", "quant_2", 1),
        ("saved run", ".benchmarks", "tickets", "EPYC", "quant_2", 2),
    ]


def test_speedups_are_those_of_the_files(history: History) -> None:
    by_key = {(s.source, s.machine.cpu_model, s.variant): s for s in history.series}
    baseline = by_key["baseline", "Xeon", "quant_2"].points
    assert [p.timings["1x128"].ratio for p in baseline] == pytest.approx([3.0, 1.5])
    assert all(p.timings["1x128"].low < p.timings["1x128"].ratio for p in baseline)
    points = by_key["results", "EPYC", f"quant_{HOSTILE}"].points
    assert [p.timings["1x64"].ratio for p in points] == [2.0, 2.5, 2.5]
    assert [p.drop_interval for p in points] == [(-0.001, 0.001), (-0.001, 0.001), (0.019, 0.021)]
    assert points[0].size_bytes == 20 * 2**20
    saved = by_key["saved run", "EPYC", "quant_2"].points
    assert [p.timings["1x128"].ratio for p in saved] == [2.0, 1.5], "by commit, not by the time of the run"


def test_steps_and_regressions(history: History) -> None:
    steps = {(s.series.source, s.measure, s.worse, s.sure) for s in history.steps}
    assert steps == {
        ("baseline", "speedup", True, True),
        ("results", "speedup", False, True),
        ("results", "drop", True, True),
        ("saved run", "speedup", True, True),
    }
    assert {s.measure for s in history.regressions} == {"speedup", "drop"}
    (baseline,) = (s for s in history.steps if s.series.source == "baseline")
    assert baseline.note == "changed: model"
    assert baseline.before.subject == HOSTILE


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(history: History) -> None:
    damaged, schema, saved = history.problems
    assert re.fullmatch(r"bench/baseline/b\.json at [0-9a-f]{7}: not a baseline: .*", damaged)
    assert re.match(
        r"bench/baseline/b\.json at [0-9a-f]{7}: schema_version 99, but this quantlib reads", schema
    )
    assert "0009.json" in saved
    assert history.notes == ("1 saved runs are of commits that are not on the line to HEAD",)


def test_since_hides_older_steps_but_compares_with_them(repository: Path, history: History) -> None:
    later = read_history(repository, since="HEAD~1", state_spread=0.4)
    assert [step.measure for step in later.recent_steps] == ["drop"]
    assert later.steps == history.steps
    assert not read_history(repository, since="HEAD", state_spread=0.4).regressions


def test_one_file_alone(repository: Path) -> None:
    only = read_history(
        repository, files=[Path("bench/baseline/b.json")], storage=repository / "bench", state_spread=0.0
    )
    assert {s.source for s in only.series} == {"baseline"}
    assert any("not a saved run" in problem or "missing" in problem for problem in only.problems)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--since", "nowhere"], "--since 'nowhere': neither a commit"),
        (["--storage", "nowhere"], "--storage nowhere: no such directory"),
        (["--page", "page.txt"], "--page page.txt: must end with .html"),
        (["--page", "notes.txt/page.html"], "notes.txt"),
        (["nowhere.json"], "no commit has nowhere.json"),
        (["../outside.json"], "../outside.json: not in the repository"),
    ],
)
def test_wrong_use_is_one_line(
    repository: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(repository)
    assert quantlib(["history", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_repository_without_baselines(tmp_path: Path) -> None:
    commit(tmp_path / "empty", {"notes.txt": "a"})
    with pytest.raises(InputError, match=r"no commit has a baseline/.* quantlib gate --gate-update"):
        read_history(tmp_path / "empty", state_spread=0.0)
    commit(tmp_path / "empty", {"baseline/b.json": "{"})
    with pytest.raises(InputError, match=r"baseline/b\.json at .*: not a baseline"):
        read_history(tmp_path / "empty", state_spread=0.0)


def test_a_shallow_clone_says_so(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "2", f"file://{repository}", "clone")
    assert "a shallow clone" in read_history(tmp_path / "clone", state_spread=0.0).notes[-1]


# What is shown


@pytest.fixture
def show(repository: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def shown(*words: str, code: int) -> str:
        assert quantlib(["history", "--repository", str(repository), *words]) == code
        return capsys.readouterr().out

    return shown


def test_the_text(show: Callable[..., str]) -> None:
    text = show(code=1)
    assert "SST-2: baseline bench/baseline/b.json, Xeon (avx2 avx512_vnni), 2 threads" in text
    assert re.search(r"quant_2 +1x128 +2 +1\.50x +1\.\d\d-1\.\d\d +-50\.0 %", text)
    assert "worse   quant_2: speedup at 1x128 3.00 -> 1.50 (-50.0 %" in text
    assert "3 files left out" in text
    assert "3 regressions:" in text
    assert text.count("drop 0.00 -> 2.00 (+2.00 points") == 2, "among the steps and the regressions"
    assert "0 regressions since HEAD" in show("--since", "HEAD", code=0)


def test_the_json(show: Callable[..., str], history: History) -> None:
    values = json.loads(show("--json", code=1))
    assert [(s["variant"], len(s["points"])) for s in values["series"]] == [
        (s.variant, len(s.points)) for s in history.series
    ]
    assert len(values["left_out"]) == 3
    assert {step["measure"] for step in values["regressions"]} == {"speedup", "drop"}


@pytest.fixture(scope="module")
def page(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "history.html"
    assert quantlib(["history", "--repository", str(repository), "--page", str(path)]) == 1
    return path.read_text(encoding="utf-8")


def test_a_click_opens_the_commit(page: str, history: History) -> None:
    addresses = set(re.findall(r'href="(https?:[^"]*)"', page))
    assert addresses == {f"https://example.org/team/bert/commit/{c.sha}" for c in history.commits}
    assert "secret" not in page
    svg_links = re.findall(r'<a [^>]*tabindex="-1"><title>[0-9a-f]{7}, \d{4}-\d\d-\d\d; ', page)
    # Speedups of three series, and the drop of one; all else never changed.
    assert len(svg_links) == 2 + 3 + 2 + 3
    assert "size: 21.46 MB at each of its 2 commits" in page


def test_every_number_is_on_the_page(page: str, history: History) -> None:
    for each in history.series:
        for recorded in each.points:
            for timing_ in recorded.timings.values():
                assert f"<td>{timing_.ratio:.2f}" in page
            assert f"<td>{100 * recorded.drop:.2f}</td>" in page
            assert f"<td>{recorded.size_bytes / 2**20:.1f}</td>" in page
    assert all(step.words.replace(">", "&gt;") in page for step in history.steps)


def test_hostile_texts_are_text(page: str) -> None:
    assert page.count("<script>") == 1, "the page's own"
    assert "&lt;script&gt;alert" in page
    assert "onerror" not in page


def test_the_page_without_matplotlib(
    show: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.gate.history.page.can_plot", lambda: False)
    show("--page", str(tmp_path / "history.html"), "--json", code=1)
    text = (tmp_path / "history.html").read_text(encoding="utf-8")
    assert "they need matplotlib" in text
    assert "<svg" not in text
