"""What is slow is made once for all tests: a tiny random BERT, its export, rows made of its vocabulary."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import warm
from filelock import FileLock
from hypothesis import settings

from quantlib.data.features import Feature
from quantlib.experiment import ExperimentOptions, run
from quantlib.support.cache import ENVIRONMENT_VARIABLE

ROOT = Path(__file__).parents[1]

IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
if IN_WORKER:  # before torch is loaded: each worker would take every core
    os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, without deadlines: machines differ. `--hypothesis-profile=explore` looks for
# new ones.
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("seeded")


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of all tests; the user's own is never touched."""
    directory = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT_VARIABLE, str(directory))
        yield directory


@pytest.fixture(scope="session", autouse=True)
def same_package_in_other_processes() -> Iterator[None]:
    """Processes of a test import the quantlib beside these tests, even if another one is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module", autouse=True)
def timed_here() -> Iterator[None]:
    """Nothing that is timed in a test is believed, so that no model need a process and a woken processor."""
    with warm.timed_here():
        yield


# Files that take longest come first, so that no worker ends long after the others (with xdist's
# --no-loadscope-reorder; by itself it takes files with most tests first).
LONGEST = (
    "test_export_layers", "test_experiment", "test_embedded", "test_harness", "test_export", "test_command",
    "test_quantlib", "test_own_task", "test_repository", "test_architectures", "test_embedding",
    "test_foreign", "test_pruned_student", "test_pruned_run", "test_multi_label", "test_tables",
    "test_browser", "test_page",
    "test_sensitivity", "test_bench_distillation", "test_quantize", "test_graph",
    "test_distillation_vocabulary", "test_accuracy", "test_calibration",
    "test_tox", "test_distillation", "test_profile", "test_explain", "test_smoothing", "test_unlabelled",
    "test_targeting", "test_sweep", "test_pruning", "test_rounding", "test_packing",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first, in that order; the rest stays as it is."""
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory that `make` has filled, in the first worker that needs it; the others wait for it."""
    base = factory.getbasetemp()
    directory = (base.parent if IN_WORKER else base) / "shared" / name
    done = directory.with_name(f"{name}.done")
    directory.parent.mkdir(exist_ok=True)
    with FileLock(directory.with_name(f"{name}.lock")):
        if not done.exists():
            directory.mkdir()
            make(directory)
            done.touch()
    return directory


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier of 2 layers with random weights and two labels. Not to be changed: copy it."""
    return made_once(tmp_path_factory, "tiny-bert", tiny.write_checkpoint)


@pytest.fixture(scope="module", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """PyTorch's exporter, which takes seconds, is given models of the same structure once.

    Then its output is read, with the model's own weights in it.
    """
    from quantlib.onnx_model import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_to_onnx", tiny.traced(partial(made_once, tmp_path_factory)))
        yield


@pytest.fixture(scope="session")
def tiny_onnx(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_teacher`, exported at opset 17 for 64 tokens."""
    return _export(tmp_path_factory, "bert", tiny_teacher)


def _export(factory: pytest.TempPathFactory, kind: str, checkpoint: Path) -> Path:
    from quantlib.onnx_model.export import export_bert_to_onnx

    def make(directory: Path) -> None:
        export_bert_to_onnx(checkpoint, directory / "model.onnx", seq_len=64)

    return made_once(factory, f"onnx-{kind}", make) / "model.onnx"


@pytest.fixture(scope="session")
def tiny_rows(tiny_teacher: Path) -> list[Feature]:
    """48 labelled rows of 6 to 18 tokens."""
    return tiny.features(tiny_teacher, 48)


@pytest.fixture(scope="session", params=tiny.ARCHITECTURES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny.Exported:
    """A tiny classifier of each architecture; `tiny_teacher` and `tiny_onnx` are the first one."""
    if request.param == "bert":
        checkpoint, model = (request.getfixturevalue(name) for name in ("tiny_teacher", "tiny_onnx"))
        return tiny.Exported("bert", checkpoint, model, tiny.features(checkpoint, 48))
    return _exported(tmp_path_factory, request.param)


# A CamemBERT is an XLM-RoBERTa by another name (a test shows it), and tracing takes seconds.
@pytest.fixture(scope="session", params=[kind for kind in tiny.MORE_ARCHITECTURES if kind != "camembert"])
def more_exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiny.Exported:
    """A tiny classifier of each architecture that `exported` lacks."""
    return _exported(tmp_path_factory, request.param)


def _exported(factory: pytest.TempPathFactory, kind: str) -> tiny.Exported:
    checkpoint = made_once(factory, f"tiny-{kind}", lambda directory: tiny.write_checkpoint(directory, kind))
    model = _export(factory, kind, checkpoint)
    return tiny.Exported(kind, checkpoint, model, tiny.features(checkpoint, 48))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], str]:
    """Puts a checkpoint into an empty cache of the hub's client, which is offline; returns its commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(hub_id: str, checkpoint: Path) -> str:
        folder, commit = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}", "0123456789" * 4
        shutil.copytree(checkpoint, folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit, encoding="utf-8")
        return commit

    return add


@pytest.fixture(scope="session")
def glue_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with SST-2 in it: 120 train and 40 dev rows whose label can be learned."""
    return made_once(tmp_path_factory, "glue", tiny.write_sst2)


@pytest.fixture(scope="session")
def first_run(
    tiny_teacher: Path, glue_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExperimentOptions]:
    """Where a run on `tiny_teacher` and `glue_dir` had to make everything, and its options."""
    options = tiny.run_options(tiny_teacher, glue_dir)

    def make(directory: Path) -> None:
        run(replace(options, output_dir=directory / "runs", cache_dir=directory / "cache"))

    return made_once(tmp_path_factory, "tiny-run", make), options


@pytest.fixture(scope="session")
def tiny_options(first_run: tuple[Path, ExperimentOptions], cache_dir: Path) -> ExperimentOptions:
    """A run on `tiny_teacher` and `glue_dir`, with this worker's copy of the cache of the first such run."""
    directory, options = first_run
    return replace(options, cache_dir=shutil.copytree(directory / "cache", cache_dir / "tiny-run"))


@pytest.fixture(scope="session")
def tiny_run(first_run: tuple[Path, ExperimentOptions]) -> Path:
    """OUTPUT_DIR of the first run with `tiny_options`, which had to make everything. Not to be changed."""
    return first_run[0] / "runs"
