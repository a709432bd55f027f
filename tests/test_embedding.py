"""Models that embed texts: their layout, their export, and what compiling and quantizing make of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tiny
from exact import exact_session

from conftest import made_once
from quantlib import compile_onnx, export_bert_to_onnx, quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data.features import Feed
from quantlib.experiment.files import export_checkpoint
from quantlib.machine.sessions import feed_for
from quantlib.onnx_model.export import ParityError
from quantlib.support.errors import InputError
from quantlib.training import embedding
from quantlib.training.architectures import accepted
from quantlib.training.checkpoints import packaged_minilm, read_config
from quantlib.training.embedding import (
    EmbeddingLayout,
    check_embedding_model,
    is_embedding_model,
    load_embedding_model,
)

Array = npt.NDArray[Any]

# What the pooling's switch is called, and whether embeddings are normalized.
LAYOUTS = {"mean": ("mean_tokens", True), "cls": ("cls_token", True), "max": ("max_tokens", False)}


@dataclass(frozen=True)
class Embedder:
    """An embedding model of 2 layers, and its export for 64 tokens."""

    pooling: str
    normalized: bool
    checkpoint: Path
    model: Path


def embedder(factory: pytest.TempPathFactory, teacher: Path, pooling: str) -> Embedder:
    switch, normalized = LAYOUTS[pooling]

    def make(directory: Path) -> None:
        checkpoint = tiny.write_embedding_model(
            directory / "checkpoint", teacher, switch, normalized=normalized
        )
        export_bert_to_onnx(checkpoint, directory / "model.onnx", seq_len=64)

    directory = made_once(factory, f"embedding-{pooling}", make)
    return Embedder(pooling, normalized, directory / "checkpoint", directory / "model.onnx")


@pytest.fixture(scope="module", params=LAYOUTS)
def each(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path
) -> Embedder:
    """An embedding model of each pooling."""
    return embedder(tmp_path_factory, tiny_teacher, request.param)


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Embedder:
    return embedder(tmp_path_factory, tiny_teacher, "mean")


@pytest.fixture
def copied(mean: Embedder, tmp_path: Path) -> Path:
    """A copy of `mean`'s checkpoint, to be spoiled."""
    return Path(shutil.copytree(mean.checkpoint, tmp_path / "model"))


def random_feed(mask: Array, seed: int = 0) -> Feed:
    draw = np.random.default_rng(seed)
    return {
        "input_ids": draw.integers(5, len(tiny.VOCABULARY), mask.shape) * mask,
        "attention_mask": mask,
        "token_type_ids": draw.integers(0, 2, mask.shape) * mask,
    }


def masks() -> dict[str, Array]:
    """Padding nowhere, at the end, at the start, inside, and rows of one token."""
    full = np.ones((4, 20), dtype=np.int64)
    end, start, inside = full.copy(), full.copy(), full.copy()
    end[1:, 7:], start[1:, :5], inside[1:, 3:9] = 0, 0, 0
    single = np.zeros((3, 9), dtype=np.int64)
    single[:, 0] = 1
    return {
        "full": full,
        "end": end,
        "start": start,
        "inside": inside,
        "single": single,
        "one": full[:1, :1],
        "long": np.ones((1, 64), dtype=np.int64),
    }


def by_hand(embedder: Embedder, feed: Feed) -> Array:
    """transformers' encoder, pooled row by row as sentence-transformers' documentation says."""
    import torch
    import transformers

    encoder = transformers.AutoModel.from_pretrained(embedder.checkpoint).eval()
    with torch.no_grad():
        states = encoder(**{k: torch.from_numpy(v) for k, v in feed.items()}).last_hidden_state.numpy()
    rows = []
    for tokens, mask in zip(states, feed["attention_mask"], strict=True):
        kept = tokens[mask == 1]
        row = {"mean": kept.mean(0), "max": kept.max(0), "cls": tokens[0]}[embedder.pooling]
        rows.append(row / np.linalg.norm(row) if embedder.normalized else row)
    return np.stack(rows)


def run(path: Path, feed: Feed) -> Array:
    session = exact_session(path)
    return np.asarray(session.run([embedding.OUTPUT], feed_for(session, feed))[0])


# Export


@pytest.mark.parametrize("padding", masks())
def test_embeddings_are_those_of_pytorch(each: Embedder, padding: str) -> None:
    feed = random_feed(masks()[padding])
    expected = by_hand(each, feed)
    np.testing.assert_allclose(run(each.model, feed), expected, atol=1e-5)
    assert len(expected) == 1 or np.ptp(expected, axis=0).max() > 0.01, "rows differ, so this says something"


def test_padding_changes_nothing(each: Embedder) -> None:
    feed = random_feed(masks()["full"])
    longer = {name: np.pad(array, ((0, 0), (0, 30))) for name, array in feed.items()}
    longer["input_ids"][:, 20:] = 17
    np.testing.assert_allclose(run(each.model, longer), run(each.model, feed), atol=1e-5)


