"""Architectures besides the four of `tiny.ARCHITECTURES`: exported, compiled and quantized."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
import torch
from onnx import helper

from quantlib.compression.calibration import collect, derive
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import RECIPES
from quantlib.compression.smoothing import search_smoothing, smooth_onnx
from quantlib.data.features import CalibrationReader, Feed
from quantlib.experiment import run as run_experiment
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model import layers
from quantlib.onnx_model.compile import Compiled, compile_onnx
from quantlib.onnx_model.export import export_bert_to_onnx
from quantlib.onnx_model.export.naming import fold_transposes
from quantlib.onnx_model.layers import find_embeddings, find_linears, load_ir
from quantlib.onnx_model.model import op_counts
from quantlib.training.architectures import ARCHITECTURES, accepted, of_model
from quantlib.training.checkpoints import load_classifier

PARTS = ("qkv", "attention_output", "ffn_in", "ffn_out")
BERT = {"Attention": 1, "MultiHeadAttention": 1, "Gelu": 2, "LayerNormalization": 5}
# What the compiled models of two layers consist of. The last attention is cut to one row where it is fused
# and has a weight of its own.
FUSED = {
    "xlm-roberta": BERT,
    "mpnet": BERT,
    "albert": {"Attention": 2, "FastGelu": 2, "LayerNormalization": 5},
    "deberta-v2": {"Softmax": 2, "Gelu": 3, "LayerNormalization": 5},
    "modernbert": {"Softmax": 2, "Gelu": 3, "LayerNormalization": 6},
}
# Groups that are not those of a BERT, and how many products are in each.
GROUPS = {
    "albert": {"projection": 1} | {f"layer.0.{part}": 2 for part in PARTS},  # both layers are the same one
    "modernbert": {f"layer.{n}.{part}": 1 for n in (0, 1) for part in PARTS},
    "deberta-v2": {f"layer.{n}.{part}": 3 if part == "qkv" else 1 for n in (0, 1) for part in PARTS},
}
ROOT = Path(__file__).parents[1]
COUNTED = ("Attention", "MultiHeadAttention", "Softmax", "Gelu", "FastGelu", "Erf", "LayerNormalization")


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


def unfused_attentions(kind: str) -> list[str]:
    names = {"deberta-v2": "deberta.encoder.layer.{}.attention.self", "modernbert": "model.layers.{}.attn"}
    return [names[kind].format(layer) for layer in (0, 1)] if kind in names else []


def test_what_is_fused(more_exported: tiny.Exported, compiled: Compiled) -> None:
    counts = op_counts(compiled.path)
    assert {name: counts[name] for name in COUNTED if counts[name]} == FUSED[more_exported.kind]
    left = [f"{name}: attention is not fused" for name in unfused_attentions(more_exported.kind)]
    assert [sentence.rpartition(": ")[0] for sentence in compiled.left] == left
    assert (compiled.done["folded_products"] > 0) == (more_exported.kind == "deberta-v2")


def test_layers_have_roles_and_groups(more_exported: tiny.Exported, compiled: Compiled) -> None:
    bert = {f"layer.{n}.{part}": 1 for n in (0, 1) for part in PARTS} | {"layer.1.qkv": 2}
    expected = Counter(GROUPS.get(more_exported.kind, bert))
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


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("deberta-v2", {"conv_kernel_size": 3, "conv_act": "gelu"}),
        ("albert", {"inner_group_num": 2}),
    ],
    ids=["convolution", "inner-groups"],
)
def test_what_few_checkpoints_have(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / kind, kind, **changes)
    model = export_bert_to_onnx(checkpoint, tmp_path / "model.onnx", seq_len=32)
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    for feed in feeds()[2:4]:
        expected = torch_logits(load_classifier(checkpoint), feed)
        for path in (model, compiled.path):
            np.testing.assert_allclose(run(path, feed), expected, atol=1e-4)
    groups = Counter(layers.group(layer.name) for layer in find_linears(load_ir(compiled.path)))
    if kind == "albert":  # both layers run both inner ones
        expected_groups = {"projection": 1} | {f"layer.0.{part}": 4 for part in PARTS}
        assert groups == Counter(expected_groups) + Counter(pooler=1, classifier=1)
    else:
        assert groups == Counter(GROUPS[kind]) + Counter(pooler=1, classifier=1)
        assert op_counts(compiled.path)["Conv"] == 1


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


def test_large_weights_of_several_products_are_stored_as_the_products_need_them(tmp_path: Path) -> None:
    """The exporter leaves their Transpose in the graph; small ones it folds, as those of tiny models."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["w"], ["turned"], name="first/Transpose", perm=[1, 0]),
        node("MatMul", ["x", "turned"], ["once"], name="first/MatMul"),
        node("Transpose", ["w"], ["again"], name="second/Transpose", perm=[1, 0]),
        node("MatMul", ["once", "again"], ["y"], name="second/MatMul"),
        node("Transpose", ["both"], ["other"], name="third/Transpose", perm=[1, 0]),
        node("MatMul", ["y", "other"], ["z"], name="third/MatMul"),
        node("MatMul", ["z", "both"], ["out"], name="fourth/MatMul"),
    ]
    draw = np.random.default_rng(0)
    constants = {name: draw.normal(size=(4, 4)).astype(np.float32) for name in ("w", "both")}
    path = tiny.save_graph(tmp_path / "model.onnx", nodes, constants, outputs=("out",))
    feed = {"x": draw.normal(size=(2, 3, 4)).astype(np.float32)}
    expected = open_session(path, threads=1).run(None, feed)[0]
    onnx.save(fold_transposes(onnx.load(path)), path)
    np.testing.assert_allclose(open_session(path, threads=1).run(None, feed)[0], expected, atol=1e-5)
    weights = [layer.weight_name for layer in find_linears(load_ir(path))]
    assert weights == ["w", "w", "both_transposed", "both"]
    assert sorted(load_ir(path).graph.initializers) == ["both", "both_transposed", "w"]


