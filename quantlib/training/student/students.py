"""The student's shape and its first weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantlib.support.errors import InputError
from quantlib.support.widths import NEURONS_MULTIPLE
from quantlib.training.architectures import ARCHITECTURES, of_model
from quantlib.training.checkpoints import loading_errors, quiet_transformers, read_config, resolve
from quantlib.training.student.mapping import layer_mapping

# A shape, in the order of `Architecture.shape_keys`.
_FIELDS = ("layers", "width", "ffn", "heads")
INITS = ("teacher", "random")


@dataclass(frozen=True)
class StudentConfig:
    """A student's shape, and where its first weights come from.

    layers, width, ffn, heads: None is the teacher's number (of layers, half of it, or all with prune). init:
    "teacher", "random", or a checkpoint of exactly this shape and vocabulary (a general TinyBERT), as a
    directory or hub id. prune: the share of the neurons of each feed-forward block that goes; the start is
    the teacher without them. The vocabulary, positions and token types are always the teacher's.

    Raises:
        InputError: a number out of range, a width that the heads do not divide, or prune beside another
            width, ffn, heads or init.
    """

    layers: int | None = None
    width: int | None = None
    ffn: int | None = None
    heads: int | None = None
    init: str = "teacher"
    prune: float | None = None

    def __post_init__(self) -> None:
        for name in _FIELDS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"student {name} {value} is out of range; it must be at least 1")
        if self.width and self.heads and self.width % self.heads:
            raise InputError(f"student width {self.width} is not a multiple of its {self.heads} heads")
        if not self.init:
            raise InputError(f"student init is empty; it is {', '.join(INITS)}, a directory or a hub id")
        if self.prune is not None:
            self._check_prune(self.prune)

    def _check_prune(self, share: float) -> None:
        if not 0 < share < 1:
            raise InputError(f"student prune {share} is out of range; it must be above 0 and below 1")
        others = [name for name in _FIELDS[1:] if getattr(self, name) is not None]
        others += ["init"] if self.init != "teacher" else []
        if others:
            raise InputError(
                f"student prune {share} is the teacher without neurons: it can be combined with layers, "
                f"not with {others[0]}"
            )

    @property
    def copies_all(self) -> bool:
        """Whether all first weights are the teacher's: only the number of layers may be another."""
        return self.init == "teacher" and self.width is self.ffn is self.heads is None

    def for_teacher(self, teacher: Mapping[str, Any]) -> StudentConfig:
        """This shape with missing numbers filled in from a teacher's config.json.

        Raises:
            InputError: the teacher is no BERT, or has too few layers or neurons.
        """
        model_type = teacher.get("model_type", "nameless")
        if model_type not in ARCHITECTURES or not ARCHITECTURES[model_type].can_be_distilled:
            raise InputError(f"a student is made of a BERT teacher; this one is {model_type}")
        depth, *sizes = (int(teacher[key]) for key in ARCHITECTURES[model_type].shape_keys)
        if self.prune is None and self.layers is None and depth < 2:
            raise InputError("a student of half the layers needs a teacher of at least 2; this one has 1")
        layers = self.layers or (depth // 2 if self.prune is None else depth)
        layer_mapping(layers, depth)
        width, ffn, heads = (
            getattr(self, name) or size for name, size in zip(_FIELDS[1:], sizes, strict=True)
        )
        if self.prune is not None:
            ffn = _neurons_left(ffn, self.prune)
        return StudentConfig(layers, width, ffn, heads, self.init)


def _neurons_left(neurons: int, share: float) -> int:
    """How many neurons of each feed-forward block are left when a share goes.

    Raises:
        InputError: none or all of them.
    """
    left = NEURONS_MULTIPLE * round((1 - share) * neurons / NEURONS_MULTIPLE)
    if not 0 < left < neurons:
        raise InputError(
            f"student prune {share} leaves {left} of the {neurons} neurons of a feed-forward block, in "
            f"multiples of {NEURONS_MULTIPLE}; some must go and some must stay"
        )
    return left


PRESETS: dict[str, StudentConfig] = {
    "half": StudentConfig(),
    "tinybert-4-312": StudentConfig(4, 312, 1200, 12),
    "tinybert-6-768": StudentConfig(6, 768, 3072, 12),
}


def parse_student_config(text: str) -> StudentConfig:
    """A `StudentConfig` from a preset's name, or "layers=4,width=312,ffn=1200,heads=12", or both.

    A part that is left out is as in the teacher (of layers, half as many); `init=` says where the first
    weights come from: "tinybert-4-312,init=DIR". Or "prune=0.5", with or without layers: the teacher without
    a share of its neurons.

    Raises:
        InputError: an unknown preset or name, a value that is no number, or a preset beside prune.
    """
    first, comma, rest = text.partition(",")
    config, parts = StudentConfig(), text.split(",")
    if "=" not in first:
        if first.strip() not in PRESETS:
            raise InputError(
                f"unknown student {first.strip()!r}; known: {', '.join(PRESETS)}, a shape as "
                "layers=4,width=312,ffn=1200,heads=12, or prune=0.5"
            )
        config, parts = PRESETS[first.strip()], rest.split(",") if comma else []
    changes: dict[str, Any] = {}
    for part in parts:
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in (*_FIELDS, "init", "prune") or name in changes:
            raise InputError(
                f"student {text!r}: {part.strip()!r} is not one of {', '.join(_FIELDS)}, init, prune, each "
                "once"
            )
        changes[name] = value if name == "init" else _number(text, name, value)
    if "prune" in changes and "=" not in first:
        raise InputError(
            f"student {text!r}: prune can be combined with layers, not with {first.strip()}; with half of 6 "
            "layers it is layers=3,prune=0.5"
        )
    return replace(config, **changes)


def _number(text: str, name: str, value: str) -> int | float:
    """The value of a part of a student's description: a share for prune, else a whole number."""
    if name == "prune":
        try:
            return float(value)
        except ValueError as error:
            raise InputError(f"student {text!r}: prune must be a share such as 0.5, not {value!r}") from error
    if not value.isdecimal():
        raise InputError(f"student {text!r}: {name} must be a whole number, not {value!r}")
    return int(value)


def make_student(teacher: Any, config: StudentConfig, seed: int, mapping: str = "uniform") -> Any:
    """A new BERT classifier of that shape, with the teacher's vocabulary, in evaluation mode.

    With init "teacher", each tensor that has the same shape in the teacher starts as a copy, layer m from the
    teacher's layer g(m) (`layer_mapping`). The rest is random, as BERT initializes its weights.

    Args:
        teacher: a loaded BERT classifier of transformers.
        config: the shape; None is filled in from the teacher.
        seed: of the random weights.
        mapping: see `layer_mapping`.

    Raises:
        InputError: the shape does not suit the teacher, the checkpoint of `init` is of another one, or the
            start is a pruned teacher, which `quantlib.experiment.pruned_start` makes, to be given as `init`.
    """
    import torch
    import transformers

    if config.prune is not None:
        raise InputError(
            f"student prune {config.prune}: its start is a checkpoint that quantlib.experiment.pruned_start "
            "writes, and its init"
        )
    config = config.for_teacher(teacher.config.to_dict())
    shape = copy.deepcopy(teacher.config)
    architecture = of_model(teacher)
    for name, key in zip(_FIELDS, architecture.shape_keys, strict=True):
        setattr(shape, key, getattr(config, name))
    classifier: Any = getattr(transformers, architecture.classifier)
    if config.init not in INITS:
        return _from_checkpoint(resolve(config.init, "student"), classifier, shape, seed)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = classifier(shape)
    if config.init == "teacher":
        sources = layer_mapping(config.layers or 0, teacher.config.num_hidden_layers, mapping)
        student.load_state_dict(student.state_dict() | _matching_weights(student, teacher, sources))
    return student.eval()


def _matching_weights(student: Any, teacher: Any, sources: tuple[int, ...]) -> dict[str, Any]:
    """The teacher's tensors that have the student's shape, by the student's names."""
    weights, layers = teacher.state_dict(), f"{of_model(teacher).layers}."
    matching = {}
    for name, weight in student.state_dict().items():
        source = name
        if name.startswith(layers):
            number, _, rest = name.removeprefix(layers).partition(".")
            source = f"{layers}{sources[int(number) + 1] - 1}.{rest}"
        if source in weights and weights[source].shape == weight.shape:
            matching[name] = weights[source].clone()
    return matching


def _from_checkpoint(directory: Path, classifier: Any, shape: Any, seed: int) -> Any:
    """A classifier of `shape` with a checkpoint's weights; a missing head is initialized anew."""
    import torch

    config, architecture = read_config(directory), ARCHITECTURES[shape.model_type]
    for key in (*architecture.shape_keys, "vocab_size", "max_position_embeddings", "type_vocab_size"):
        if config.get(key) != getattr(shape, key):
            raise InputError(
                f"{directory / 'config.json'}: {key} is {config.get(key)}, the student's is "
                f"{getattr(shape, key)}; the checkpoint it starts from must have its shape and vocabulary"
            )
    with quiet_transformers(), torch.random.fork_rng(devices=[]), loading_errors(directory):
        torch.manual_seed(seed)
        model, info = classifier.from_pretrained(
            directory,
            config=shape,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    encoder = (f"{architecture.layers}.", f"{shape.model_type}.embeddings.")
    missing = [key for key in info["missing_keys"] if key.startswith(encoder)]
    if missing:
        raise InputError(f"{directory}: the weights lack {sorted(missing)[0]}")
    return model.eval()
