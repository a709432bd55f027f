"""Work on single files: a checkpoint to ONNX, an ONNX model to 8 bits. Nothing is kept in a cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.compression import calibration as calibrating
from quantlib.compression import pruning, recipes, smoothing
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate, tensors_to_correlate
from quantlib.data import features
from quantlib.data.tables import read_table
from quantlib.data.tasks import Example
from quantlib.data.tasks.own import text_columns, unlabelled_rows
from quantlib.data.tasks.splits import shuffled
from quantlib.experiment import given_models
from quantlib.experiment.pruning import check_fits, few_tokens
from quantlib.machine.sessions import feed_for, open_session, run_session
from quantlib.measuring.latency.shapes import Shape
from quantlib.measuring.neurons import block_sensitivities, first_rows
from quantlib.onnx_model.compile import compile_onnx, is_compiled, normalize_onnx
from quantlib.onnx_model.coverage import coverage
from quantlib.onnx_model.interface import interface_of, logits_name
from quantlib.onnx_model.layers import load_ir
from quantlib.onnx_model.mapped import mapped
from quantlib.onnx_model.model import Model, copy_model
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file, make_dir
from quantlib.support.scratch import scratch_dir
from quantlib.training import checkpoints, embedding

# What a model needs beside it to be read again.
BESIDE = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json")


def export_checkpoint(
    checkpoint: str, out: Path, *, seq_len: int = 128, opset: int = 17, compiled: bool = False
) -> dict[str, Any]:
    """Export a checkpoint, and put its tokenizer and config.json beside the model.

    Args:
        checkpoint: a directory or a hub id, of a classifier or of an embedding model.
        out: the model to write.
        seq_len: the longest sequence.
        opset: 13 to 18.
        compiled: whether operators are fused for ONNX Runtime.

    Returns:
        What was written, as JSON knows it.

    Raises:
        InputError: the checkpoint cannot be used, or the place cannot be written.
    """
    from quantlib.onnx_model.export import export_bert_to_onnx

    checkpoints.need_torch("to export a checkpoint")
    source = checkpoints.resolve(checkpoint, "checkpoint")
    embeds = embedding.is_embedding_model(source)
    if embeds:
        embedding.check_embedding_model(source)
    else:
        checkpoints.check_classifier(source)
    checkpoints.check_sequence_length(source, seq_len)
    _check_place(out, source)
    export_bert_to_onnx(source, out, seq_len, opset)
    if compiled:
        with scratch_dir(out.parent) as scratch:
            plain = scratch / "model.onnx"
            shutil.move(out, plain)
            compile_onnx(plain, out)
    _copy_beside(source, out.parent)
    return {
        "model": str(out),
        "output": features.EMBEDDING if embeds else features.LOGITS,
        "size_bytes": Model(out).size_bytes,
        "opset": opset,
        "compiled": compiled,
    }


def quantize_file(
    model: Path,
    out: Path,
    recipe: str,
    *,
    calibration: str | None = None,
    text: Sequence[str] = (),
    samples: int = 512,
    seq_len: int = 128,
    compiled: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """Quantize a model by a recipe; the model itself is left alone.

    Args:
        model: an ONNX classifier, its tokenizer beside it where rows are needed.
        out: the file to write; the tokenizer is put beside it.
        recipe: a name, or a recipe file.
        calibration: a table of texts, which static recipes need; see `quantlib.data.tables.read_table`.
        text: its columns with texts; empty for usual names.
        samples: rows that are taken of it at random, at most.
        seq_len: the longest row in tokens.
        compiled: whether operators are fused first, where that was not done yet.
        threads: of calibration; None for the physical cores.

    Returns:
        What was written, as JSON knows it.

    Raises:
        InputError: what cannot be used.
    """
    (chosen,) = recipes.get_recipes((recipe,))
    interface_of(model)
    given_models.try_shape(model, Shape(1, 8))
    _check_float32(Model(model))
    reason = _why_rows(chosen)
    needs_rows = bool(reason)
    if needs_rows and calibration is None:
        raise InputError(
            f"recipe {chosen.name} {reason}: it needs texts to calibrate on (--calibration FILE); dynamic "
            "recipes need none"
        )
    _check_place(out, model)
    rows = _rows(model, calibration, text, samples, seq_len) if calibration and needs_rows else []
    notes = [f"calibrated on {len(rows)} rows of {calibration}"] if rows else []
    with _scratch_for(model) as scratch:
        start = scratch / "taken.onnx"
        copy_model(model, start)
        if chosen.prunes:
            start = _pruned(start, chosen, rows, threads, notes)
        start = _compiled(start, chosen, notes) if compiled else start
        if chosen.smooth:
            smoothed = scratch / "smoothed.onnx"
            factors = smoothing.search_smoothing(start, _reader(rows), threads=threads)
            smoothing.smooth_onnx(start, smoothed, factors)
            start = smoothed
        ranges = _ranges(start, chosen, rows, seq_len, threads)
        quantize_onnx(Model(start), out, chosen, ranges, _grams(start, chosen, rows, threads))
    _copy_beside(model.parent, out.parent)
    written = Model(out)
    counted = coverage(written)
    return {
        "model": str(out),
        "recipe": chosen.name,
        "size_bytes": written.size_bytes,
        "size_before_bytes": Model(model).size_bytes,
        "quantized": counted.quantized,
        "products": counted.total,
        "notes": notes,
    }


def _check_float32(model: Model) -> None:
    import onnx

    quantized = coverage(model)
    if quantized.quantized:
        raise InputError(
            f"{model.path}: {quantized.quantized} of its {quantized.total} products with a weight are "
            "quantized already; give the float32 model that it was made of"
        )
    for weight in model.skeleton.graph.initializer:
        if len(weight.dims) > 1 and weight.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            kind = onnx.TensorProto.DataType.Name(weight.data_type).lower()
            raise InputError(f"{model.path}: its weights are {kind} ({weight.name}); give a float32 model")


@contextmanager
def _scratch_for(model: Path) -> Iterator[Path]:
    """A directory for what is made of a model on the way; an error about a file there names the model."""
    with temporary_dir() as scratch:
        try:
            yield scratch
        except InputError as error:
            words = str(error).removeprefix(f"{scratch}{os.sep}")
            if words == str(error):
                raise
            raise InputError(f"{model}: {words.partition(': ')[2]}") from error


def read_texts(source: str, text: Sequence[str]) -> list[Example]:
    """The rows of a table as examples without labels."""
    table = read_table(source)
    return unlabelled_rows(table, tuple(text) or text_columns(table, None))


def _rows(
    model: Path, source: str, text: Sequence[str], samples: int, seq_len: int
) -> Sequence[features.Feature]:
    tokenizer = features.load_tokenizer(model.parent)
    return features.convert_examples_to_features(
        shuffled(read_texts(source, text))[:samples], (), seq_len, tokenizer, "classification"
    )


def _pruned(
    model: Path,
    recipe: recipes.Recipe,
    rows: Sequence[features.Feature],
    threads: int | None,
    notes: list[str],
) -> Path:
    """The model without the neurons and heads that the recipe prunes."""
    kinds = pruning.KINDS if recipe.heads else (pruning.FFN,)
    normal = model.with_name("normal.onnx")
    model = normal if normalize_onnx(model, normal, threads=threads) else model
    check_fits(model, recipe)
    file = model.with_name("grams.npz")
    with mapped(model) as copy:
        blocks = pruning.blocks_of(copy, kinds)
        collected = pruning.collect_block_grams(copy, _reader(rows), kinds, threads=threads)
        orders = pruning.eliminations(copy, collected, threads=threads)
    scarce = few_tokens(blocks, {name: gram.count for name, gram in collected.items()})
    if scarce:
        notes.append(scarce)
    calibrating.write_grams(file, collected)
    del collected
    grams = calibrating.GramFile(file)  # of a wide model they take more memory than its weights
    widths = recipe.kept
    if not widths:
        few = first_rows(rows)
        sensitivities = block_sensitivities(model, lambda path: _logits(path, few, threads), grams, orders)
        widths = pruning.allocate(blocks, orders, sensitivities, recipe.prune)
    for unit in pruning.UNITS.values():
        alike = [block for block in blocks if block.unit == unit]
        if alike:
            left = ", ".join(f"{block.name} {widths.get(block.name, block.units)}" for block in alike)
            notes.append(f"{unit}s left: {left}")
    return pruning.prune_onnx(model, model.with_name("pruned.onnx"), widths, grams, orders)


def _logits(path: Path, rows: Sequence[features.Feature], threads: int | None) -> npt.NDArray[np.float32]:
    session = open_session(path, threads=threads)
    name = logits_name(path, {output.name: output.shape for output in session.get_outputs()})
    outputs = [run_session(session, path, feed_for(session, feed), [name])[0] for feed in _reader(rows)]
    return np.concatenate(outputs)


def _compiled(model: Path, recipe: recipes.Recipe, notes: list[str]) -> Path:
    """The model with fused operators, where the recipe and the model take that."""
    if recipe.quantizer == "onnxruntime":
        return model
    if is_compiled(load_ir(model)):
        return model
    done = compile_onnx(model, model.with_name("compiled.onnx"))
    notes.append(f"{done.nodes_before} nodes became {done.nodes_after}")
    notes += done.left
    return done.path


def _ranges(
    model: Path, recipe: recipes.Recipe, rows: Sequence[features.Feature], seq_len: int, threads: int | None
) -> calibrating.Ranges | None:
    if recipe.mode != "static":
        return None
    tensors = tensors_to_calibrate(Model(model), recipe)
    if not tensors:
        return calibrating.Ranges({})
    method = calibrating.parse_method(recipe.calibration_method or "")
    pad_to = seq_len if recipe.pad_calibration else None
    observed = calibrating.collect(
        model,
        _reader(rows, pad_to),
        sorted(tensors),
        histograms=method.needs_histograms,
        skip_padding=pad_to is None,
        threads=threads,
    )
    return calibrating.derive(observed, recipe.calibration_method or "")


def _grams(
    model: Path, recipe: recipes.Recipe, rows: Sequence[features.Feature], threads: int | None
) -> dict[str, calibrating.Gram] | None:
    if recipe.rounding == "nearest":
        return None
    tensors = tensors_to_correlate(Model(model), recipe)
    return calibrating.collect_grams(model, _reader(rows), tensors, threads=threads) if tensors else {}


def _why_rows(recipe: recipes.Recipe) -> str:
    """Why a recipe needs rows to calibrate on; empty if it needs none."""
    if recipe.prunes:
        return "prunes"
    if recipe.mode == "static":
        return "is static"
    if recipe.smooth:
        return "smooths the model"
    return "rounds by second order" if recipe.rounding == "second_order" else ""


def _reader(rows: Sequence[features.Feature], pad_to: int | None = None) -> features.CalibrationReader:
    return features.CalibrationReader(rows, batch_size=4, pad_to=pad_to)


def _check_place(out: Path, source: Path) -> None:
    """Check that a file can be written there, and that it is not the one that is read."""
    if out.suffix != ".onnx":
        raise InputError(f"{out}: the file to write must end with .onnx")
    if out.resolve() == source.resolve():
        raise InputError(f"{out}: this is the file that is read; name another one")
    make_dir(out.parent)
    beside = source.parent if source.is_file() else source
    for name in BESIDE:
        theirs, ours = beside / name, out.parent / name
        if theirs.is_file() and ours.is_file() and theirs.read_bytes() != ours.read_bytes():
            raise InputError(
                f"{ours}: belongs to another model; write {out.name} into a directory of its own"
            )


def _copy_beside(source: Path, directory: Path) -> None:
    """Put the tokenizer and config.json beside a model."""
    for name in BESIDE:
        if (source / name).is_file() and not (directory / name).exists():
            with atomic_file(directory / name) as scratch:
                shutil.copyfile(source / name, scratch)
