"""The plugin in a repository of its own: what `quantlib init` writes there, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import yaml
from warm import run_pytest

from quantlib.cli.main import quantlib
from quantlib.experiment.scaffold import requirement_of, write_tests
from quantlib.harness import flags
from quantlib.support.cache import ENVIRONMENT_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = """
[run]
seq_len = 32
threads = 1
num_runs = 2
warmup_runs = 0
timing_seconds = 0.0
recipes = ["mine.toml"]

[gate]
shapes = ["1x8"]
gate_launches = 2
gate_seconds = 0.01
gate_max_others = 1.0
"""
MINE = 'name = "mine"\nmode = "static"\nformat = "QOperator"\nactivation_type = "QUInt8"\n'
MINE += 'calibration_method = "MinMax"\nsummary = "Ours"\n'


# Flags of plugins that many repositories have and these tests do not install, as their --help names them.
COV = """
--cov --cov-reset --cov-report --cov-config --no-cov-on-fail --no-cov --cov-fail-under --cov-append
--cov-branch --cov-precision --cov-context
"""
TIMEOUT = """
--timeout --timeout_method --timeout-method --timeout-disable-debugger-detection --session-timeout
"""


@pytest.fixture(scope="module")
def repository(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a checkpoint and a recipe, what `init` writes, and a baseline. Not to be changed: copy it."""
    root = tmp_path_factory.mktemp("tickets")
    rows = [f"{text},LABEL_{label}\n" for text, label in tiny.sentences(200, 9)]
    (root / "test.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    (root / "mine.toml").write_text(MINE, encoding="utf-8")
    shutil.copytree(tiny_teacher, root / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert quantlib(["init", "test.csv", "--teacher", "checkpoint"]) == 0
    with (root / "quantlib.toml").open("a", encoding="utf-8") as file:
        file.write(SETTINGS)
    return root


@pytest.fixture(scope="module")
def baseline(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The repository with a baseline, and a cache that has its models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path_factory.mktemp("cache") / "of-tickets"))
        result = run_pytest("bench", "--gate-update", cwd=repository)
        assert result.ret == 0
        result.assert_outcomes(passed=10)
        yield repository


@pytest.fixture
def copied(baseline: Path, tmp_path: Path) -> Path:
    """The repository with its baseline, to be spoiled."""
    return shutil.copytree(baseline, tmp_path / "tickets")


def test_init_writes_what_can_be_read_and_run(repository: Path) -> None:
    text = (repository / "bench" / "test_quantized.py").read_text(encoding="utf-8")
    assert text.count("\ndef test_") == 5
    workflow = (repository / ".github" / "workflows" / "quantlib.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(workflow)["jobs"]["gate"]["steps"]
    assert any(step.get("run", "").startswith("pytest bench --gate ") for step in steps)


def test_a_path_among_the_options_does_not_move_the_repository(copied: Path) -> None:
    """Pytest takes the value of an option for a place of tests, if a file of that name exists."""
    (copied.parent / "gate.md").write_text("of an earlier run", encoding="utf-8")
    result = run_pytest("bench", "--gate", "--gate-markdown", "../gate.md", "--collect-only", cwd=copied)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_accuracy?mine?*"])


@pytest.mark.parametrize(
    ("teacher", "rows", "requirement"),
    [
        ("{here}", ["test.csv"], "bert-quantlib[train]"),
        ("model.onnx", ["test.csv"], "bert-quantlib"),
        ("model.onnx", ["test.csv", "train.parquet"], "bert-quantlib[parquet]"),
        ("{here}", ["{here}"], "bert-quantlib[parquet,train]"),
        ("{here}", ["hf://us/tickets:test"], "bert-quantlib[hub]"),
        ("us/tickets", ["test.parquet"], "bert-quantlib[hub]"),
        (None, ["test.csv"], "bert-quantlib[demo]"),
    ],
)
def test_the_workflow_installs_what_is_needed(
    teacher: str | None, rows: list[str], requirement: str, tmp_path: Path
) -> None:
    named = None if teacher is None else teacher.format(here=tmp_path)
    assert requirement_of(named, [place.format(here=tmp_path) for place in rows]) == requirement
    written = write_tests(tmp_path, requirement)
    workflow = (tmp_path / ".github" / "workflows" / "quantlib.yml").read_text(encoding="utf-8")
    assert all(written.values())
    assert f'pip install "{requirement}" pytest pytest-benchmark' in workflow


def test_what_is_there_stays(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bench").mkdir()
    mine = tmp_path / "bench" / "test_quantized.py"
    mine.write_text("def test_mine(): ...\n")
    words = ["init", str(repository / "test.csv"), "--teacher", str(repository / "checkpoint")]
    assert quantlib(words) == 0
    assert mine.read_text() == "def test_mine(): ...\n"
    assert (tmp_path / ".github").is_dir()
    (tmp_path / "quantlib.toml").unlink()
    shutil.rmtree(tmp_path / ".github")
    assert quantlib([*words, "--config-only"]) == 0
    assert not (tmp_path / ".github").exists()


def test_the_gate_passes_on_its_baseline(copied: Path) -> None:
    result = run_pytest("bench", "--gate", f"--junit-xml={copied / 'junit.xml'}", cwd=copied)
    assert result.ret == 0
    assert "mine 1x8: unchanged" in str(result.stdout)
    assert 'name="accuracy_drop"' in (copied / "junit.xml").read_text(encoding="utf-8")


def test_a_worse_checkpoint_fails(copied: Path) -> None:
    def turned(weights: dict[str, object]) -> None:
        for name in [name for name in weights if name.startswith("classifier")]:
            weights[name] = -weights[name]  # type: ignore[operator]

    tiny.edit_weights(copied / "checkpoint", turned)
    summary = copied / "summary.md"
    result = run_pytest("bench", "--gate", f"--gate-markdown={summary}", cwd=copied)
    assert result.ret == 1
    assert "VIOLATION  teacher: accuracy" in str(result.stdout)
    assert summary.read_text(encoding="utf-8").startswith("## Gate: fail (tickets")


def test_a_recipe_that_quantizes_less_fails(copied: Path) -> None:
    (copied / "mine.toml").write_text(MINE + '[nodes]\n"layer.0.ffn_in" = "float"\n', encoding="utf-8")
    result = run_pytest("bench", "--gate", cwd=copied)
    assert result.ret == 1
    assert "VIOLATION  mine: 90.9 % of the nodes with weights are quantized" in str(result.stdout)


def test_a_slower_variant_fails(copied: Path) -> None:
    """Its baseline tells of a much faster one, by a version that did not record which model it timed."""
    (path,) = (copied / "bench" / "baseline").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["origin"]
    for variant in record["variants"].values():
        del variant["sha256"]
    shapes = record["latency"]["mine"]
    shapes["1x8"]["launches"] = [[value + 4 for value in launch] for launch in shapes["1x8"]["launches"]]
    path.write_text(json.dumps(record), encoding="utf-8")
    result = run_pytest("bench", "--gate", cwd=copied)
    assert result.ret == 1
    assert re.search(
        r"VIOLATION  mine 1x8: speedup .*, limit -5 %; slowdown \d+\.\d % \[", str(result.stdout)
    )


def test_limits_are_those_of_the_configuration(copied: Path) -> None:
    text = (copied / "quantlib.toml").read_text(encoding="utf-8")
    text = text.replace("max_drop_points = 0.5", "max_drop_points = 0.5\nmin_speedup = 1000.0")
    (copied / "quantlib.toml").write_text(text, encoding="utf-8")
    result = run_pytest("bench", "--gate", cwd=copied)
    assert result.ret == 1
    assert "limit at least 1000" in str(result.stdout)


def test_unrelated_tests_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "test_it.py").write_text("def test_it(): ...\n")
    result = run_pytest("bench", cwd=tmp_path)
    result.assert_outcomes(passed=1)
    assert "quantlib:" not in str(result.stdout)


def test_it_can_be_switched_off(repository: Path) -> None:
    result = run_pytest("bench", "-p", "no:quantlib", "--gate", cwd=repository)
    assert result.ret == 4
    assert "unrecognized arguments: --gate" in str(result.stderr)


def test_flags_are_those_of_no_other_plugin(tmp_path: Path) -> None:
    """Pytest's own, pytest-benchmark's, pytest-xdist's and Hypothesis', and two plugins' by a list."""
    result = run_pytest("--help", "-p", "no:quantlib", cwd=tmp_path)
    assert result.ret == 0
    theirs = set(re.findall(r"--[a-z][a-z_-]*", str(result.stdout))) | set(f"{COV} {TIMEOUT}".split())
    assert {"--benchmark-save", "--numprocesses", "--hypothesis-seed", "--junit-xml"} <= theirs
    ours = {flag["flag"] for _, options in flags.declared() for flag in options.values()}
    assert {"--gate", "--quant-recipes"} <= ours
    assert not ours & theirs


def test_a_wheel_has_everything(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "quantlib", source / "quantlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    here = {path.relative_to(ROOT) for path in (ROOT / "quantlib").rglob("*") if path.is_file()}
    there = {path.relative_to(tmp_path / "site") for path in (tmp_path / "site" / "quantlib").rglob("*")}
    assert {path for path in here if "__pycache__" not in path.parts} <= there
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "--trace-config"],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert str(tmp_path / "site" / "quantlib" / "harness") in process.stdout, "the wheel's own plugin"
    assert "bench/test_quantized.py::test_accuracy[mine]" in process.stdout
