"""What the steps of a build share: the rows, the options, the cache, and how a step is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantlib.compression import recipes
from quantlib.data import features, tasks
from quantlib.experiment.options import ExperimentOptions
from quantlib.machine.engines import DEFAULT_ENGINE
from quantlib.onnx_model.model import Model
from quantlib.support.cache import Cache, code_key
from quantlib.support.memory import giving_back
from quantlib.support.progress import Step, Steps


@dataclass(frozen=True)
class Variant:
    """A model that is ready to be measured.

    name: the key of its results. file: where it goes under OUTPUT_DIR/TASK/. rows: the evaluation rows,
    tokenized for this model. recipe: None for an FP32 model. engine: the name of what runs it.
    """

    name: str
    model: Model
    file: Path
    rows: Sequence[features.Feature]
    recipe: recipes.Recipe | None = None
    engine: str = DEFAULT_ENGINE

    @property
    def stock_session(self) -> bool:
        """Whether it is timed in a session with the engine's own defaults."""
        return self.recipe is not None and self.recipe.stock_session

    @property
    def path(self) -> Path:
        """The model file."""
        return self.model.path


@dataclass(frozen=True)
class Work:
    """What every step of a build needs.

    tokenized: {(tokenizer, split): rows}, what `tokenize` has computed so far.
    """

    task: tasks.Task
    splits: tasks.Splits
    options: ExperimentOptions
    cache: Cache
    steps: Steps
    tokenized: dict[tuple[str, str], Sequence[features.Feature]] = field(default_factory=dict)


def cached(
    work: Work,
    name: str,
    kind: str,
    key: Mapping[str, Any],
    make: Callable[[Path, Step], object],
    total: int | None = None,
) -> Path:
    """The directory of a cache entry, as a step of the run; `make(directory, step)` fills it if need be.

    The code of `make` is part of the key; what its closure holds has to be in `key`.
    """
    with work.steps.step(name, total) as step, giving_back():
        whole_key = {"code": code_key(make), **key}
        entry = work.cache.get(kind, whole_key, lambda directory: make(directory, step))
        step.cached = entry.hit
    return entry.path


def cached_model(
    work: Work,
    name: str,
    kind: str,
    key: Mapping[str, Any],
    make: Callable[[Path, Step], object],
    total: int | None = None,
) -> Model:
    """The model.onnx of a cache entry, see `cached`; its hash is the one that the cache has just checked."""
    path = cached(work, name, kind, key, make, total) / "model.onnx"
    return Model(path, known_sha256=file_hash(path))


def file_hash(path: Path) -> str:
    """The SHA-256 of a file of a cache entry, as its entry.json says."""
    entry = json.loads((path.parent / "entry.json").read_text(encoding="utf-8"))
    return str(entry["files"][path.name])


SUFFIX = ".onnx"


def is_onnx(checkpoint: Path) -> bool:
    """Whether a model was given as an ONNX file, its tokenizer beside it, and not as a checkpoint."""
    return checkpoint.suffix == SUFFIX


def tokenize(work: Work, split: str, checkpoint: Path) -> Sequence[features.Feature]:
    """The rows of a split as the tokenizer of a checkpoint reads them, once for each tokenizer."""
    tokenizer = features.load_tokenizer(checkpoint.parent if is_onnx(checkpoint) else checkpoint)
    key = (hashlib.sha256(tokenizer.to_str().encode()).hexdigest(), split)
    if key not in work.tokenized:
        rows = work.splits.parts()[split]
        if split == "calibration":
            rows = rows[: work.options.calibration_samples]
        work.tokenized[key] = features.convert_examples_to_features(
            rows, work.task.labels, work.options.seq_len, tokenizer, work.task.output_mode
        )
    return work.tokenized[key]
