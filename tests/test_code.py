"""Which changes of the code change the key of what it makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantlib.compression import calibration
from quantlib.support import code
from quantlib.support.code import code_key

SOURCES = {
    "__init__.py": "from quantlib.experiment import run\n",
    "support/__init__.py": "",
    "support/errors.py": "class InputError(Exception): ...\n",
    "support/files.py": "def write(path): ...\n",
    "data/__init__.py": "",
    "data/tasks.py": "TASKS = 1\n",
    "data/features.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from quantlib.data.tasks import Task

def pad(rows: list[Task], length: int = 3) -> int:
    return length
""",
    "grid/__init__.py": "from .scale import scale\n",
    "grid/scale.py": "def scale(x):\n    return x / 127\n",
    "grid/unused.py": "",
    "quantize/__init__.py": '"""Doc."""\nfrom quantlib.quantize.rewrite import rewrite\n',
    "quantize/library.py": "",
    "quantize/rewrite.py": """
from quantlib.support.errors import InputError
from quantlib.grid import scale

def rewrite(model):
    \'\'\'Rewrite.\'\'\'
    from quantlib.support import files
    return scale(model)
""",
    "experiment/__init__.py": "from quantlib.experiment.options import Options\n",
    "experiment/options.py": "from quantlib.data.tasks import TASKS\nclass Options: ...\n",
    "experiment/work.py": """
from quantlib.data import features
from quantlib.experiment.options import Options

class Work: ...

def tokenize(work: Work, rows):
    return features.pad(rows)
""",
    "experiment/steps.py": """
from quantlib.experiment import work as shared
from quantlib.experiment.options import Options
from quantlib.experiment.work import tokenize
from quantlib.grid import scale
from quantlib.support import files

BATCH, OTHER = 4, 5
UNUSED = 1

def step(options: Options, rows):
    size, unused = BATCH, 6
    key = 7

    def make(directory, rows=rows):
        files.write(directory)
        return tokenize(options, rows), size

    return make

def other(rows):
    return shared.tokenize(None, scale(rows))
""",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of a small quantlib, to be edited."""
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    clear_caches()
    yield tmp_path
    monkeypatch.undo()
    clear_caches()


def clear_caches() -> None:
    """Clear the caches: parts of keys are computed once in a process."""
    for function in (code._source, code._module_hash, code._imports, code._follow_definition):
        function.cache_clear()


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    clear_caches()


def step_of(root: Path) -> Callable[..., object]:
    """The function `make` of experiment/steps.py; its imports are left out, since it is never run."""
    path = root / "experiment" / "steps.py"
    lines = ["" if line.startswith("from") else line for line in path.read_text().splitlines()]
    names: dict[str, Callable[..., Callable[..., object]]] = {}
    exec(compile("from __future__ import annotations;" + "\n".join(lines), path, "exec"), names)
    step: Callable[..., object] = names["step"](None, [])
    return step


def test_a_module_counts_with_all_that_it_imports(root: Path) -> None:
    assert list(code_key("quantize")) == [
        "grid",
        "grid.scale",
        "quantize",
        "quantize.rewrite",
        "support.files",
    ]
    assert list(code_key("quantize.rewrite", "data.features")) == [
        "data.features",
        "grid",
        "grid.scale",
        "quantize.rewrite",
        "support.files",
    ]


@pytest.mark.parametrize(
    ("edited", "old", "new"),
    [
        ("grid/scale.py", "127", "128"),
        ("grid/__init__.py", "scale\n", "scale\nx = 1\n"),
        ("quantize/__init__.py", '"""Doc."""', "x = 1"),
        ("quantize/rewrite.py", "scale(model)", "scale(scale(model))"),
        ("support/files.py", "(path)", "(path, mode)"),
    ],
)
def test_a_change_of_what_is_imported_is_another_key(root: Path, edited: str, old: str, new: str) -> None:
    before = code_key("quantize")
    edit(root / edited, old, new)
    assert code_key("quantize") != before


@pytest.mark.parametrize(
    ("edited", "old", "new"),
    [
        ("quantize/rewrite.py", "Rewrite.", "Write anew."),
        ("quantize/rewrite.py", "def rewrite(model)", "def rewrite(model: str)   ->   str"),
        ("quantize/rewrite.py", "return", "# a reason\n\n    return"),
        ("quantize/__init__.py", '"""Doc."""', '"""Other."""\n'),
        ("quantize/library.py", "", "x = 1"),
        ("grid/unused.py", "", "x = 1"),
        ("experiment/options.py", "...", "x = 1"),
        ("support/errors.py", "...", "x = 1"),
        ("__init__.py", "run", "other"),
    ],
)
def test_words_and_other_modules_change_no_key(root: Path, edited: str, old: str, new: str) -> None:
    before = code_key("quantize")
    edit(root / edited, old, new)
    assert code_key("quantize") == before


def test_what_is_for_type_checkers_only_is_no_import(root: Path) -> None:
    before = code_key("data.features")
    assert list(before) == ["data.features"]
    edit(root / "data/features.py", "import Task", "import Task, TASKS")
    assert code_key("data.features") == before
    edit(root / "data/features.py", "= 3", "= 4")
    assert code_key("data.features") != before


def test_modules_may_be_left_out(root: Path) -> None:
    assert list(code_key("quantize", ignore=["grid"])) == ["quantize", "quantize.rewrite", "support.files"]


def test_a_module_that_is_not_there(root: Path) -> None:
    with pytest.raises(ValueError, match=r"no module quantlib\.nothing"):
        code_key("nothing")


# Functions


def test_a_function_counts_with_the_definitions_of_its_room_that_it_uses(root: Path) -> None:
    assert list(code_key(step_of(root))) == [
        "data.features",
        "experiment.steps:BATCH",
        "experiment.steps:step.make",
        "experiment.steps:step.size",
        "experiment.work:tokenize",
        "support.files",
    ]


@pytest.mark.parametrize(
    ("edited", "old", "new"),
    [
        ("experiment/steps.py", "files.write(directory)", "files.write(directory / 'x')"),
        ("experiment/steps.py", "size, unused = BATCH", "size, unused = 2 * BATCH"),
        ("experiment/steps.py", "= 4, 5", "= 8, 5"),
        ("experiment/work.py", "pad(rows)", "pad(rows, 2)"),
        ("data/features.py", "= 3", "= 4"),
        ("support/files.py", "(path)", "(path, mode)"),
    ],
)
def test_a_change_of_what_a_function_uses_is_another_key(root: Path, edited: str, old: str, new: str) -> None:
    before = code_key(step_of(root))
    edit(root / edited, old, new)
    assert code_key(step_of(root)) != before


@pytest.mark.parametrize(
    ("edited", "old", "new"),
    [
        ("experiment/steps.py", "UNUSED = 1", "UNUSED = 2"),
        ("experiment/steps.py", "key = 7", "key = 8"),
        ("experiment/steps.py", "(None, scale(rows))", "(None, scale(rows), 2)"),
        ("experiment/work.py", "class Work: ...", "class Work:\n    x = 1"),
        ("experiment/options.py", "...", "x = 1"),
        ("data/tasks.py", "1", "2"),
        ("grid/scale.py", "127", "128"),
    ],
)
def test_what_a_function_does_not_use_changes_no_key(root: Path, edited: str, old: str, new: str) -> None:
    before = code_key(step_of(root))
    edit(root / edited, old, new)
    assert code_key(step_of(root)) == before


def test_only_functions_with_a_name_can_be_followed() -> None:
    for function in (lambda: None, functools.partial(print), print):
        with pytest.raises(ValueError, match="is not a function made by a def"):
            code_key(function)
    with pytest.raises(ValueError, match="is not a module of quantlib"):
        code_key(clear_caches)


# The real quantlib


def test_what_decides_the_ranges() -> None:
    key = code_key(calibration.derive)
    assert {"compression.calibration.ranges:derive", "compression.calibration.search:squared_errors"} <= set(
        key
    )
    assert not {name for name in key if name.startswith(("measuring", "training", "experiment", "report"))}


def test_modules_that_decide_nothing_are_there() -> None:
    assert [name for name in code.DECIDE_NOTHING if code._file_of(f"quantlib.{name}") is None] == []


def test_what_decides_a_quantized_model() -> None:
    quantize = set(code_key("compression.quantize"))
    assert {"compression.grid", "compression.smoothing", "compression.calibration.ranges"} <= quantize
    assert {"onnx_model.layers", "machine.sessions", "machine.unsigned"} <= quantize
    assert not quantize & code.DECIDE_NOTHING
    above = {name for name in quantize if name.startswith(("measuring", "training", "experiment"))}
    assert above == {"training.architectures"}, "the names of layers, which are groups of exceptions"
