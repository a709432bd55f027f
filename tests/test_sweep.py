"""Many runs as one: the file, the jobs, what they give here and on a cluster, and what goes wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import sweep_work
import tiny
from processes import default_signals
from rich.console import Console

from quantlib.cli.main import quantlib
from quantlib.experiment import run as run_once
from quantlib.support.cache import ENVIRONMENT_VARIABLE, Cache
from quantlib.support.errors import InputError
from quantlib.sweep import environment, machine, running, shards, work
from quantlib.sweep.cluster import ClusterPool
from quantlib.sweep.configuration import SweepFile, read_sweep
from quantlib.sweep.driving import Result, failure_of
from quantlib.sweep.graph import Job, graph_of, without
from quantlib.sweep.local import LocalPool
from quantlib.sweep.options import Shard, SweepOptions
from quantlib.sweep.page import page
from quantlib.sweep.table import Row, SweepTable, common, console_table, error_lines, read_table
from quantlib.sweep.work import Outcome

SETTINGS = """
[run]
seq_len = 32
calibration_samples = 12
num_runs = 2
warmup_runs = 0
timing_seconds = 0.0
"""
TWO_TASKS = """
[sweep]
tasks = [
    {name = "SST-2", data_dir = "glue"},
    {name = "tickets", evaluation = "tickets.csv", label = "category"},
]
checkpoints = ["a/model.onnx"]
recipes = ["dynamic_u8s8", "quant_2"]
"""
CODE = {"quantlib": "sources", "packages": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_onnx: Path) -> Path:
    """Rows of two tasks and an ONNX file with its tokenizer. Not to be changed: copy it."""
    root = tmp_path_factory.mktemp("sweep")
    tiny.write_sst2(root / "glue")
    rows = tiny.sentences(60, 9)
    text = "".join(f"{text},LABEL_{label}\n" for text, label in rows)
    (root / "tickets.csv").write_text("text,category\n" + text, encoding="utf-8")
    (root / "a").mkdir()
    shutil.copy(tiny_onnx, root / "a" / "model.onnx")
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(tiny_teacher / name, root / "a" / name)
    (root / "sweep.toml").write_text(TWO_TASKS + SETTINGS, encoding="utf-8")
    return root


def read(folder: Path, text: str, name: str = "other.toml") -> SweepFile:
    """The sweep of this text, in a file of the folder."""
    (folder / name).write_text(text, encoding="utf-8")
    return read_sweep(folder / name)


class HerePool:
    """Runs each job in this process when it is submitted. ran: their names."""

    def __init__(
        self, cache_dir: Path | None, work: Callable[..., Outcome] = work.run, stop: int = 1000
    ) -> None:
        self.cache_dir, self.work, self.stop = cache_dir, work, stop
        self.ran: list[str] = []
        self._ended: list[tuple[Job, Result]] = []

    @property
    def room(self) -> int:
        return 0 if self._ended else 1

    def submit(self, job: Job, needed: Sequence[Outcome]) -> None:
        if len(self.ran) == self.stop:
            raise KeyboardInterrupt
        self.ran.append(job.name)
        try:
            result: Result = self.work(job, replace(job.options, cache_dir=self.cache_dir))
        except (InputError, ZeroDivisionError) as error:
            result = failure_of(error)
        self._ended.append((job, result))

    def finished(self) -> list[tuple[Job, Result]]:
        ended, self._ended = self._ended, []
        return ended


def swept(file: SweepFile, output_dir: Path, pool: Any, **options: Any) -> SweepTable:
    """The table of a sweep through a pool."""
    sweep = running.plan(file, SweepOptions(output_dir=output_dir, **options))
    return running.run(sweep, pool=pool)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepTable]:
    """A sweep of two tasks and two recipes in this process: its directory, with its cache, and its table."""
    directory = tmp_path_factory.mktemp("whole")
    pool = HerePool(directory / "cache")
    return directory, swept(
        read_sweep(folder / "sweep.toml"), directory / "out", pool, machines=("localhost",)
    )


def is_timed(key: str) -> bool:
    """Whether a column holds something that two measurements do not agree on."""
    return key in ("speedup", "others", "trusted") or any(
        part in key for part in ("_ms", "per_s", "speedup_", "throughput_")
    )


def content(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    """What rows say that is the same wherever and whenever they are made."""
    return [
        (
            row.cell,
            row.error,
            {key: value for key, value in row.values.items() if not is_timed(key)},
            row.provenance["key"],
            row.provenance.get("model_sha256"),
        )
        for row in rows
    ]


# The file


def test_cells_are_the_product_of_the_lists(folder: Path) -> None:
    file = read(
        folder,
        """
        [sweep]
        tasks = ["SST-2", {name = "tickets", evaluation = "tickets.csv", label = "category"}]
        students = [
            {student = "half", tasks = ["SST-2"]},
            {student = "a", called = "small", tasks = ["tickets"]},
        ]
        recipes = ["quant_1"]
        output_dir = "there"

        [[sweep.checkpoints]]
        teacher = "a/model.onnx"
        called = "first"
        tasks = ["tickets"]

        [[sweep.checkpoints]]
        teacher_epochs = 1
        tasks = ["SST-2"]
        seq_len = 16

        [models]
        transformer_epochs = 2
        """,
    )
    assert [(block.task, block.teacher, block.student) for block in file.blocks] == [
        ("SST-2", "packaged MiniLM", None),
        ("SST-2", "packaged MiniLM", "half"),
        ("tickets", "first", None),
        ("tickets", "first", "small"),
    ]
    trained, student, _, given = (block.options for block in file.blocks)
    assert (trained.seq_len, trained.teacher_epochs, trained.no_student) == (16, 1, True)
    assert (student.student_config, student.transformer_epochs) == ("half", 2)
    assert given.students == (str(folder / "a"),)
    assert given.seq_len == 128
    assert [str(cell) for cell in file.blocks[1].cells] == [
        "SST-2 / packaged MiniLM / half / student",
        "SST-2 / packaged MiniLM / half / student_compiled",
        "SST-2 / packaged MiniLM / half / student_quant_1",
    ]
    assert file.options == {"output_dir": folder / "there"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[sweep]\ntask = ["SST-2"]', "line 2: unknown key 'task' in [sweep]; did you mean 'tasks'?"),
        ("[swep]\n", "line 1: unknown section [swep]; did you mean 'sweep'?"),
        ("[run]\nseqlen = 3", "line 2: unknown key 'seqlen'; did you mean 'seq_len'?"),
        ("[run]\nseq_len = 'x'", "line 2: seq_len must be a whole number, not 'x'"),
        ("[run]\nmax_drop = 0.1", "line 2: max_drop is for one run; a sweep has no cell for it"),
        ("[run]\nrecipes = []", "line 2: recipes: a sweep names them in [sweep] recipes"),
        ("[models]\nteacher = 'x'", "line 2: teacher: a sweep names them in [sweep] checkpoints"),
        ("[sweep]\ntasks = 'SST-2'", "line 2: tasks must be a list of names or tables, not 'SST-2'"),
        ("[sweep]\ntasks = []", "line 2: tasks must be a list of names or tables, not []"),
        ("[sweep]\ntasks = [3]", "line 2: tasks must be a list of names or tables, not of 3"),
        ("[sweep]\nengines = 3", "line 2: engines must be a list, not 3"),
        ("[sweep]\nengines = ['a']", "unknown engine 'a'"),
        ("[sweep]\nrecipes = ['quant_9']", "unknown recipe 'quant_9'"),
        ("[sweep]\nworker_threads = 0", "--worker-threads 0 is out of range"),
        ("[sweep]\nshard = '3/2'", "--shard '3/2' is not I/N, such as 1/4"),
        ("[latency]\nmachine = 3", "line 2: unknown key 'machine'; did you mean 'machines'?"),
        (
            "[[sweep.checkpoints]]\nteacher = 'x'\n[[sweep.checkpoints]]\nteacher = 'y'\nepoch = 3",
            "line 5: unknown key 'epoch'",
        ),
        (
            "[[sweep.students]]\nstudent = 'half'\nteacher = 'y'",
            "line 3: teacher stands in [sweep] checkpoints",
        ),
        ("[[sweep.students]]\nstudent = 3", "line 2: student must be a string, not 3"),
        (
            "[sweep]\ncheckpoints = [{teacher = 'x', tasks = ['SST2']}]\ntasks = ['SST-2']",
            "x: tasks: unknown 'SST2'; did you mean 'SST-2'?",
        ),
        ("[sweep]\ncheckpoints = ['x', 'x']", "two are called 'x'; give one of them another `called`"),
        ("[sweep]\ntasks = ['SST-3']", "SST-3: unknown task"),
        (
            "[sweep]\ntasks = ['SST-2', 'RTE']\ncheckpoints = [{teacher = 'x', tasks = ['RTE']}]\n"
            "students = ['half']\n[task]\ndata_dir = 3",
            "line 6: data_dir must be a string, not 3",
        ),
        (
            "[sweep]\ncheckpoints = ['a/model.onnx']\nstudents = ['half']",
            "BBC-News / a/model.onnx / half: no student can be trained, as the teacher is an ONNX file",
        ),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line(
    text: str,
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "a").symlink_to(folder / "a")
    (tmp_path / "wrong.toml").write_text(text, encoding="utf-8")
    assert quantlib(["sweep", str(tmp_path / "wrong.toml"), "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep nowhere.toml", "cannot read nowhere.toml"),
        ("sweep sweep.toml other.toml", "other.toml: one sweep at a time"),
        ("sweep merge", "merge: name the directories of the shards"),
        ("sweep merge nowhere", "nowhere/sweep.json: not a sweep's table"),
        (
            "sweep sweep.toml --machines far",
            "--machines far: without --scheduler a sweep runs on this machine",
        ),
        ("sweep sweep.toml --shard 5", "--shard '5' is not I/N"),
    ],
)
def test_wrong_use_is_one_line(
    words: str,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    assert quantlib(words.split()) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


# The jobs


def jobs(file: SweepFile, machines: Sequence[str] = ()) -> list[Job]:
    return list(graph_of(file.blocks, 1, machines, CODE).jobs)


def test_what_is_shared_is_made_once_and_first(folder: Path) -> None:
    recipes = ["static_u8s8_smooth", "quant_2", "prune50_quant_2", "prune50_static_u8s8_smooth"]
    recipes.append("static_u8s8_embed4")
    text = TWO_TASKS.replace('["dynamic_u8s8", "quant_2"]', json.dumps(recipes)) + SETTINGS
    file = read(folder, text)
    by_name = {job.name: job for job in jobs(file, ["localhost"]) if job.cells[0].task == "tickets"}
    names = {job.key: name.rpartition(" / ")[2] for name, job in by_name.items()}
    waits = {names[job.key]: [names[key] for key in job.waits_for] for job in by_name.values()}
    floats, smooth = "float models", "static_u8s8_smooth"
    assert waits == {
        floats: [],
        smooth: [floats],
        "quant_2": [floats],
        "prune50_quant_2": [floats],
        "prune50_static_u8s8_smooth": [floats, "prune50_quant_2"],
        "static_u8s8_embed4": [floats, smooth],
        "latency on localhost": [
            floats,
            smooth,
            "quant_2",
            "prune50_quant_2",
            "prune50_static_u8s8_smooth",
            "static_u8s8_embed4",
        ],
    }
    assert [job.kept for job in by_name.values()] == [True] * 6 + [False]


def test_a_job_is_known_by_what_it_reads_and_not_by_where(folder: Path, tmp_path: Path) -> None:
    def keys(place: Path) -> list[str]:
        return [job.key for job in jobs(read_sweep(place / "sweep.toml"))]

    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert keys(moved) == keys(folder)
    with (moved / "tickets.csv").open("a") as rows:
        rows.write("a fine day,LABEL_1\n")
    differing = [new != old for new, old in zip(keys(moved), keys(folder), strict=True)]
    assert differing == [False] * 3 + [True] * 3, "only the jobs of the rows that changed"
    text = (moved / "sweep.toml").read_text().replace("num_runs = 2", "num_runs = 3\nthreads = 3")
    before = keys(moved)
    (moved / "sweep.toml").write_text(text)
    assert keys(moved) == before, "how a model is timed decides nothing of it"
    (moved / "sweep.toml").write_text(text.replace("seq_len = 32", "seq_len = 24"))
    assert not set(keys(moved)) & set(before)


def test_a_student_waits_for_its_teacher(tiny_teacher: Path, folder: Path) -> None:
    text = f'[sweep]\ncheckpoints = ["{tiny_teacher}"]\nstudents = ["layers=1"]\nrecipes = ["quant_2"]\n'
    file = read(
        folder, text + '[task]\nevaluation = "tickets.csv"\ntrain = "tickets.csv"\nlabel = "category"\n'
    )
    teacher, quantized, student, of_student = jobs(file)
    assert student.waits_for == (teacher.key,)
    assert of_student.waits_for == (student.key,)
    assert quantized.waits_for == (teacher.key,)
    only_student = graph_of(file.blocks[1:], 1, (), CODE).jobs
    assert [job.key for job in only_student] == [teacher.key, student.key, of_student.key]


# A sweep


def test_the_table_has_what_runs_have(folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path) -> None:
    directory, table = whole
    assert [str(row.cell) for row in table.rows] == [
        f"{task} / a/model.onnx / {variant}"
        for task in ("SST-2", "tickets")
        for variant in ("teacher", "teacher_compiled", "dynamic_u8s8", "quant_2")
    ]
    assert table.failed == ()
    block = read_sweep(folder / "sweep.toml").blocks[1]
    options = replace(block.options, threads=1, output_dir=tmp_path, cache_dir=directory / "cache")
    run_once(options)
    results = json.loads((tmp_path / "tickets" / "results.json").read_text())
    for row in table.rows[4:]:
        of_run = results[row.variant]
        del of_run["beaten_by"]
        assert set(row.values) == set(of_run)
        exact = ("accuracy", "model_size", "agreement", "logit_error", "drop_low")
        assert {key: row.values[key] for key in exact} == {key: of_run[key] for key in exact}
        assert row.machine == "localhost"
        assert row.provenance["made_on"]["threads"] == 1
    run_json = json.loads((tmp_path / "tickets" / "run.json").read_text())
    assert {row.variant: row.provenance["model_sha256"] for row in table.rows[4:]} == run_json["sha256"][
        "models"
    ]


@pytest.fixture(scope="module")
def small(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep.toml of one task, a student that is distilled, and two engines."""
    root = tmp_path_factory.mktemp("small")
    for name, count, seed in (("test", 30, 9), ("train", 60, 10)):
        text = "".join(f"{text},LABEL_{label}\n" for text, label in tiny.sentences(count, seed))
        (root / f"{name}.csv").write_text("text,category\n" + text, encoding="utf-8")
    (root / "sweep.toml").write_text(
        f"""
        [sweep]
        tasks = [{{name = "tickets", evaluation = "test.csv", train = "train.csv", label = "category"}}]
        checkpoints = [{{teacher = "{tiny_teacher}", called = "tiny"}}]
        students = ["layers=1"]
        recipes = ["quant_1"]
        engines = ["onnxruntime", "openvino"]

        [models]
        transformer_epochs = 1
        prediction_epochs = 1
        {SETTINGS}
        """,
        encoding="utf-8",
    )
    return root / "sweep.toml"


