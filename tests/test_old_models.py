"""The old side of a comparison: from the store, built again by its own code, with its own runtime."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_gate import MACHINE
from test_gate_identity import ORIGIN, known
from test_git import commit

from quantlib import gate
from quantlib.compression.recipes import RECIPES
from quantlib.compression.recipes.file import write_recipe
from quantlib.data import features
from quantlib.experiment import old_models, rebuilding, runtimes
from quantlib.experiment.gating import worker_code
from quantlib.experiment.old_models import OldModels, worker_command
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.rebuilding import arguments_of, package_of, rebuild
from quantlib.experiment.runtimes import python_with
from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency import TimedProcess
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError, Unavailable
from quantlib.support.files import sha256_file
from quantlib.support.progress import Steps
from quantlib.support.store import FileStore

# A quantlib of an earlier day: its build writes a file for each recipe, with the name and a seed in it.
BUILD = """
from pathlib import Path
from types import SimpleNamespace

def build(options):
    variants = []
    for name in ("teacher", *options.recipes):
        path = options.cache_dir / f"{name}.onnx"
        path.write_text(f"{name} {options.seed} {options.data_dir}")
        variants.append(SimpleNamespace(name=name, path=path))
    return SimpleNamespace(variants=variants)
"""
OPTIONS = """
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class ExperimentOptions:
    recipes: tuple[str, ...] = ("quant_1",)
    seed: int = 1
    data_dir: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError("no such seed")
"""
EARLIER = {
    "quantlib/__init__.py": "",
    "quantlib/experiment/__init__.py": "",
    "quantlib/experiment/build.py": BUILD,
    "quantlib/experiment/options.py": OPTIONS,
    "quantlib/experiment/gating.py": "def worker_code():\n    return 'w' * 64\n",
}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    (tmp_path / "cache").mkdir()
    return Cache(tmp_path / "cache")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository whose first commit made the baseline, and whose second one makes nothing."""
    commit(tmp_path / "repository", EARLIER)
    return tmp_path / "repository"


@pytest.fixture
def origin(checkout: Path) -> gate.Origin:
    first = commit(checkout, {"notes.txt": "first"})
    commit(checkout, {"quantlib/experiment/build.py": "raise RuntimeError('not this one')\n"})
    return replace(ORIGIN, commit=first, arguments={"recipes": ["quant_2"], "seed": 7})


def options(cache: Cache, **changes: Any) -> ExperimentOptions:
    return ExperimentOptions(no_student=True, threads=2, cache_dir=cache.root, **changes)


# Building again


def test_models_are_built_again_by_their_own_code(
    origin: gate.Origin, checkout: Path, cache: Cache, tmp_path: Path
) -> None:
    run = options(cache, task="SST-2", data_dir=tmp_path)
    models = rebuild(origin, run, checkout, cache)
    assert sorted(models) == ["quant_2", "teacher"]
    assert models["quant_2"].read_text(encoding="utf-8") == f"quant_2 7 {tmp_path}"
    assert not list(cache.root.glob(".quantlib-*"))


def test_code_that_fails_is_said(origin: gate.Origin, checkout: Path, cache: Cache) -> None:
    wrong = replace(origin, arguments={"seed": -1})
    with pytest.raises(Unavailable, match=rf"{origin.commit[:12]} cannot build .*: ValueError: no such seed"):
        rebuild(wrong, options(cache), checkout, cache)


def test_a_baseline_without_a_revision(origin: gate.Origin, checkout: Path, cache: Cache) -> None:
    for get in (
        lambda o: rebuild(o, options(cache), checkout, cache),
        lambda o: package_of(o, checkout, cache),
    ):
        with pytest.raises(Unavailable, match="names no revision"):
            get(replace(origin, commit=""))


