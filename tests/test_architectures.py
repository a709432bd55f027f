"""Architectures besides the four of `tiny.ARCHITECTURES`: exported, compiled and quantized."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from quantlib.compression.calibration import collect, derive
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import RECIPES
from quantlib.compression.smoothing import search_smoothing, smooth_onnx
from quantlib.data.features import CalibrationReader, Feed
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model import layers
from quantlib.onnx_model.compile import Compiled, compile_onnx
from quantlib.onnx_model.layers import find_embeddings, find_linears, load_ir
from quantlib.onnx_model.model import op_counts
from quantlib.training.architectures import accepted, of_model
from quantlib.training.checkpoints import load_classifier

BERT = {"Attention": 1, "MultiHeadAttention": 1, "Gelu": 2, "LayerNormalization": 5}
# What the compiled models of two layers consist of. The last attention is cut to one row.
FUSED = {
    "xlm-roberta": BERT,
    "mpnet": BERT,
    "albert": {"Attention": 2, "FastGelu": 2, "LayerNormalization": 5},
}
COUNTED = ("Attention", "MultiHeadAttention", "Softmax", "Gelu", "FastGelu", "Erf", "LayerNormalization")
PARTS = ("qkv", "attention_output", "ffn_in", "ffn_out")


@pytest.fixture(scope="module")
def compiled(more_exported: tiny.Exported, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("compiled") / f"{more_exported.kind}.onnx"
    return compile_onnx(more_exported.model, path, threads=1)


def feeds() -> list[Feed]:
    """Batches of many shapes: without padding, with padding at the end, and with gaps."""
    made = []
    for seed, (rows, tokens) in enumerate(((1, 1), (1, 64), (2, 16), (5, 23), (3, 64))):
        draw = np.random.default_rng(seed)
        mask = draw.integers(0, 2, (rows, tokens))
        mask[rows // 2] = np.arange(tokens) < max(1, tokens // 3)
        mask[:, 0], mask[0] = 1, 1
        ids = draw.integers(5, len(tiny.VOCABULARY), (rows, tokens)) * mask
        made.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return made


def run(path: Path, feed: Feed) -> np.ndarray:
    session = open_session(path, threads=1)
    return np.asarray(session.run(None, feed_for(session, feed))[0])


def torch_logits(model: Any, feed: Feed) -> np.ndarray:
    with torch.no_grad():
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        return np.asarray(model(**accepted(model, tensors)).logits.numpy())


def test_pytorch_computes_the_same(more_exported: tiny.Exported, compiled: Compiled) -> None:
    model = load_classifier(more_exported.checkpoint)
    for feed in feeds():
        expected = torch_logits(model, feed)
        for path in (more_exported.model, compiled.path):
            np.testing.assert_allclose(run(path, feed), expected, atol=1e-4)


def test_what_is_fused(more_exported: tiny.Exported, compiled: Compiled) -> None:
    counts = op_counts(compiled.path)
    assert {name: counts[name] for name in COUNTED if counts[name]} == FUSED[more_exported.kind]
    assert compiled.left == ()


def test_layers_have_roles_and_groups(more_exported: tiny.Exported, compiled: Compiled) -> None:
    expected = Counter({f"layer.{n}.{part}": 1 for n in (0, 1) for part in PARTS} | {"layer.1.qkv": 2})
    if more_exported.kind == "albert":  # both layers are the same one
        expected = Counter({"projection": 1} | {f"layer.0.{part}": 2 for part in PARTS})
    model = load_ir(compiled.path)
    groups = Counter(layers.group(layer.name) for layer in find_linears(model))
    assert groups == expected + Counter(pooler=1, classifier=1)
    assert {layers.group(table.name) for table in find_embeddings(model)} == {"embeddings"}


def layer_weights(path: Path) -> list[str]:
    """The constant matrices of the encoder's layers."""
    constants = load_ir(path).graph.initializers.values()
    names = [str(value.name) for value in constants if len(layers.dimensions(value)) == 2]
    return [name for name in names if layers.layer_number(name) is not None]


@pytest.mark.parametrize("name", ["quant_1", "quant_2", "static_u8s8_smooth", "dynamic_u8s8"])
def test_quantized_logits_are_close(
    more_exported: tiny.Exported, compiled: Compiled, name: str, tmp_path: Path
) -> None:
    """Errors as shares of the range of all logits; random layers amplify noise, which trained ones damp."""
    recipe, source, rows = RECIPES[name], compiled.path, more_exported.rows
    if recipe.smooth:
        found = search_smoothing(source, CalibrationReader(rows, 8), threads=1)
        source = smooth_onnx(source, tmp_path / "smooth.onnx", found)
    ranges = None
    if recipe.mode == "static":
        wanted = tensors_to_calibrate(source, recipe)
        ranges = derive(collect(source, CalibrationReader(rows, 8), wanted), "MinMax")
    path = quantize_onnx(source, tmp_path / "quantized.onnx", recipe, ranges)
    expected, logits = tiny.logits(more_exported.model, rows), tiny.logits(path, rows)
    errors = np.abs(expected - logits) / np.ptp(expected)
    assert 0 < np.sqrt(np.square(errors).mean()) < 0.02
    assert errors.max() < 0.05
    assert find_linears(load_ir(path)) == [], "no layer is left in float"
    if more_exported.kind == "albert":
        assert len(layer_weights(path)) == 4, "layers share their weights"


def test_a_camembert_is_an_xlm_roberta_by_another_name(tmp_path: Path) -> None:
    first, second = (
        load_classifier(tiny.write_checkpoint(tmp_path / kind, kind)) for kind in ("xlm-roberta", "camembert")
    )
    assert replace(of_model(second), model_type="xlm-roberta", classifier=of_model(first).classifier) == (
        of_model(first)
    )
    one, other = first.state_dict(), second.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(*(torch_logits(model, feeds()[3]) for model in (first, second)))
