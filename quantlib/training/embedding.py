"""Models that embed texts, in sentence-transformers' layout: an encoder, a pooling, at will a normalization.

The directory holds a checkpoint of transformers, modules.json, and a folder with the pooling's config.json.
What is read here is what sentence-transformers writes; the package itself is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from quantlib.data.features import EMBEDDING
from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.training.architectures import ARCHITECTURES, accepted, of_model
from quantlib.training.checkpoints import check_parts, load_weights, read_config

Pooling = Literal["cls", "mean", "max"]

_MODULES = "modules.json"
_POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
# What the switches of a pooling's config.json are called; newer files name the mode instead.
_SWITCH = "pooling_mode_"
_POOLING_OF_SWITCH: dict[str, Pooling] = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}


@dataclass(frozen=True)
class EmbeddingLayout:
    """What follows the encoder of an embedding model.

    pooling: "cls" takes the first token's state, "mean" the mean over the tokens that are not padding, "max"
    the largest value of each column among them. normalized: whether embeddings have length 1.
    """

    pooling: Pooling
    normalized: bool


def is_embedding_model(model_dir: Path) -> bool:
    """Whether a directory holds a model in sentence-transformers' layout that is no classifier.

    Raises:
        InputError: as for `read_config`.
    """
    if not (model_dir / _MODULES).is_file():
        return False
    return not _architecture(read_config(model_dir)).endswith("ForSequenceClassification")


def check_embedding_model(model_dir: Path) -> EmbeddingLayout:
    """Check that a directory holds a supported embedding model with weights and tokenizer.

    Raises:
        InputError: a module, a pooling or an architecture that is not supported, or something is missing.
    """
    layout = _read_layout(model_dir)
    config = read_config(model_dir)
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise InputError(
            f"{model_dir / 'config.json'}: model_type {kind!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    check_parts(model_dir, config, ARCHITECTURES[kind], _architecture(config) or kind)
    return layout


def width_of(model_dir: Path) -> int:
    """How many numbers an embedding has.

    Raises:
        InputError: as for `check_embedding_model`.
    """
    check_embedding_model(model_dir)
    config = read_config(model_dir)
    width: int = config[ARCHITECTURES[config["model_type"]].shape_keys[1]]
    return width


def load_embedding_model(model_dir: Path) -> Any:
    """The PyTorch model of an embedding model: encoder, pooling and normalization, in evaluation mode.

    It takes what the encoder takes, int64 (rows, tokens), and gives {"sentence_embedding": float32 (rows,
    width)}. Its encoder has the name that it has in a classifier ("bert"), so that layers keep theirs.

    Raises:
        InputError: as for `check_embedding_model`; weights that cannot be read, are missing, or not finite.
    """
    layout = check_embedding_model(model_dir)
    encoder, missing = load_weights(model_dir, "AutoModel")
    # transformers adds a pooler to some encoders; nothing here reads it.
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise InputError(f"{model_dir}: the weights lack {missing[0]}, which its encoder needs")
    return _joined(encoder, layout).eval()


def _joined(encoder: Any, layout: EmbeddingLayout) -> Any:
    """An encoder of transformers, followed by what a layout says."""
    import torch

    class Pool(torch.nn.Module):
        """States of tokens (rows, tokens, width) and the mask (rows, tokens) to (rows, width)."""

        def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            if layout.pooling == "cls":
                return states[:, 0]
            is_token = mask.unsqueeze(-1)
            if layout.pooling == "max":
                return states.masked_fill(is_token == 0, -1e9).amax(1)
            weights = is_token.to(states.dtype)
            return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    class Normalize(torch.nn.Module):
        """Rows (rows, width), each divided by its length."""

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            lengths: torch.Tensor = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            return rows / lengths.clamp(min=1e-12)

    class EmbeddingModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = encoder.config
            self.prefix = of_model(encoder).layers.partition(".")[0]
            setattr(self, self.prefix, encoder)
            self.pooling = Pool()
            self.normalize = Normalize() if layout.normalized else torch.nn.Identity()

        def extra_repr(self) -> str:
            return repr(layout)

        def forward(self, **feed: torch.Tensor) -> dict[str, torch.Tensor]:
            states = getattr(self, self.prefix)(**accepted(encoder, feed)).last_hidden_state
            return {EMBEDDING: self.normalize(self.pooling(states, feed["attention_mask"]))}

    return EmbeddingModel()


def _architecture(config: dict[str, Any]) -> str:
    """The class in config.json; empty where there is none."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _read_layout(model_dir: Path) -> EmbeddingLayout:
    path = model_dir / _MODULES
    modules = _read_json(path)
    if not isinstance(modules, list) or not all(_is_module(module) for module in modules):
        raise InputError(f"{path}: expected a list of modules, each with a type and a path")
    kinds = [_kind(path, module["type"]) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise InputError(
            f"{path}: modules {', '.join(kinds) or 'none'} are not supported; supported: Transformer, "
            "Pooling, and at will Normalize, in this order"
        )
    folder = modules[0]["path"]
    if folder:
        raise InputError(f"{path}: the Transformer lies in {folder!r}; it must lie in {model_dir} itself")
    return EmbeddingLayout(
        _read_pooling(model_dir / modules[1]["path"] / "config.json"), kinds[-1] == "Normalize"
    )


def _is_module(module: object) -> bool:
    return isinstance(module, dict) and all(isinstance(module.get(key), str) for key in ("type", "path"))


def _kind(path: Path, type_name: str) -> str:
    """The class of a module; one from elsewhere is the model's own code, which is not run."""
    package, _, name = type_name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise InputError(f"{path}: module {type_name!r} is not one of sentence-transformers")
    return name


def _read_pooling(path: Path) -> Pooling:
    config = _read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected a JSON object")
    switches = [name.removeprefix(_SWITCH) for name, on in config.items() if name.startswith(_SWITCH) and on]
    named = config.get("pooling_mode")
    modes = [named] if named is not None else [_POOLING_OF_SWITCH.get(name, name) for name in switches]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        said = ", ".join(map(str, modes)) or "nothing"
        raise InputError(
            f"{path}: pooling by {said} is not supported; supported: one of {', '.join(_POOLINGS)}"
        )
    if not config.get("include_prompt", True):
        raise InputError(
            f"{path}: include_prompt false is not supported; prompts are pooled like other tokens"
        )
    pooling: Pooling = modes[0]
    return pooling


def _read_json(path: Path) -> Any:
    try:
        return parse_json_text(read_utf8(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; an embedding model has it") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