def test_the_main_job_runs_an_albert(glue_dir: Path, tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "albert", "albert")
    recipes = ("quant_2", "static_u8s8_smooth")
    options = replace(
        tiny.run_options(checkpoint, glue_dir),
        no_student=True,
        recipes=recipes,
        output_dir=tmp_path / "runs",
        cache_dir=tmp_path / "cache",
    )
    run_experiment(options)
    (written,) = (tmp_path / "runs").glob("*/results.json")
    results = json.loads(written.read_text(encoding="utf-8"))
    assert list(results) == ["teacher", "teacher_compiled", *recipes]
    assert all(values["agreement"] > 0.9 for values in results.values())


# The page of architectures


def row_of(kind: str) -> list[str]:
    """The cells of an architecture's row in docs/architectures.md."""
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{kind}` |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_page_lists_every_architecture() -> None:
    for kind, row in ARCHITECTURES.items():
        cells = row_of(kind)
        assert cells[1] == f"`{row.classifier}`"
        assert cells[6] == ("yes" if row.can_be_distilled else "no")
    cells = row_of("camembert")
    assert [cells[0], *cells[2:]] == ["`camembert`", *row_of("xlm-roberta")[2:]]


def says_what_is_fused(kind: str, path: Path) -> None:
    counts, cells = op_counts(path), row_of(kind)
    whole = "written out" if counts["Softmax"] else "fused"
    assert cells[2] == whole
    assert cells[3] == (whole if kind in ("mpnet", "deberta-v2") else "none")
    assert cells[4] == ("fused, by tanh" if counts["FastGelu"] else "fused")
    assert cells[5] == "one node"
    assert counts["Gelu"] + counts["FastGelu"] >= 2
    assert counts["LayerNormalization"] >= 5
    assert not counts["Erf"]


def test_the_page_says_what_is_fused(exported: tiny.Exported, tmp_path: Path) -> None:
    compiled = compile_onnx(exported.model, tmp_path / "compiled.onnx", threads=1)
    says_what_is_fused(exported.kind, compiled.path)


def test_the_page_says_what_is_fused_of_the_others(more_exported: tiny.Exported, compiled: Compiled) -> None:
    says_what_is_fused(more_exported.kind, compiled.path)
