"""sweep.html as text: it says what sweep.json says, and where that comes from, and nothing in it can run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pages
import pytest
from test_page import HOSTILE, parsed

from quantlib.cli.main import quantlib
from quantlib.report.columns import COLUMNS
from quantlib.support import plotting
from quantlib.sweep.fronts import fronts_of
from quantlib.sweep.page import FILE, page, write_page
from quantlib.sweep.table import CSV, JSON, Row, SweepTable, write_table
from quantlib.sweep.view import SweepView


@pytest.fixture(scope="module")
def table() -> SweepTable:
    """Two tasks, one of them with two checkpoints and a student, on a machine; and two cells that failed."""
    return pages.sweep_table()


def test_every_row_stands_there_with_its_provenance(table: SweepTable) -> None:
    found = parsed(page(table))
    lines = [element.text for element in found.all("tr")]
    for row in table.rows:
        mine = [line for line in lines if row.variant in line and row.task in line and row.teacher in line]
        assert mine, row.cell
        if row.error is None:
            assert any(str(row.provenance["model_sha256"]) in line for line in mine)
            assert any(f"{row.score:.4f}" in line for line in mine)
    (facts,) = (e.text for e in found.all("dl") if "sources of quantlib" in e.text)
    assert "f" * 64 in facts and "onnxruntime 1.32.0" in facts and "sweep.toml" in facts
    assert any("host-2" in e.text and "A CPU of a test" in e.text for e in found.all("dl"))
    inputs = next(e.text for e in found.all("details") if "news / a" in e.text and "input teacher" in e.text)
    assert "1" * 64 in inputs


def test_numbers_are_those_of_the_table(table: SweepTable) -> None:
    view = SweepView(table)
    by_key = {column.key: column for column in COLUMNS}
    for row in (row for row in table.rows if row.error is None):
        cells = parsed(f"<table><tr>{view.cells(row)}</tr></table>").all("td")
        for shown, cell in zip(view.columns, cells, strict=True):
            value = row.score if shown.column.key == "score" else row.values[shown.column.key]
            assert json.loads(str(cell.attributes["data-value"])) == value
            if shown.column.key in by_key:
                assert cell.text.startswith(by_key[shown.column.key].show(value))
    assert [shown.column.key for shown in view.columns] == [
        "score",
        "accuracy_drop",
        "agreement",
        "model_size",
        "median_ms",
        "speedup",
    ]


def test_failures_come_first_with_their_cells_and_trace(table: SweepTable) -> None:
    found = parsed(page(table))
    assert next(e.text for e in found.all("h2")) == "Failures"
    (failure,) = (e for e in found.all("li") if e.text.startswith("ValueError: of two cells"))
    assert "2 cells" in failure.text and "Traceback of a test" in failure.text
    assert "news / b / quant_1, on host-2" in failure.text
    assert len([e for e in found.all("tr") if "failed" in e.text]) == 4, "in both tables"


def test_the_front_rests_on_ratios_in_turns(table: SweepTable) -> None:
    news, _ = fronts_of(table.rows)
    by_name = {each.point.variant: each for each in news.placed}
    first, second = by_name["a / teacher"], by_name["b / teacher"]
    assert first is news.placed[0] and first.point.ratio == (1, 1, 1)
    assert second.point.ratio[1] == pytest.approx(20 / 10)
    # Its own median says 3 ms, of another moment than its teacher's 20 ms.
    quantized = by_name["a / quant_2"]
    assert quantized.row.values["median_ms"] == 3.0
    assert quantized.ms == pytest.approx((20 / 4.2, 20 / 4.0, 20 / 3.8))
    assert by_name["a / half / student_quant_2"].point.ratio[1] == pytest.approx(8.0)
    assert [each.point.variant for each in news.front] == [
        "a / half / student_quant_2",
        "a / quant_2",
    ]
    assert news.reference == "the teacher of a"


@pytest.mark.parametrize(
    ("name", "ratio", "score", "beaten"),
    [
        ("quant_1", 4.0, 0.90, False),  # as accurate, and not surely slower
        ("quant_1", 3.0, 0.90, True),  # as accurate, and surely slower
        ("quant_1", 3.0, 0.903, False),  # a little more accurate
        ("quant_1", 4.5, 0.80, False),  # faster
        ("quant_1", 3.9, 0.894, True),  # half a point less, and no faster
        ("stock_dynamic", 9.0, 0.99, True),  # shown to compare with, and never shipped
    ],
)
def test_what_is_on_the_front(name: str, ratio: float, score: float, beaten: bool) -> None:
    rows = [
        pages.sweep_row("news", "a", "teacher", 0.90, 20.0, 1.0),
        pages.sweep_row("news", "a", "quant_2", 0.90, 5.0, 4.0),
        pages.sweep_row("news", "a", name, score, 20 / ratio, ratio),
    ]
    (front,) = fronts_of(rows)
    of = {each.point.variant: each.point.beaten for each in front.placed}
    assert of[name] is beaten
    assert of["quant_2"] is False and of["teacher"] is True


def test_hostile_texts_are_text(tmp_path: Path) -> None:
    rows = [
        replace(row, task=HOSTILE[0], teacher=HOSTILE[1], machine=f"{HOSTILE[2]}\x00\x1b")
        for row in pages.sweep_table().rows
        if row.student is None and row.teacher == "a"
    ]
    rows.append(Row(HOSTILE[0], HOSTILE[1], "\ud800", "quant_1", error=HOSTILE[0]))
    table = replace(pages.sweep_table(), rows=tuple(rows))
    found = parsed(write_page(tmp_path, table).read_text(encoding="utf-8"))
    assert len(found.all("script")) == 1 and not found.all("img")
    assert not [e for e in found.elements if any(name.startswith("on") for name in e.attributes)]
    assert any(HOSTILE[0] in e.text for e in found.all("li"))
    plain = parsed(page(pages.sweep_table()))
    assert {e.attributes["id"] for e in plain.elements if "id" in e.attributes} >= {
        "fronts",
        "table",
        "origin",
    }


@pytest.mark.parametrize("count", [0, 1])
def test_a_sweep_of_nothing_or_without_times(count: int) -> None:
    rows = [pages.sweep_row("news", "a", "quant_1", 0.9, None, None)][:count]
    text = page(replace(pages.sweep_table(), rows=tuple(rows)))
    assert "No latency was measured" in text
    assert f"Sweep of {count} cells" in text


def test_without_matplotlib_the_front_is_a_table(table: SweepTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.sweep.page.can_plot", lambda: False)
    text = page(table)
    assert plotting.NO_PLOTS.replace("'", "&#39;") in text
    assert "<svg" not in text
    assert "The front, the fastest first" in text


def test_a_thousand_cells_are_a_small_page() -> None:
    rows = [
        pages.sweep_row(f"task {number // 500}", "a", f"recipe_{number}", 0.9, 5.0 + number % 500, 2.0)
        for number in range(1000)
    ]
    text = page(replace(pages.sweep_table(), rows=tuple(rows)))
    assert len(text) < 4_000_000


def test_the_command_makes_the_page_again(
    table: SweepTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, table)
    assert quantlib(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / FILE}\n"
    assert (tmp_path / FILE).read_text(encoding="utf-8") == page(table)
    with (tmp_path / CSV).open() as file:
        assert len(list(csv.DictReader(file))) == len(table.rows)
    assert quantlib(["report", str(tmp_path), "--markdown"]) == 2
    assert "--markdown is for runs" in capsys.readouterr().err
    (tmp_path / JSON).write_text("{}")
    assert quantlib(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
