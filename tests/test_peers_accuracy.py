"""bench/peers_accuracy.py, with a stand-in for NNCF: its packages are no dependency of the tests."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import peers_accuracy
from quantlib.data import features, scores
from quantlib.data.tasks import get_task
from quantlib.experiment import ExperimentOptions
from quantlib.support.errors import InputError

# As the worker does it, but an OpenVINO model is a copy of the ONNX model.
STAND_IN = """
import shutil, sys
import numpy as np, onnxruntime
what, model, feeds, out, setting = sys.argv[1:]
arrays = np.load(feeds)
count = 1 + max(int(key.split(".")[0]) for key in arrays.files)
names = ("input_ids", "attention_mask", "token_type_ids")
rows = [{name: arrays[f"{i}.{name}"] for name in names} for i in range(count)]
if what == "quantize":
    assert all(row["attention_mask"].all() and len(row["input_ids"]) == 1 for row in rows)
    shutil.copyfile(model, out)
    open(out.replace(".xml", ".bin"), "wb").write(setting.encode())
else:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.savez(out, **{str(i): session.run(["logits"], row)[0] for i, row in enumerate(rows)})
print("\\n" * count, end="")
"""
FAILING = "import sys; print('loading'); sys.exit('first line\\nno such operation: Gelu')"


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


def use_worker(monkeypatch: pytest.MonkeyPatch, directory: Path, source: str) -> None:
    worker = directory / "worker.py"
    worker.write_text(source, encoding="utf-8")
    monkeypatch.setattr(peers_accuracy, "WORKER", worker)
    monkeypatch.setattr(peers_accuracy, "PEER_PACKAGES", ("numpy",))


def error_line(capfd: pytest.CaptureFixture[str]) -> str:
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_without_an_interpreter_the_peer_is_left_out(
    tiny_options: ExperimentOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert peers_accuracy.cli(arguments(tiny_options, "--json", tmp_path / "out.json")) == 0
    assert "nncf_minmax is left out: no --peers-python" in capfd.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(written["results"]) == ["teacher", "teacher_compiled", "dynamic_u8s8", "stock_dynamic"]
    assert written["left_out"] == dict.fromkeys(["nncf", "nncf_minmax"], "no --peers-python")
    assert (written["calibration_rows"], written["evaluation_rows"]) == (16, 40)
    teacher, compiled, _, stock = written["results"].values()
    assert (teacher["accuracy_drop"], teacher["agreement"], teacher["logit_error"]) == (0, 1, 0)
    assert compiled["logit_error"] == pytest.approx(0, abs=1e-5)
    assert stock["logit_error"] > 0
    assert stock["compression_ratio"] == teacher["size_bytes"] / stock["size_bytes"]
    assert stock["drop_low"] <= stock["accuracy_drop"] <= stock["drop_high"]


def test_a_peer_is_judged_on_the_same_rows_in_their_order(
    tiny_options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_worker(monkeypatch, tmp_path, STAND_IN)
    keep, out = tmp_path / "keep", tmp_path / "out.json"
    more = ("--peers-python", sys.executable, "--keep", keep, "--json", out)
    assert peers_accuracy.cli(arguments(tiny_options, *more)) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    nncf, teacher = written["results"]["nncf"], written["results"]["teacher"]
    # The stand-in quantizes nothing, so it must give what the teacher gives, row by row.
    assert nncf["logit_error"] == pytest.approx(0, abs=1e-6)
    assert nncf["size_bytes"] == teacher["size_bytes"] + len("default")
    assert (keep / "nncf_minmax.bin").read_text(encoding="utf-8") == "MINMAX"
    assert set(written["packages"]) == {"numpy", "onnx", "onnxruntime"}
    names = {"fp32.onnx", "stock_dynamic.onnx", "logits.npz"}
    names |= {f"{name}.{suffix}" for name in ("nncf", "nncf_minmax") for suffix in ("xml", "bin")}
    assert {path.name for path in keep.iterdir()} == names
    with np.load(keep / "logits.npz") as logits:
        assert set(logits.files) == {"labels", *written["results"]}
        task = get_task("SST-2")
        metrics = scores.compute_metrics(task, logits["stock_dynamic"], logits["labels"])
    assert metrics == written["results"]["stock_dynamic"]["metrics"]


def test_a_peer_that_fails_is_one_line_and_leaves_nothing(
    tiny_options: ExperimentOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    use_worker(monkeypatch, tmp_path, FAILING)
    keep, out = tmp_path / "keep", tmp_path / "out.json"
    more = ("--peers-python", sys.executable, "--keep", keep, "--json", out)
    assert peers_accuracy.cli(arguments(tiny_options, *more)) == 2
    assert "NNCF: quantize failed (1): no such operation: Gelu" in error_line(capfd)
    assert list(keep.iterdir()) == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ("no/such/python", "cannot be run: No such file or directory"),
        (sys.executable, "it needs the packages no-such-package"),
        (shutil.which("true") or "true", "not a Python interpreter"),
    ],
    ids=["no interpreter", "no package", "no Python"],
)
def test_an_interpreter_that_cannot_serve_is_one_line(
    python: str,
    expected: str,
    tiny_options: ExperimentOptions,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peers_accuracy, "PEER_PACKAGES", ("no-such-package",))
    assert peers_accuracy.cli(arguments(tiny_options, "--peers-python", python)) == 2
    assert expected in error_line(capfd)


def test_logits_that_are_not_finite_are_refused(
    tiny_rows: list[features.Feature],
    tiny_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_worker(monkeypatch, tmp_path, STAND_IN.replace('["logits"], row)[0]', '["logits"], row)[0] * np.nan'))
    with pytest.raises(InputError, match="not finite"):
        peers_accuracy.predict_nncf(
            Path(sys.executable), tiny_onnx, tiny_rows, get_task("SST-2"), 1, lambda _: None
        )