def test_students_and_engines_are_cells(small: Path, tmp_path: Path) -> None:
    table = swept(read_sweep(small), tmp_path / "out", HerePool(tmp_path / "cache"))
    assert [row.error for row in table.failed] == []
    floats = ["", "_compiled", "@openvino", "_compiled@openvino"]
    assert [row.variant for row in table.rows if row.student is None] == [
        *(f"teacher{step}" for step in floats),
        "quant_1",
        "quant_1@openvino",
    ]
    assert [row.variant for row in table.rows if row.student == "layers=1"] == [
        f"student{step}" for step in (*floats, "_quant_1", "_quant_1@openvino")
    ]
    by_variant = {row.variant: row for row in table.rows}
    quantized, elsewhere = by_variant["student_quant_1"], by_variant["student_quant_1@openvino"]
    assert (quantized.values["engine"], elsewhere.values["engine"]) == ("onnxruntime", "openvino")
    assert elsewhere.provenance["model_sha256"] != quantized.provenance["model_sha256"]
    assert elsewhere.provenance["checkpoints"] == quantized.provenance["checkpoints"]
    assert set(elsewhere.provenance["checkpoints"]) == {"teacher", "student"}
    text = (tmp_path / "out" / "sweep.html").read_text(encoding="utf-8")
    assert str(elsewhere.provenance["model_sha256"]) in text


