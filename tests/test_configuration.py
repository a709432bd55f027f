"""quantlib.toml: read by the declared options, paths beside the file, mistakes with their line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quantlib.cli import parameters
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.gate_options import GateOptions
from quantlib.support.configuration import Configuration, find_configuration, read_configuration
from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND, PYTEST, from_flags, options_of

WHOLE = """
[task]
name = "tickets"
evaluation = "data/test.csv"
text = ["title", "body"]
label = "category"
metrics = "macro_f1"
threshold = 0.5

[task.labels]
"refund, please" = "REFUND"

[models]
teacher = "checkpoints/tickets"
no_student = true

[limits]
max_drop_points = 0.5
max_size = 20

[run]
recipes = ["quant_2", "mine.toml"]
compile = false
seq_len = 64

[gate]
shapes = ["1x32", "8x128"]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.csv").write_text("title,body,category\n", encoding="utf-8")
    (tmp_path / "quantlib.toml").write_text(WHOLE, encoding="utf-8")
    return tmp_path


def values(configuration: Configuration) -> dict[str, object]:
    run, gate = configuration.values(ExperimentOptions, GateOptions)
    return run | gate


def test_every_section_becomes_options(project: Path) -> None:
    options = values(find_configuration(project))
    assert options == {
        "task": "tickets",
        "evaluation": str(project / "data" / "test.csv"),
        "text": ("title", "body"),
        "label": "category",
        "metrics": ("macro_f1",),
        "threshold": 0.5,
        "labels": {"refund, please": "REFUND"},
        "teacher": "checkpoints/tickets",  # no such directory beside the file: it may be on the hub
        "no_student": True,
        "max_drop_points": 0.5,
        "max_size": 20.0,
        "recipes": ("quant_2", "mine.toml"),
        "compile": False,
        "seq_len": 64,
        "shapes": ("1x32", "8x128"),
    }


def test_flags_go_before_the_file(project: Path) -> None:
    (configured, _) = find_configuration(project).values(ExperimentOptions, GateOptions)
    configured["recipes"] = ("quant_2",)
    flags = {"seq_len": 32, "no_student": False, "labels": ["a=b", "x=y=z"], "text": "one"}
    options = from_flags(ExperimentOptions, flags, COMMAND, configured)
    assert (options.seq_len, options.text, options.compile) == (32, ("one",), False)
    assert options.no_student, "a switch that is not given leaves what the file says"
    assert options.labels == {"a": "b", "x=y": "z"}
    assert options.task_name == "tickets"
    assert options.wishes.max_drop == 0.005


def test_pyproject_holds_it_too(project: Path) -> None:
    text = re.sub(
        r"^\[", "[tool.quantlib.", (project / "quantlib.toml").read_text(encoding="utf-8"), flags=re.M
    )
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n' + text, encoding="utf-8")
    from_quantlib_toml = values(find_configuration(project))
    (project / "quantlib.toml").unlink()
    assert values(find_configuration(project)) == from_quantlib_toml
    (project / "pyproject.toml").write_text('[project]\nname = "x"\n', encoding="utf-8")
    assert values(find_configuration(project)) == {}
    (project / "pyproject.toml").unlink()
    assert values(find_configuration(project)) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[task]\nevalution = 1", "line 2: unknown key 'evalution'; did you mean 'evaluation'?"),
        ("[tasks]\nname = 'x'", r"line 1: unknown section \[tasks\]; did you mean 'task'?"),
        ("task = 1", r"task must be a section, \[task\]"),
        ("[run]\n\nseq_len = '128'", "line 3: seq_len must be a whole number, not '128'"),
        ("[run]\nseq_len = 12.5", "line 2: seq_len must be a whole number, not 12.5"),
        ("[run]\nseq_len = true", "line 2: seq_len must be a whole number, not True"),
        ("[models]\nstudents = 'x'", "line 2: students must be a list, not 'x'"),
        ("[task]\nlabels = ['a']", "line 2: labels must be a table of strings, not"),
        ("[task.labels]\na = 1", "line 1: labels must be a table of strings, not"),
        ("[task]\ntext = [1]", "line 2: text must be a string, not 1"),
        ("[task", "not a TOML file"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "quantlib.toml"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message) as refused:
        values(read_configuration(path))
    assert str(path) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_not_given_to_pytest_leaves_what_the_file_says(project: Path) -> None:
    (configured, _) = find_configuration(project).values(ExperimentOptions, GateOptions)
    configured["recipes"] = ("quant_2",)
    given = {"labels": [], "students": [], "no_student": False, "text": None}
    options = from_flags(ExperimentOptions, given, PYTEST, configured)
    assert options.labels == {"refund, please": "REFUND"}


def test_rows_are_looked_for_beside_the_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "rows.csv").write_text("text\na\n", encoding="utf-8")
    (tmp_path / "sub" / "quantlib.toml").write_text('[task]\nevaluation = "rows.csv"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert values(read_configuration(Path("sub/quantlib.toml"))) == {"evaluation": "sub/rows.csv"}


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--config .*nowhere.toml: no such file"):
        parameters.configuration(tmp_path / "nowhere.toml")


def test_no_two_options_have_the_same_key() -> None:
    keys = [(item.section, item.key) for cls in (ExperimentOptions, GateOptions) for item in options_of(cls)]
    assert len(set(keys)) == len(keys)