def test_arguments_are_those_that_decide_models(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "mine.toml"
    recipe.parent.mkdir()
    write_recipe(recipe, replace(RECIPES["quant_2"], name="mine"))
    run = ExperimentOptions(
        no_student=True, seed=7, recipes=("quant_2", str(recipe)), num_runs=3, threads=1, data_dir=tmp_path
    )
    assert arguments_of(run, tmp_path) == {
        "no_student": True,
        "recipes": ["quant_2", "recipes/mine.toml"],
        "seed": 7,
    }
    assert arguments_of(run, tmp_path / "recipes" / "elsewhere")["recipes"] == ["quant_2", str(recipe)]
    assert json.loads(json.dumps(arguments_of(run, tmp_path)))["seed"] == 7


def test_the_code_that_timed_a_baseline(origin: gate.Origin, checkout: Path, cache: Cache) -> None:
    package = package_of(origin, checkout, cache)
    assert (package / "experiment" / "build.py").read_text(encoding="utf-8") == BUILD
    assert package_of(origin, checkout, cache) == package
    with pytest.raises(Unavailable, match=f"{origin.commit[:12]} is not what timed the baseline"):
        package_of(replace(origin, worker="v" * 64), checkout, cache)


# Runtimes


def fake_environment(directory: Path, requirements: Sequence[str]) -> None:
    (directory / "bin").mkdir()
    (directory / "bin" / "python").write_text(" ".join(requirements), encoding="utf-8")


def test_an_old_runtime_is_installed_once(cache: Cache) -> None:
    python = python_with("1.20.1", cache, fake_environment)
    assert python.read_text(encoding="utf-8").startswith("onnxruntime==1.20.1 numpy==")

    def never(*_: object) -> None:
        raise AssertionError("it is there already")

    assert python_with("1.20.1", cache, never) == python


def test_a_runtime_that_cannot_be_installed(cache: Cache) -> None:
    def no_index(directory: Path, requirements: Sequence[str]) -> None:
        raise Unavailable(f"{requirements[0]} cannot be installed: no package index")

    with pytest.raises(Unavailable, match=r"onnxruntime==1\.20\.1 cannot be installed: no package index"):
        python_with("1.20.1", cache, no_index)


def test_the_words_of_pip_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run(command: Sequence[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        failed = "pip" in command
        return SimpleNamespace(returncode=failed, stderr="a\nERROR: no match" if failed else "", stdout="")

    monkeypatch.setattr(runtimes.subprocess, "run", run)
    with pytest.raises(Unavailable, match=r"onnxruntime==1 cannot be installed: ERROR: no match"):
        runtimes.install(tmp_path, ["onnxruntime==1", "numpy==2"])
    assert [command[1:3] for command in commands] == [("-m", "venv"), ("-m", "pip")]


# Finding


class Fake:
    """An old model's process, which may refuse to start."""

    error: Exception | None = None
    started: list[tuple[Path, Any, Any]]

    def __init__(self, path: Path, feeds: Any, config: Any, engine: str, worker: Any = None) -> None:
        self.started.append((path, config, worker))

    def __enter__(self) -> Fake:
        if self.error is not None:
            raise self.error
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    fake = type("OneTest", (Fake,), {"started": [], "error": None})
    monkeypatch.setattr(old_models, "TimedProcess", fake)
    return fake


@pytest.fixture
def new_model(tmp_path: Path) -> SimpleNamespace:
    path = tmp_path / "new.onnx"
    path.write_text("new", encoding="utf-8")
    return SimpleNamespace(name="quant_2", path=path, engine="onnxruntime", stock_session=False)


def finder(cache: Cache, checkout: Path, sha256: str, origin: gate.Origin) -> OldModels:
    baseline = known(sha256, origin)
    teacher = replace(baseline.variants["teacher"], sha256=sha256_text("teacher 7 None"))
    baseline = replace(baseline, variants={**baseline.variants, "teacher": teacher})
    return OldModels(baseline, options(cache), cache, store_of(cache), Steps(), checkout)


def store_of(cache: Cache) -> FileStore:
    return FileStore(cache.root / "models", ".onnx")


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_model_from_the_store(cache, checkout, origin, new_model, processes, tmp_path) -> None:
    (tmp_path / "old.onnx").write_text("old", encoding="utf-8")
    digest = sha256_file(tmp_path / "old.onnx")
    store_of(cache).put(tmp_path / "old.onnx", digest)
    old = finder(cache, checkout, digest, origin).find(new_model, gate.Changes(model="other"), [])
    assert old.words == "old model from the store"
    assert old.path.read_text(encoding="utf-8") == "old"
    assert (old.session, old.worker) == (SessionConfig(2), None)
    assert processes.started == []  # this run's own process needs no trial


def test_a_model_built_again_goes_to_the_store(cache, checkout, origin, new_model, processes) -> None:
    digest = sha256_text("quant_2 7 None")
    models = finder(cache, checkout, digest, origin)
    old = models.find(new_model, gate.Changes(model="other"), [])
    assert old.words == f"old model, rebuilt from {origin.commit[:12]}"
    assert old.path == store_of(cache).get(digest)


def test_a_model_that_came_out_the_same_is_used_though_another_did_not(
    cache, checkout, origin, new_model, processes
) -> None:
    models = finder(cache, checkout, sha256_text("quant_2 7 None"), origin)
    variants = models.baseline.variants
    teacher = replace(variants["teacher"], sha256="8" * 64)
    models.baseline = replace(models.baseline, variants={**variants, "teacher": teacher})
    assert models.find(new_model, gate.Changes(model="other"), []).words.startswith("old model, rebuilt")


def test_other_bytes_than_the_baseline_s_are_not_used(
    cache, checkout, origin, new_model, monkeypatch
) -> None:
    built = []
    monkeypatch.setattr(old_models, "rebuild", lambda *a: built.append(a) or rebuilding.rebuild(*a))
    models = finder(cache, checkout, "5" * 64, replace(origin, changed=True))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            models.find(new_model, gate.Changes(model="other"), [])
        assert str(caught.value) == (
            f"the store has no model {'5' * 12}; {origin.commit[:12]}, whose code had been changed, makes "
            "other models of quant_2"
        )
    assert len(built) == 1


def test_the_same_bytes_with_the_old_session_options(cache, checkout, origin, new_model, processes) -> None:
    session = {"threads": 8, "spinning": False}
    models = finder(cache, checkout, "5" * 64, replace(origin, session=session))
    old = models.find(new_model, gate.Changes(session="spinning"), [])
    assert old.words == "same model, with the baseline's session options"
    assert (old.path, old.session) == (new_model.path, {"threads": 2, "spinning": False})
    assert len(processes.started) == 1


def test_the_old_runtime_and_the_old_code(
    cache, checkout, origin, new_model, processes, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(old_models, "python_with", lambda version, _, package: tmp_path / version / "python")
    models = finder(cache, checkout, "5" * 64, origin)
    old = models.find(new_model, gate.Changes(runtime="1.32", worker="changed"), [])
    version = MACHINE["onnxruntime"]
    assert old.words == f"same model, with onnxruntime {version}, timed by the baseline's code"
    assert old.worker == worker_command(tmp_path / version / "python", package_of(origin, checkout, cache))
    processes.error = InputError("it cannot load\nunknown option")
    with pytest.raises(Unavailable, match="its process does not start: it cannot load unknown option"):
        models.find(new_model, gate.Changes(runtime="1.32"), [])


def test_the_old_version_of_another_engine(
    cache, checkout, origin, new_model, processes, monkeypatch, tmp_path
) -> None:
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(
        old_models,
        "python_with",
        lambda version, _, package: asked.append((package, version)) or tmp_path / "python",
    )
    new_model.engine = "openvino"
    models = finder(cache, checkout, "5" * 64, origin)
    with pytest.raises(Unavailable, match="does not record which version of openvino it was timed with"):
        models.find(new_model, gate.Changes(runtime="openvino: 2, baseline not recorded"), [])
    engines = {"openvino": {"version": "2026.1", "session": {"threads": 9, "precision": "bf16"}}}
    models = finder(cache, checkout, "5" * 64, replace(origin, engines=engines))
    old = models.find(new_model, gate.Changes(runtime="changed", session="changed"), [])
    assert asked == [("openvino", "2026.1")]
    assert old.words == "same model, with openvino 2026.1, with the baseline's session options"
    assert (old.engine, old.session) == ("openvino", {"threads": 2, "precision": "bf16"})


def test_old_timing_code_that_is_gone(cache, checkout, origin, new_model, processes) -> None:
    models = finder(cache, checkout, "5" * 64, replace(origin, worker="v" * 64))
    with pytest.raises(Unavailable, match="is not what timed the baseline"):
        models.find(new_model, gate.Changes(worker="changed"), [])
    old = models.find(new_model, gate.Changes(worker="changed", session="other"), [])
    assert old.words.startswith("same model, both timed by this run's code (the code of")


def test_nothing_recorded(cache, checkout, origin, new_model) -> None:
    models = finder(cache, checkout, "5" * 64, origin)
    with pytest.raises(Unavailable, match="not recorded"):
        models.find(new_model, gate.Changes(unknown="not recorded"), [])


def test_another_place_s_code_can_time_a_model(tiny_onnx: Path, tiny_rows: Any) -> None:
    feeds = list(features.fixed_shape_feeds(tiny_rows, 1, 16, 2))
    command = worker_command(Path(sys.executable), old_models.PACKAGE)
    session = {"threads": 1, "spinning": False}
    with TimedProcess(tiny_onnx, feeds, session, worker=command) as process:
        assert len(process.time(2, wake_seconds=0.0)) == 2
    with (
        pytest.raises(RuntimeError, match="unexpected keyword argument 'unknown_option'"),
        TimedProcess(tiny_onnx, feeds, {"unknown_option": 1}, worker=command),
    ):
        pass


def test_this_revision_can_say_which_code_times() -> None:
    assert len(worker_code()) == 64
