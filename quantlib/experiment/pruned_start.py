"""The start of a student by pruning: its teacher without some neurons, the weights behind them refitted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.compression import pruning
from quantlib.data.features import Feature
from quantlib.support.errors import naming
from quantlib.support.gram import Gram
from quantlib.training.checkpoints import load_classifier, reorder_logits
from quantlib.training.student.neurons import (
    FloatArray,
    Remaining,
    neuron_grams,
    output_weights,
    with_neurons,
)
from quantlib.training.student.students import StudentConfig, make_student
from quantlib.training.teacher import make_repeatable, save_classifier

if TYPE_CHECKING:
    from quantlib.data.tasks import Task

MAX_TOKENS = 2**14
"""Rows with so many tokens are enough to know which neurons can go."""


def pruning_rows(rows: Sequence[Feature], seed: int) -> list[Feature]:
    """Rows drawn from all, until they have `MAX_TOKENS` tokens; neurons are judged by them."""
    order = list(range(len(rows)))
    random.Random(f"{seed} pruning").shuffle(order)
    drawn: list[Feature] = []
    tokens = 0
    for number in order:
        if tokens >= MAX_TOKENS:
            break
        drawn.append(rows[number])
        tokens += len(rows[number])
    return drawn


def write_pruned_start(
    teacher_dir: Path,
    task: Task,
    rows: Sequence[Feature],
    out_dir: Path,
    student: StudentConfig,
    *,
    seed: int,
    threads: int,
    mapping: str = "uniform",
    logit_order: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the checkpoint that a student with `prune` starts from, with the teacher's tokenizer.

    It has the teacher's layers, or those that the student learns from, and of each the neurons whose removal
    costs the block's output least on the rows. Every layer keeps as many.

    Args:
        teacher_dir: a fine-tuned BERT classifier.
        task: what it was fine-tuned on.
        rows: of `pruning_rows`, tokenized for the teacher.
        out_dir: where it is written.
        student: with `prune`, and perhaps layers.
        seed: of torch. threads: of all products.
        mapping: see `layer_mapping`.
        logit_order: as of `distil`.
        progress: called after each batch with the number of its rows.

    Raises:
        InputError: the teacher is no BERT, or what is to be pruned leaves all neurons or none.
    """
    from threadpoolctl import threadpool_limits

    make_repeatable(seed, threads)
    teacher = load_classifier(teacher_dir)
    if logit_order is not None:
        reorder_logits(teacher, logit_order)
    shape = student.for_teacher(teacher.config.to_dict())
    assert shape.ffn is not None, "every number of a shape is filled in"
    whole = make_student(teacher, StudentConfig(layers=shape.layers), seed, mapping)
    grams = neuron_grams(whole, rows, progress)
    with threadpool_limits(threads):
        blocks = [
            _remaining(f"{teacher_dir}: layer.{number}.ffn", each, *weights, shape.ffn)
            for number, (each, weights) in enumerate(zip(grams, output_weights(whole), strict=True))
        ]
    save_classifier(with_neurons(whole, blocks), teacher_dir, out_dir, task)


def _remaining(name: str, gram: Gram, weight: FloatArray, bias: FloatArray, neurons: int) -> Remaining:
    with naming(name):
        kept = pruning.eliminate(gram, weight).kept(neurons)
        return Remaining(kept, *pruning.refit(gram, weight, bias, kept))
