"""bench/other_engines.py, without its engines: their packages are no dependency of the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import other_engines
from quantlib.experiment import ExperimentOptions


def arguments(options: ExperimentOptions, *more: str | Path) -> list[str]:
    flags = {
        "--task": options.task,
        "--data-dir": options.data_dir,
        "--teacher": options.teacher,
        "--threads": 1,
        "--calibration-samples": options.calibration_samples,
        "--cache-dir": options.cache_dir,
        "--recipes": "dynamic_u8s8",
        "--shapes": f"1x8,2x{options.seq_len}",
        "--rows": 5,
    }
    return [*(str(word) for pair in flags.items() for word in pair), *map(str, more)]


def test_engines_that_are_not_installed_are_left_out(
    tiny_options: ExperimentOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    missing = {name: replace(engine, package="nowhere") for name, engine in other_engines.OTHERS.items()}
    monkeypatch.setattr(other_engines, "OTHERS", missing)
    out = tmp_path / "out.json"
    assert other_engines.cli(arguments(tiny_options, "--turns", "2", "--block", "1", "--json", out)) == 0
    assert "ctranslate2_int8 is left out: the package nowhere is not" in capfd.readouterr().out
    written = json.loads(out.read_text(encoding="utf-8"))
    assert set(written["left_out"]) == set(other_engines.OTHERS)
    assert (written["rows"], written["task"]) == (5, "SST-2")
    teacher, variant = written["results"]
    assert (teacher["name"], teacher["logit_error"], teacher["agreement"]) == ("teacher", 0, 1)
    assert variant["name"] == "dynamic_u8s8" and variant["logit_error"] > 0
    assert set(variant["median_ms"]) == set(variant["speedup"]) == {"1x8", f"2x{tiny_options.seq_len}"}
    assert teacher["speedup"]["1x8"]["ratio"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--shapes", "8by128"), "--shapes '8by128' is not BATCHxLENGTH"),
        (("--turns", "1"), "--turns 1: an interval needs 2 or more"),
        (("--recipes", "quant_9"), "unknown recipe 'quant_9'"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    words: tuple[str, str], message: str, tiny_options: ExperimentOptions, capfd: pytest.CaptureFixture[str]
) -> None:
    assert other_engines.cli(arguments(tiny_options, *words)) == 2
    printed = capfd.readouterr().err
    assert message in printed and printed.count("\n") == 1
