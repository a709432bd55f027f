"""results.png: what stands where, and that names can be read."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.text import Annotation, Text

from quantlib.measuring.latency import LatencyStats
from quantlib.measuring.latency.speedup import Speedup
from quantlib.report.columns import VariantResult
from quantlib.report.plots import draw, figure_of, model_of

# Name, score, MB, median in ms, and what beats it.
ROWS = (
    ("teacher", 0.98, 87, 13.0, "quant_2"),
    ("quant_1", 0.98, 22, 5.3, "quant_2"),
    ("quant_2", 0.98, 22, 4.1, None),
    ("dynamic_u8s8", 0.9801, 22, 4.1, None),
    ("static_u8s8_embed4", 0.979, 16, 4.1, None),
    ("student", 0.97, 66, 6.9, "student_quant_2"),
    ("student_quant_2", 0.97, 17, 1.9, None),
    ("student_static_u8s8_embed4", 0.97, 12, 1.9, None),
    ("student_2", 0.95, 40, 3.0, "student_quant_2"),
)


def results(rows: tuple[tuple[str, float, int, float, str | None], ...] = ROWS) -> list[VariantResult]:
    made = [
        VariantResult(
            name,
            metrics={"accuracy": score, "f1": 0.5},
            eval_loss=0.1,
            size_bytes=size * 2**20,
            latency=LatencyStats((median, median), warmup_runs=0),
            on_front=by is None,
            beaten_by=by,
        )
        for name, score, size, median, by in rows
    ]
    return made[:1] + [replace(result, teacher=made[0]) for result in made[1:]]


def place(median: float, score: float) -> tuple[float, float]:
    return ROWS[0][3] / median, score


def drawn(rows: tuple[tuple[str, float, int, float, str | None], ...] = ROWS) -> Axes:
    (axes,) = figure_of(results(rows)).axes
    return axes


def test_every_variant_has_a_point_and_those_of_the_front_are_filled() -> None:
    points = {}
    for collection in drawn().collections:
        filled = bool(len(collection.get_facecolor()))
        for point in collection.get_offsets():
            points.setdefault(tuple(float(value) for value in point), set()).add(filled)
    assert set(points) == {place(median, score) for _, score, _, median, _ in ROWS}
    for _, score, _, median, by in ROWS:
        assert (by is None) in points[place(median, score)]


def test_the_speedup_of_turns_counts_not_the_medians_of_busy_times() -> None:
    teacher, other = results(ROWS[:2])
    busy = LatencyStats((4 * teacher.median_ms,) * 2, warmup_runs=0)
    teacher = replace(teacher, latency=busy)
    other = replace(other, teacher=teacher, paired=Speedup(2.5, 2.2, 2.9))
    (axes,) = figure_of([teacher, other]).axes
    across = {float(x) for points in axes.collections for x, _ in points.get_offsets()}
    ends = {tuple(line.get_xdata()) for line in axes.lines}
    assert across == {1.0, 2.5}
    assert (2.2, 2.9) in ends


def test_the_area_is_the_size() -> None:
    largest = max(size for _, _, size, _, _ in ROWS)
    for collection in drawn().collections:
        for point, area in zip(collection.get_offsets(), collection.get_sizes(), strict=False):
            sizes = [900 * row[2] / largest for row in ROWS if place(row[3], row[1]) == tuple(point)]
            assert any(area == pytest.approx(size) for size in sizes)


def test_the_front_has_names_that_do_not_cover_each_other() -> None:
    axes = drawn()
    names = [text for text in axes.texts if isinstance(text, Annotation)]
    sizes = {name: size for name, _, size, _, by in ROWS if by is None}
    assert {text.get_text() for text in names} == {f"{name}\n{size}.0 MB" for name, size in sizes.items()}
    for text in names:
        text.get_window_extent()
    boxes = [Text.get_window_extent(text) for text in names]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_models_are_told_apart() -> None:
    legend = drawn().get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", "student", "student_2"]
    own = ("teacher", "quant_1", "max_drop", "students_mine")
    assert {model_of(name) for name in own} == {"teacher"}
    assert model_of("student_compiled") == model_of("student_quant_2") == "student"
    assert model_of("student_2") == model_of("student_2_quant_2") == "student_2"


@pytest.mark.parametrize("count", [1, len(ROWS)], ids=["teacher", "all"])
def test_a_png_is_written(tmp_path: Path, count: int) -> None:
    draw(tmp_path / "results.png", results(ROWS[:count]))
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
