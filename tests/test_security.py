"""What strangers' files must not do: run code, load pickles, write or read outside their directory."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantlib import export_bert_to_onnx
from quantlib.cli.main import quantlib
from quantlib.compression.calibration.gram import read_grams
from quantlib.compression.variants import VariantName
from quantlib.data.tasks import OwnTask
from quantlib.experiment import ExperimentOptions, given_models, pruning, run
from quantlib.support.artifacts import Artifact
from quantlib.support.errors import InputError
from quantlib.training.checkpoints import load_classifier
from quantlib.training.student.saved import DamagedError, load_state

# Where checkpoints of all kinds of programs have pickles.
PICKLED = (
    "pytorch_model.bin", "model.bin", "model.pt", "model.pth", "pytorch_model.pt", "training_args.bin",
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "scaler.pt", "tokenizer.pkl",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "pytorch_model-00001-of-00001.bin",
    "adapter_model.bin", "head.joblib", "model_head.pkl", "model_head.joblib", "states.npz", "states.npy",
    "tf_model.h5", "flax_model.msgpack", "pooler.pt", "vocab.pkl", "data.pkl", "training.pt",
)  # fmt: skip
CODE = """
from pathlib import Path
Path({touched!r}).write_text("code of a checkpoint was run")
class Evil: pass
EvilConfig = EvilModel = EvilTokenizer = Evil
"""
JINJA = "{{{{ cycler.__init__.__globals__.os.system('touch {touched}') }}}}"


class Planted:
    """What writes a file when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.touched, "a pickle was loaded")


@pytest.fixture
def touched(tmp_path: Path) -> Path:
    """The file that is written if anything planted is run."""
    return tmp_path / "touched"


@pytest.fixture
def planted(touched: Path) -> bytes:
    """A pickle that writes it."""
    data = pickle.dumps(Planted(touched))
    pickle.loads(data)
    assert touched.is_file(), "the pickle does what it is for"
    touched.unlink()
    return data


@pytest.fixture
def checkpoint(tiny_teacher: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_teacher, tmp_path / "checkpoint")


