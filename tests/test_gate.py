"""The golden files were written by this, from the root of the checkout, and then read by a person:

python -c "import sys; sys.path.insert(0, 'tests'); import test_gate as t; t.write_goldens()"
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quantlib import gate
from quantlib.compression.recipes import RECIPES
from quantlib.data.scoring import Scoring
from quantlib.data.tasks import TASKS
from quantlib.gate import (
    Finding,
    GateRecord,
    LatencyRecord,
    Limits,
    LimitTable,
    Slowdown,
    VariantRecord,
    Verdict,
    decide,
    estimate_paired_slowdown,
    estimate_slowdown,
    estimate_speedup,
    judge,
    judge_accuracy,
    judge_latency,
    judge_presence,
    judge_size,
    machine_differences,
    read_limits,
    read_record,
    write_record,
)
from quantlib.gate.accuracy import changed_predictions, mcnemar_p
from quantlib.gate.findings import Kind
from quantlib.gate.limits import Tables
from quantlib.measuring.latency.estimate import PRIOR_DEGREES, estimate_log_ratio
from quantlib.support.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
REPORT_ONLY = RECIPES["quant_1_defaults"].report_only
Array = np.ndarray[Any, Any]

# Records to judge

LABELS = (0.0, 1.0) * 50
MACHINE = {
    "cpu_model": "Xeon",
    "instruction_sets": ["avx2", "avx512_vnni"],
    "architecture": "x86_64",
    "threads": 2,
    "onnxruntime": "1.32.0",
}
INT8_COUNTS = {"MatMulInteger": 12, "Add": 20}


def flipped(*rows: int) -> tuple[float, ...]:
    """The labels, wrong on these rows (counted from 1)."""
    return tuple(1 - label if row in rows else label for row, label in enumerate(LABELS, start=1))


TEACHERS = flipped(1, 2, 3, 4)


def variant_record(predictions: tuple[float, ...] = TEACHERS, **changes: Any) -> VariantRecord:
    score = np.mean(np.equal(predictions, LABELS)) if len(predictions) == len(LABELS) else 0.0
    values: dict[str, Any] = {
        "metrics": {"accuracy": float(score)},
        "eval_loss": 0.25,
        "accuracy_drop": float(np.mean(np.equal(TEACHERS, LABELS)) - score),
        "predictions": predictions,
        "size_bytes": 90_000_000,
        "compression_ratio": 1.0,
        "quantized_share": None,
        "op_counts": {"MatMul": 12, "Add": 20},
        "recipe": None,
    }
    return VariantRecord(**(values | changes))


def int8_record(predictions: tuple[float, ...] = flipped(1, 2, 3, 5), **changes: Any) -> VariantRecord:
    values: dict[str, Any] = {
        "size_bytes": 22_500_000,
        "compression_ratio": 4.0,
        "quantized_share": 1.0,
        "op_counts": INT8_COUNTS,
        "recipe": {"name": "quant_2", "mode": "static", "op_types": ["MatMul", "Gemm"]},
    }
    return variant_record(predictions, **(values | changes))


def latency(speedup: float = 1.6, launches: int = 4, spread: float = 0.01) -> LatencyRecord:
    """Turns `spread` around the speedup on the log scale, the same in each launch."""
    turns = tuple(math.log(speedup) + spread * offset for offset in (-2, -1, 0, 0, 1, 2))
    return LatencyRecord((turns,) * launches, teacher_ms=16.0, variant_ms=16.0 / speedup)


def gate_record(
    int8: VariantRecord | None = None, times: LatencyRecord | None = None, **changes: Any
) -> GateRecord:
    """A run of the teacher and quant_2 at one shape."""
    values: dict[str, Any] = {
        "task": "SST-2",
        "data_hash": "d" * 64,
        "labels": LABELS,
        "machine": MACHINE,
        "settings": {"seq_len": 128},
        "variants": {"teacher": variant_record(), "quant_2": int8 or int8_record()},
        "latency": {"quant_2": {"1x128": times or latency()}},
    }
    return GateRecord(**(values | changes))


def renamed(name: str, **changes: Any) -> GateRecord:
    """The run, with quant_2 under another name."""
    run = gate_record(**changes)
    return replace(
        run,
        variants={"teacher": run.variants["teacher"], name: run.variants["quant_2"]},
        latency={name: run.latency["quant_2"]},
    )


def table(**default: Any) -> LimitTable:
    return LimitTable(Tables(Limits(**default)))


NO_LIMITS = LimitTable()
USUAL = table(max_drop_points=1.0, min_compression_ratio=3.5, min_quantized_share=0.9, max_slowdown=0.05)


def texts(findings: Any, kind: str = "violation") -> list[str]:
    return [finding.text for finding in findings if finding.kind == kind]


# limits


def write_limits(directory: Path, text: str) -> Path:
    path = directory / "limits.toml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.fixture
def layered(tmp_path: Path) -> LimitTable:
    return read_limits(
        write_limits(
            tmp_path,
            """
            [default]
            max_drop_points = 1
            max_slowdown = 0.05
            min_speedup = 1.0
            [recipe.quant_1]
            max_drop_points = 2.0
            min_speedup = 0.3
            [recipe.quant_1_defaults]
            report_only = ""
            [recipe.student_2]
            report_only = "an experiment"
            [recipe.student]
            max_slowdown = 0.1
            [recipe.student_compiled]
            min_speedup = 1.5
            [recipe.student_quantized]
            max_drop_points = 5.0
            [recipe.student_quant_1]
            min_speedup = 5.0
            [recipe.student_2_quant_1]
            min_speedup = 6.0
            [recipe.teacher_compiled]
            max_drop_points = 0.1
            [task.CoLA]
            max_drop_points = 3.0
            [task.CoLA.recipe.quant_1]
            max_drop_points = 4.0
            min_relative_score = 0.99
            [task.CoLA.recipe.student_quantized]
            max_drop_points = 9.0
            """,
        )
    )


def test_the_narrower_table_wins(layered: LimitTable) -> None:
    default = Limits(max_drop_points=1, max_slowdown=0.05, min_speedup=1.0)
    assert layered.of("quant_2", "SST-2") == default
    assert layered.of("quant_1", "SST-2") == replace(default, max_drop_points=2.0, min_speedup=0.3)
    assert layered.of("teacher_compiled", "SST-2") == replace(default, max_drop_points=0.1)
    student = replace(default, max_slowdown=0.1)
    assert layered.of("student", "SST-2") == layered.of("student_3", "SST-2") == student
    compiled = replace(student, min_speedup=1.5)
    assert layered.of("student_compiled", "SST-2") == layered.of("student_2_compiled", "SST-2") == compiled
    quantized = replace(default, max_drop_points=5.0)
    assert layered.of("student_quant_2", "SST-2") == layered.of("student_2_quant_2", "SST-2") == quantized
    for name, least in (("student_quant_1", 5.0), ("student_3_quant_1", 5.0), ("student_2_quant_1", 6.0)):
        assert layered.of(name, "SST-2") == replace(quantized, min_speedup=least)
    assert layered.of("student_quant_2", "CoLA") == replace(quantized, max_drop_points=9.0)
    assert layered.of("quant_2", "CoLA") == replace(default, max_drop_points=3.0)
    assert layered.of("quant_1", "CoLA") == replace(
        default, max_drop_points=4.0, min_speedup=0.3, min_relative_score=0.99
    )


def test_report_only_comes_from_the_recipe_unless_a_table_says_otherwise(layered: LimitTable) -> None:
    reasons = {
        "quant_1": "",
        "quant_1_defaults": "",
        "quant_2_defaults": REPORT_ONLY,
        "student": "",
        "student_2": "an experiment",
        "student_quant_2_defaults": REPORT_ONLY,
        "student_2_quant_2_defaults": REPORT_ONLY,
        "student_2_quant_2": "",
        "teacher": "",
    }
    assert {name: layered.of(name, "SST-2").report_only or "" for name in reasons} == reasons


def test_an_empty_file_limits_nothing(tmp_path: Path) -> None:
    assert read_limits(write_limits(tmp_path, "")).of("quant_1", "RTE") == Limits()


MINE = replace(RECIPES["quant_2"], name="mine", report_only="not to be shipped")


def test_recipes_of_files_have_limits_too(tmp_path: Path) -> None:
    text = """
        [default]
        max_drop_points = 1.0
        [recipe.mine]
        max_drop_points = 2.0
        [recipe.student_2_mine]
        max_drop_points = 3.0
        [recipe.max_drop]
        max_drop_points = 0.5
        """
    table = read_limits(write_limits(tmp_path, text), [MINE])
    drops = {"mine": 2.0, "student_mine": 1.0, "student_2_mine": 3.0, "max_drop": 0.5, "quant_1": 1.0}
    assert {name: table.of(name, "SST-2").max_drop_points for name in drops} == drops


@pytest.mark.parametrize(
    ("text", "reason"), [("", "not to be shipped"), ("[recipe.mine]\nreport_only = ''", "")]
)
def test_report_only_of_a_recipe_file_counts(tmp_path: Path, text: str, reason: str) -> None:
    table = read_limits(write_limits(tmp_path, text), [MINE])
    assert table.of("mine", "SST-2").report_only == reason
    assert table.of("student_mine", "SST-2").report_only == "not to be shipped"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[default\n", r"not a limits file: .*\(at line 1, column 9\)"),
        ("[defaults]\n", r"unknown table 'defaults'; known: default, recipe, task"),
        ("default = 1\n", r"\[default\] must be a table, not 1"),
        ("[recipe]\nquant_1 = 2\n", r"\[recipe.quant_1\] must be a table, not 2"),
        (
            "[default]\nmax_drop = 1\n",
            r"\[default\]: unknown key 'max_drop'; known: max_drop_points, min_rel",
        ),
        (
            "[recipe.quant_9]\n",
            r"\[recipe\]: .* 'quant_9' \(did you mean 'quant_\d'\?\); known: teacher, .*student",
        ),
        (
            "[recipe.teacher_2]\n",
            r"\[recipe\]: unknown variant 'teacher_2' \(did you mean 'teacher'\?\); known: teacher",
        ),
        (
            "[recipe.student_qaunt_1]\n",
            r"'student_qaunt_1' \(did you mean 'student_quant_1'\?\)",
        ),
        ("[recipe.student_2_qaunt_1]\n", r"\(did you mean 'student_2_quant_1'\?\)"),
        ("[recipe.student_1]\n", r"unknown variant 'student_1' \(did you mean 'student"),
        (
            "[recipe.mine]\n",
            r"'mine'; .*max_drop, target_speedup; the recipe of a file is known when --recipes",
        ),
        ("[task.CoLA.recipe.student_mine]\n", r"\[task.CoLA.recipe\]: unknown variant 'student_mine'"),
        ("[recipes.quant_1]\n", r"unknown table 'recipes'; known: default, recipe, task"),
        ("[task.Cola]\n", r"\[task\]: unknown task 'Cola'; known: CoLA, SST-2"),
        ("[task.CoLA]\nrecipes = {}\n", r"\[task.CoLA\]: unknown key 'recipes'"),
        ("[task.CoLA.recipe.quant_9]\n", r"\[task.CoLA.recipe\]: unknown variant 'quant_9'"),
        (
            "[default]\nmin_speedup = true\n",
            r"\[default\]: min_speedup must be a number at least 0, not True",
        ),
        ("[default]\nmin_speedup = '2'\n", r"min_speedup must be a number at least 0, not '2'"),
        ("[default]\nmin_speedup = inf\n", r"min_speedup inf is out of range; it must be at least 0"),
        ("[default]\nmax_drop_points = nan\n", r"max_drop_points nan is out of range"),
        ("[default]\nmax_drop_points = -1\n", r"max_drop_points -1 is out of range; .* between 0 and 100"),
        ("[recipe.quant_1]\nmax_slowdown = 5\n", r"\[recipe.quant_1\]: max_slowdown 5 .* between 0 and 1"),
        ("[task.RTE.recipe.student]\nmin_quantized_share = 1.1\n", r"\[task.RTE.recipe.student\]: min_quant"),
        ("[default]\nreport_only = true\n", r"\[default\]: report_only must be a string, not True"),
    ],
    ids=lambda value: value if "\n" in value else "",
)
def test_limits_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = write_limits(tmp_path, text)
    with pytest.raises(InputError, match=words) as caught:
        read_limits(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1


def test_limits_may_name_the_task_of_the_run(tmp_path: Path) -> None:
    path = write_limits(tmp_path, "[task.Mine]\nmax_drop_points = 3.0\n")
    assert read_limits(path, task="Mine").of("quant_1", "Mine").max_drop_points == 3.0
    with pytest.raises(InputError, match=r"\[task\]: unknown task 'Mine'; known: .*, BBC-News, Other$"):
        read_limits(path, task="Other")


def test_a_missing_limits_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.toml: not a limits file: No such file"):
        read_limits(tmp_path / "none.toml")


# records


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    run = gate_record()
    write_record(tmp_path / "b.json", run)
    assert read_record(tmp_path / "b.json") == run


def test_scores_and_tuples_survive_too(tmp_path: Path) -> None:
    scores = VariantRecord(
        metrics=MappingProxyType({"pearson": 0.5, "spearman": 0.25}),
        eval_loss=1.0,
        accuracy_drop=0.0,
        predictions=(1.23457, 3.0, -0.5),
        size_bytes=1,
        compression_ratio=1.0,
        quantized_share=None,
        op_counts={},
    )
    machine = {"instruction_sets": ("avx2",)}
    run = GateRecord("STS-B", "d", (1.5, 2.0, 5.0), machine, {}, {"teacher": scores})
    write_record(tmp_path / "b.json", run)
    back = read_record(tmp_path / "b.json")
    assert back.variants["teacher"].predictions == scores.predictions
    assert machine_differences(run, back) == []


def test_a_record_is_short_to_read_and_to_compare(tmp_path: Path) -> None:
    write_record(tmp_path / "b.json", gate_record())
    lines = (tmp_path / "b.json").read_text(encoding="utf-8").splitlines()
    assert lines[1] == '  "schema_version": 1,'
    assert [len(re.findall(r"\d", line)) for line in lines if '"predictions"' in line] == [100, 100]
    assert sum('"labels": [0, 1, 0' in line for line in lines) == 1
    assert max(map(len, lines)) < 350


def damaged(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    write_record(path, gate_record())
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("task"), "task is missing"),
        (lambda v: v.update(task="Cola"), "unknown task 'Cola'; known: CoLA"),
        (lambda v: v.update(schema_version=2), "schema_version 2, but this quantlib reads 1; make a new one"),
        (lambda v: v.update(labels=[0, "1"]), "labels: 1 must be a number or a list, not '1'"),
        (lambda v: v["labels"].pop(), "teacher: 100 predictions for 99 labels"),
        (lambda v: v.update(machine=[]), r"machine must be an object, not '\[\]'"),
        (lambda v: v["machine"].update(hostname="ci-7"), "machine must not name the machine: hostname"),
        (lambda v: v["variants"].pop("teacher"), "the first variant must be 'teacher', not 'quant_2'"),
        (lambda v: v["variants"].update(quant_2=1), r"variants: quant_2 must be an object, not '1'"),
        (lambda v: v["variants"]["quant_2"].pop("size_bytes"), "variants.quant_2: size_bytes is missing"),
        (lambda v: v["variants"]["quant_2"].update(size_bytes=True), "size_bytes must be a whole number"),
        (lambda v: v["variants"]["quant_2"].update(size_bytes=1.5), "size_bytes must be a whole number"),
        (lambda v: v["variants"]["quant_2"].update(size_bytes=0), "variants.quant_2: a metric, a size and"),
        (lambda v: v["variants"]["quant_2"].update(quantized_share=1.1), "must lie between 0 and 1"),
        (
            lambda v: v["variants"]["quant_2"].update(accuracy_drop=0.5),
            "quant_2: accuracy_drop is 0.5, the sc",
        ),
        (lambda v: v["variants"]["quant_2"].update(metrics={}), "variants.quant_2: a metric"),
        (lambda v: v["variants"]["quant_2"].update(metrics={"f1": 1}), "first metric must be accuracy"),
        (
            lambda v: v["variants"]["quant_2"]["predictions"].__setitem__(6, 2),
            "quant_2: predictions: row 7 mu",
        ),
        (
            lambda v: v["variants"].update({"2_fast": v["variants"]["quant_2"]}),
            "variants: recipe 2_fast: the name is taken",
        ),
        (lambda v: v["latency"].update(quant_9={}), "latency of variants that are not there: quant_9"),
        (
            lambda v: v["latency"]["quant_2"]["1x128"].update(launches=[]),
            "latency.quant_2.1x128: latency needs",
        ),
        (lambda v: v["latency"]["quant_2"]["1x128"].update(launches=[[1]]), "two turns in each"),
        (lambda v: v["latency"]["quant_2"]["1x128"].update(launches=[1]), "0 must be a list, not '1'"),
        (lambda v: v["latency"]["quant_2"]["1x128"].update(variant_ms=0), "must be positive and finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_records(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_record(damaged(tmp_path / "b.json", change))
    assert str(caught.value).startswith(str(tmp_path / "b.json"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such baseline; make one: --gate-update"),
        ("{", "not a baseline: EOF while parsing an object at line 1 column 1"),
        ("[]", r"the file must be an object, not '\[\]'"),
        ('{"schema_version": NaN}', "schema_version must be a whole number, not 'nan'"),
        ("\udcff", "not a baseline: 'utf-8' codec"),
    ],
    ids=["missing", "cut_off", "list", "nan", "not_utf8"],
)
def test_files_that_are_no_records(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "b.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=words):
        read_record(path)


def test_not_finite_numbers_are_no_record() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        variant_record(eval_loss=math.inf)
    with pytest.raises(ValueError, match="log ratios must be finite"):
        LatencyRecord(((0.0, math.nan),), 1.0, 1.0)
    with pytest.raises(ValueError, match="row 1 must be a finite score"):
        GateRecord("STS-B", "d", (math.nan,), {}, {}, {})


def test_machine_differences_name_both_values() -> None:
    other = gate_record(machine=MACHINE | {"threads": 4, "instruction_sets": ["avx2"], "onnx": "1.23"})
    assert machine_differences(gate_record(), other) == [
        "instruction_sets: avx2 avx512_vnni, baseline avx2",
        "threads: 2, baseline 4",
        "onnx: not recorded, baseline 1.23",
    ]


def test_a_baseline_without_a_scoring_is_one_of_the_table(tmp_path: Path) -> None:
    write_record(tmp_path / "b.json", gate_record(scoring=TASKS["SST-2"].scoring))
    with_scoring = read_record(tmp_path / "b.json")
    values = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert values.pop("scoring")["metrics"] == ["accuracy"]
    (tmp_path / "b.json").write_text(json.dumps(values), encoding="utf-8")
    without = read_record(tmp_path / "b.json")
    assert (without.scoring, without.judged_by) == (None, with_scoring.scoring)
    for current, baseline in ((with_scoring, without), (without, with_scoring)):
        assert [f.kind for f in judge_accuracy("quant_2", current, baseline, USUAL)] == ["note"]


@pytest.mark.parametrize(
    ("error", "share", "kind", "limit"),
    [
        (0.5, 0.9, "note", "limit -0.5556 (the teacher's -0.5000 over 90 %)"),
        (0.55, 0.9, "note", "limit -0.5556"),
        (0.56, 0.9, "violation", "limit -0.5556"),
        (0.56, 0.0, "note", "limit -inf (the teacher's -0.5000 over 0 %)"),
    ],
    ids=str,
)
def test_an_error_is_held_to_a_share_too(error: float, share: float, kind: str, limit: str) -> None:
    scoring = Scoring("regression", 1, ("neg_mean_absolute_error",))
    labels = tuple(map(float, range(8)))

    def of(off: float) -> VariantRecord:
        return variant_record(
            tuple(label + off for label in labels),
            metrics={"neg_mean_absolute_error": -off},
            accuracy_drop=off - 0.5,
        )

    run = gate_record(
        task="Own",
        scoring=scoring,
        labels=labels,
        variants={"teacher": of(0.5), "quant_2": of(error)},
        latency={},
    )
    drop, relative = judge_accuracy("quant_2", run, None, table(min_relative_score=share))
    assert relative.kind == kind
    assert limit in relative.text
    assert f"drop {100 * (error - 0.5):z.2f} points" in drop.text


# slowdown: formulas

LOGS = st.floats(-2, 2)
LAUNCHES = st.lists(st.lists(LOGS, min_size=2, max_size=6), min_size=1, max_size=5)


def recorded(launches: Any, shift: float = 0.0) -> LatencyRecord:
    return LatencyRecord(tuple(tuple(float(v) + shift for v in launch) for launch in launches), 1.0, 1.0)


def test_both_runs_have_an_error() -> None:
    # Two launches that differ by nothing: what is known of launches is all their error.
    sure, noisy = recorded([[0.5] * 5] * 2), recorded([[0.5] * 5] * 2)
    error = estimate_log_ratio(sure.launches).error
    paired = estimate_paired_slowdown([[0.0] * 5] * 2, confidence=0.99)
    assert math.log1p(paired.high) == pytest.approx(stats.t.ppf(0.99, PRIOR_DEGREES + 1) * error)
    two = estimate_slowdown(sure, noisy, confidence=0.99)
    # Of two equal errors, Welch and Satterthwaite's degrees are the sum.
    assert math.log1p(two.high) == pytest.approx(
        stats.t.ppf(0.99, 2 * PRIOR_DEGREES + 2) * math.sqrt(2) * error
    )
    assert math.log1p(estimate_slowdown(sure, noisy, confidence=0.99, spread=0.1).high) == pytest.approx(
        math.log1p(two.high) + 0.1
    )


def test_one_launch_gone_wrong_moves_little() -> None:
    steady = [[0.5, 0.51, 0.49]] * 7
    spoiled = estimate_speedup(recorded([*steady, [1.5, 1.5, 1.5]]))
    assert math.log(spoiled.ratio) == pytest.approx(0.5, abs=0.01)


def test_a_spike_moves_neither_value_nor_error() -> None:
    calm = [[0.0, 0.01, -0.01, 0.02, -0.02]] * 3
    spiky = [[0.0, 0.01, -0.01, 0.02, -5.0]] * 3
    assert estimate_speedup(recorded(spiky)).ratio == pytest.approx(estimate_speedup(recorded(calm)).ratio)
    assert estimate_speedup(recorded(spiky)).high < 1.05


@given(LAUNCHES, LAUNCHES, LOGS)
def test_slowdown_is_free_of_scale(current: Any, baseline: Any, shift: float) -> None:
    slowdown = estimate_slowdown(recorded(current), recorded(baseline))
    assert slowdown.low <= slowdown.slowdown <= slowdown.high
    shifted = estimate_slowdown(recorded(current, shift), recorded(baseline, shift))
    assert (shifted.slowdown, shifted.low, shifted.high) == pytest.approx(
        (slowdown.slowdown, slowdown.low, slowdown.high), abs=1e-6, rel=1e-6
    )


@given(LAUNCHES, LAUNCHES)
def test_slower_one_way_is_faster_the_other(current: Any, baseline: Any) -> None:
    forth = estimate_slowdown(recorded(current), recorded(baseline))
    back = estimate_slowdown(recorded(baseline), recorded(current))
    assert (1 + forth.low) * (1 + back.high) == pytest.approx(1)
    assert (1 + forth.slowdown) * (1 + back.slowdown) == pytest.approx(1)


ORDER = {"pass": 0, "undecided": 1, "fail": 2}


@given(LAUNCHES, LAUNCHES, st.floats(0, 1), st.floats(0, 1))
def test_a_wider_limit_never_fails_more(current: Any, baseline: Any, one: float, other: float) -> None:
    slowdown = estimate_slowdown(recorded(current), recorded(baseline))
    narrow, wide = sorted((one, other))
    assert ORDER[decide(slowdown, wide)] <= ORDER[decide(slowdown, narrow)]


@given(LAUNCHES, LAUNCHES, st.floats(0, 1), st.floats(0, 1))
def test_a_slower_variant_never_passes_more(current: Any, baseline: Any, limit: float, slower: float) -> None:
    before = estimate_slowdown(recorded(current), recorded(baseline))
    after = estimate_slowdown(recorded(current, -math.log1p(slower)), recorded(baseline))
    assert 1 + after.slowdown == pytest.approx((1 + before.slowdown) * (1 + slower))
    if slower > 1e-6:
        assert ORDER[decide(after, limit)] >= ORDER[decide(before, limit)]


@given(LAUNCHES, LAUNCHES, st.floats(0.51, 0.999), st.floats(0.51, 0.999))
def test_more_confidence_is_a_wider_interval(current: Any, baseline: Any, one: float, other: float) -> None:
    less, more = (
        estimate_slowdown(recorded(current), recorded(baseline), confidence=value)
        for value in sorted((one, other))
    )
    assert more.low <= less.low + 1e-12
    assert less.high <= more.high + 1e-12


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(0.06, 0.10, "fail"), (0.01, 0.05, "pass"), (0.05, 0.10, "undecided"), (-0.1, 0.051, "undecided")],
)
def test_decide(low: float, high: float, outcome: str) -> None:
    assert decide(Slowdown((low + high) / 2, low, high, 0.99), 0.05) == outcome


@pytest.mark.parametrize("confidence", [0.5, 1.0, math.nan])
def test_confidence_is_checked(confidence: float) -> None:
    for estimate in (
        lambda: estimate_speedup(latency(), confidence),
        lambda: estimate_slowdown(latency(), latency(), confidence=confidence),
        lambda: Slowdown(0.0, 0.0, 0.0, confidence),
    ):
        with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
            estimate()


def test_slowdown_is_checked() -> None:
    with pytest.raises(ValueError, match="must lie in"):
        Slowdown(0.1, 0.2, 0.3, 0.99)


# slowdown: rates


class Machine:
    """Launches on a machine that drifts and is interrupted; seeded.

    turn_sd, launch_sd: standard deviations of the log ratio. drift: what slows one side of a turn and, since
    the order is reversed, the other side of the next. A tenth of the turns has a spike on either side.
    """

    def __init__(
        self, seed: int, turn_sd: float = 0.05, launch_sd: float = 0.01, drift: float = 0.01
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.turn_sd, self.launch_sd, self.drift = turn_sd, launch_sd, drift

    def launches(self, speedup: float, count: int, turns: int = 12) -> Array:
        shape = (count, turns)
        spikes = (self.rng.random(shape) < 0.1) * self.rng.exponential(0.3, shape)
        return np.asarray(
            math.log(speedup)
            + self.launch_sd * self.rng.standard_normal((count, 1))
            + self.turn_sd * self.rng.standard_normal(shape)
            + self.drift * (-1.0) ** np.arange(turns)
            + spikes * self.rng.choice([-1, 1], shape)
        )


def gate_run(machine: Machine, slower: float, *, in_baseline: int, at_most: int) -> str:
    """The outcome of a gate run that samples from 3 launches on until it is decided."""
    baseline = recorded(machine.launches(1.5, in_baseline))
    current = machine.launches(1.5 / (1 + slower), at_most)
    outcome = "undecided"
    for count in range(3, at_most + 1):
        outcome = decide(estimate_slowdown(recorded(current[:count]), baseline), 0.05)
        if outcome != "undecided":
            break
    return outcome


@pytest.mark.parametrize(
    ("launches", "turns", "turn_sd"),
    [(1, 12, 0.05), (2, 12, 0.05), (3, 12, 0.05), (3, 8, 0.02), (8, 8, 0.05)],
)
def test_bounds_hold_at_their_rate(launches: int, turns: int, turn_sd: float) -> None:
    trials, above, below = 500, 0, 0
    for seed in range(trials):
        machine = Machine(seed, turn_sd)
        slowdown = estimate_slowdown(
            recorded(machine.launches(1.5, launches, turns)),
            recorded(machine.launches(1.65, launches, turns)),
            confidence=0.95,
        )
        above += slowdown.low <= 0.10
        below += slowdown.high >= 0.10
    # 500 trials at 95 % have a standard deviation of 1 %; 92 % is three of them.
    assert min(above, below) / trials >= 0.92


def test_identical_code_does_not_fail() -> None:
    outcomes = [gate_run(Machine(seed), 0.0, in_baseline=3, at_most=3) for seed in range(1000)]
    assert outcomes.count("fail") == 0
    outcomes = [gate_run(Machine(seed), 0.0, in_baseline=8, at_most=12) for seed in range(500)]
    assert outcomes.count("fail") == 0
    assert outcomes.count("pass") >= 0.95 * 500


def test_identical_code_hardly_fails_on_a_machine_more_restless_than_assumed() -> None:
    outcomes = [gate_run(Machine(seed, launch_sd=0.05), 0.0, in_baseline=3, at_most=3) for seed in range(500)]
    assert outcomes.count("fail") <= 0.01 * 500


def test_ten_percent_slower_is_caught() -> None:
    outcomes = [gate_run(Machine(seed), 0.10, in_baseline=3, at_most=3) for seed in range(500)]
    # So little can rarely be told apart, but it is never taken for a pass.
    assert outcomes.count("pass") == 0
    outcomes = [gate_run(Machine(seed), 0.10, in_baseline=8, at_most=12) for seed in range(500)]
    assert outcomes.count("fail") >= 0.95 * 500


def test_exactly_at_the_limit_is_neither_failed_nor_passed_often() -> None:
    outcomes = [gate_run(Machine(seed), 0.05, in_baseline=3, at_most=3) for seed in range(500)]
    assert outcomes.count("fail") <= 0.02 * 500
    assert outcomes.count("pass") <= 0.02 * 500


# findings


def test_findings_are_checked() -> None:
    with pytest.raises(ValueError, match="no finding is of kind 'error'"):
        Finding("error", "size", "a", "m", None, "text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one line"):
        Finding("note", "size", "a", "m", None, "two\nlines")


def test_a_verdict_is_its_worst_finding() -> None:
    kinds: tuple[Kind, ...] = ("note", "changed", "undecided", "violation")
    findings = [Finding(kind, "size", kind, "m", None, kind) for kind in kinds]
    assert [Verdict(tuple(findings[: n + 1])).outcome for n in range(4)] == [
        "pass",
        "pass",
        "undecided",
        "fail",
    ]
    verdict = Verdict(tuple(findings))
    assert (verdict.passed, texts(verdict.violations), len(verdict.undecided)) == (False, ["violation"], 1)
    assert Verdict(tuple(findings[:3])).passed


def test_findings_are_found_by_area_variant_and_shape() -> None:
    note = Finding("note", "latency", "quant_1", "speedup", "1x128", "one")
    other = Finding("note", "latency", "quant_2", "speedup", "8x128", "other")
    size = Finding("note", "size", "quant_1", "size_bytes", None, "size")
    verdict = Verdict((note, other, size))
    assert verdict.of("latency") == (note, other)
    assert verdict.of("latency", "quant_2") == (other,)
    assert verdict.of("latency", "quant_2", "1x128") == ()
    assert verdict.of("size", "quant_1") == (size,)


# accuracy


def accuracy_of(
    rows: tuple[int, ...], limits: LimitTable, baseline: GateRecord | None = None
) -> list[Finding]:
    run = gate_record(int8_record(flipped(*rows)))
    return judge_accuracy("quant_2", run, baseline, limits)


def test_a_drop_over_the_limit() -> None:
    (text,) = texts(accuracy_of((1, 2, 3, 4, 5, 6, 7), table(max_drop_points=1.0)))
    assert text == "quant_2: accuracy drop 3.00 points [0.00, 7.00], limit 1.00; McNemar p = 0.25"


@pytest.mark.parametrize(
    ("rows", "limit", "violated"),
    [
        ((1, 2, 3, 4, 5), 1.0, False),
        ((1, 2, 3, 4, 5), 0.99, True),
        ((1,), 0.0, False),
        ((1, 2, 3, 4), 0.0, False),
    ],
    ids=["at_the_limit", "over_it", "better_than_the_teacher", "equal"],
)
def test_a_drop_of_exactly_the_limit_is_within_it(
    rows: tuple[int, ...], limit: float, violated: bool
) -> None:
    findings = accuracy_of(rows, table(max_drop_points=limit))
    assert bool(texts(findings)) is violated
    assert len(texts(findings, "note")) == 1 - violated


def test_a_drop_never_looks_equal_to_a_limit_that_it_exceeds() -> None:
    (text,) = texts(accuracy_of((1, 2, 3, 4, 5), table(max_drop_points=0.9999)))
    assert "drop 1.0000 points" in text


def test_without_a_limit_the_drop_is_noted() -> None:
    (finding,) = accuracy_of((1, 2, 3, 4, 5, 6), NO_LIMITS)
    assert finding.kind == "note"
    assert "drop 2.00 points [" in finding.text
    assert "no limit" in finding.text


def test_the_relative_score() -> None:
    findings = accuracy_of((1, 2, 3, 4, 5, 6), table(min_relative_score=0.99))
    (text,) = texts(findings)
    assert text == "quant_2: accuracy 0.9400, limit 0.9504 (99 % of the teacher's 0.9600)"
    assert texts(accuracy_of((1, 2, 3, 4), table(min_relative_score=1.0))) == []


@given(st.sets(st.integers(1, 100), max_size=20), st.floats(0, 30), st.floats(0, 30))
@settings(deadline=None, max_examples=40)
def test_accuracy_is_monotone_in_its_limit(rows: set[int], one: float, other: float) -> None:
    narrow, wide = sorted((one, other))
    fails = [bool(texts(accuracy_of(tuple(rows), table(max_drop_points=limit)))) for limit in (narrow, wide)]
    assert fails[0] >= fails[1]


def test_changed_predictions_are_listed() -> None:
    baseline = gate_record(int8_record(flipped(1, 2, 3, 17)))
    (text,) = texts(accuracy_of((1, 2, 3, 4, 20), NO_LIMITS, baseline), "changed")
    assert text == (
        "quant_2: 3 of 100 predictions changed since the baseline (rows 4, 17, 20): 1 better, 2 worse"
    )


def test_many_changed_rows_are_cut_short() -> None:
    text = changed_predictions(TASKS["SST-2"], LABELS, flipped(*range(1, 11)), LABELS)
    assert "10 of 100 predictions changed since the baseline (rows 1, 2, 3, 4, 5, 6, 7, 8, ...): 10 b" in text


def test_changes_between_two_wrong_classes() -> None:
    text = changed_predictions(TASKS["BBC-News"], (1.0, 2.0), (2.0, 2.0), (0.0, 2.0))
    assert text.endswith("(rows 1): 0 better, 0 worse, 1 wrong before and now")


def test_changed_scores() -> None:
    text = changed_predictions(TASKS["STS-B"], (1.0, 2.25, 3.0), (1.5, 2.0, 3.0), (1.0, 2.0, 3.0))
    assert text == ("2 of 3 scores changed since the baseline (rows 1, 2): 1 better, 1 worse, by 0.5 at most")


@pytest.mark.parametrize(
    ("alone", "teacher_alone", "p"), [(0, 0, 1.0), (0, 1, 1.0), (0, 6, 2 / 64), (3, 3, 1.0), (1, 7, 18 / 256)]
)
def test_mcnemar(alone: int, teacher_alone: int, p: float) -> None:
    predictions = flipped(*range(1, teacher_alone + 1))
    teachers = flipped(*range(51, 51 + alone))
    assert mcnemar_p(predictions, teachers, LABELS) == pytest.approx(p)


def test_a_teacher_that_got_worse() -> None:
    worse = {"teacher": variant_record(flipped(*range(1, 8)), accuracy_drop=0.0)}
    baseline = gate_record()
    findings = judge_accuracy("teacher", gate_record(variants=worse, latency={}), baseline, USUAL)
    (text,) = texts(findings)
    assert text.startswith(
        "teacher: accuracy 0.9300, baseline 0.9600: drop 3.00 points [0.00, 7.00], limit 1.00"
    )
    assert texts(findings, "changed")[0].startswith("teacher: 3 of 100 predictions changed")
    assert judge_accuracy("teacher", baseline, baseline, USUAL) == []
    assert judge_accuracy("teacher", baseline, None, USUAL) == []


def test_regression_has_an_interval_and_no_mcnemar() -> None:
    rng = np.random.default_rng(0)
    labels = tuple(float(v) for v in rng.uniform(0, 5, 60).round(3))
    good = tuple(float(v) for v in np.add(labels, rng.normal(0, 0.1, 60)).round(4))
    bad = tuple(float(v) for v in np.add(labels, rng.normal(0, 2.0, 60)).round(4))
    scores = {name: float(np.corrcoef(labels, values)[0, 1]) for name, values in (("g", good), ("b", bad))}
    run = GateRecord(
        "STS-B",
        "d",
        labels,
        MACHINE,
        {},
        {
            "teacher": variant_record(predictions=good, metrics={"pearson": scores["g"]}, accuracy_drop=0.0),
            "quant_2": variant_record(
                predictions=bad, metrics={"pearson": scores["b"]}, accuracy_drop=scores["g"] - scores["b"]
            ),
        },
    )
    (text,) = texts(judge_accuracy("quant_2", run, None, USUAL))
    assert re.fullmatch(r"quant_2: pearson drop \d+\.\d\d points \[\d+\.\d\d, \d+\.\d\d\], limit 1.00", text)


def test_report_only_variants_do_not_fail() -> None:
    run = renamed("quant_1_defaults", int8=int8_record(flipped(*range(1, 30)), compression_ratio=1.0))
    verdict = judge(run, None, USUAL)
    assert verdict.passed
    notes = [finding for finding in verdict.findings if finding.report_only]
    assert {finding.metric for finding in notes} == {"accuracy_drop", "compression_ratio"}
    assert all(finding.text.endswith(f"(report only: {REPORT_ONLY})") for finding in notes)


# size


def size_of(limits: LimitTable, baseline: GateRecord | None = None, **changes: Any) -> list[Finding]:
    return judge_size("quant_2", gate_record(int8_record(**changes)), baseline, limits)


def test_compression_and_share_have_limits() -> None:
    findings = size_of(USUAL, compression_ratio=2.81, quantized_share=0.5)
    assert texts(findings) == [
        "quant_2: compression ratio 2.81, limit 3.50",
        "quant_2: 50.0 % of the nodes with weights are quantized, limit 90.0 %",
    ]
    assert size_of(USUAL, compression_ratio=3.5, quantized_share=0.9) == []
    assert size_of(NO_LIMITS, compression_ratio=1.0, quantized_share=0.0) == []


def test_a_float_model_has_no_share_to_hold() -> None:
    assert size_of(USUAL, quantized_share=None) == []


def test_a_larger_file_is_a_violation_and_a_smaller_one_a_note() -> None:
    baseline = gate_record()
    (finding,) = size_of(NO_LIMITS, baseline, size_bytes=24_750_000)
    assert finding.kind == "violation"
    assert finding.text == "quant_2: size 23.60 MB, baseline 21.46 MB (+10.0 %), limit +0.5 %"
    (finding,) = size_of(NO_LIMITS, baseline, size_bytes=20_250_000)
    assert (finding.kind, finding.text) == ("note", "quant_2: size 19.31 MB, baseline 21.46 MB (-10.0 %)")
    assert size_of(NO_LIMITS, baseline, size_bytes=22_600_000) == []


@pytest.mark.parametrize(
    ("share", "counts", "words"),
    [
        (
            0.5,
            {"MatMulInteger": 6, "MatMul": 6, "Add": 20},
            "MatMul 6 (baseline 0), MatMulInteger 6 (baseline 12)",
        ),
        (None, {"MatMul": 12, "Add": 20}, "MatMul 12 (baseline 0), MatMulInteger 0 (baseline 12)"),
        (0.5, INT8_COUNTS, "the number of nodes of each type is the same"),
    ],
    ids=["half", "none", "same_counts"],
)
def test_a_share_below_the_baselines_names_what_changed(
    share: float | None, counts: dict[str, int], words: str
) -> None:
    (text,) = texts(size_of(NO_LIMITS, gate_record(), quantized_share=share, op_counts=counts))
    assert text.startswith(f"quant_2: {100 * (share or 0):.1f} % of the nodes with weights are quantized, ")
    assert text.endswith(f"baseline 100.0 %; {words}")


def test_the_teachers_size_is_compared_too() -> None:
    grown = variant_record(size_bytes=99_000_000)
    run = gate_record(variants={"teacher": grown, "quant_2": int8_record()})
    assert texts(judge_size("teacher", run, gate_record(), USUAL)) == [
        "teacher: size 94.41 MB, baseline 85.83 MB (+10.0 %), limit +0.5 %"
    ]
    assert judge_size("teacher", run, None, USUAL) == []


# latency


def latency_of(times: LatencyRecord, limits: LimitTable, **changes: Any) -> list[Finding]:
    baseline = gate_record(**changes)
    return judge_latency("quant_2", "1x128", gate_record(times=times), baseline, limits)


@pytest.mark.parametrize(
    ("speedup", "kind", "words"),
    [
        (1.31, "violation", "slowdown 22.1 % [19.7, 24.6]"),
        (1.53, "undecided", "slowdown 4.6 % [2.5, 6.7], undecided: the interval holds the limit"),
        (1.60, "note", "slowdown 0.0 % [-2.0, 2.0]"),
        (2.00, "note", "slowdown -20.0 % [-21.6, -18.4]"),
    ],
    ids=["slower", "near_the_limit", "same", "faster"],
)
def test_speedup_against_the_baseline(speedup: float, kind: str, words: str) -> None:
    (finding,) = latency_of(latency(speedup), table(max_slowdown=0.05))
    assert finding.kind == kind
    assert re.match(
        rf"quant_2 1x128: speedup {speedup:.2f} \[\d\.\d\d, \d\.\d\d\], "
        r"baseline 1.60 \[1.57, 1.63\], limit -5 %; ",
        finding.text,
    )
    assert finding.text.endswith(words)


@pytest.mark.parametrize(
    ("least", "kind"), [(1.7, "violation"), (1.61, "undecided"), (1.5, "note")], ids=["over", "near", "under"]
)
def test_the_least_speedup(least: float, kind: str) -> None:
    (finding,) = judge_latency("quant_2", "1x128", gate_record(), None, table(min_speedup=least))
    assert finding.kind == kind
    assert finding.text.startswith(f"quant_2 1x128: speedup 1.60 [1.57, 1.63], limit at least {least:.2f}")


def test_latency_without_limits_is_noted() -> None:
    (finding,) = judge_latency("quant_2", "1x128", gate_record(), None, NO_LIMITS)
    assert (finding.kind, finding.text) == ("note", "quant_2 1x128: speedup 1.60 [1.57, 1.63]")
    (finding,) = latency_of(latency(0.1), NO_LIMITS)
    assert finding.kind == "note"
    assert "no limit" in finding.text


def compared(comparison: gate.Comparison, limits: LimitTable, **changes: Any) -> list[Finding]:
    run = gate_record(**({"latency": {}} | changes))
    return judge_latency("quant_2", "1x128", run, gate_record(), limits, comparison=comparison)


@pytest.mark.parametrize(
    ("slower", "kind", "words"),
    [
        (0.10, "violation", "slowdown 10.0 % [7.2, 12.9], limit -5 %; in turns with the old model"),
        (0.05, "undecided", "undecided: the interval holds the limit"),
        (0.0, "note", "4 launches"),
    ],
)
def test_a_model_against_the_old_one(slower: float, kind: str, words: str) -> None:
    comparison = gate.Comparison("old model", "old model from the store", pairs(slower, spread=0), 0.998)
    (finding,) = compared(comparison, table(max_slowdown=0.05))
    assert finding.kind == kind
    assert words in finding.text
    (finding,) = compared(comparison, NO_LIMITS)
    assert finding.kind == "note"


def test_other_programs_leave_a_pair_undecided() -> None:
    busy = gate.Comparison("old model", "old model", pairs(0.5), others=0.4, disturbed=True)
    (finding,) = compared(busy, table(max_slowdown=0.05))
    assert finding.kind == "undecided"
    assert finding.text.endswith("undecided: other programs used 40 % of the machine now")


def test_what_is_unchanged_is_a_note_and_the_least_speedup_still_holds() -> None:
    same = gate.Comparison("unchanged", "the same would run")
    limits = table(max_slowdown=0.05, min_speedup=1.7)
    (finding,) = compared(same, limits)
    assert (finding.kind, finding.text) == ("note", "quant_2 1x128: unchanged: the same would run")
    least, finding = compared(same, limits, latency=gate_record().latency)
    assert (least.kind, least.metric) == ("violation", "min_speedup")
    assert finding.text.endswith("; speedup 1.60 [1.57, 1.63]")


def test_the_weaker_way_says_why_and_is_wider() -> None:
    weaker = gate.Comparison("teacher", "the store has no model 12ab", spread=0.4)
    (finding,) = compared(weaker, table(max_slowdown=0.05), latency=gate_record(times=latency(1.2)).latency)
    assert finding.kind == "undecided"
    assert "by ratios to the teacher, the weaker comparison: the store has no model 12ab, und" in finding.text


def test_comparisons_are_checked() -> None:
    with pytest.raises(ValueError, match="launches of an old and a new model"):
        gate.Comparison("old model", "no launches")
    with pytest.raises(ValueError, match="spread -1 must be at least 0"):
        gate.Comparison("teacher", "", spread=-1)


def test_what_was_neither_timed_nor_compared_cannot_be_judged() -> None:
    with pytest.raises(KeyError):
        judge_latency("quant_2", "1x128", gate_record(latency={}), None, NO_LIMITS)


def test_shapes_that_were_compared_without_the_teacher_are_not_missing() -> None:
    run = gate_record(latency={})
    comparisons = {"quant_2": {"1x128": gate.Comparison("old model", "old model", pairs())}}
    assert judge(run, gate_record(), USUAL, compared=comparisons).passed
    assert not judge(run, gate_record(), USUAL).passed


def test_another_machine_is_not_compared_unless_asked_for() -> None:
    slow, other = gate_record(times=latency(1.0)), gate_record(machine=MACHINE | {"cpu_model": "EPYC"})
    verdict = judge(slow, other, USUAL)
    assert verdict.passed
    (note,) = verdict.of("machine")
    assert note.text == (
        "latency is not compared with the baseline's, which is from another machine "
        "(cpu_model: Xeon, baseline EPYC); --gate-across-machines compares it anyway"
    )
    across = judge(slow, other, USUAL, across_machines=True)
    assert [finding.metric for finding in across.violations] == ["speedup"]
    assert (
        across.of("machine")[0].text == "latency is compared across machines (cpu_model: Xeon, baseline EPYC)"
    )


def test_another_machine_still_answers_for_the_rest() -> None:
    run = gate_record(int8_record(flipped(*range(1, 30)), size_bytes=30_000_000), latency(1.0))
    other_machine = gate_record(machine=MACHINE | {"threads": 4})
    limits = table(max_drop_points=1.0, min_speedup=1.5, max_slowdown=0.05)
    metrics = {finding.metric for finding in judge(run, other_machine, limits).violations}
    assert metrics == {"accuracy_drop", "size_bytes", "min_speedup"}


@settings(deadline=None, max_examples=40)
@given(st.floats(0.5, 3.0), st.floats(0, 1), st.floats(0, 1))
def test_latency_is_monotone_in_its_limit(speedup: float, one: float, other: float) -> None:
    order = ("note", "undecided", "violation")
    narrow, wide = (
        order.index(latency_of(latency(speedup), table(max_slowdown=limit))[0].kind)
        for limit in sorted((one, other))
    )
    assert wide <= narrow


# presence


def test_a_run_against_itself_passes() -> None:
    verdict = judge(gate_record(), gate_record(), USUAL)
    assert verdict.outcome == "pass"
    assert [finding.area for finding in verdict.findings] == ["accuracy", "latency"]


def test_variants_that_only_one_side_has() -> None:
    findings = judge_presence(renamed("quant_1"), gate_record(), USUAL)
    assert texts(findings) == [
        "quant_2: in the baseline, but not in this run; run it too, or take it out with --gate-update",
        "quant_1: in this run, but not in the baseline; put it in with --gate-update",
    ]


def test_shapes_that_only_one_side_has() -> None:
    run = gate_record(latency={"quant_2": {"8x128": latency()}})
    assert [(f.shape, "not in this run" in f.text) for f in judge_presence(run, gate_record(), USUAL)] == [
        ("1x128", True),
        ("8x128", False),
    ]


@pytest.mark.parametrize(
    ("variants", "words"),
    [({}, "nothing was run"), ({"teacher": variant_record()}, "only the teacher was run")],
)
@pytest.mark.parametrize("against", ["baseline", "no_baseline"])
def test_a_gate_of_nothing_fails(variants: dict[str, VariantRecord], words: str, against: str) -> None:
    run = gate_record(variants=variants, latency={})
    findings = judge_presence(run, gate_record() if against == "baseline" else None, USUAL)
    assert texts(findings)[0].startswith(f"{words}, so nothing was gated")


def test_a_limit_on_latency_that_was_not_measured() -> None:
    run = gate_record(latency={})
    for limits in (table(max_slowdown=0.05), table(min_speedup=1.0)):
        assert texts(judge_presence(run, None, limits)) == [
            "quant_2: there is a limit on its latency, but no shape of it was timed"
        ]
        assert len(judge_presence(run, run, limits)) == 1
    assert judge_presence(run, None, table(max_drop_points=1.0)) == []


def test_what_is_reported_only_may_be_absent() -> None:
    findings = judge_presence(gate_record(), renamed("quant_1_defaults"), USUAL)
    assert [finding.kind for finding in findings] == ["note", "violation"]


def test_settings_that_changed_are_noted() -> None:
    verdict = judge(gate_record(), gate_record(settings={"seq_len": 64}), USUAL)
    assert [finding.text for finding in verdict.of("machine")] == [
        "the baseline was made with other settings (seq_len: 128, baseline 64)"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "RTE"}, "the baseline is of task RTE, this run of SST-2"),
        (
            {"data_hash": "e" * 64},
            "the baseline was made on other rows of SST-2 .data eeeeeeeeeeee, this run ddd",
        ),
    ],
    ids=["task", "rows"],
)
def test_baselines_that_cannot_be_compared(changes: dict[str, Any], words: str) -> None:
    for judged in (judge, lambda *records: judge_accuracy("quant_2", *records)):
        with pytest.raises(InputError, match=words):
            judged(gate_record(), gate_record(**changes), USUAL)


# rendering


def some_records() -> tuple[GateRecord, GateRecord]:
    """A run and its baseline with something of everything."""
    baseline = gate_record()
    baseline = replace(
        baseline,
        variants={
            **baseline.variants,
            "quant_1": int8_record(),
            "dynamic_u8s8": int8_record(),
            "weight_only_int4": int8_record(),
        },
        latency={
            "quant_2": {"1x128": latency(), "8x128": latency(1.4)},
            "dynamic_u8s8": {"1x128": latency(2.0)},
            "weight_only_int4": {"1x128": latency(0.9)},
        },
    )
    run = replace(
        baseline,
        settings={"seq_len": 128, "note": "a|b <i> `c` & d"},
        variants={
            **gate_record(int8_record(flipped(1, 2, 3, 4, 5, 6, 7))).variants,
            "dynamic_u8s8": int8_record(size_bytes=20_000_000),
            "weight_only_int4": int8_record(),
            "quant_1_defaults": int8_record(flipped(*range(1, 30))),
        },
        latency={
            "quant_2": {"8x128": latency(1.4)},
            "dynamic_u8s8": {"1x128": latency(1.91)},
            "weight_only_int4": {"1x128": latency(0.7)},
        },
    )
    return run, baseline


def pairs(slowdown: float = 0.0, launches: int = 4, spread: float = 0.01) -> tuple[tuple[float, ...], ...]:
    """Turns of an old and a new model that is slower, the same in each launch."""
    return latency(1 / (1 + slowdown), launches, spread).launches


COMPARED = {
    "quant_2": {
        "1x128": gate.Comparison("old model", "old model from the store", pairs(0.1), 0.998),
        "8x128": gate.Comparison("unchanged", "the same would run"),
    },
    "dynamic_u8s8": {"1x128": gate.Comparison("teacher", "the store has no model 12ab", spread=0.4)},
    "weight_only_int4": {"1x128": gate.Comparison("not compared", "the store has no model 34cd")},
}


def rendered() -> dict[str, str]:
    run, baseline = some_records()
    verdict = judge(run, baseline, USUAL, compared=COMPARED)
    first = judge(gate_record(), None, USUAL)
    return {
        "gate_verdict.md": gate.markdown(verdict, run, baseline, COMPARED),
        "gate_console.txt": "\n".join(gate.console_lines(verdict)) + "\n",
        "gate_first_run.md": gate.markdown(first, gate_record(), None),
    }


def write_goldens() -> None:
    for name, text in rendered().items():
        (GOLDEN / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["gate_verdict.md", "gate_console.txt", "gate_first_run.md"])
def test_goldens(name: str) -> None:
    assert rendered()[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_names_cannot_break_the_markdown() -> None:
    finding = Finding("note", "size", "a|b", "m", None, "`a|b` <script> &amp;")
    text = gate.markdown(Verdict((finding,)), gate_record(), None)
    assert r"- \`a\|b\` &lt;script&gt; &amp;amp;" in text


def test_rows_in_which_nothing_changed_are_folded() -> None:
    run = gate_record()
    text = gate.markdown(judge(run, run, USUAL), run, run)
    shown, folded = text.split("<details><summary>", 1)
    assert "| teacher |" not in shown and "| teacher |" in folded
    assert folded.startswith(f"{folded.count('| pass |')} unchanged</summary>")
    assert "The environment differs" not in text


def test_environments_are_shown_where_they_differ() -> None:
    run = gate_record()
    baseline = replace(run, machine={**run.machine, "cpu_model": "a|CPU", "threads": run.machine["threads"]})
    lines = gate.markdown(judge(run, baseline, USUAL), run, baseline).splitlines()
    at = lines.index("### The environment differs")
    assert lines[at + 4] == f"| cpu_model | a\\|CPU | {run.machine['cpu_model']} |"
    assert not lines[at + 5].startswith("|")


def test_console_of_a_pass() -> None:
    lines = gate.console_lines(judge(gate_record(), gate_record(), USUAL))
    assert lines[-1] == "gate: pass (0 violations, 0 undecided, 0 changed, 2 notes)"


def test_a_busy_machine_decides_nothing() -> None:
    steady, slower = [[0.5] * 4] * 4, [[0.2] * 4] * 4
    busy = replace(recorded(slower), others=0.4, disturbed=True)
    baseline = gate_record(latency={"quant_2": {"1x128": recorded(steady)}})
    current = gate_record(latency={"quant_2": {"1x128": busy}})
    table = LimitTable(Tables(Limits(max_slowdown=0.05)))
    (finding,) = judge_latency("quant_2", "1x128", current, baseline, table)
    assert finding.kind == "undecided"
    assert finding.text.endswith("undecided: other programs used 40 % of the machine now")
