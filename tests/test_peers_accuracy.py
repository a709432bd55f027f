"""bench/peers_accuracy.py, without NNCF: its packages are no dependency of the tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import peers_accuracy
from quantlib.data import scores
from quantlib.data.tasks import get_task, read_splits
from quantlib.experiment import ExperimentOptions


def arguments(options: ExperimentOptions, *more: str | Path) -> list[str]:
    flags = {
        "--task": options.task,
        "--data-dir": options.data_dir,
        "--teacher": options.teacher,
        "--seq-len": options.seq_len,
        "--threads": 1,
        "--calibration-samples": options.calibration_samples,
        "--cache-dir": options.cache_dir,
        "--recipes": "dynamic_u8s8",
    }
    return [*(str(word) for pair in flags.items() for word in pair), *map(str, more)]


@pytest.fixture(autouse=True)
def without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_accuracy, "peers", lambda: ("stock_dynamic",))


def test_peers_are_judged_beside_recipes(
    tiny_options: ExperimentOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keep, out = tmp_path / "keep", tmp_path / "out.json"
    assert peers_accuracy.cli(arguments(tiny_options, "--json", out, "--keep", keep)) == 0
    assert "nncf_int8_minmax@openvino is left out: the extra nncf is not" in capfd.readouterr().out
    written = json.loads(out.read_text(encoding="utf-8"))
    assert list(written["results"]) == ["teacher", "teacher_compiled", "dynamic_u8s8", "stock_dynamic"]
    assert set(written["left_out"]) == {"nncf_int8@openvino", "nncf_int8_minmax@openvino"}
    assert (written["calibration_rows"], written["evaluation_rows"]) == (16, 40)
    assert set(written["packages"]) == {"onnx", "onnxruntime"}
    teacher, compiled, _, stock = written["results"].values()
    assert (teacher["accuracy_drop"], teacher["agreement"], teacher["logit_error"]) == (0, 1, 0)
    assert compiled["logit_error"] == pytest.approx(0, abs=1e-5)
    assert stock["logit_error"] > 0
    assert stock["compression_ratio"] == teacher["size_bytes"] / stock["size_bytes"]
    assert stock["drop_low"] <= stock["accuracy_drop"] <= stock["drop_high"]
    names = {f"model{step}.onnx" for step in ("", "_compiled", "_dynamic_u8s8", "_stock_dynamic")}
    assert {path.name for path in keep.iterdir()} == names | {"logits.npz"}
    with np.load(keep / "logits.npz") as logits:
        assert set(logits.files) == {"labels", *written["results"]}
        task = get_task("SST-2")
        metrics = scores.compute_metrics(task, logits["stock_dynamic"], logits["labels"])
    assert metrics == written["results"]["stock_dynamic"]["metrics"]


def test_rows_set_aside_judge_too(
    tiny_options: ExperimentOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert peers_accuracy.cli(arguments(tiny_options, "--json", out, "--rows", "validation")) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    rows = read_splits(get_task("SST-2"), tiny_options.data_dir).validation
    assert (written["rows_of"], written["evaluation_rows"]) == ("validation", len(rows))
    assert len(rows) not in (0, 40)
    assert peers_accuracy.cli(arguments(tiny_options, "--rows", "train")) == 2
    assert "--rows 'train' is none of: evaluation, validation" in capfd.readouterr().err


def test_what_cannot_be_used_is_one_line_and_leaves_nothing(
    tiny_options: ExperimentOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "keep"
    assert peers_accuracy.cli(arguments(tiny_options, "--keep", keep, "--recipes", "quant_1@tvm")) == 2
    assert capfd.readouterr().err.startswith("error: unknown engine 'tvm'")
    assert not keep.exists()
