"""ONNX classifiers of any origin, beside each other on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quantlib.compression.variants import at_engine
from quantlib.data import features, tasks
from quantlib.experiment import given_models
from quantlib.experiment.build import Built
from quantlib.experiment.measure import compare, evaluate, measure
from quantlib.experiment.rows import read_rows
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.experiment.timing import Timed, time_shape
from quantlib.experiment.work import Variant
from quantlib.machine.engines import DEFAULT_ENGINE, load_model
from quantlib.measuring.accuracy import Evaluation
from quantlib.measuring.latency.shapes import Shape
from quantlib.onnx_model.interface import interface_of
from quantlib.onnx_model.layers import dimensions, find_embeddings, skeleton_ir
from quantlib.onnx_model.model import Model
from quantlib.report.columns import VariantResult
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps

_MADE_UP_ROWS = 8
# Ids of words in the vocabularies of BERT and its kin; below stand special and unused tokens.
_FIRST_WORD = 1000


def compare_models(
    models: Sequence[Path], options: MeasuringOptions, steps: Steps
) -> tuple[list[VariantResult], tuple[str, ...]]:
    """Evaluate and time classifiers; the first one is the reference.

    Args:
        models: files, each with its tokenizer beside it; two or more, or one on two or more engines.
        options: the rows, how much is measured, and the engines, each of which runs every model.
        steps: where steps are shown.

    Returns:
        A result for each, in their order, and what was inferred of the rows.

    Raises:
        InputError: a model or rows that cannot be used.
    """
    if len(models) * len(options.engines) < 2:
        raise InputError("one model has nothing to be compared with; name two or more")
    built, notes = _built(models, options, steps)
    return compare(built, measure(built, options, steps)), notes


def evaluate_model(model: Path, options: MeasuringOptions, steps: Steps) -> tuple[Evaluation, tasks.OwnRows]:
    """The metrics of one classifier on rows with labels.

    Raises:
        InputError: a model or rows that cannot be used; rows without labels.
    """
    if options.own_task is not None and options.label is None:
        raise InputError(
            "rows without labels tell how two models agree, not how good one is: name the column of labels "
            "(--label COLUMN), or compare two models"
        )
    if len(options.engines) > 1:
        raise InputError(f"--engines {','.join(options.engines)}: name one, or compare models")
    given_models.check_file(model)
    rows = _rows(model, options, steps)
    built = _of(rows, [model], options)
    (evaluation,) = evaluate(built, options, steps).values()
    return evaluation, rows


def time_models(
    models: Sequence[Path], shape: Shape, options: MeasuringOptions, steps: Steps
) -> dict[str, Timed]:
    """The times of models at a shape (batch, tokens), by name, on made-up rows; the first is the reference.

    Each of `options.engines` runs every model.

    Raises:
        InputError: a model that cannot be used.
    """
    for model in models:
        interface_of(model)
        given_models.try_shape(model, shape)
    made_up = [
        variant
        for name, path in zip(_names(models), models, strict=True)
        for variant in _on_engines(name, path, _made_up(path, shape.length), options.engines)
    ]
    timed = replace(options, batch_size=shape.batch, seq_len=shape.length)
    return time_shape(made_up, shape, timed, steps)


def _on_engines(
    name: str, path: Path, rows: Sequence[features.Feature], engines: Sequence[str]
) -> list[Variant]:
    """A model on each engine.

    Raises:
        InputError: one cannot load it.
    """
    model = Model(path)
    for engine in engines:
        if engine != DEFAULT_ENGINE:  # that one has run it already
            load_model(path, engine, threads=1)
    return [
        Variant(at_engine(name, engine), model, Path(path.name), rows, engine=engine) for engine in engines
    ]


def made_up_feeds(model: Path, shape: Shape, count: int) -> list[features.Feed]:
    """Batches of random words for a model, of exactly (batch, tokens)."""
    return list(features.fixed_shape_feeds(_made_up(model, shape.length), *shape, count))


def _built(models: Sequence[Path], options: MeasuringOptions, steps: Steps) -> tuple[Built, tuple[str, ...]]:
    _names(models)
    for model in models:
        given_models.check_file(model)
    rows = _rows(models[0], options, steps)
    return _of(rows, models, options), rows.notes


def _rows(model: Path, options: MeasuringOptions, steps: Steps) -> tasks.OwnRows:
    labels = None if options.own_task is None else given_models.labels_of(model)
    # Nothing is trained or calibrated here, so the rows for that need not be in order.
    asked = replace(options, train=None, calibration=None)
    rows = read_rows(asked, labels, steps, calibrate=False, need_train=False)
    for note in rows.notes:
        steps.say(note)
    return rows


def _of(rows: tasks.OwnRows, models: Sequence[Path], options: MeasuringOptions) -> Built:
    task = rows.task
    own = options.own_task is not None
    for number, model in enumerate(models):
        given_models.check_for_task(model, task, options.seq_len, gave_order=own and number == 0)
    tokenized: dict[str, list[features.Feature]] = {}  # once for each tokenizer
    variants = []
    for name, path in zip(_names(models), models, strict=True):
        tokenizer = features.load_tokenizer(path.parent)
        key = tokenizer.to_str()
        if key not in tokenized:
            tokenized[key] = features.convert_examples_to_features(
                rows.splits.evaluation, task.labels, options.seq_len, tokenizer, task.output_mode
            )
        variants += _on_engines(name, path, tokenized[key], options.engines)
    return Built(task, tuple(variants), {"data": tasks.data_hash(rows.splits)})


def _names(models: Sequence[Path]) -> list[str]:
    """What each is called: the file's name without its suffix, or the whole path where names are alike.

    Raises:
        InputError: a file that is named twice.
    """
    for model in models:
        if list(models).count(model) > 1:
            raise InputError(f"{model} is named twice")
    stems = [model.stem for model in models]
    return stems if len(set(stems)) == len(stems) else [str(model) for model in models]


def _made_up(model: Path, length: int) -> list[features.Feature]:
    """Rows of random words, as long as asked."""
    tables = find_embeddings(skeleton_ir(Model(model)))
    words = max((dimensions(table.node.inputs[0])[0] for table in tables), default=2 * _FIRST_WORD)
    rng = np.random.default_rng(0)
    low = min(_FIRST_WORD, words // 2)
    return [
        features.Feature(
            rng.integers(low, words, size=length, dtype=np.int64), np.zeros(length, dtype=np.int64), 0
        )
        for _ in range(_MADE_UP_ROWS)
    ]
