"""The golden files were written by this, from the root of the checkout, and then read by a person:

python -c "import sys; sys.path.insert(0, 'tests'); import test_results as t; t.write_goldens()"
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from quantlib.measuring.checks import Checks, Invariance, Saturation
from quantlib.measuring.latency import LatencyStats
from quantlib.measuring.latency.speedup import Speedup
from quantlib.measuring.throughput import Throughput
from quantlib.onnx_model.coverage import KEPT, TWO_ACTIVATIONS, Coverage, NotQuantized
from quantlib.report.columns import COLUMNS, VariantResult
from quantlib.report.results import SCHEMA_VERSION, read_results, write_results, write_run
from quantlib.report.tables import checks_table, columns_markdown, front_note, table
from quantlib.support.columns import Column
from quantlib.support.errors import InputError

GOLDEN = Path(__file__).parent / "golden"
COLUMNS_PAGE = Path(__file__).parents[1] / "docs" / "columns.md"


def throughput(seconds: float) -> Throughput:
    return Throughput(
        rows=160, tokens=4000, batches=8, passes=3, seconds=seconds, padded_rows_per_s=16 / seconds
    )


def latency(median_ms: float) -> LatencyStats:
    return LatencyStats((median_ms - 0.5, median_ms, median_ms + 0.5), warmup_runs=5)


def teacher() -> VariantResult:
    return VariantResult(
        "teacher",
        metrics={"f1": 0.9, "accuracy": 0.86},
        eval_loss=0.3125,
        size_bytes=90_870_000,
        latency=latency(16.0),
        throughput=throughput(2.0),
    )


def some_results() -> list[VariantResult]:
    student = VariantResult(
        "student",
        metrics={"f1": 0.88, "accuracy": 0.84},
        eval_loss=0.4,
        size_bytes=69_000_000,
        latency=latency(8.0),
        throughput=throughput(1.0),
        agreement=0.96,
        teacher=teacher(),
    )
    quantized = VariantResult(
        "quant_1",
        metrics={"f1": 0.905, "accuracy": 0.865},
        eval_loss=1 / 3,
        size_bytes=23_000_000,
        latency=latency(20.0),
        throughput=throughput(0.125),
        agreement=277 / 278,
        teacher=teacher(),
        recipe="quant_1",
        extra={"drop_low": -0.0125, "drop_high": 0.0025, "noisy": True, "note": None, "nodes": 38},
    )
    return [teacher(), student, quantized]


def checked(name: str, checks: Checks | None, metric: str = "accuracy") -> VariantResult:
    return VariantResult(
        name, metrics={metric: 0.9}, eval_loss=0.1, size_bytes=8, latency=latency(1.0), checks=checks
    )


def some_checks() -> list[VariantResult]:
    kept = NotQuantized("pooler", KEPT), NotQuantized("scores", TWO_ACTIVATIONS)
    return [
        checked("teacher", Checks((Saturation(True, why_not="float"), Invariance(32, 0.0, 1.5e-6, 0)))),
        checked("quant_1", Checks((Saturation(True, 64, 0.0, 0), Invariance(32, 0.0, 0.0, 0), Coverage(38)))),
        checked(
            "dynamic",
            Checks((Saturation(False, 64, 2.344, 7), Invariance(32, 0.5, 0.75, 1), Coverage(37, kept))),
        ),
        checked(
            "score", Checks((Saturation(True, 64, 0.0, None), Invariance(32, 0.25, 0.5, None), Coverage(9)))
        ),
        checked("unchecked", None),
    ]


def write_goldens() -> None:
    write_results(GOLDEN, some_results())


@pytest.mark.parametrize("name", ["results.json", "results.csv"])
def test_golden_files(tmp_path: Path, name: str) -> None:
    write_results(tmp_path, some_results())
    assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes()


def test_against_the_teacher() -> None:
    first, student, quantized = some_results()
    assert (first.compression_ratio, first.speedup, first.accuracy_drop, first.agreement) == (1, 1, 0, 1)
    assert student.speedup == 2.0
    assert student.accuracy_drop == pytest.approx(0.02)
    assert quantized.speedup == 0.8
    assert quantized.accuracy_drop == pytest.approx(-0.005)
    assert quantized.compression_ratio == 90_870_000 / 23_000_000
    assert quantized.primary_metric == "f1"


def test_throughput_is_written_beside_latency() -> None:
    values = some_results()[2].values()
    written = {key: values[key] for key in ("rows_per_s", "tokens_per_s", "padded_rows_per_s")}
    assert written == {"rows_per_s": 1280.0, "tokens_per_s": 32000.0, "padded_rows_per_s": 128.0}
    assert not written.keys() & checked("teacher", None).values().keys()


def test_results_from_before_there_was_throughput_are_read() -> None:
    results = read_results(GOLDEN / "results_without_throughput.json")
    assert list(results) == ["teacher", "student", "quant_1"]
    assert "rows_per_s" not in results["teacher"]


def test_model_size_is_mebibytes() -> None:
    result = VariantResult(
        "teacher", metrics={"a": 1.0}, eval_loss=0.0, size_bytes=3 * 2**19, latency=latency(1.0)
    )
    assert result.values()["model_size"] == 1.5


def test_checks_are_written_last_and_flat(tmp_path: Path) -> None:
    results = some_checks()
    assert list(results[2].values().items())[-5:] == [
        ("quantized_share", 37 / 38),
        ("saturation_max_diff", 2.344),
        ("saturation_labels_changed", 7),
        ("invariance_max_diff", 0.75),
        ("invariance_labels_changed", 1),
    ]
    assert "quantized_share" not in results[-1].values()
    write_results(tmp_path, results)
    written = read_results(tmp_path / "results.json")
    assert written["teacher"]["quantized_share"] is written["teacher"]["saturation_max_diff"] is None
    assert written == {result.name: result.values() for result in results}


def test_a_metric_cannot_hide_a_check() -> None:
    with pytest.raises(ValueError, match="given twice: quantized_share"):
        checked("teacher", some_checks()[0].checks, metric="quantized_share")


def test_written_results_are_read_back(tmp_path: Path) -> None:
    write_results(tmp_path, some_results())
    results = read_results(tmp_path / "results.json")
    assert results == {result.name: result.values() for result in some_results()}
    assert list(results) == ["teacher", "student", "quant_1"]


def test_numpy_scalars_become_plain_numbers() -> None:
    result = VariantResult(
        "teacher",
        metrics={"a": np.float32(0.5)},  # type: ignore[dict-item]
        eval_loss=np.float32(0.25),  # type: ignore[arg-type]
        size_bytes=np.int64(8),  # type: ignore[arg-type]
        latency=latency(1.0),
    )
    assert json.loads(json.dumps(result.values()))["a"] == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_loss": float("nan")}, "eval_loss is nan"),
        ({"metrics": {"accuracy": float("nan")}}, "accuracy is nan"),
        ({"extra": {"logit_error": float("inf")}}, "logit_error is inf"),
        ({"extra": {"bad": np.float32(1)}}, "bad is a float32"),
        ({"extra": {"speedup": 2.0}}, "given twice: speedup"),
        ({"extra": {"accuracy": 2.0}}, "given twice: accuracy"),
        ({"metrics": {"variant": 1.0}}, "given twice: variant"),
        ({"name": ""}, "needs a name"),
        ({"size_bytes": 0}, "division by zero|size"),
    ],
    ids=["loss", "metric", "inf", "numpy", "clash", "extra_is_metric", "column", "name", "size"],
)
def test_wrong_values_are_refused(changes: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "name": "teacher",
        "metrics": {"accuracy": 0.9},
        "eval_loss": 0.1,
        "size_bytes": 10,
        "latency": latency(1.0),
    }
    with pytest.raises(ValueError, match=words):
        VariantResult(**(arguments | changes))


def test_another_primary_metric_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="primary metric accuracy, but the teacher's is f1"):
        VariantResult(
            "x", metrics={"accuracy": 1}, eval_loss=0, size_bytes=1, latency=latency(1), teacher=teacher()
        )


def write_columns() -> None:
    """Write the table of docs/columns.md anew."""
    page = COLUMNS_PAGE.read_text(encoding="utf-8")
    before, after = page.split(marked(page))
    COLUMNS_PAGE.write_text(before + columns_markdown() + after, encoding="utf-8")


def marked(page: str) -> str:
    return page.split("<!-- columns", 1)[1].split("-->\n", 1)[1].split("<!-- end of columns -->")[0]


def test_the_documentation_lists_every_column() -> None:
    """If not, call `write_columns` as the top of this file calls `write_goldens`."""
    assert marked(COLUMNS_PAGE.read_text(encoding="utf-8")) == columns_markdown()


def test_one_more_column_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Column[VariantResult](
        "runs",
        "timed runs",
        lambda result: len(result.latency.times_ms),
        required=True,
        heading="runs",
        cell=lambda result: str(len(result.latency.times_ms)),
        place=9,
    )
    for module in ("columns", "results", "tables"):
        monkeypatch.setattr(f"quantlib.report.{module}.COLUMNS", (*COLUMNS, runs))
    write_results(tmp_path, some_results())
    assert [values["runs"] for values in read_results(tmp_path / "results.json").values()] == [3, 3, 3]
    assert ",runs," in (tmp_path / "results.csv").read_text().splitlines()[0]
    assert table(some_results()).columns[-1]._cells == ["3", "3", "3"]
    assert "| `runs` | runs | timed runs |" in columns_markdown()
    with pytest.raises(InputError, match="teacher: 'runs' is missing"):
        read_results(GOLDEN / "results.json")


@pytest.mark.parametrize("order", [[1, 0], [0, 1, 1], [1], []], ids=str)
def test_the_teacher_comes_first_and_names_are_unique(tmp_path: Path, order: list[int]) -> None:
    with pytest.raises(ValueError, match="variants must be 'teacher'"):
        write_results(tmp_path, [some_results()[i] for i in order])
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_results(tmp_path / "file", some_results())


def edit(path: Path, how: str) -> None:
    write_results(path.parent, some_results())
    values = json.loads(path.read_text())
    if how == "lacks_key":
        del values["quant_1"]["speedup"]
    elif how == "text":
        values["student"]["speedup"] = "fast"
    elif how == "no_number":
        values["student"]["rows_per_s"] = None
    elif how == "bool":
        values["student"]["speedup"] = True
    elif how == "nested":
        values["student"]["more"] = [1]
    elif how == "no_teacher":
        del values["teacher"]
    elif how == "list":
        values = [values]
    elif how == "number":
        values["student"] = 3
    path.write_text(json.dumps(values))
    if how == "not_json":
        path.write_text("{")
    elif how == "nan":
        path.write_text(json.dumps(values).replace("0.3125", "NaN"))
    elif how == "not_text":
        path.write_bytes(b"\xff\xfe\x00")
    elif how == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("lacks_key", "quant_1: 'speedup' is missing"),
        ("text", "student: 'speedup' must be a number, not 'fast'"),
        ("no_number", "student: 'rows_per_s' must be a number, not None"),
        ("bool", "student: 'speedup' must be a number, not True"),
        ("nested", r"student: more must be a single value, not '\[1\]'"),
        ("no_teacher", "expected an object of variants"),
        ("list", "the file must be an object, not "),
        ("number", "student must be an object, not '3'"),
        ("not_json", "not a results file"),
        ("nan", "teacher: 'eval_loss' must be a finite number, not nan"),
        ("not_text", "not a results file"),
        ("missing", "No such file"),
    ],
)
def test_damaged_results_are_refused_in_one_line(tmp_path: Path, how: str, words: str) -> None:
    path = tmp_path / "results.json"
    edit(path, how)
    with pytest.raises(InputError, match=words) as caught:
        read_results(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_run_json(tmp_path: Path) -> None:
    write_run(tmp_path, {"threads": 2, "seeds": {"split": 0}})
    run = json.loads((tmp_path / "run.json").read_text())
    assert list(run) == ["schema_version", "threads", "seeds"]
    assert run["schema_version"] == SCHEMA_VERSION
    with pytest.raises(ValueError, match="schema_version"):
        write_run(tmp_path, {"schema_version": 9})
    with pytest.raises(ValueError, match="JSON"):
        write_run(tmp_path, {"seconds": float("nan")})


def printed(colour: bool = False, *, checks: bool = False) -> list[str]:
    console = Console(width=80, color_system="standard" if colour else None, force_terminal=colour)
    with console.capture() as capture:
        console.print(checks_table(some_checks()) if checks else table(some_results()))
    return [line.strip() for line in capture.get().splitlines() if line.strip()]


def test_the_table() -> None:
    lines = [line for line in printed() if line.startswith(("teacher", "student", "quant_1"))]
    assert [" ".join(line.split()) for line in lines] == [
        "teacher 0.9000 0.8600 0.00 100.0 86.7 1.00x 16.00 1.00x 80",
        "student 0.8800 0.8400 2.00 96.0 65.8 1.32x 8.00 2.00x 160",
        "quant_1 0.9050 0.8650 -0.50 99.6 21.9 3.95x 20.00 0.80x 1280",
    ]
    assert len({len(line) for line in lines}) == 1, "numbers are aligned at the right"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "320"), (160 / 9999, "9999"), (160 / 9999.9, "10k"), (0.0001, "1600k")],
    ids=str,
)
def test_many_rows_are_shown_in_thousands(seconds: float, shown: str) -> None:
    result = replace(teacher(), throughput=throughput(seconds))
    assert table([result]).columns[-1]._cells == [shown]


def test_a_narrow_place_shows_fewer_columns_rather_than_broken_names() -> None:
    results = [*some_results(), replace(teacher(), name="student_static_u8s8_embed4")]
    headings = [column.header for column in table(results).columns]
    dropped = ["rows\n/s", "accuracy", "size\nratio", "agree\n%"]
    widths = {}
    for width in (200, 95, 90, 80, 70, 60, 40):
        shown = [column.header for column in table(results, width).columns]
        left_out = [heading for heading in headings if heading not in shown]
        assert left_out == sorted(dropped[: len(left_out)], key=headings.index)
        widths[width] = len(left_out)
        with (console := Console(width=width)).capture() as capture:
            console.print(table(results, width))
        if width >= 70:
            assert "student_static_u8s8_embed4 " in capture.get()
    assert widths == {200: 0, 95: 0, 90: 1, 80: 2, 70: 4, 60: 4, 40: 4}


def test_colour_marks_what_is_worse_and_adds_no_text() -> None:
    coloured = printed(colour=True)
    assert sum("\x1b[31m" in line for line in coloured) == 2
    assert any("\x1b[31m2.00" in line for line in coloured)
    assert any("\x1b[31m0.80x" in line for line in coloured)
    assert not any("\x1b" in line for line in printed())


def test_the_table_of_checks() -> None:
    lines = printed(checks=True)
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "teacher n/a 1.5e-06 0/32",
        "quant_1 38/38 0 0/64 0 0/32",
        "dynamic 37/38 2.3 7/64 change 0.75 1/32 change",
        "score 9/9 0 0.5",
    ]


def test_colour_marks_labels_that_change() -> None:
    coloured = printed(colour=True, checks=True)
    assert [line.count("\x1b[31m") for line in coloured if "dynamic" in line] == [2]
    assert sum("\x1b[31m" in line for line in coloured) == 1


def test_a_drop_shown_as_one_point_is_not_coloured() -> None:
    result = VariantResult(
        "v",
        metrics={"f1": 0.89, "accuracy": 0.8},
        eval_loss=0,
        size_bytes=1,
        latency=latency(16.0),
        teacher=teacher(),
    )
    assert 100 * result.accuracy_drop > 1
    assert "red" not in str(table([result]).columns[3]._cells)


@pytest.mark.parametrize(("median_ms", "misleads"), [(4.0, False), (1.0, True), (9.0, True)])
def test_medians_of_another_moment_are_told(median_ms: float, misleads: bool) -> None:
    """The teacher's 10 ms, and turns that say 2.5 times as fast: 4 ms says the same, 1 and 9 ms do not."""

    def result(name: str, median_ms: float, **values: Any) -> VariantResult:
        latency = LatencyStats((median_ms, median_ms), warmup_runs=0)
        return VariantResult(name, {"accuracy": 0.9}, 0.1, 2**20, latency=latency, **values)

    teacher = result("teacher", 10.0, on_front=True)
    other = result("quant_2", median_ms, teacher=teacher, paired=Speedup(2.5, 2.3, 2.7), on_front=True)
    assert ("compare variants by speedup" in front_note([teacher, other])) == misleads
