"""The pytest side of the project, by running pytest inside pytest on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm import run_pytest

from quantlib.experiment import ExperimentOptions

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., pytest.RunResult]

LOOSE = """
[default]
max_drop_points = 100.0
max_slowdown = 1.0
"""


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with our conftest.py and bench/, limits that a random model meets, and no baseline."""
    root = tmp_path_factory.mktemp("suite")
    shutil.copy(ROOT / "conftest.py", root)
    shutil.copytree(ROOT / "bench", root / "bench", ignore=shutil.ignore_patterns("baseline", "__pycache__"))
    shutil.copy(ROOT / "pytest.ini", root)
    (root / "bench" / "limits.toml").write_text(LOOSE, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def same_quantlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pytest inside pytest import the quantlib that is tested, wherever another is installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # pytest-benchmark would time nothing


def on_the_tiny_run(options: ExperimentOptions) -> list[str]:
    """Flags for the tiny teacher and one dynamic variant, as the tiny run has them."""
    given = {
        "task": "SST-2",
        "data-dir": options.data_dir,
        "teacher": options.teacher,
        "cache-dir": options.cache_dir,
        "calibration-samples": options.calibration_samples,
        "recipes": "dynamic_u8s8",
        "seq-len": 32,
        "shapes": "1x16",
        "threads": 1,
    }
    return [f"--quant-{name}={value}" for name, value in given.items()]


@pytest.fixture
def run(suite: Path, tiny_options: ExperimentOptions, pytester: pytest.Pytester) -> Run:
    """Run pytest in the suite on the tiny teacher and one dynamic variant, from the cache of the tiny run."""
    words = on_the_tiny_run(tiny_options)
    words += ["--quant-no-student", "--quant-num-runs=3", "--quant-warmup-runs=1", "--quant-timing-seconds=0"]
    words += ["--gate-launches=2"]
    # Not to depend on what else this machine does while the tests run.
    words += ["--gate-max-others=1"]

    def run(*args: Any, root: Path = suite) -> pytest.RunResult:
        given = {str(arg).partition("=")[0] for arg in args}
        kept = [word for word in words if word.partition("=")[0] not in given]
        places = (f"--rootdir={root}", f"--confcutdir={root}", f"-c{root / 'pytest.ini'}")
        return run_pytest(*places, *kept, *map(str, args), cwd=pytester.path)

    return lambda *args, **more: run(str(suite / "bench"), *args, **more)


@pytest.fixture(scope="session")
def baseline(suite: Path) -> Path:
    """Where the one baseline of these tests is; made by the first test that needs it."""
    return suite / "baseline.json"


@pytest.fixture
def made(run: Run, baseline: Path) -> Path:
    """The baseline, made by --gate-update if it is not there yet."""
    if not baseline.is_file():
        result = run("--gate-update", f"--gate={baseline}")
        assert result.ret == 0, result.outlines[-20:]
    return baseline


def changed(baseline: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a baseline with something changed in it."""
    record = json.loads(baseline.read_text(encoding="utf-8"))
    change(record)
    target.write_text(json.dumps(record), encoding="utf-8")
    return target


def from_before_origins(record: dict[str, Any]) -> None:
    """As quantlib wrote baselines before they said what their models come from."""
    del record["origin"]
    for variant in record["variants"].values():
        del variant["sha256"]


def text_of(result: pytest.RunResult) -> str:
    return "\n".join((*result.outlines, *result.errlines))


# Without the gate


def test_times_and_checks_every_variant(run, tmp_path):
    result = run(f"--benchmark-json={tmp_path / 'out.json'}")
    assert result.ret == 0
    result.assert_outcomes(passed=9, deselected=9)
    assert re.search(r"teacher +1x16 +\d+\.\d+ ± \d+\.\d+", text_of(result))
    saved = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    by_name = {bench["name"]: bench for bench in saved["benchmarks"]}
    timed = ("teacher", "teacher_compiled", "dynamic_u8s8")
    assert set(by_name) == {f"test_latency[{name}-1x16]" for name in timed}
    assert by_name["test_latency[teacher_compiled-1x16]"]["extra_info"]["op_counts"]["Attention"] == 1
    variant = by_name["test_latency[dynamic_u8s8-1x16]"]
    assert variant["group"] == "1x16"
    assert variant["stats"]["rounds"] == 3
    extra = variant["extra_info"]
    assert extra["recipe"] == "dynamic_u8s8"
    assert extra["op_counts"]["MatMulIntegerToFloat"] > 0
    assert extra["compression_ratio"] > 1
    assert {"accuracy", "accuracy_drop", "size_bytes", "standard_error_ms", "noisy", "trusted"} <= set(extra)
    assert extra["speedup_low"] <= extra["speedup"] <= extra["speedup_high"]
    assert by_name["test_latency[teacher-1x16]"]["extra_info"]["speedup"] == 1


def test_students_are_quantized_and_held_to_limits(suite, tiny_options, pytester):
    words = on_the_tiny_run(tiny_options)
    words += ["--quant-student-config=layers=1", f"--rootdir={suite}", f"--confcutdir={suite}"]
    words += [f"-c{suite / 'pytest.ini'}"]
    limits = suite / "strict.toml"
    limits.write_text("[recipe.student_quantized]\nmin_compression_ratio = 100\n", encoding="utf-8")
    words += [f"--quant-limits={limits}", "-k", "size or drop", str(suite / "bench"), "-rA"]
    result = run_pytest(*words, cwd=pytester.path)
    # teacher_compiled, dynamic_u8s8, and the student's three
    assert result.parseoutcomes() == {"passed": 9, "failed": 1, "deselected": 29}
    assert "test_size_and_quantized_share[student_dynamic_u8s8]" in text_of(result)
    assert "student_dynamic_u8s8: compression ratio" in text_of(result)


CHANGING = """
import importlib

from quantlib.measuring.checks import Checks, Invariance, Saturation

found = Checks((Saturation(True, why_not="not asked"), Invariance(32, 1.0, 0.5, labels_changed=2)))
session = importlib.import_module("quantlib.harness.session")
session.check = lambda built, *_: {variant.name: found for variant in built.variants}
"""


def test_labels_that_depend_on_the_batch_fail_but_in_dynamic_variants(run, pytester, tmp_path):
    pytester.makepyfile(changing=CHANGING)
    report = tmp_path / "report.xml"
    result = run(
        "-p", "changing", "-k", "batch", "--quant-recipes=quant_2,dynamic_u8s8", f"--junitxml={report}"
    )
    counts = result.parseoutcomes()
    assert (counts["passed"], counts["failed"]) == (1, 2)
    for name in ("teacher_compiled", "quant_2"):
        assert f"{name}: saturation: not asked, 2 of 32 labels change with the batch" in text_of(result)
    assert report.read_text(encoding="utf-8").count('name="invariance_labels_changed" value="2"') == 3


def test_machine_info_tells_the_processor_and_not_the_host(run, tmp_path):
    run(f"--benchmark-json={tmp_path / 'out.json'}", "-k", "latency and teacher-")
    info = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["machine_info"]
    assert "node" not in info
    assert info["threads"] == 1
    assert info["cpu"]["instruction_sets"] is not None
    assert set(info["versions"]) == {"onnxruntime", "onnx", "numpy"}
    assert not any("hz" in key for key in info["cpu"])


def test_two_runs_have_the_same_machine_info(run, tmp_path):
    storage = f"--benchmark-storage={tmp_path / 'storage'}"
    run(storage, "--benchmark-save=first", "-k", "latency and teacher-")
    result = run(storage, "--benchmark-compare", "-k", "latency and teacher-")
    assert "machine_info is different" not in text_of(result)
    assert "(0001_fir" in text_of(result)


@pytest.mark.parametrize(
    ("option", "outcomes"),
    [
        ("--benchmark-only", {"passed": 3, "skipped": 6, "deselected": 9}),
        ("--benchmark-skip", {"passed": 6, "skipped": 3, "deselected": 9}),
        ("--benchmark-disable", {"passed": 9, "deselected": 9}),
    ],
)
def test_switches_of_pytest_benchmark_work(run, option, outcomes):
    result = run(option)
    assert result.ret == 0
    result.assert_outcomes(**outcomes)


def test_under_xdist_it_says_that_timing_is_off(run):
    result = run("-n1", "-p", "xdist")
    assert result.ret == 0
    assert "timing is OFF under pytest-xdist" in text_of(result)


def test_drop_above_its_limit_fails_with_the_figures(run, tmp_path):
    strict = tmp_path / "limits.toml"
    strict.write_text("[default]\nmin_compression_ratio = 50.0\n", encoding="utf-8")
    result = run(f"--quant-limits={strict}", "-k", "size")
    assert result.ret == 1
    assert re.search(r"dynamic_u8s8: compression ratio \d+\.\d+.*limit 50", text_of(result))


def test_failed_run_is_not_saved_as_a_baseline(run, tmp_path):
    strict = tmp_path / "limits.toml"
    strict.write_text("[recipe.dynamic_u8s8]\nmin_compression_ratio = 50.0\n", encoding="utf-8")
    storage = tmp_path / "storage"
    result = run(f"--quant-limits={strict}", "--benchmark-autosave", f"--benchmark-storage={storage}")
    assert result.ret == 1
    assert "Not saving: 1 tests failed" in text_of(result)
    assert not list(storage.rglob("*.json"))


def test_regressed_run_is_not_saved_as_a_baseline(run, tmp_path):
    storage = tmp_path / "storage"
    options = (f"--benchmark-storage={storage}", "-k", "latency and teacher-")
    run("--benchmark-save=first", *options)
    first = next(storage.rglob("*.json"))
    saved = json.loads(first.read_text(encoding="utf-8"))
    for bench in saved["benchmarks"]:
        bench["stats"]["median"] /= 1000
    first.write_text(json.dumps(saved), encoding="utf-8")
    result = run(
        "--benchmark-autosave", "--benchmark-compare", "--benchmark-compare-fail=median:50%", *options
    )
    assert result.ret != 0
    assert "1 benchmarks regressed" in text_of(result)
    assert list(storage.rglob("*.json")) == [first]


# Wrong use


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--quant-task=QQP"], "error: unknown task 'QQP'; known: "),
        (["--quant-recipes=int7"], "error: unknown recipe 'int7'; known: "),
        (["--quant-shapes=8by16"], "error: --quant-shapes '8by16' is not BATCHxLENGTH"),
        (["--quant-shapes=1x64"], "error: --quant-shapes 1x64: longer than --quant-seq-len 32"),
        (["--quant-teacher=/nowhere"], "error: teacher /nowhere: no such directory"),
        (["--gate=/nowhere.json"], "error: /nowhere.json: no such baseline"),
        (["--gate-update", "--quant-limits=/nowhere.toml"], "/nowhere.toml"),
        (["--gate-update", "--benchmark-only"], "error: --gate and --benchmark-only exclude each other"),
        (["--gate-update", "-n1"], "error: --gate cannot run under pytest-xdist"),
        (["--gate-update", "--gate-launches=0"], "launches must be at least 1"),
        (
            ["--gate-state-spread=-1"],
            "error: --gate-state-spread -1.0 is out of range; it must be at least 0",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_exit_code_2(run, words, line):
    result = run(*words)
    assert result.ret == 2
    assert line in text_of(result)
    assert "Traceback" not in text_of(result)


# The gate


def test_update_writes_a_baseline_and_the_gate_passes_on_it(run, made, tmp_path):
    record = json.loads(made.read_text(encoding="utf-8"))
    assert record["task"] == "SST-2"
    summary, report = tmp_path / "summary.md", tmp_path / "junit.xml"
    result = run(f"--gate={made}", f"--gate-markdown={summary}", f"--junit-xml={report}")
    assert result.ret == 0
    assert "gate: " in text_of(result)
    assert summary.read_text(encoding="utf-8").startswith("## Gate: ")
    assert "speedup" in report.read_text(encoding="utf-8")


def test_what_is_unchanged_is_not_timed_and_cannot_fail(run, made, tmp_path):
    def faster_before(record: dict[str, Any]) -> None:
        shapes = record["latency"]["dynamic_u8s8"]
        shapes["1x16"]["launches"] = [[v + 4 for v in launch] for launch in shapes["1x16"]["launches"]]

    result = run(f"--gate={changed(made, tmp_path / 'b.json', faster_before)}")
    assert result.ret == 0
    assert "dynamic_u8s8 1x16: unchanged: its model, session, runtime, CPU, threads" in text_of(result)
    assert "in turns" not in text_of(result)
    assert "take turns" not in text_of(result)


def test_unchanged_models_are_timed_if_asked_for(run, made, tmp_path):
    result = run(f"--gate={made}", "--gate-remeasure", f"--gate-store={tmp_path / 'store'}")
    assert result.ret == 0
    assert re.search(
        r"dynamic_u8s8 1x16: slowdown .* in turns with the same model, 2 launches", text_of(result)
    )
    record = json.loads(made.read_text(encoding="utf-8"))
    stored = {variant["sha256"] for variant in record["variants"].values()}
    assert {path.stem for path in (tmp_path / "store").glob("*.onnx")} == stored


def test_slower_variant_fails_with_figures_and_exit_code_1(run, made, tmp_path):
    def faster_before(record: dict[str, Any]) -> None:
        from_before_origins(record)
        shapes = record["latency"]["dynamic_u8s8"]
        shapes["1x16"]["launches"] = [[v + 4 for v in launch] for launch in shapes["1x16"]["launches"]]

    result = run(f"--gate={changed(made, tmp_path / 'b.json', faster_before)}")
    assert result.ret == 1
    assert re.search(
        r"dynamic_u8s8 1x16: speedup \d+\.\d+ \[\d+\.\d+, \d+\.\d+\], baseline \d+\.\d+ \[", text_of(result)
    )
    assert "the weaker comparison: the baseline does not record which model it timed" in text_of(result)


def test_variant_missing_from_the_run_fails(run, made, tmp_path):
    def one_more(record: dict[str, Any]) -> None:
        record["variants"]["quant_2"] = record["variants"]["dynamic_u8s8"]

    result = run(f"--gate={changed(made, tmp_path / 'b.json', one_more)}")
    assert result.ret == 1
    assert "quant_2: in the baseline, but not in this run" in text_of(result)


def test_variant_missing_from_the_baseline_fails(run, made, tmp_path):
    def renamed(record: dict[str, Any]) -> None:
        for part in ("variants", "latency"):
            record[part]["dynamic_old"] = record[part].pop("dynamic_u8s8")

    result = run(f"--gate={changed(made, tmp_path / 'b.json', renamed)}")
    assert result.ret == 1
    assert "dynamic_old: in the baseline, but not in this run" in text_of(result)
    assert "dynamic_u8s8: in this run, but not in the baseline" in text_of(result)


def test_nothing_run_fails(run, made):
    result = run(f"--gate={made}", "-k", "nothing_has_this_name")
    assert result.ret == 1
    assert "not gated: tests were left out" in text_of(result)


def test_part_of_the_gate_left_out_fails(run, made):
    result = run(f"--gate={made}", "-k", "not test_gate or accuracy")
    assert result.ret == 1
    assert "latency" in next(line for line in result.outlines if "not gated" in line)


def test_violation_of_a_variant_whose_tests_were_left_out_fails(run, made, tmp_path):
    def smaller_before(record: dict[str, Any]) -> None:
        record["variants"]["dynamic_u8s8"]["size_bytes"] //= 2

    baseline = changed(made, tmp_path / "b.json", smaller_before)
    result = run(f"--gate={baseline}", "-k", "not (test_gate and test_size and dynamic)")
    assert result.ret == 1
    assert "gate: 1 violations, in tests that were left out" in text_of(result)


def test_baseline_of_another_machine_gates_accuracy_and_size_only(run, made, tmp_path):
    def elsewhere(record: dict[str, Any]) -> None:
        from_before_origins(record)
        record["machine"]["cpu_model"] = "another"
        shapes = record["latency"]["dynamic_u8s8"]
        shapes["1x16"]["launches"] = [[v + 4 for v in launch] for launch in shapes["1x16"]["launches"]]

    baseline = changed(made, tmp_path / "b.json", elsewhere)
    result = run(f"--gate={baseline}")
    assert result.ret == 0
    assert "latency is not compared" in text_of(result)
    assert run(f"--gate={baseline}", "--gate-across-machines").ret == 1


def test_without_compiling_no_variant_is_compiled(run):
    result = run("--quant-no-compile", "--quant-stock-sessions", "-k", "size or latency")
    assert result.ret == 0
    result.assert_outcomes(passed=3, deselected=8)
    assert "variants teacher, dynamic_u8s8, 1 threads" in text_of(result)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--quant-stock-sessions", "stock_sessions: True, baseline False"),
        ("--quant-no-compile", "compile: False, baseline True"),
    ],
)
def test_baseline_with_other_sessions_or_graphs_is_told(run, made, option, words):
    result = run(f"--gate={made}", option, "-k", "test_gate")
    assert f"the baseline was made with other settings ({words})" in text_of(result)
    if option == "--quant-no-compile":
        assert result.ret == 1
        assert "teacher_compiled: in the baseline, but not in this run" in text_of(result)


def test_baseline_from_before_these_settings_says_so(run, made, tmp_path):
    def older(record: dict[str, Any]) -> None:
        del record["settings"]["compile"], record["settings"]["stock_sessions"]

    result = run(f"--gate={changed(made, tmp_path / 'b.json', older)}", "-k", "test_gate")
    words = "stock_sessions: False, baseline not recorded; compile: True, baseline not recorded"
    assert f"the baseline was made with other settings ({words})" in text_of(result)


def test_grown_variant_fails(run, made, tmp_path):
    def smaller_before(record: dict[str, Any]) -> None:
        record["variants"]["dynamic_u8s8"]["size_bytes"] //= 2

    result = run(f"--gate={changed(made, tmp_path / 'b.json', smaller_before)}")
    assert result.ret == 1
    assert "dynamic_u8s8: size" in text_of(result)


def test_changed_predictions_are_shown(run, made, tmp_path):
    def other_answers(record: dict[str, Any]) -> None:
        answers = record["variants"]["dynamic_u8s8"]["predictions"]
        answers[3] = 1 - answers[3]

    result = run(f"--gate={changed(made, tmp_path / 'b.json', other_answers)}")
    assert "1 of 40 predictions changed since the baseline (row" in text_of(result)


def test_damaged_baseline_is_wrong_use(run, tmp_path):
    damaged = tmp_path / "b.json"
    damaged.write_text("{", encoding="utf-8")
    result = run(f"--gate={damaged}")
    assert result.ret == 2
    assert f"error: {damaged}" in text_of(result)


def test_update_does_not_write_what_breaks_a_limit(run, tmp_path):
    strict = tmp_path / "limits.toml"
    strict.write_text("[default]\nmin_compression_ratio = 50.0\n", encoding="utf-8")
    result = run("--gate-update", f"--gate={tmp_path / 'new.json'}", f"--quant-limits={strict}")
    assert result.ret == 1
    assert "baseline NOT written" in text_of(result)
    assert not (tmp_path / "new.json").exists()


def test_gate_never_writes_its_baseline(run, made):
    before = made.read_bytes()
    run(f"--gate={made}")
    assert made.read_bytes() == before