def use(checkpoint: Path, tmp_path: Path) -> None:
    """What commands do with a checkpoint."""
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"good film {i}\n" for i in range(20)))
    words = ["--evaluation", str(tmp_path / "texts.csv"), "--teacher", str(checkpoint), "--seq-len", "32"]
    assert quantlib(["check", "--task", "texts", *words]) == 0
    given_models.hash_of(checkpoint)
    export_bert_to_onnx(checkpoint, tmp_path / "out" / "model.onnx", seq_len=32)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors", "pytorch_model.bin.index.json", "tokenizer.json"]
)
@pytest.mark.parametrize("zipped", [False, True], ids=["bare", "zip of torch"])
def test_a_pickle_in_the_place_of_weights_is_refused(
    name: str, zipped: bool, checkpoint: Path, planted: bytes, touched: Path, tmp_path: Path
) -> None:
    if name != "tokenizer.json":
        (checkpoint / "model.safetensors").unlink()
    if zipped:
        torch.save({"classifier.weight": Planted(touched)}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(planted)
    with pytest.raises(InputError):
        load_classifier(checkpoint)
    assert not touched.exists()


def test_arrays_of_objects_are_refused(touched: Path, tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    with path.open("wb") as file:
        array = np.empty(1, object)
        array[0] = Planted(touched)
        np.savez(file, **{"order x": array, "errors x": array, "names": array}, allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        pruning._read_orders(path)
    with pytest.raises(InputError, match="allow_pickle=False"):
        read_grams(path)
    assert not touched.exists()


@pytest.mark.parametrize("zipped", [False, True], ids=["bare", "zip of torch"])
def test_a_pickle_as_a_resume_file_is_refused(
    zipped: bool, planted: bytes, touched: Path, tmp_path: Path
) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(planted)
    if zipped:
        torch.save({"job": "job", "best": Planted(touched)}, path)
    with pytest.raises(DamagedError):
        load_state(path, "job")
    assert not touched.exists()


def test_code_and_pickles_of_a_checkpoint_are_not_run(
    checkpoint: Path, planted: bytes, touched: Path, tmp_path: Path
) -> None:
    for name in PICKLED:
        (checkpoint / name).write_bytes(planted)
    code = CODE.format(touched=str(touched))
    exec(code, {})
    assert touched.is_file(), "the code does what it is for"
    touched.unlink()
    for name in (
        "evil.py",
        "modeling_bert.py",
        "configuration_bert.py",
        "tokenization_bert.py",
        "__init__.py",
    ):
        (checkpoint / name).write_text(code)
    (checkpoint / "custom_generate").mkdir()
    (checkpoint / "custom_generate" / "generate.py").write_text(code)
    edit(
        checkpoint / "config.json",
        auto_map={
            name: f"evil.Evil{kind}"
            for kind, names in {
                "Config": ("AutoConfig",),
                "Model": ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"),
            }.items()
            for name in names
        },
        trust_remote_code=True,
        custom_pipelines={"text-classification": {"impl": "evil.Evil", "pt": ["AutoModel"]}},
    )
    jinja = JINJA.format(touched=touched)
    edit(
        checkpoint / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
        chat_template=jinja,
    )
    (checkpoint / "chat_template.jinja").write_text(jinja)
    (checkpoint / "generation_config.json").write_text(json.dumps({"custom_generate": "evil"}))
    use(checkpoint, tmp_path)
    assert not touched.exists()


@pytest.mark.parametrize("model_type", ["evil", None])
def test_a_model_that_only_its_own_code_knows_is_refused(
    model_type: str | None, checkpoint: Path, touched: Path
) -> None:
    (checkpoint / "evil.py").write_text(CODE.format(touched=str(touched)))
    edit(
        checkpoint / "config.json",
        model_type=model_type,
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForSequenceClassification": "evil.EvilModel"},
    )
    with pytest.raises(InputError):
        load_classifier(checkpoint)
    assert not touched.exists()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Paths

OUTSIDE = ("../x", "..", "/tmp/x", "a/b", ".hidden", "a\\..\\b/..", "x\0y", "~", "a\nb", "")


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_name_of_a_task_is_no_path(name: str) -> None:
    with pytest.raises(InputError, match="task name"):
        OwnTask(name, "rows.csv")


@pytest.mark.parametrize("name", OUTSIDE[:-1])
def test_the_name_of_a_recipe_is_no_path(name: str) -> None:
    with pytest.raises(InputError):
        VariantName(0, name)


@pytest.mark.parametrize("name", ["../x", "", "a/b"])
def test_the_name_of_an_engine_is_no_path(name: str) -> None:
    with pytest.raises(InputError):
        VariantName(0, "quant_1", name)


@pytest.mark.parametrize("name", ["../x", "/x", "", "a/../../x"])
def test_what_travels_to_another_machine_stays_in_its_cache(name: str) -> None:
    with pytest.raises(InputError, match="leads out of the cache"):
        Artifact("kind", name, {}, "")


def test_students_with_names_like_paths_stay_in_the_output_directory(
    tiny_options: ExperimentOptions, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = shutil.copytree(tiny_teacher, tmp_path / "checkpoints" / "student") / "inside"
    inside.mkdir()
    out = tmp_path / "runs"
    before = set(tmp_path.rglob("*"))
    students = ("checkpoints/student/inside/..", "checkpoints/student/.")
    run(replace(tiny_options, output_dir=out, students=students, recipes=("dynamic_u8s8",)))
    new = set(tmp_path.rglob("*")) - before
    assert new
    assert all(path.is_relative_to(out) for path in new)
    folders = sorted(path.name for path in (out / "SST-2").glob("ts_student_*"))
    assert len(folders) == 2


def test_links_in_the_output_directory_are_not_followed(
    tiny_options: ExperimentOptions, tmp_path: Path
) -> None:
    out, kept = tmp_path / "runs", tmp_path / "kept"
    kept.mkdir()
    (kept / "mine").write_text("mine")
    (out / "SST-2").mkdir(parents=True)
    for name in ("results.json", "run.json", "report.html"):
        (out / "SST-2" / name).symlink_to(kept / "mine")
    (out / "SST-2" / "ts_teacher_bert").symlink_to(kept)
    options = replace(tiny_options, output_dir=out, no_student=True, recipes=("dynamic_u8s8",))
    run(options)
    assert [path.name for path in kept.iterdir()] == ["mine"]
    assert (kept / "mine").read_text() == "mine"
    assert (out / "SST-2" / "ts_teacher_bert" / "model.onnx").is_file()
    shutil.rmtree(out / "SST-2")
    (out / "SST-2").symlink_to(kept)
    with pytest.raises(InputError, match="a link that leads out of"):
        run(options)
    assert [path.name for path in kept.iterdir()] == ["mine"]


_OPEN_A_SESSION = """
import sys
from pathlib import Path
from quantlib import open_session
open_session(Path(sys.argv[1]))
"""


def test_no_usage_data_is_kept_or_sent_by_onnx_runtime(tiny_onnx: Path, tmp_path: Path) -> None:
    """Its Linux builds write an identifier below the home directory, and events until they can be sent."""
    home = tmp_path / "home"
    home.mkdir()
    # It keeps quiet by itself in CI, and where its variable is inherited from this process.
    told = {"ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "TF_BUILD", "GITLAB_CI"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    subprocess.run([sys.executable, "-c", _OPEN_A_SESSION, str(tiny_onnx)], check=True, env=environment)
    assert not list(home.rglob("*.onnxruntime*")), "an identifier and events of ONNX Runtime"


def test_who_wants_usage_data_sent_has_said_so() -> None:
    code = "import os, quantlib; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "0", done.stderr
