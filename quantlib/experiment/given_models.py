"""Models that the user names: a checkpoint's directory, a hub id, or an ONNX file beside its tokenizer."""

from __future__ import annotations

from pathlib import Path

from quantlib.data import tasks
from quantlib.data.features import load_tokenizer
from quantlib.experiment.work import is_onnx
from quantlib.onnx_model.interface import interface_of
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file, sha256_json, sha256_tree
from quantlib.training import checkpoints


def resolve(name: str, role: str) -> Path:
    """The local place of a model.

    Args:
        name: a directory, an ONNX file, or a hub id; see `quantlib.training.checkpoints.resolve`.
        role: "teacher" or "student", for the message.

    Raises:
        InputError: there is no such model.
    """
    path = Path(name).expanduser()
    return path if is_onnx(path) and path.is_file() else checkpoints.resolve(name, role)


def check_file(model: Path) -> None:
    """Check that a path is an ONNX file.

    Raises:
        InputError: it is something else, or not there.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such ONNX model")
    if not is_onnx(model):
        raise InputError(f"{model}: not an ONNX file by its name; one ends with .onnx")


def labels_of(model: Path) -> tasks.ModelLabels:
    """What a model says of its logits: an ONNX file by its output, and by a config.json beside it.

    Raises:
        InputError: it is no classifier that can be used.
    """
    if not is_onnx(model):
        return checkpoints.model_labels(model)
    logits = interface_of(model).logits
    if not (model.parent / "config.json").is_file():
        return tasks.ModelLabels(str(model), logits)
    said = checkpoints.labels_of(model.parent, checkpoints.read_config(model.parent))
    if said.count != logits:
        raise InputError(
            f"{said.source}: {said.count} labels, but {model.name} beside it has {logits} logits"
        )
    return said


def check_for_task(model: Path, task: tasks.Task, seq_len: int) -> None:
    """Check a model against a task and the length of its rows.

    Raises:
        InputError: what does not fit.
    """
    if not is_onnx(model):
        checkpoints.need_torch(f"a checkpoint, {model},")
        checkpoints.check_for_task(model, task)
        checkpoints.check_sequence_length(model, seq_len)
        return
    labels = labels_of(model)
    if labels.count != task.num_labels:
        raise InputError(
            f"{model}: the model has {labels.count} logits, {task.name} has {task.num_labels} labels"
        )
    if (model.parent / "config.json").is_file():
        checkpoints.check_sequence_length(model.parent, seq_len)
    if task.output_mode != "regression" and labels.names and not labels.are_generic:
        order = tasks.label_order(task.labels, dict(task.label_names), labels)
        if order != sorted(order):
            raise InputError(
                f"{model}: its labels, {labels.words()}, stand in another order than those of {task.name}; "
                "an ONNX file keeps its own"
            )
    load_tokenizer(model.parent)


def hash_of(model: Path) -> str:
    """A SHA-256 of what a model is made of, its tokenizer included, in hexadecimal."""
    if not is_onnx(model):
        return sha256_tree(model)
    beside = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
    return sha256_json([interface_of(model).sha256, _hashes(model.parent, beside)])


def _hashes(directory: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: sha256_file(directory / name) for name in names if (directory / name).is_file()}