def test_the_files_hold_the_table(whole: tuple[Path, SweepTable]) -> None:
    directory, table = whole
    assert read_table(directory / "out" / "sweep.json") == table
    assert (directory / "out" / "sweep.html").read_text(encoding="utf-8") == page(table)
    with (directory / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == [row.variant for row in table.rows]
    assert float(rows[3]["accuracy"]) == table.rows[3].values["accuracy"]
    assert rows[3]["made_on_cpu"]
    assert table.provenance["code"] == environment.code()


def test_the_console_shows_what_differs(whole: tuple[Path, SweepTable]) -> None:
    rows = [*whole[1].rows[4:], Row("tickets", "a/model.onnx", None, "bad", "localhost", error="[why] not")]
    same = {"task": "tickets", "checkpoint": "a/model.onnx", "student": "", "metric": "accuracy"}
    assert common(rows) == same | {"machine": "localhost"}
    shown = Console(width=100, file=io.StringIO(), record=True)
    shown.print(console_table(rows))
    lines = shown.export_text().splitlines()
    heading = next(line for line in lines if "variant" in line)
    assert heading.split() == ["variant", "score", "points", "%", "MB", "ms", "up"]
    (failed,) = (line for line in lines if " bad " in line)
    assert failed.split() == ["bad", "failed"]
    assert error_lines(rows) == ["tickets / a/model.onnx / bad: [why] not"]
    assert common(whole[1].rows)["checkpoint"] == "a/model.onnx"
    assert "task" not in common(whole[1].rows)


def test_a_sweep_that_was_interrupted_goes_on(
    folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path
) -> None:
    file = read_sweep(folder / "sweep.toml")
    first = HerePool(whole[0] / "cache", stop=3)
    with pytest.raises(KeyboardInterrupt):
        swept(file, tmp_path, first)
    assert not (tmp_path / "sweep.json").exists()
    second = HerePool(whole[0] / "cache")
    table = swept(file, tmp_path, second)
    assert len(first.ran) == 3
    assert sorted(first.ran + second.ran) == sorted(job.name for job in jobs(file))
    assert content(table.rows) == content(whole[1].rows)
    third = HerePool(whole[0] / "cache")
    assert swept(file, tmp_path, third) == table
    assert third.ran == []


def test_what_is_damaged_is_done_again(folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path) -> None:
    out = shutil.copytree(whole[0] / "out", tmp_path / "out")
    files = {json.loads(path.read_text())["job"]: path for path in out.glob("jobs/*/*.json")}
    changed, cut = (f"tickets / a/model.onnx / {name}" for name in ("quant_2", "dynamic_u8s8"))
    record = json.loads(files[changed].read_text())
    record["outcome"]["rows"]["quant_2"]["accuracy"] = 1.0
    files[changed].write_text(json.dumps(record))
    files[cut].write_text(files[cut].read_text()[:100])
    pool = HerePool(whole[0] / "cache")
    table = swept(read_sweep(folder / "sweep.toml"), out, pool)
    assert sorted(pool.ran) == sorted([changed, cut])
    assert content(table.rows) == content(whole[1].rows)


def test_sweeps_share_what_they_have_in_common(
    folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path
) -> None:
    text = TWO_TASKS.replace('"quant_2"]', '"quant_2", "static_u8s8_smooth"]') + SETTINGS
    made = []

    def recorded(job: Job, options: Any) -> Outcome:
        outcome = work.run(job, options)
        made.append((job.name, set(outcome.durations_s) - set(outcome.cached) - {"read rows"}))
        return outcome

    swept(read(folder, text), tmp_path, HerePool(whole[0] / "cache", recorded))
    new = {name: steps for name, steps in made if steps}
    assert set(new) == {f"{task} / a/model.onnx / static_u8s8_smooth" for task in ("SST-2", "tickets")}


def test_a_cell_that_fails_is_a_row(folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path) -> None:
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "model.onnx").write_bytes(b"no model")
    text = TWO_TASKS.replace(
        '["a/model.onnx"]', '["a/model.onnx", {teacher = "broken/model.onnx", tasks = ["tickets"]}]'
    )
    table = swept(read(folder, text + SETTINGS), tmp_path / "broken", HerePool(whole[0] / "cache"))
    assert {row.teacher for row in table.failed} == {"broken/model.onnx"}
    assert "broken/model.onnx: not an ONNX file" in str(table.failed[0].error)
    assert len(table.failed) == 4
    text = TWO_TASKS.replace('label = "category"}', 'label = "category", calibration_samples = 500}')
    pool = HerePool(whole[0] / "cache")
    table = swept(read(folder, text + SETTINGS), tmp_path, pool)
    errors = {str(row.cell): row.error for row in table.failed}
    reason = "--calibration-samples 500: tickets has 15 calibration rows"
    floats = "tickets / a/model.onnx / float models"
    assert errors == {
        f"tickets / a/model.onnx / {variant}": f"{floats} failed: {reason}" if recipe else reason
        for variant, recipe in (("teacher", 0), ("teacher_compiled", 0), ("dynamic_u8s8", 1), ("quant_2", 1))
    }
    assert pool.ran.count(floats) == 1
    assert content(table.rows[:4]) == content(whole[1].rows[:4])
    again = HerePool(whole[0] / "cache")
    swept(read(folder, text + SETTINGS), tmp_path, again)
    assert again.ran == [floats], "what failed is tried again, and nothing else"


