"""report.html as text: what it says, that it says what results.json says, and that nothing in it can run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest

from quantlib.cli.main import quantlib
from quantlib.data.tasks import Task
from quantlib.measuring.explain import LayerNoise, read_explanation, write_explanation
from quantlib.measuring.profile import Node, Operations, Peak, Profile, write_profile
from quantlib.report import changes
from quantlib.report.page import figures, svg
from quantlib.report.page.files import read_task, task_directories
from quantlib.report.page.html import policy, render
from quantlib.report.page.report import page, view_of, write_report, write_reports
from quantlib.report.results import read_results
from quantlib.support import plotting
from quantlib.support.errors import InputError
from quantlib.support.files import write_json

HOSTILE = (
    '</td></table><script>alert("no")</script>',
    "<img src=x onerror=alert(1)> \u202e\u2066 \"quoted\" 'text' & more",
    "{{ 7 * 7 }} {% raw %} ]]> <!-- -->",
    "long" * 250_000,
    "\x00\x1b[31m \ud800 end",
)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    parents: tuple[str, ...] = ()


@dataclass
class Page(HTMLParser):
    """The elements of a page, each with all text inside it."""

    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)
    void = frozenset({"meta", "input", "hr", "br", "wbr", "link", "img"})

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), parents=tuple(each.tag for each in self.open))
        assert len(element.attributes) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append(element)
        if tag not in self.void:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), parents=tuple(each.tag for each in self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1].tag == tag, f"</{tag}> closes {self.open[-1].tag}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open, f"left open: {[each.tag for each in page.open]}"
    return page


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task's directory as a run leaves it, without its page; to be copied."""
    directory = tmp_path_factory.mktemp("plain") / "news"
    pages.write_task(directory)
    return directory


@pytest.fixture
def copied(plain: Path, tmp_path: Path) -> Path:
    """A copy of `plain`, to be changed; its parent holds nothing else."""
    return Path(shutil.copytree(plain, tmp_path / "runs" / "news"))