def test_inputs_and_output(each: Embedder) -> None:
    session = exact_session(each.model)
    assert [(node.name, node.shape) for node in session.get_inputs()] == [
        (name, ["batch", "sequence"]) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == (
        "sentence_embedding",
        "tensor(float)",
        ["batch", 32],
    )


def test_embeddings_have_length_1_where_the_layout_says_so(each: Embedder) -> None:
    lengths = np.linalg.norm(run(each.model, random_feed(masks()["end"])), axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == each.normalized


@pytest.mark.parametrize("opset", [13, 16, 18])
def test_every_opset_agrees(each: Embedder, opset: int, tmp_path: Path) -> None:
    path = export_bert_to_onnx(each.checkpoint, tmp_path / "model.onnx", seq_len=64, opset=opset)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    feed = random_feed(masks()["end"])
    np.testing.assert_allclose(run(path, feed), run(each.model, feed), atol=1e-5)


def test_layers_have_the_names_of_a_classifier(mean: Embedder) -> None:
    nodes = [node.name for node in onnx.load(mean.model).graph.node]
    assert "bert.encoder.layer.1.output.dense/MatMul" in nodes
    assert any(name.startswith("pooling/") for name in nodes)
    assert not [name for name in nodes if "pooler" in name or name.startswith("model")]


def test_a_graph_that_computes_something_else_is_refused(
    mean: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quantlib.onnx_model import export

    declare = export.declare_opset

    def tamper(proto: onnx.ModelProto, opset: int) -> None:
        declare(proto, opset)
        pooled = next(node for node in proto.graph.node if node.name == "pooling/Mul")
        pooled.input[1] = pooled.input[0]

    monkeypatch.setattr(export, "declare_opset", tamper)
    with pytest.raises(ParityError, match=r"^model.onnx: sentence_embedding differ from PyTorch by"):
        export_bert_to_onnx(mean.checkpoint, tmp_path / "model.onnx", seq_len=64)
    assert list(tmp_path.iterdir()) == []


def test_every_architecture_is_pooled(exported: tiny.Exported, tmp_path: Path) -> None:
    import torch
    import transformers

    directory = tiny.write_embedding_model(tmp_path / "model", exported.checkpoint)
    model = load_embedding_model(directory)
    assert not model.training
    feed = {name: torch.from_numpy(array) for name, array in random_feed(masks()["end"]).items()}
    feed["token_type_ids"] = torch.zeros_like(feed["input_ids"])
    encoder = transformers.AutoModel.from_pretrained(directory).eval()
    mask = feed["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = encoder(**accepted(encoder, feed)).last_hidden_state
        expected = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))
        np.testing.assert_allclose(model(**accepted(model, feed))[embedding.OUTPUT], expected, atol=1e-5)


def test_the_command_writes_the_model_and_its_tokenizer(mean: Embedder, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    done = export_checkpoint(str(mean.checkpoint), out, seq_len=64, compiled=True)
    assert (done["output"], done["compiled"]) == ("sentence_embedding", True)
    assert (tmp_path / "tokenizer.json").is_file()
    feed = random_feed(masks()["end"])
    np.testing.assert_allclose(run(out, feed), run(mean.model, feed), atol=1e-5)


# Compiling and quantizing


def test_only_the_first_token_is_computed_where_it_alone_is_read(each: Embedder, tmp_path: Path) -> None:
    compiled = compile_onnx(each.model, tmp_path / "compiled.onnx")
    assert (compiled.done["attention"], compiled.done["gelu"]) == (2, 2)
    reads_all = "the last layer is not cut: no node reads a single row; a mean or maximum reads them all"
    if each.pooling == "cls":
        assert compiled.done["row"] > 0 and compiled.done["row_attention"] == 1
        assert compiled.left == ()
    else:
        assert (compiled.done["row"], compiled.done["row_attention"]) == (0, 0)
        assert compiled.left == (reads_all,)
    for mask in masks().values():
        feed = random_feed(mask)
        np.testing.assert_allclose(run(compiled.path, feed), run(each.model, feed), atol=1e-5)


def test_eight_bits_give_nearly_the_same_embeddings(each: Embedder, tmp_path: Path) -> None:
    compiled = compile_onnx(each.model, tmp_path / "compiled.onnx").path
    out = tmp_path / "dynamic.onnx"
    quantize_onnx(compiled, out, RECIPES["dynamic_u8s8"])
    assert out.stat().st_size < compiled.stat().st_size
    feed = random_feed(masks()["end"])
    want, got = run(each.model, feed), run(out, feed)
    cosines = (want * got).sum(1) / (np.linalg.norm(want, axis=1) * np.linalg.norm(got, axis=1))
    assert cosines.min() > 0.98 and not np.allclose(want, got, atol=1e-6)


# The layout


def test_the_packaged_minilm_is_one() -> None:
    assert is_embedding_model(packaged_minilm())
    assert check_embedding_model(packaged_minilm()) == EmbeddingLayout("mean", normalized=True)


def test_a_classifier_is_none(tiny_teacher: Path, mean: Embedder, tmp_path: Path) -> None:
    assert not is_embedding_model(tiny_teacher)
    assert is_embedding_model(mean.checkpoint)
    both = Path(shutil.copytree(tiny_teacher, tmp_path / "both"))
    shutil.copy(mean.checkpoint / "modules.json", both)
    assert not is_embedding_model(both), "a classifier fine-tuned from an embedding model"


def test_a_pooling_may_be_named(copied: Path) -> None:
    config = {"embedding_dimension": 32, "pooling_mode": "cls"}
    (copied / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert check_embedding_model(copied).pooling == "cls"


Spoil = Callable[[Path], object]


def modules(*kinds: str, path: str = "") -> Spoil:
    def spoil(directory: Path) -> None:
        rows = [{"type": kind, "path": "1_Pooling" if i else path} for i, kind in enumerate(kinds)]
        (directory / "modules.json").write_text(json.dumps(rows), encoding="utf-8")

    return spoil


def written(name: str, text: str) -> Spoil:
    return lambda directory: (directory / name).write_text(text, encoding="utf-8")


def pooled(**config: Any) -> Spoil:
    return written("1_Pooling/config.json", json.dumps(config))


def without_a_weight(directory: Path) -> None:
    tiny.edit_weights(directory, lambda weights: weights.pop("encoder.layer.1.output.dense.weight"))


def with_nan(directory: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["encoder.layer.1.output.dense.bias"][0] = np.nan

    tiny.edit_weights(directory, change)


ST = "sentence_transformers.models."


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            modules(f"{ST}Transformer", f"{ST}Pooling", f"{ST}Dense"),
            "modules Transformer, Pooling, Dense are",
        ),
        (modules(f"{ST}Transformer", f"{ST}Pooling", f"{ST}LayerNorm"), "Pooling, LayerNorm are not"),
        (modules(f"{ST}Transformer"), "modules Transformer are not supported; supported: Transformer, Pool"),
        (modules(), "modules none are not supported"),
        (modules("custom_st.Transformer", f"{ST}Pooling"), "'custom_st.Transformer' is not one of sentence-"),
        (modules(f"{ST}Transformer", f"{ST}Pooling", path="0_Transformer"), "lies in '0_Transformer'; it"),
        (written("modules.json", "{"), "modules.json: not JSON"),
        (written("modules.json", '{"a": 1}'), "modules.json: expected a list of modules"),
        (written("modules.json", '[{"type": 3, "path": ""}]'), "modules.json: expected a list of modules"),
        (pooled(pooling_mode_mean_sqrt_len_tokens=True), "pooling by mean_sqrt_len_tokens is not supported"),
        (pooled(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True), "pooling by cls, mean is not"),
        (pooled(), "pooling by nothing is not supported; supported: one of cls, mean, max"),
        (pooled(pooling_mode="lasttoken"), "pooling by lasttoken is not supported"),
        (pooled(pooling_mode=["mean"]), "pooling by ['mean'] is not supported"),
        (pooled(pooling_mode="mean", include_prompt=False), "include_prompt false is not supported"),
        (written("1_Pooling/config.json", "[]"), "config.json: expected a JSON object"),
        (
            lambda directory: shutil.rmtree(directory / "1_Pooling"),
            "config.json: missing; an embedding model",
        ),
        (lambda directory: tiny.edit_config(directory, model_type="mpnet"), "model_type 'mpnet' is not"),
        (
            lambda directory: tiny.edit_config(directory, hidden_size=None),
            "hidden_size is missing; BertModel",
        ),
        (lambda directory: (directory / "model.safetensors").unlink(), "no weights; expected"),
        (without_a_weight, "the weights lack encoder.layer.1.output.dense.weight, which its encoder"),
        (with_nan, "encoder.layer.1.output.dense.bias holds NaN or infinite values"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(
    copied: Path, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    spoil(copied)
    with pytest.raises(InputError) as caught:
        export_bert_to_onnx(copied, tmp_path / "model.onnx", seq_len=64)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_an_order_of_logits_says_nothing_of_embeddings(mean: Embedder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no logits whose order"):
        export_bert_to_onnx(mean.checkpoint, tmp_path / "model.onnx", seq_len=64, logit_order=[1, 0])


def test_positions_limit_the_length(mean: Embedder, tmp_path: Path) -> None:
    assert read_config(mean.checkpoint)["max_position_embeddings"] == 64
    with pytest.raises(InputError, match=r"sequence length 65 is out of range .* within 8\.\.64"):
        export_bert_to_onnx(mean.checkpoint, tmp_path / "model.onnx", seq_len=65)