def test_a_bug_is_a_row_with_its_trace(folder: Path, tmp_path: Path) -> None:
    table = swept(read_sweep(folder / "sweep.toml"), tmp_path, HerePool(None, sweep_work.failing))
    assert [row.variant for row in table.failed] == ["quant_2", "quant_2"]
    assert table.failed[0].error == "ZeroDivisionError: division by zero"
    assert "sweep_work.py" in table.failed[0].provenance["trace"]


def test_what_could_not_be_made_is_not_timed(folder: Path) -> None:
    *_, latency = jobs(read_sweep(folder / "sweep.toml"), ["localhost"])
    left = without(latency, {"dynamic_u8s8"})
    assert [cell.variant for cell in left.cells] == ["teacher", "teacher_compiled", "quant_2"]
    assert left.part.recipes == (("quant_2", "onnxruntime"),)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20])
def test_shards_share_all_cells_once(count: int, folder: Path) -> None:
    blocks = read_sweep(folder / "sweep.toml").blocks
    cells = [cell for index in range(1, count + 1) for cell in shards.share(blocks, Shard(index, count))[1]]
    assert cells == [cell for block in blocks for cell in block.cells]


@pytest.mark.parametrize("count", [2, 3])
def test_shards_together_are_the_whole(
    count: int,
    folder: Path,
    whole: tuple[Path, SweepTable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for index in range(1, count + 1):
        pool = HerePool(whole[0] / "cache")
        file = read_sweep(folder / "sweep.toml")
        swept(file, tmp_path / str(index), pool, shard=f"{index}/{count}")
    monkeypatch.chdir(tmp_path)
    assert quantlib(["sweep", "merge", *map(str, range(1, count + 1)), "--output-dir", "all"]) == 0
    merged = read_table(tmp_path / "all" / "sweep.json")
    assert content(merged.rows) == content(whole[1].rows)
    assert merged.plan == whole[1].plan
    capsys.readouterr()
    assert quantlib(["sweep", "merge", "1", "--output-dir", "part"]) == 1
    assert shards.MISSING in capsys.readouterr().out


def test_shards_of_other_sweeps_do_not_merge(folder: Path, tmp_path: Path) -> None:
    swept(read_sweep(folder / "sweep.toml"), tmp_path / "1", HerePool(None, sweep_work.empty))
    swept(read(folder, TWO_TASKS), tmp_path / "2", HerePool(None, sweep_work.empty))
    with pytest.raises(InputError, match=r"of another sweep\.toml than"):
        shards.merge([tmp_path / "1", tmp_path / "2"])


def test_teachers_that_differ_between_shards_are_told() -> None:
    rows = [
        Row("T", "c", None, name, provenance={"checkpoints": {"teacher": digest}})
        for name, digest in (("a", "1"), ("b", "2"))
    ]
    assert shards._remarks(rows) == ["T / c: 2 shards trained a teacher each, which are not the same"]
    assert shards._remarks(rows[:1]) == []


def test_a_dry_run_says_what_there_is(
    folder: Path,
    whole: tuple[Path, SweepTable],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quantlib.experiment.inspecting._operations_per_second", lambda: 1e9)
    monkeypatch.chdir(folder)
    more = TWO_TASKS.replace('"quant_2"]', '"quant_2", "quant_1"]')
    (folder / "more.toml").write_text(f'{more}{SETTINGS}cache_dir = "{whole[0] / "cache"}"\n')
    out = shutil.copytree(whole[0] / "out", tmp_path / "out")
    for number, record in enumerate(sorted(out.glob("jobs/*/*.json"))):
        if number % 2:
            record.unlink()
    before = sorted((whole[0] / "cache").rglob("*.onnx"))
    words = ["sweep", "more.toml", "--dry-run", "--output-dir", str(out)]
    assert quantlib([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["cells"] == 10
    assert told["jobs"] == {"models": 2, "variant": 6}
    assert told["done"] + told["cached"] == 6
    assert told["done"] > 0
    assert sum(told["sources"].values()) == 2
    assert told["about_seconds"] > 0
    assert told["problems"] == {}
    assert quantlib(words) == 0
    assert "2 to do" in capsys.readouterr().out
    assert sorted((whole[0] / "cache").rglob("*.onnx")) == before, "nothing was made"


# Pools


def test_processes_do_the_jobs_and_a_dead_one_is_replaced(folder: Path, tmp_path: Path) -> None:
    with LocalPool(2, 1, 2, None, sweep_work.killed_always) as pool:
        table = swept(read_sweep(folder / "sweep.toml"), tmp_path, pool)
    assert [row.variant for row in table.failed] == ["quant_2", "quant_2"], "those beside them are done"
    assert str(table.failed[0].error).startswith("its worker died, 2 times: ")
    assert len({row.provenance["made_on"]["host"] for row in table.rows if row.error is None}) >= 2


def of_session(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="signals and sessions of POSIX")
@pytest.mark.parametrize(("signal_", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_a_sweep_that_is_stopped_leaves_no_process(
    signal_: str, code: int, folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path
) -> None:
    words = ["sweep", str(folder / "sweep.toml"), "--output-dir", str(tmp_path / "out"), "--jobs", "2"]
    environment = os.environ | {ENVIRONMENT_VARIABLE: str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "quantlib", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=default_signals,
    )
    assert process.stdout is not None
    first = process.stdout.readline()  # a job has ended, and others run
    if signal_ == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    else:
        process.kill()
    _, said = process.communicate(timeout=120)
    assert first.startswith("[1/6] ")
    assert process.returncode == code
    assert "Traceback" not in said
    if signal_ == "SIGINT":
        assert len(said.splitlines()) <= 1, said
    deadline = time.monotonic() + 120
    while of_session(process.pid):
        assert time.monotonic() < deadline, of_session(process.pid)
        time.sleep(0.05)
    again = swept(read_sweep(folder / "sweep.toml"), tmp_path / "out", HerePool(tmp_path / "cache"))
    assert content(again.rows) == content(whole[1].rows)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a scheduler of two worker processes that share no directory."""
    pytest.importorskip("distributed")
    monkeypatch.setenv(sweep_work.KILLED, str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    file = tmp_path / "scheduler.json"
    options = ["--scheduler-file", str(file), "--no-dashboard", "--host", "127.0.0.1"]
    with ExitStack() as processes:

        def start(*words: str, name: str) -> None:
            (tmp_path / name).mkdir()
            environment = os.environ | {ENVIRONMENT_VARIABLE: str(tmp_path / name / "cache")}
            command = [sys.executable, "-m", "dask", *words, *options]
            log = processes.enter_context((tmp_path / name / "log").open("w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            processes.callback(process.wait)
            processes.callback(process.terminate)

        start("scheduler", "--port", "0", name="scheduler")
        for name in ("one", "two"):
            words = (
                "--nthreads",
                "1",
                "--no-nanny",
                "--name",
                name,
                "--local-directory",
                str(tmp_path / name),
            )
            start("worker", *words, name=name)
        deadline = time.monotonic() + 120
        while not file.exists():
            assert time.monotonic() < deadline, (tmp_path / "scheduler" / "log").read_text()
            time.sleep(0.05)
        yield json.loads(file.read_text(encoding="utf-8"))["address"]


def test_a_cluster_gives_what_one_process_gives(
    cluster: str, folder: Path, whole: tuple[Path, SweepTable], tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "client")
    text = TWO_TASKS.replace('{name = "SST-2", data_dir = "glue"},', "") + SETTINGS
    with ClusterPool(cluster, 3, cache, ["localhost"], sweep_work.run_killed_once) as pool:
        pool._client.wait_for_workers(2, timeout=120)
        assert len(pool._on("localhost")) == 2
        assert len(pool._on("two")) == 1
        with pytest.raises(InputError, match=r"--machines far: no worker is on it; workers are on: \w"):
            pool._on("far")
        table = swept(read(folder, text), tmp_path / "out", pool)
        sent = pool.traffic.sent
    assert [row.error for row in table.failed] == []
    assert content(table.rows) == content(whole[1].rows[4:])
    assert (tmp_path / "variant").exists(), "a worker was killed"
    assert sent > 0
    for name in ("one", "two"):
        assert list((tmp_path / name / "cache" / "inputs").glob("*/model.onnx")), "inputs travelled"
    assert {path.name for path in cache.root.iterdir()} >= {"compiled", "given", "predictions"}


def test_no_scheduler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("quantlib.sweep.cluster._CONNECT_SECONDS", 0.2)
    with pytest.raises(
        InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there: "
    ):
        ClusterPool("tcp://127.0.0.1:9", 3, Cache(tmp_path))


def test_a_worker_with_other_code_says_so() -> None:
    environment.check_code(environment.code())
    other = environment.code() | {"packages": environment.code()["packages"] | {"onnxruntime": "1.0"}}
    with pytest.raises(InputError, match=r"^the worker on .* has onnxruntime .*, not 1.0$"):
        environment.check_code(other)
    with pytest.raises(InputError, match=r"has other sources of quantlib$"):
        environment.check_code(environment.code() | {"quantlib": "0"})


# The machine


def test_one_measures_alone(tmp_path: Path) -> None:
    inside: list[str] = []
    started, release, tries = threading.Event(), threading.Event(), []

    def waits(seconds: float) -> None:
        tries.append(seconds)
        release.set()
        user.join()

    def uses() -> None:
        with machine.shared(tmp_path):
            started.set()
            assert release.wait(10)
            inside.append("used")

    user = threading.Thread(target=uses)
    user.start()
    assert started.wait(10)
    with machine.alone(tmp_path, waits):
        inside.append("alone")
    assert inside == ["used", "alone"]
    assert tries == [machine._POLL_SECONDS]
    with machine.shared(tmp_path), machine.shared(tmp_path):
        assert machine._in_use(tmp_path)
    assert not machine._in_use(tmp_path)
