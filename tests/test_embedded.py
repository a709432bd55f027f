"""The main job as a user runs it, on the packaged MiniLM and BBC News, to its table."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = ("quant_2",)
VARIANTS = ["teacher", "teacher_compiled", *RECIPES]
VARIANTS += ["student", "student_compiled", *(f"student_{recipe}" for recipe in RECIPES)]


@pytest.mark.embedded
def test_the_embedded_default_runs_to_its_table(tmp_path: Path) -> None:
    """Fewer rows to train and calibrate on, all cut to 8 tokens, a smaller student, fewer timed runs."""
    words = ["--train-rows", "24", "--calibration-samples", "32", "--seq-len", "8", "--threads", "1"]
    words += ["--student-config", "layers=1", "--transformer-epochs", "0", "--prediction-epochs", "1"]
    words += [
        "--recipes",
        ",".join(RECIPES),
        "--warmup-runs",
        "1",
        "--num-runs",
        "5",
        "--timing-seconds",
        "0",
    ]
    process = subprocess.run(
        [sys.executable, ROOT / "quantization_experiments.py", *words, "--cache-dir", tmp_path / "cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    directory = tmp_path / "runs" / "BBC-News"
    results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    with (directory / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(results) == sorted(VARIANTS)
    assert sorted(row["variant"] for row in rows) == sorted(VARIANTS)
    for name in VARIANTS:
        assert re.search(rf"^ *{name}\b", process.stdout, re.MULTILINE), f"{name} is a row of the table"
    assert {path.name for path in directory.iterdir()} >= {"run.json", "results.png", "ts_teacher_bert"}
