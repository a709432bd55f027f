"""Options are declared once; this is what is made of them.

As a script it writes docs/options.md and the flags of the pytest plugin.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quantlib.cli.app import new_app, run_app
from quantlib.cli.parameters import offering
from quantlib.compression.recipes import RECIPES, write_recipe
from quantlib.compression.recipes import select as recipe_selection
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.options import ExperimentOptions, recipes_for, variant_names
from quantlib.gate.record import GateRecord, settings_differences
from quantlib.harness import flags
from quantlib.measuring.latency import Sampling
from quantlib.support.errors import InputError
from quantlib.support.options import (
    COMMAND,
    PYTEST,
    check_ranges,
    command_line,
    from_flags,
    markdown_table,
    option,
    options_of,
)
from quantlib.sweep.options import SweepOptions

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "options.md"


def page_from(text: str) -> str:
    """The page with its tables made from the declarations."""
    for cls in (ExperimentOptions, GateOptions, SweepOptions):
        pattern = rf"(<!-- {cls.__name__} -->\n).*?(<!-- end -->)"
        table = markdown_table(cls)
        text, count = re.subn(pattern, lambda match: match[1] + table + match[2], text, flags=re.DOTALL)  # noqa: B023
        assert count == 1, cls
    return text


def flags_from_declarations() -> str:
    """The file from which the pytest plugin takes its flags."""
    return json.dumps(dict(flags.declared()), indent=1) + "\n"


def test_pytest_has_the_flags_that_are_declared() -> None:
    assert flags.FILE.read_text(encoding="utf-8") == flags_from_declarations(), (
        "run python tests/test_options.py"
    )


def test_the_documentation_shows_every_option() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page_from(text), "run python tests/test_options.py"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"max_drop_points": 1.5, "compile": False, "no_student": True, "recipes": ("quant_1", "quant_2")},
        {"students": ("a b", "c"), "profile": ("quant_2",), "output_dir": Path("out put"), "report_rows": 0},
        {
            "evaluation": "x.csv",
            "text": ("a", "b"),
            "labels": {"yes": "LABEL_1", "no": "LABEL_0"},
        },
    ],
    ids=["default", "switches", "repeated", "pairs"],
)
def test_the_command_line_of_options_gives_them_again(given: dict[str, Any]) -> None:
    options, seen = ExperimentOptions(**given), []

    def see(options: ExperimentOptions) -> None:
        seen.append(options)

    app = new_app()
    app.command()(offering(ExperimentOptions, see))
    words = command_line(options, COMMAND)
    assert run_app(app, words) == 0
    assert seen == [options]
    assert len(words) <= 2 * sum(1 if not isinstance(v, dict | tuple) else len(v) for v in given.values()) + 2


@dataclass(frozen=True)
class Sample:
    count: int = option(3, "How many.", least=1, most=9, recorded=True)
    names: tuple[str, ...] = option((), "Who.", flag="--name")
    kinds: tuple[str, ...] = option(("a", "b"), "Which.", comma=True)
    place: Path | None = option(None, "Where.", offered=(COMMAND,))
    fast: bool = option(True, "Go slowly.")
    threads: int = option(lambda: 4, "Threads.")
    inner: int = 0

    def __post_init__(self) -> None:
        check_ranges(self)


def test_names_types_and_flags_come_from_the_fields() -> None:
    options = {item.name: (item.flag, item.kind, item.many, item.default) for item in options_of(Sample)}
    assert options == {
        "count": ("--count", int, False, 3),
        "names": ("--name", str, True, ()),
        "kinds": ("--kinds", str, True, ("a", "b")),
        "place": ("--place", Path, False, None),
        "fast": ("--no-fast", bool, False, True),
        "threads": ("--threads", int, False, None),
    }
    assert "place" not in {item.name for item in options_of(Sample, PYTEST)}


def test_flags_become_values() -> None:
    assert from_flags(Sample, {}, COMMAND) == Sample()
    flags = {"count": 5, "names": ["x", "y"], "kinds": "c, d", "place": Path("p"), "fast": True, "threads": 2}
    assert from_flags(Sample, flags, COMMAND) == Sample(5, ("x", "y"), ("c", "d"), Path("p"), False, 2)
    assert from_flags(Sample, flags, PYTEST).place is None, "it is not offered there"
    assert from_flags(Sample, {"fast": False}, COMMAND).fast


@pytest.mark.parametrize("count", [0, 10])
def test_a_number_out_of_its_range_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"--count {count} is out of range; it must be within 1..9"):
        Sample(count)


def test_the_table_says_where_an_option_is_offered() -> None:
    lines = markdown_table(Sample).splitlines()
    assert (
        lines[2]
        == "| `--count COUNT` | `[run] count` | `3` | How many. | the command, pytest as `--quant-count` |"
    )
    assert lines[5] == "| `--place PLACE` | `[run] place` |  | Where. | the command |"
    assert (
        lines[6]
        == "| `--no-fast` | `[run] fast` | `off` | Go slowly. | the command, pytest as `--quant-no-fast` |"
    )


# Options of an experiment


def test_a_student_that_copies_little_is_trained_on_more_rows() -> None:
    """And with larger steps; the epochs are the user's."""
    trained = {
        name: ExperimentOptions(student_config=name, prediction_epochs=4).distillation
        for name in ("half", "layers=1", "tinybert-4-312", "half,init=random")
    }
    assert {name: options.windows for name, options in trained.items()} == {
        "half": 0, "layers=1": 0, "tinybert-4-312": 3, "half,init=random": 3,
    }  # fmt: skip
    assert trained["half"].prediction.learning_rate < trained["tinybert-4-312"].prediction.learning_rate
    assert {options.prediction.epochs for options in trained.values()} == {4}


