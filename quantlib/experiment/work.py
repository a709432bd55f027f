"""What the steps of a build share: the rows, the options, the cache, and how a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantlib.compression import recipes
from quantlib.data import features, tasks
from quantlib.experiment.options import ExperimentOptions
from quantlib.support.cache import Cache
from quantlib.support.progress import Step, Steps


@dataclass(frozen=True)
class Variant:
    """A model file that is ready to be measured.

    name: the key of its results. file: where it goes under OUTPUT_DIR/TASK/. rows: the evaluation rows,
    tokenized for this model. recipe: None for an FP32 model.
    """

    name: str
    path: Path
    file: Path
    rows: Sequence[features.Feature]
    recipe: recipes.Recipe | None = None


@dataclass(frozen=True)
class Work:
    """What every step of a build needs."""

    task: tasks.Task
    splits: tasks.Splits
    options: ExperimentOptions
    cache: Cache
    steps: Steps


def cached(
    work: Work,
    name: str,
    kind: str,
    key: Mapping[str, Any],
    make: Callable[[Path, Step], object],
    total: int | None = None,
) -> Path:
    """The directory of a cache entry, as a step of the run; `make(directory, step)` fills it if need be."""
    with work.steps.step(name, total) as step:
        entry = work.cache.get(kind, key, lambda directory: make(directory, step))
        step.cached = entry.hit
    return entry.path


def tokenize(work: Work, rows: Sequence[tasks.Example], checkpoint: Path) -> list[features.Feature]:
    """Rows as the tokenizer of a checkpoint reads them."""
    return features.convert_examples_to_features(
        rows,
        work.task.labels,
        work.options.seq_len,
        features.load_tokenizer(checkpoint),
        work.task.output_mode,
    )
