"""bench/distillation.py, on a tiny teacher of random weights."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import tiny
from rich.console import Console

from bench import distillation
from bench.distillation import DISTILLED, FINE_TUNED, KINDS, TEACHER, Result, as_table
from quantlib.data.tasks import TASKS
from quantlib.training.checkpoints import load_classifier
from quantlib.training.student import DistillationOptions, StudentConfig


@pytest.fixture(scope="module")
def results_json(
    tiny_teacher: Path, glue_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    """What the command wrote."""
    path = tmp_path_factory.mktemp("bench") / "deep" / "found.json"
    words = ["--task", "SST-2", "--data-dir", str(glue_dir), "--teacher", str(tiny_teacher), "--seeds", "1,2"]
    words += [
        "--seq-len",
        "32",
        "--prediction-epochs",
        "2",
        "--prediction-rate",
        "0.005",
        "--alone-rate",
        "0.005",
        "--json",
        str(path),
    ]
    assert distillation.cli(words) == 0
    return dict(json.loads(path.read_text()))


def test_each_seed_has_both_students(results_json: dict[str, object]) -> None:
    results = results_json["results"]
    assert isinstance(results, list)
    assert [(r["kind"], r["seed"]) for r in results] == [
        (TEACHER, None),
        *((kind, seed) for seed in (1, 2) for kind in KINDS),
    ]
    assert all(set(r["metrics"]) == {"accuracy"} and 0 <= r["agreement"] <= 1 for r in results)
    assert all(r["train_s"] > 0 for r in results[1:])
    assert results_json["evaluation_rows"] == 40
    shape = {"layers": 1, "width": 32, "ffn": 64, "heads": 2}
    assert results_json["student"] == {**shape, "init": "teacher", "prune": None}


def test_what_learns_from_the_teacher_agrees_with_it_more(results_json: dict[str, object]) -> None:
    """The labels of a teacher with random weights are not those of the rows."""
    results = results_json["results"]
    assert isinstance(results, list)
    shares = {
        kind: sum(r["agreement"] for r in results if r["kind"] == kind) / 2
        for kind in (DISTILLED, FINE_TUNED)
    }
    assert shares[DISTILLED] > shares[FINE_TUNED]


def test_both_students_start_with_the_pruned_teacher(tiny_teacher: Path, tmp_path: Path) -> None:
    rows, options = tiny.features(tiny_teacher, 32), DistillationOptions(threads=1)

    def first_weights(student: StudentConfig) -> StudentConfig:
        task = TASKS["SST-2"]
        return distillation.first_weights(tiny_teacher, task, rows, tmp_path, student, 1, options, [0, 1])

    assert first_weights(StudentConfig(layers=1)) == StudentConfig(layers=1)
    start = str(tmp_path / "start")
    assert first_weights(StudentConfig(prune=0.5)) == StudentConfig(2, 32, 32, 2, start)
    assert load_classifier(Path(start)).config.intermediate_size == 32


def test_the_table_has_mean_and_spread() -> None:
    results = [Result(TEACHER, None, {"mcc": 0.5}, 1.0, 0.0)]
    for seed, values in ((1, (0.48, 0.4)), (2, (0.5, 0.44))):
        results += [
            Result(kind, seed, {"mcc": value}, 0.9, 60.4) for kind, value in zip(KINDS, values, strict=True)
        ]
    console = Console(file=io.StringIO(), width=80)
    console.print(as_table(TASKS["CoLA"], results))
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "teacher 0.5000 100.0 100.0" in lines
    assert "distilled 1 0.4800 96.0 90.0 60" in lines
    assert "distilled mean 0.4900 ± 0.0141 98.0" in lines
    assert "fine-tuned mean 0.4200 ± 0.0283 84.0" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "1,x"], "--seeds 1,x: whole numbers, as 42,43,44"),
        (["--student-config", "quarter"], "unknown student 'quarter'"),
        (["--task", "QNLI"], "unknown task 'QNLI'"),
        (["--prediction-rate", "2"], "learning rate 2.0 is out of range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line(
    words: list[str], message: str, tiny_teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert distillation.cli(["--teacher", str(tiny_teacher), *words]) == 2
    text = capfd.readouterr().err
    assert message in text
    assert text.count("\n") == 1
