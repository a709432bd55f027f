"""The command `quantlib`, as a user calls it. As a script this writes docs/commands.md anew."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import tiny
import typer

from quantlib.cli.main import SUBCOMMANDS, quantlib, subcommand
from quantlib.measuring.profile.peak import Peak
from quantlib.support.cache import ENVIRONMENT_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
_LINES_OF_A_SCREEN = 55

Call = Callable[..., str]


def help_of(name: str) -> str:
    command = subcommand(name)
    context = typer.Context(command, info_name=f"quantlib {name}", terminal_width=96, max_content_width=96)
    return str(command.get_help(context)).rstrip() + "\n"


def page() -> str:
    parts = [
        "# Commands\n\n"
        "`quantlib COMMAND`, or `python -m quantlib COMMAND`. What is said on the command line goes before\n"
        "what stands in quantlib.toml. Exit codes: 0 done, 1 a limit is broken or something does not work,\n"
        "2 wrong use, said in one line. `--json` prints JSON alone. Options that are seldom needed are left\n"
        "out here; `--help-all` shows them, and [the table of options](options.md) has them with their keys\n"
        "in the file. `quantlib --install-completion` lets the shell complete words.\n"
    ]
    parts += [f"## {name}\n\n```\n{help_of(name)}```\n" for name in SUBCOMMANDS]
    return "\n".join(parts)


def test_the_page_shows_every_command() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tests/test_quantlib.py"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_each_help_fits_a_screen_and_has_an_example(name: str) -> None:
    text = help_of(name)
    assert len(text.splitlines()) <= _LINES_OF_A_SCREEN
    assert f"Example: quantlib {name}" in text
    assert max(map(len, text.splitlines())) <= 96


def test_the_list_of_commands_loads_none_of_them() -> None:
    code = (
        "import sys; from quantlib.cli.main import quantlib; quantlib(['--help']); "
        "heavy = {'numpy', 'torch', 'onnx', 'onnxruntime', 'scipy', 'sklearn', 'rich.table', 'pydantic'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    for name in SUBCOMMANDS:
        assert re.search(rf"^  {name} ", process.stdout, re.MULTILINE)


def test_every_option_is_shown_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert quantlib(["run", "--help-all"]) == 0
    every = capsys.readouterr().out
    assert quantlib(["run", "--help"]) == 0
    usual = capsys.readouterr().out
    assert "--opset" in every
    assert "--opset" not in usual
    assert len(every) > len(usual)


@pytest.fixture
def folder(tmp_path: Path, tiny_teacher: Path, tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project: rows with labels, texts, a checkpoint, an ONNX file with its tokenizer beside it."""
    names = ("LABEL_0", "LABEL_1")
    rows = tiny.sentences(60, 9)
    text = "".join(f"{text},{names[int(label)]}\n" for text, label in rows)
    (tmp_path / "test.csv").write_text("text,category\n" + text, encoding="utf-8")
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text, _ in rows), encoding="utf-8")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "tiny.onnx").write_bytes(tiny_onnx.read_bytes())
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / "onnx" / name).write_bytes((tiny_teacher / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def call(folder: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command, and gives what it printed."""

    def called(*words: object, code: int = 0) -> str:
        assert quantlib([str(word) for word in words]) == code
        printed = capsys.readouterr()
        return printed.err if code == 2 else printed.out

    return called


SMALL = ("--seq-len", 32, "--threads", 1, "--timing-seconds", 0, "--num-runs", 2, "--warmup-runs", 0)


def test_from_rows_to_a_table_in_three_commands(call: Call, folder: Path, tiny_teacher: Path) -> None:
    written = call("init", "test.csv", "--teacher", tiny_teacher)
    assert 'label = "category"' in written
    text = (folder / "quantlib.toml").read_text(encoding="utf-8")
    assert "[limits]" in text
    report = json.loads(call("check", "--seq-len", 32, "--json"))
    assert report["rows"] == {"train": 0, "calibration": 15, "validation": 0, "evaluation": 45}
    assert set(report["labels"]) == {"LABEL_0", "LABEL_1"}
    assert report["lengths"]["truncated"] == 0
    assert "LABEL_1" in call("check", "--seq-len", 32)
    table = call("run", *SMALL, "--recipes", "quant_2,dynamic_u8s8")
    assert "dynamic_u8s8" in table
    assert "no student: none is given, and none can be trained, as there are no train rows" in table
    results = json.loads((folder / "runs" / folder.name / "results.json").read_text(encoding="utf-8"))
    assert set(results["quant_2"]) >= {"accuracy", "macro_f1", "speedup_low"}
    assert "already" in call("init", "test.csv", code=2)


def test_init_finds_columns_by_what_they_hold(call: Call, folder: Path, tmp_path: Path) -> None:
    names = {"0": "calm", "1": "angry"}
    checkpoint = tiny.write_checkpoint(tmp_path / "moods", id2label={0: "Angry", 1: "Calm"})
    (folder / "data").mkdir()
    for part, seed in (("test", 3), ("train", 4)):
        rows = tiny.sentences(40, seed)
        lines = [f"{i},{names[label]},{text}" for i, (text, label) in enumerate(rows)]
        (folder / "data" / f"{part}.csv").write_text("\n".join(["nr,mood,said", *lines]), encoding="utf-8")
    made = json.loads(call("init", "data/test.csv", "--teacher", checkpoint, "--json"))
    text = (folder / "quantlib.toml").read_text(encoding="utf-8")
    assert made["open"] == []
    for line in ('name = "data"', 'train = "data/train.csv"', 'text = ["said"]', 'label = "mood"'):
        assert line in text


def test_init_says_what_to_map(call: Call, folder: Path, tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "moods", id2label={0: "NEG", 1: "POS"})
    (folder / "test.csv").write_text("text,label\na b,bad\nc d,good\ne f,bad\n", encoding="utf-8")
    printed = call("init", "test.csv", "--teacher", checkpoint)
    assert "! label 'bad' is not one of the checkpoint's, 'NEG', 'POS'" in printed
    assert "[task.labels] # label of the rows = name in the checkpoint, one of" in printed


def test_the_whole_job_without_labels_and_without_torch(folder: Path) -> None:
    words = ["run", "--evaluation", "texts.txt", "--teacher", "onnx/tiny.onnx", "--recipes", "quant_2"]
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "from quantlib.cli.main import quantlib; "
        f"sys.exit(quantlib({[*words, *map(str, SMALL)]!r}))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads((folder / "runs" / "texts" / "results.json").read_text(encoding="utf-8"))
    assert results["teacher"]["agreement"] == 1.0
    assert results["quant_2"]["eval_loss"] is None
    assert "no student" in process.stdout


def test_what_needs_torch_says_so(folder: Path, tiny_teacher: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
        "from quantlib.cli.main import quantlib; "
        f"sys.exit(quantlib(['run', '--evaluation', 'texts.txt', '--teacher', {str(tiny_teacher)!r}]))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 2
    assert "needs torch: pip install 'bert-quantlib[train]'" in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_a_model_is_exported_quantized_scored_and_compared(
    call: Call, folder: Path, tiny_teacher: Path
) -> None:
    made = json.loads(call("export", tiny_teacher, "out/model.onnx", "--seq-len", 32, "--json"))
    assert made["size_bytes"] > 0
    assert (folder / "out" / "tokenizer.json").is_file()
    quantized = json.loads(
        call(
            *("quantize", "out/model.onnx", "out/int8.onnx", "--recipe", "quant_2"),
            *("--calibration", "texts.txt", "--seq-len", 32, "--json"),
        )
    )
    assert quantized["quantized"] == quantized["products"]
    assert quantized["size_bytes"] < quantized["size_before_bytes"]
    rows = ("--evaluation", "test.csv", "--label", "category", *SMALL)
    scored = json.loads(call("evaluate", "out/model.onnx", *rows, "--json"))
    assert scored["rows"] == 60
    compared = json.loads(call("compare", "out/model.onnx", "out/int8.onnx", *rows, "--json"))["models"]
    assert compared["model"]["accuracy"] == scored["accuracy"]
    assert compared["int8"]["compression_ratio"] > 1
    assert "int8" in call("compare", "out/model.onnx", "out/int8.onnx", "--evaluation", "texts.txt", *SMALL)


def test_dynamic_recipes_need_no_rows(call: Call) -> None:
    assert "calibrated" not in call(
        "quantize", "onnx/tiny.onnx", "onnx/dynamic.onnx", "--recipe", "dynamic_u8s8"
    )
    assert "needs texts to calibrate on" in call(
        "quantize", "onnx/tiny.onnx", "onnx/static.onnx", "--recipe", "quant_2", code=2
    )


def test_what_is_not_in_float32_is_refused_by_name(call: Call, folder: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    call("quantize", "onnx/tiny.onnx", "onnx/int8.onnx")
    assert "onnx/int8.onnx: 11 of its 11 products with a weight are quantized already; give" in call(
        "quantize", "onnx/int8.onnx", "onnx/again.onnx", code=2
    )
    onnx.save(
        convert_float_to_float16(onnx.load(folder / "onnx" / "tiny.onnx"), keep_io_types=True),
        folder / "onnx" / "half.onnx",
    )
    assert "onnx/half.onnx: its weights are float16 (" in call(
        "quantize", "onnx/half.onnx", "onnx/again.onnx", code=2
    )
    assert not (folder / "onnx" / "again.onnx").exists()


def test_models_are_timed_without_rows(call: Call) -> None:
    call("quantize", "onnx/tiny.onnx", "onnx/int8.onnx")
    words = ("--shapes", "1x8,2x16", "--threads", 1, "--seconds", 0)
    timed = json.loads(call("benchmark", "onnx/tiny.onnx", "onnx/int8.onnx", *words, "--json"))
    assert list(timed) == ["1x8", "2x16"]
    assert timed["1x8"]["tiny"]["speedup"] == 1.0
    assert timed["1x8"]["int8"]["median_ms"] > 0
    assert "2x16" in call("benchmark", "onnx/tiny.onnx", "onnx/int8.onnx", *words)


def test_the_gate_writes_a_baseline_and_passes_on_it(call: Call, folder: Path, tiny_teacher: Path) -> None:
    rows = ("--evaluation", "texts.txt", "--teacher", tiny_teacher, "--recipes", "quant_2", *SMALL[:4])
    quick = ("--shapes", "1x8", "--gate-seconds", 0.1, "--gate-launches", 2, "--gate-max-others", 1)
    rows += ("--max-drop-points", 100)
    call("gate", "base.json", "--gate-update", *rows, *quick)
    assert json.loads((folder / "base.json").read_text(encoding="utf-8"))["task"] == "texts"
    judged = json.loads(call("gate", "base.json", *rows, *quick, "--json"))
    assert judged["outcome"] == "pass"
    assert "limit at least 1000" in call("gate", "base.json", *rows, *quick, "--min-speedup", 1000, code=1)


def test_machine_recipes_and_cache_are_shown(call: Call, folder: Path) -> None:
    doctor = json.loads(call("doctor", "--json"))
    assert doctor["problems"] == []
    assert doctor["peak"]["float_gops"] > 0
    assert "quant_2*" in call("recipes")
    assert "static_u8s8_smooth" in json.loads(call("recipes", "--json"))
    cache = json.loads(call("cache", "--json"))
    assert Path(cache["directory"]) == folder / "cache"
    assert "dynamic" not in call("cache", "--clear")


def test_what_is_broken_ends_with_1(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "/proc/nowhere")
    monkeypatch.setattr("quantlib.experiment.diagnosis.measure_peak", lambda _: Peak(1.0, 2.0, 1))
    broken = json.loads(call("doctor", "--json", code=1))
    assert "cannot write /proc/nowhere" in broken["problems"][0]


def test_without_a_command_the_help_is_shown(call: Call) -> None:
    assert call() == call("--help")


def test_layers_and_operators_are_explained(call: Call, tiny_teacher: Path) -> None:
    rows = ("--evaluation", "texts.txt", "--teacher", tiny_teacher, *SMALL[:4])
    layers = json.loads(call("explain", *rows, "--json"))
    assert {"name", "label", "weight_bits"} <= set(layers[0])
    assert "MatMul" in call("profile", "onnx/tiny.onnx", "--shape", "1x8", "--threads", 1)


TEXTS = "--evaluation texts.txt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"compare onnx/tiny.onnx {TEXTS}", "one model has nothing to be compared with"),
        (f"compare onnx/tiny.onnx nowhere.onnx {TEXTS}", "nowhere.onnx: no such ONNX"),
        (f"compare onnx/tiny.onnx texts.txt {TEXTS}", "not an ONNX file by its name"),
        (f"compare onnx/tiny.onnx onnx/tiny.onnx {TEXTS}", "onnx/tiny.onnx is named twice"),
        (f"evaluate onnx/tiny.onnx {TEXTS}", "rows without labels tell how two models agree"),
        ("quantize texts.txt out.onnx", "texts.txt: not an ONNX file"),
        ("quantize onnx/tiny.onnx out.bin", "must end with .onnx"),
        ("quantize onnx/tiny.onnx onnx/tiny.onnx", "this is the file that is read"),
        ("benchmark onnx/tiny.onnx --shapes 8", "--shapes '8' is not BATCHxLENGTH"),
        ("check --label category", "--label describes rows of your own; they need --evaluation"),
        ("check --evaluation nowhere.csv", "nowhere.csv: no such file"),
        ("check --evaluation test.csv --data-dir .", "--data-dir contradicts --evaluation"),
        ("run --evaluation test.csv --label category", "without --teacher one is trained, which needs"),
        (f"run {TEXTS} --teacher onnx/tiny.onnx --augment 1", "no student can be trained"),
        (f"gate {TEXTS} --teacher onnx/tiny.onnx", "baseline/texts.json"),
        ("nothing", "No such command"),
        ("run --nothing", "No such option"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: str, message: str, call: Call) -> None:
    printed = call(*words.split(), code=2)
    assert message in printed
    assert len(printed.splitlines()) == 1


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