def test_a_student_by_pruning_takes_small_steps_and_no_labels() -> None:
    pruned, half = (
        ExperimentOptions(student_config=name).distillation for name in ("layers=4,prune=0.5", "half")
    )
    assert pruned.transformer.learning_rate < half.transformer.learning_rate
    assert (pruned.transformer.epochs, pruned.prediction.epochs, pruned.label_weight) == (3, 2, 0.0)
    longer = ExperimentOptions(student_config="prune=0.5", transformer_epochs=5)
    assert (longer.distillation.transformer.epochs, longer.distillation.prediction.epochs) == (5, 2)
    assert longer.settings["transformer_epochs"] == 5
    assert longer.settings["prediction_epochs"] == 2


def test_settings_of_the_gate_are_what_decides_the_models() -> None:
    settings = ExperimentOptions().settings
    assert settings == {
        "teacher_epochs": 3,
        "teacher_layers": 2,
        "teacher_learning_rate": 2e-4,
        "student_config": "half",
        "transformer_epochs": 1,
        "prediction_epochs": 1,
        "augment": 0,
        "seq_len": 128,
        "opset": 17,
        "calibration_samples": 512,
        "train_rows": None,
        "seed": 42,
        "compile": True,
        "stock_sessions": False,
    }
    without = ExperimentOptions(no_student=True).settings
    trains_student = {"student_config", "transformer_epochs", "prediction_epochs", "augment"}
    assert set(settings) - set(without) == trains_student
    trains_teacher = {"teacher_epochs", "teacher_layers", "teacher_learning_rate"}
    assert set(settings) - set(ExperimentOptions(teacher="DIR").settings) == trains_teacher


def test_options_of_a_teacher_that_is_trained() -> None:
    training = ExperimentOptions(teacher_epochs=5, teacher_layers=0, teacher_learning_rate=3e-5).fine_tuning
    assert (training.epochs, training.trained_layers, training.learning_rate) == (5, None, 3e-5)
    with pytest.raises(InputError, match=r"^--teacher-epochs 5 contradicts --teacher$"):
        ExperimentOptions(teacher="DIR", teacher_epochs=5)
    with pytest.raises(InputError, match=r"^--teacher-epochs 0 is out of range; it must be at least 1$"):
        ExperimentOptions(teacher_epochs=0)


def test_baselines_with_other_models_are_told() -> None:
    def record(settings: dict[str, object]) -> GateRecord:
        return GateRecord("SST-2", "data", labels=(), machine={}, settings=settings, variants={})

    settings = ExperimentOptions().settings
    other = ExperimentOptions(student_config="tinybert-4-312", augment=2, train_rows=100).settings
    assert settings_differences(record(other), record(settings)) == [
        "student_config: tinybert-4-312, baseline half",
        "augment: 2, baseline 0",
        "train_rows: 100, baseline not given",
    ]
    older = {
        name: value for name, value in settings.items() if name not in ("train_rows", "calibration_samples")
    }
    assert settings_differences(record(settings), record(older)) == [
        "calibration_samples: 512, baseline not recorded",
        "train_rows: not given, baseline not recorded",
    ]


def test_a_recipe_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.toml"
    write_recipe(path, replace(RECIPES["quant_2"], name="mine"))
    reads: list[Path] = []
    read = recipe_selection.read_recipe
    monkeypatch.setattr(recipe_selection, "read_recipe", lambda path: reads.append(path) or read(path))
    options = ExperimentOptions(
        recipes=("quant_1", str(path)), max_drop=0.01, max_drop_base=str(path), profile=("mine",)
    )
    path.unlink()
    assert [recipe.name for recipe in recipes_for(options, "teacher")] == ["quant_1", "mine"]
    assert "student_mine" in variant_names(options)
    assert options.resolved_base.name == "mine"
    assert reads == [path]


def test_the_gate_measures_as_much_as_the_library_does_by_default() -> None:
    assert GateOptions().sampling == Sampling()


# The plugin


UNITS = """
import sys


def test_light():
    heavy = {"torch", "onnx", "onnxruntime", "rich", "transformers", "numpy", "scipy", "sklearn", "typer"}
    assert not heavy & set(sys.modules)
"""


def pytest_without_benchmarks(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on one unit test where the plugin is loaded, and no other."""
    (root / "test_units.py").write_text(UNITS)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "quantlib.harness.plugin",
            *arguments,
            "test_units.py",
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def test_the_plugin_is_light_and_silent_without_benchmarks(tmp_path: Path) -> None:
    process = pytest_without_benchmarks(tmp_path)
    assert process.returncode == 0, process.stdout
    assert "quantlib:" not in process.stdout


def test_a_gate_without_benchmarks_fails(tmp_path: Path) -> None:
    limits = f"--quant-limits={ROOT / 'bench' / 'limits.toml'}"
    process = pytest_without_benchmarks(tmp_path, "--gate-update", limits, "-k", "nothing")
    assert process.returncode == 1, process.stdout
    assert "gate: accuracy, latency, presence, size not gated: tests were left out" in process.stdout
    assert not (tmp_path / "bench").exists()


if __name__ == "__main__":
    PAGE.write_text(page_from(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    flags.FILE.write_text(flags_from_declarations(), encoding="utf-8")
