"""Models that the user names: a checkpoint's directory, a hub id, or an ONNX file beside its tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantlib.data import tasks
from quantlib.data.features import EMBEDDING, INPUT_NAMES, load_tokenizer
from quantlib.data.text import read_errors
from quantlib.experiment.work import SUFFIX, is_onnx
from quantlib.machine.sessions import feed_for, open_session, run_session
from quantlib.measuring.latency.shapes import Shape
from quantlib.onnx_model.interface import interface_of
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file, sha256_json, sha256_tree
from quantlib.training import checkpoints, embedding


def resolve(name: str, role: str) -> Path:
    """The local place of a model.

    Args:
        name: a directory, an ONNX file, or a hub id; see `quantlib.training.checkpoints.resolve`.
        role: "teacher" or "student", for the message.

    Raises:
        InputError: there is no such model.
    """
    if not name.endswith(SUFFIX):
        return checkpoints.resolve(name, role)
    path = checkpoints.expanded(name)
    with read_errors(path):
        if path.is_file():
            return path
    raise InputError(f"{role} {name}: no such ONNX model")


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
        InputError: it is no classifier and no embedding model that can be used.
    """
    if not is_onnx(model):
        if embedding.is_embedding_model(model):
            return tasks.ModelLabels(str(model), embedding.width_of(model), (), "embedding")
        return checkpoints.model_labels(model)
    interface = interface_of(model)
    logits = interface.logits
    if interface.output == EMBEDDING:
        return tasks.ModelLabels(str(model), logits, (), "embedding")
    if not (model.parent / "config.json").is_file():
        return tasks.ModelLabels(str(model), logits)
    config = checkpoints.read_config(model.parent)
    said = checkpoints.labels_of(model.parent, config)
    if not (said.names or "num_labels" in config):
        return tasks.ModelLabels(said.source, logits, (), said.kind)
    if said.count != logits:
        raise InputError(
            f"{said.source}: {said.count} labels, but {model.name} beside it has {logits} logits"
        )
    return said


def check_for_task(model: Path, task: tasks.Task, seq_len: int, *, gave_order: bool = False) -> None:
    """Check a model against a task and the length of its rows.

    Args:
        model: a checkpoint or an ONNX file.
        task: what its logits are of.
        seq_len: the longest row in tokens.
        gave_order: the task's labels stand in the order of this model, so that they need not be compared.

    Raises:
        InputError: what does not fit.
    """
    if not is_onnx(model):
        checkpoints.need_torch(f"a checkpoint, {model},")
        checkpoints.order_of(labels_of(model), task)
        checkpoints.check_sequence_length(model, seq_len)
        return
    order = checkpoints.order_of(labels_of(model), task)
    if order != sorted(order) and not gave_order:
        raise InputError(
            f"{model}: its labels, {labels_of(model).words()}, stand in another order than those of "
            f"{task.name}; an ONNX file keeps its own"
        )
    if (model.parent / "config.json").is_file():
        config = checkpoints.read_config(model.parent)
        if "max_position_embeddings" in config:
            checkpoints.check_sequence_length(model.parent, seq_len)
    load_tokenizer(model.parent)
    try_shape(model, Shape(1, seq_len))


def try_shape(model: Path, shape: Shape) -> None:
    """Run an ONNX file once on a batch of that shape, so that one that cannot take it is told at once.

    Raises:
        InputError: it cannot be run; the message names the file and the shape.
    """
    ids = np.zeros(shape, dtype=np.int64)
    session = open_session(model, threads=1, spinning=False)
    feed = feed_for(
        session, {name: np.ones_like(ids) if name == "attention_mask" else ids for name in INPUT_NAMES}
    )
    run_session(session, model, feed)


def hash_of(model: Path) -> str:
    """A SHA-256 of what a model is made of, its tokenizer included, in hexadecimal."""
    if not is_onnx(model):
        return sha256_tree(model)
    beside = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
    return sha256_json([interface_of(model).sha256, _hashes(model.parent, beside)])


def _hashes(directory: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: sha256_file(directory / name) for name in names if (directory / name).is_file()}