@pytest.fixture(scope="module")
def news(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task's directory with its page, and with all that may be measured besides."""
    directory = Path(shutil.copytree(plain, tmp_path_factory.mktemp("page") / "news"))
    write_explanation(directory, [noise("layer 0 FFN output", 18.25), noise("layer 1 query", 41.5)])
    write_profile(directory, a_profile())
    point = {"model": "teacher", "threads": 2, "batch": 1}
    times = [point | {"length": length, "ms": length / 8} for length in (16, 32, 64)]
    write_json(directory / "scaling.json", {"points": times, "cpu_model": "A CPU of a test"})
    write_report(directory)
    return directory


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory of three tasks, with their pages."""
    directory = tmp_path_factory.mktemp("several")
    for task in pages.TASKS[:3]:
        pages.write_task(directory / task.name, task)
    written = write_reports(directory)
    assert written == [directory / name / "report.html" for name in ("news", "stars", "topics", "")]
    return directory


def noise(label: str, sqnr_db: float) -> LayerNoise:
    return LayerNoise(
        label, label, "ffn", 8, sqnr_db, sqnr_db, "x", 8, 50.0, -1.0, 24.25, -0.5, 4.0, advice="split it"
    )


def a_profile() -> Profile:
    nodes = (
        Node("product", "MatMulInteger", 2.5, Operations(integer_ops=10**9)),
        Node("add", "Add", 0.5, Operations()),
    )
    return Profile("quant_1", (1, 128), 4.0, 4.5, 0.25, Peak(200.0, 800.0, 2), nodes)


def text_of(directory: Path) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


def same(shown: Any, value: Any) -> bool:
    return bool(shown == value and type(shown) is type(value))


def test_every_number_is_that_of_results_json(news: Path) -> None:
    results, found = read_results(news / "results.json"), parsed(text_of(news))
    seen = set()
    for element in found.elements:
        key, variant = element.attributes.get("data-key"), element.attributes.get("data-variant")
        if key is None:
            continue
        assert variant is not None
        value = results[variant][key]
        seen.add((variant, key))
        if isinstance(value, str):
            assert element.text == value
            continue
        raw = element.attributes["value" if element.tag == "data" else "data-value"]
        assert value is None if raw == "" else same(json.loads(raw or ""), value)
        shown = re.match(r"-?[\d.]+(e-?\d+)?", element.text)
        if isinstance(value, float | int) and not isinstance(value, bool):
            assert shown, f"{variant} {key} reads {element.text!r}"
            read = float(shown[0])
            digits = len(shown[0].partition(".")[2])
            close = [abs(read - scale * value) <= 0.5000001 * 10**-digits for scale in (1, 100)]
            assert any(close) or read == pytest.approx(value, rel=1e-3), (
                f"{variant} {key}: {read}, not {value}"
            )
    assert seen == {(variant, key) for variant, values in results.items() for key in values}


def test_no_other_number_stands_in_a_table_of_numbers(news: Path) -> None:
    cells = [
        e
        for e in parsed(text_of(news)).all("td")
        if "data-value" in e.attributes and "data-key" not in e.attributes
    ]
    layers = read_explanation(news / "explain.json")
    ratios = {str(r) for each in layers for r in (each.sqnr_db, each.input_sqnr_db, each.weight_sqnr_db)}
    assert {e.attributes["data-value"] for e in cells} == {*ratios, ""}, (
        "layers alone have numbers of another file"
    )


def test_the_answer_comes_first(news: Path) -> None:
    text = parsed(text_of(news)).all("main")[0].text
    words = " ".join(text.split())
    assert words.startswith(
        "What to ship Your limits: a drop of at most 1 points. Within your limits quant_1 1.80x as fast as "
        "the teacher (95 %: 1.76x to 1.84x), 3.00x smaller."
    )
    assert (
        "Fastest within half a point, and smallest within half a point student_quant_1 3.00x as fast" in words
    )
    assert "1 of 5 speedups are not trusted" in words
    assert (
        "prune50_static_u8s8_disk4: between 1.76x and 2.24x: 1.00x and 2.00x: this machine had two states"
        in words
    )


def test_it_says_why_not_the_others(news: Path) -> None:
    view = view_of(read_task(news))
    why = {variant: re.sub("<[^>]*>", "", text) for variant, text in view.others}
    assert list(why) == ["teacher_compiled", "prune50_static_u8s8_disk4", "student"]
    assert why["teacher_compiled"] == (
        "quant_1 is clearly as good in everything and better in something: is faster (1.80x, not 1.40x); is "
        "smaller (28.6 MB, not 42.9 MB)."
    )
    assert why["student"].startswith(
        "No other beats it in everything, but student_quant_1 is faster (3.00x, not 2.60x)"
    )


def test_every_column_is_explained_where_it_stands(news: Path) -> None:
    found = parsed(text_of(news))
    ids = [e.attributes["id"] for e in found.elements if "popover" in e.attributes]
    buttons = [e.attributes["popovertarget"] for e in found.all("button")]
    assert len(set(ids)) == len(ids) > 20
    assert set(buttons) == set(ids)
    named = {e.attributes["aria-label"] for e in found.all("button")}
    assert {"What speedup is", "What median latency is"} <= named


def test_checks_and_origin_in_words(news: Path) -> None:
    words = " ".join(parsed(text_of(news)).all("main")[0].text.split())
    for sentence in (
        "On kernels whose sums cannot overflow, as other CPUs have them, logits of 64 rows change by at most "
        "0.25, and 1 label with it.",
        "With the rest of the batch, or with padding, logits of 32 rows change by at most 3e-06, and no "
        "labels with them.",
        "A CPU of a test",
        "onnxruntime 1.32.0",
        "quantlib run --max-drop-points 1.0",
        "layer 0 FFN output",
        "split it",
        "Time of quant_1 by operator",
        "Time by length",
        "f" * 64,
    ):
        assert sentence in words


def test_ids_are_unique_and_links_lead_somewhere(news: Path, several: Path) -> None:
    for directory in (news, several):
        found = parsed(text_of(directory))
        ids = [e.attributes["id"] for e in found.elements if "id" in e.attributes]
        assert len(set(ids)) == len(ids)
        links = [str(e.attributes["href"]) for e in found.all("a")]
        assert links and {link.removeprefix("#") for link in links} <= set(ids)
        for element in found.elements:
            for key in ("aria-labelledby", "aria-describedby", "for"):
                assert set(str(element.attributes.get(key, "")).split()) <= set(ids)


def test_headings_skip_no_level(several: Path) -> None:
    for directory in (several, several / "news"):
        levels = [int(e.tag[1]) for e in parsed(text_of(directory)).elements if re.fullmatch("h[1-6]", e.tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels)), levels


def test_its_policy_allows_its_own_style_and_script_alone(news: Path) -> None:
    found = parsed(text_of(news))
    (allowed,) = [e.attributes["content"] for e in found.all("meta") if "http-equiv" in e.attributes]
    hashes = {
        kind: "sha256-" + base64.b64encode(hashlib.sha256(e.text.encode()).digest()).decode()
        for kind in ("style", "script")
        for e in found.all(kind)
    }
    assert allowed == (
        f"default-src 'none'; style-src '{hashes['style']}'; script-src '{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert len(found.all("style")) == len(found.all("script")) == 1
    for element in found.elements:
        assert not {k for k in element.attributes if k == "style" or k.startswith("on") or k == "src"}, (
            element
        )
        assert element.tag not in {"link", "img", "iframe", "object", "form"}


@pytest.mark.parametrize("task", pages.TASKS, ids=lambda task: task.name)
def test_every_kind_of_task_has_a_page(task: Task, tmp_path: Path) -> None:
    pages.write_task(tmp_path / "runs", task, texts=HOSTILE[:3], variants=pages.VARIANTS[:3], rows=40)
    write_report(tmp_path / "runs")
    found = parsed(text_of(tmp_path / "runs"))
    assert found.all("h1")[0].text == f"{task.name}: what to ship"
    assert len(found.all("svg")) == 3
    rows = [table for table in found.all("table") if table.attributes.get("class") == "rows"]
    assert rows and '</td></table><script>alert("no")</script>' in "".join(table.text for table in rows)


def test_hostile_texts_and_names_stay_text(tmp_path: Path) -> None:
    labels = ("<b>bold</b>", '" onmouseover="x', "\u202eright to left")
    task = replace(pages.NEWS, name="<script>task</script>", labels=labels)
    pages.write_task(
        tmp_path / "runs",
        task,
        texts=HOSTILE,
        command="quantlib run --teacher '</code><script>'",
        notes={"quant_1": "<script>"},
        int8="<img src=x>",
    )
    write_reports(tmp_path)
    text = text_of(tmp_path / "runs")
    found = parsed(text)
    assert len(found.all("script")) == 1 and not found.all("img") and not found.all("b")
    assert "49" not in {e.text for e in found.all("bdi")}
    assert len(text) < 300_000, "rows of a megabyte stay out of the page"
    for element in found.elements:
        assert not {k for k in element.attributes if k.startswith("on")}
    marked = [e for e in found.elements if "\u202e" in e.text and e.tag == "bdi"]
    assert marked, "marks of direction end within their element"
    outside = re.sub(r"<bdi>[^<]*</bdi>", "", text)
    assert "\u202e" not in re.sub(r'"[^"]*"', "", outside).replace(svg_titles(text), "")


def svg_titles(text: str) -> str:
    return "".join(re.findall(r"<title[^>]*>[^<]*</title>", text))


def test_one_page_over_all_tasks(several: Path) -> None:
    found = parsed(text_of(several))
    assert [e.text for e in found.all("h2")] == ["First choices", "news", "stars", "topics"]
    assert len(found.all("svg")) == 9
    summaries = [e.text for e in found.all("summary")]
    assert not any(text.startswith("student:") for text in summaries), "rows of first choices alone"
    assert {path.name for path in several.iterdir()} == {"news", "stars", "topics", "report.html"}


def test_a_page_is_made_again_from_the_files_alone(news: Path, tmp_path: Path) -> None:
    assert page([view_of(read_task(news))]) == text_of(news)
    assert quantlib(["report", str(news)]) == 0


def test_without_matplotlib_the_page_says_so(news: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.report.page.report.can_plot", lambda: False)
    found = parsed(page([view_of(read_task(news))]))
    assert not found.all("svg")
    assert plotting.NO_PLOTS in found.all("main")[0].text
    assert "Time of quant_1 by operator" in found.all("main")[0].text


def test_a_run_without_changes_json_has_a_page(copied: Path) -> None:
    (copied / "changes.json").unlink()
    write_report(copied)
    assert "its directory has no changes.json" in text_of(copied)


def test_a_run_json_from_before_the_page_is_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.report.page.report.can_plot", lambda: False)
    run = json.loads((copied / "run.json").read_text())
    for key in ("choices", "notes", "command", "checks", "not_quantized", "recipes", "cached"):
        del run[key]
    write_json(copied / "run.json", run)
    write_report(copied)
    assert "older than first choices" in text_of(copied)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("run.json", "{", "run.json: not a run.json"),
        ("run.json", '{"threads": "two"}', "threads must be a whole number, not 'two'"),
        ("run.json", "{}", "is missing"),
        ("changes.json", "[]", "changes.json"),
        ("changes.json", '{"schema_version": 9}', "changes.json"),
        ("results.json", "{}", "one of them 'teacher'"),
        ("explain.json", "{}", "explain.json: not an explain.json"),
        ("scaling.json", '{"points": 3}', "points must be a list"),
    ],
)
def test_a_damaged_file_ends_in_one_line(
    file: str, text: str, words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / file).write_text(text)
    assert quantlib(["report", str(copied.parent)]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count("\n") == 1
    assert not (copied / "report.html").exists()


def test_a_choice_that_results_lack_is_refused(copied: Path) -> None:
    run = json.loads((copied / "run.json").read_text())
    run["choices"][0]["variant"] = "quant_9"
    write_json(copied / "run.json", run)
    with pytest.raises(InputError, match=r"run\.json: chooses 'quant_9', which results\.json does not have"):
        read_task(copied)


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no results\.json there"):
        task_directories(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        task_directories(tmp_path / "missing")


# Figures


def test_the_front_tells_kinds_apart_and_names_first_choices(news: Path) -> None:
    run = read_task(news)
    assert figures.kinds_of(run) == ["teacher", "pruned", "student"]
    drawn = parsed(str(figures.front(run, "front")))
    names = {e.text for e in drawn.all("text")}
    assert {"teacher", "pruned", "student", "quant_1", "student_quant_1", "1x", "2x"} <= names
    assert "student" in names and "teacher_compiled" not in names
    hints = [e.text for e in drawn.all("title")]
    assert "quant_1: 0.9833, 1.80x [1.76, 1.84], 28.6 MB" in hints
    assert len(hints) == 1 + 6
    assert {e.attributes.get("style") for e in drawn.elements} == {None}


def test_a_variant_far_below_does_not_press_the_others_together(copied: Path) -> None:
    results = json.loads((copied / "results.json").read_text())
    results["student"] |= {"accuracy": 0.25, "accuracy_drop": 0.75, "drop_low": 0.7, "drop_high": 0.8}
    write_json(copied / "results.json", results)
    points = figures.points_of(read_task(copied))
    assert [point.variant for point in figures.far_off(points)] == ["student"]
    assert not figures.far_off([points[0], points[4]]), "not if that is much of the plot"


def test_colours_of_a_figure_are_the_pages() -> None:
    with svg.settings():
        figure = plotting.new_figure((2.0, 2.0), 72)
        axes = figure.subplots()
        axes.plot([1, 2], [1, 2], color=svg.PAINTS["series-1"], gid="line")
        axes.set_title("$not math$ <b>")
    drawn = parsed(str(svg.inline_svg(figure, "one", "A <title>", 'Described "so"', {"line": "hint"})))
    root = drawn.all("svg")[0]
    assert root.attributes["role"] == "img" and root.attributes["aria-labelledby"] == "one-title one-desc"
    assert [e.text for e in drawn.all("title")] == ["A <title>", "hint"]
    assert "$not math$ <b>" in {e.text for e in drawn.all("text")}
    assert any(e.attributes.get("class") == "stroke-series-1" for e in drawn.all("path"))
    assert not [v for e in drawn.elements for v in e.attributes.values() if v in svg.PAINTS.values()]
    assert all(str(e.attributes["href"]).startswith("#one-") for e in drawn.all("use"))


def test_a_hint_needs_its_artist() -> None:
    with svg.settings():
        figure = plotting.new_figure((1.0, 1.0), 72)
    with pytest.raises(ValueError, match="no artist of the figure has the gid 'x'"):
        svg.inline_svg(figure, "one", "", "", {"x": "y"})


# Changes


def test_the_surest_changes_come_first(news: Path) -> None:
    of = changes.read_changes(news / "changes.json").variants
    assert of["teacher_compiled"].changed == 0
    listed = of["student_quant_1"].listed
    sure = [min(change.teacher_score or 0, change.variant_score) for change in listed]
    assert len(sure) > 1 and sure == sorted(sure, reverse=True)
    assert all(change.teacher != change.variant for change in listed)


def test_confusion_counts_every_row(news: Path) -> None:
    for each in changes.read_changes(news / "changes.json").variants.values():
        assert sum(cell.rows for cell in each.confusion) == 60
        assert sum(cell.rows for cell in each.confusion if cell.teacher != cell.variant) == each.changed


def test_sets_of_labels(tmp_path: Path) -> None:
    results = pages.write_task(tmp_path / "topics", pages.TOPICS)
    of = changes.read_changes(tmp_path / "topics" / "changes.json").variants
    for result in results[1:]:
        assert result.evaluation is not None and results[0].evaluation is not None
        ours, theirs = (each.evaluation.predictions for each in (result, results[0]) if each.evaluation)
        assert of[result.name].changed == (ours != theirs).any(axis=1).sum()
        assert [c.both for c in of[result.name].labels] == (ours & theirs).sum(axis=0).tolist()
    change = of["student_quant_1"].listed[0]
    assert change.of in pages.LABELS
    assert (change.of in change.teacher) != (change.of in change.variant)
    assert ((change.teacher_score or 0) >= 0.5) == (change.of in change.teacher)


def test_scores(tmp_path: Path) -> None:
    results = pages.write_task(tmp_path / "stars", pages.STARS, most_rows=3)
    each = changes.read_changes(tmp_path / "stars" / "changes.json").variants["student"]
    assert each.changed is None and len(each.listed) == 3
    ours, theirs = (results[n].logits[:, 0].astype(float) for n in (4, 0))
    worst = np.argsort(-np.abs(ours - theirs))[:3]
    assert [int(change.row) for change in each.listed] == worst.tolist()
    assert [change.variant_score for change in each.listed] == pytest.approx(ours[worst].tolist())


def test_pairs_of_embedded_texts_are_one_row(tmp_path: Path) -> None:
    pages.write_task(tmp_path / "pairs", pages.PAIRS, rows=20, texts=["first", "second"])
    read = changes.read_changes(tmp_path / "pairs" / "changes.json")
    assert read.task.rows == 20
    assert {row.texts for row in read.rows.values()} == {("first", "second")}


def test_without_scores_the_teacher_has_none(tmp_path: Path) -> None:
    pages.write_task(tmp_path / "embedded", pages.EMBEDDED, rows=20)
    listed = changes.read_changes(tmp_path / "embedded" / "changes.json").variants["student"].listed
    assert {change.teacher_score for change in listed} == {None}
    cosines = [change.variant_score for change in listed]
    assert cosines == sorted(cosines) and cosines[0] < 1


def test_no_text_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    pages.write_task(tmp_path / "news", texts=["secret text"], most_rows=0)
    write_report(tmp_path / "news")
    for path in (tmp_path / "news").iterdir():
        assert "secret" not in path.read_text(encoding="utf-8")
    assert changes.read_changes(tmp_path / "news" / "changes.json").variants["student_quant_1"].changed


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_can_be_shown(text: str) -> None:
    shown = changes.readable(text)
    assert len(shown) <= 402 and shown.encode() and not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


# Markdown


def test_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.write_task(tmp_path / "news", texts=["a | `pipe` and @mention ![x](http://y)"])
    assert quantlib(["report", str(tmp_path), "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("## news: what to ship\n\n- **quant_1**, within your limits: it is\n")
    assert "5 variants, 1 speedups not trusted, 4 change labels (of 60 rows)." in printed
    assert "| `dev-43` | `a \\| 'pipe' and @mention ![x](http://y)` | `business` |" in printed
    tables = [line for line in printed.splitlines() if line.startswith("| quant_1 |")]
    assert tables == ["| quant_1 | 0.9833 | 1.67 | 98.3 | 28.6 | 3.00x | 11.11 | 1.80x | 144 |"]
    assert "teacher_compiled |" not in printed
    assert not (tmp_path / "news" / "report.html").exists()


def test_beside_an_earlier_run_only_what_differs_is_listed(
    plain: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((copied / "results.json").read_text())
    results["student"] |= {"speedup": 2.0, "speedup_low": 1.95, "speedup_high": 2.05}
    results["quant_1"] |= {"speedup": 1.81}
    write_json(copied / "results.json", results)
    run = json.loads((copied / "run.json").read_text())
    run["packages"]["onnxruntime"] = "1.33.0"
    write_json(copied / "run.json", run)
    assert quantlib(["report", str(copied.parent), "--markdown", "--against", str(plain)]) == 0
    printed = capsys.readouterr().out
    assert "1 differ from the earlier run, 5 do not" in printed
    assert "| student | 0.9833 | 1.67 | 98.3 | 17.2 | 5.00x | 7.69 | 2.60x → **2.00x** | 208 |" in printed
    assert "| quant_1 |" not in printed
    assert "| packages | onnxruntime 1.32.0 | onnxruntime 1.33.0 |" in printed
    assert printed.count("| CPU |") == 0


def test_a_comparison_is_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantlib(["report", str(tmp_path), "--against", str(tmp_path)]) == 2
    assert "add --markdown" in capsys.readouterr().err


def test_a_page_needs_its_names() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="views"):
        render("report.html.j2")


def test_the_policy_names_hashes() -> None:
    assert policy("a", "b").count("sha256-") == 2


def test_no_torch_for_a_page(news: Path) -> None:
    words = (
        "import sys; from quantlib.cli.main import quantlib; code = quantlib(sys.argv[1:]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", words, "report", str(news)], check=True, timeout=300)
