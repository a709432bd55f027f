"""Models that embed texts: their layout and export, how their variants are compared, and a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tiny
from exact import exact_session
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conftest import made_once
from quantlib import compile_onnx, export_bert_to_onnx, quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data import scores
from quantlib.data.embeddings import cosines, pair_cosines, same_neighbours
from quantlib.data.features import EMBEDDING, Feature, Feed, labels_array
from quantlib.data.tasks import ModelLabels, OwnTask, Task, read_own_task
from quantlib.experiment import ExperimentOptions, gating
from quantlib.experiment import run as run_experiment
from quantlib.experiment.build import build
from quantlib.experiment.files import export_checkpoint
from quantlib.experiment.measure import evaluate
from quantlib.gate import LimitTable, judge_accuracy, read_record, write_record
from quantlib.machine.sessions import feed_for
from quantlib.measuring.accuracy import score
from quantlib.onnx_model.export import ParityError
from quantlib.support.errors import InputError
from quantlib.training.architectures import accepted
from quantlib.training.checkpoints import order_of, packaged_minilm, read_config
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
    return np.asarray(session.run([EMBEDDING], feed_for(session, feed))[0])


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
        np.testing.assert_allclose(model(**accepted(model, feed))[EMBEDDING], expected, atol=1e-5)


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
        (lambda directory: tiny.edit_config(directory, model_type="t5"), "model_type 't5' is not"),
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


# Cosines and neighbours

rows_of_embeddings = st.tuples(st.integers(1, 6), st.integers(1, 5)).flatmap(
    lambda shape: hnp.arrays(
        np.float32, (2, *shape), elements=st.floats(-4, 4, width=16).filter(lambda x: x == 0 or abs(x) > 0.01)
    )
)
relaxed = settings(deadline=None)


@relaxed
@given(rows_of_embeddings)
def test_a_cosine_is_the_product_of_rows_over_their_lengths(pair: Array) -> None:
    ours, theirs = pair
    expected = []
    for a, b in zip(ours.astype(float), theirs.astype(float), strict=True):
        lengths = float(a @ a) ** 0.5 * float(b @ b) ** 0.5
        expected.append(1.0 if (a == b).all() else float(a @ b) / lengths if lengths else 0.0)
    values = cosines(ours, theirs)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert (abs(values) <= 1).all()


@relaxed
@given(rows_of_embeddings, st.floats(0.1, 100))
def test_lengths_do_not_count(pair: Array, factor: float) -> None:
    ours, theirs = pair.astype(np.float64)
    np.testing.assert_allclose(cosines(factor * ours, theirs), cosines(ours, theirs), atol=1e-9)
    np.testing.assert_allclose(cosines(ours, theirs), cosines(theirs, ours), atol=1e-12)
    assert (cosines(ours, ours) == 1).all()


def test_pairs_are_rows_that_follow_each_other() -> None:
    rows = np.array([[1, 0], [0, 2], [3, 3], [1, 1], [1, 0], [-2, 0]], dtype=np.float32)
    np.testing.assert_allclose(pair_cosines(rows), [0, 1, -1], atol=1e-12)
    with pytest.raises(ValueError, match="are no pairs of rows"):
        pair_cosines(rows[:3])


def test_neighbours_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.data.embeddings._ROWS_AT_ONCE", 7)
    draw = np.random.default_rng(0)
    theirs = draw.normal(size=(40, 6))
    ours = theirs + draw.normal(size=theirs.shape) / 2

    def nearest(rows: Array) -> list[int]:
        found = []
        for i, row in enumerate(rows):
            others = [(row @ other / np.linalg.norm(other), j) for j, other in enumerate(rows) if j != i]
            found.append(max(others)[1])
        return found

    expected = np.mean(np.equal(nearest(ours), nearest(theirs)))
    assert 0.3 < expected < 1
    assert same_neighbours(ours, theirs) == pytest.approx(expected)


def test_any_of_several_equal_neighbours_is_right() -> None:
    theirs = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    ours = theirs.copy()
    ours[2] += 1e-3  # the first two are now each other's
    assert same_neighbours(ours, theirs) == 1.0
    assert same_neighbours(theirs[:1], theirs[:1]) == 1.0
    assert same_neighbours(np.array([[1, 0], [0, 1], [0, 1.1]]), np.array([[1, 0], [1, 0.1], [0, 1]])) < 1


def test_more_rows_than_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantlib.data.embeddings.NEIGHBOUR_ROWS", 3)
    draw = np.random.default_rng(1)
    ours, theirs = draw.normal(size=(2, 9, 4))
    assert same_neighbours(ours, theirs) == same_neighbours(ours[:3], theirs[:3])


# Tasks

TEXTS = Task("Texts", "embedding", (), ("mean_cosine", "worst_cosine"), labelled=False, width=32)
PAIRS = Task("Pairs", "embedding", (), ("spearman", "pearson"), score_range=(0, 5), width=32)


def feature(label: float | None = None) -> Feature:
    return Feature(np.zeros(2, np.int64), np.zeros(2, np.int64), label)


def embeddings(rows: int, seed: int = 0, noise: float = 0.0) -> Array:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(rows, 32))
    return (values + noise * np.random.default_rng(99).normal(size=values.shape)).astype(np.float32)


def test_texts_are_judged_by_the_teachers_embeddings() -> None:
    rows, teacher, variant = [feature()] * 60, embeddings(60), embeddings(60, noise=0.3)
    judged = score(TEXTS, variant, rows, teacher)
    expected = cosines(variant, teacher)
    assert judged.metrics == pytest.approx({"mean_cosine": expected.mean(), "worst_cosine": expected.min()})
    assert judged.eval_loss is None
    itself = score(TEXTS, teacher, rows, teacher)
    assert itself.metrics == {"mean_cosine": 1.0, "worst_cosine": 1.0}
    low, high = scores.drop_interval(TEXTS, variant, teacher, itself.truth)
    assert 0 < low < 1 - expected.mean() < high < 0.2
    assert scores.drop_interval(TEXTS, teacher, teacher, itself.truth) == (0.0, 0.0)
    assert scores.agreement(TEXTS, variant, teacher) == same_neighbours(variant, teacher)
    with pytest.raises(ValueError, match="scored against the teacher's logits"):
        score(TEXTS, variant, rows)
    with pytest.raises(ValueError, match="are judged by the teacher's"):
        scores.predictions_of(TEXTS, variant)


def test_pairs_are_judged_by_their_scores() -> None:
    from scipy.stats import spearmanr

    teacher, variant = embeddings(80), embeddings(80, noise=1.0)
    noise = np.random.default_rng(3).normal(size=40)
    truth = np.clip(2.5 + 4 * pair_cosines(teacher) + 0.3 * noise, 0, 5)
    rows = [feature(float(value)) for value in np.repeat(truth, 2)]
    np.testing.assert_allclose(labels_array(rows, PAIRS), truth, rtol=1e-6)
    judged, best = (score(PAIRS, each, rows, teacher) for each in (variant, teacher))
    assert judged.predictions.shape == judged.truth.shape == (40,)
    assert judged.eval_loss is None
    expected = spearmanr(truth, pair_cosines(variant)).statistic
    assert judged.metrics["spearman"] == pytest.approx(expected, abs=1e-6)
    drop = best.metrics["spearman"] - expected
    low, high = scores.drop_interval(PAIRS, variant, teacher, judged.truth)
    assert 0 < low < drop < high
    with pytest.raises(ValueError, match="no pairs of rows"):
        score(PAIRS, variant[:79], rows[:79], teacher[:79])


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"labels": ("a", "b")},
        {"metrics": ("spearman",)},
        {"labelled": True, "metrics": ("spearman",)},
        {"output_mode": "regression", "metrics": ("agreement",)},
    ],
    ids=str,
)
def test_tasks_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Texts: "):
        replace(TEXTS, **wrong)


MODEL = ModelLabels("model", 32, (), "embedding")
WORDS = [text for text, _ in tiny.sentences(80, 12)]


def write_texts(path: Path, texts: Sequence[str] = WORDS) -> str:
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


def write_pairs(path: Path) -> str:
    lines = ["sentence1\tsentence2\tscore"]
    lines += [f"{a}\t{b}\t{i % 6}.5" for i, (a, b) in enumerate(zip(WORDS[::2], WORDS[1::2], strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_a_file_of_texts_is_a_task(tmp_path: Path) -> None:
    rows = read_own_task(OwnTask("texts", write_texts(tmp_path / "texts.txt")), MODEL)
    task = rows.task
    assert (task.output_mode, task.width, task.num_labels) == ("embedding", 32, 32)
    assert (task.metrics, task.labelled) == (("mean_cosine", "worst_cosine"), False)
    assert "kind: embedding, as model says so" in rows.notes
    assert (len(rows.splits.calibration), len(rows.splits.evaluation)) == (20, 60)


def test_scored_pairs_become_two_rows_each(tmp_path: Path) -> None:
    own = OwnTask(
        "pairs", write_pairs(tmp_path / "pairs.tsv"),
        text=("sentence1", "sentence2"), label="score", kind="embedding",
    )  # fmt: skip
    rows = read_own_task(own, MODEL)
    assert (rows.task.metrics, rows.task.labelled) == (("spearman", "pearson"), True)
    evaluation = rows.splits.evaluation
    assert [row.text_b for row in evaluation] == [None] * 60
    assert [row.guid[-2:] for row in evaluation[:4]] == ["-a", "-b", "-a", "-b"]
    assert all(a.label == b.label for a, b in zip(evaluation[::2], evaluation[1::2], strict=True))
    place = WORDS.index(evaluation[0].text_a)
    assert (place % 2, evaluation[1].text_a) == (0, WORDS[place + 1])
    assert evaluation[0].label == (place // 2) % 6 + 0.5
    texts = {row.text_a for row in evaluation}
    assert rows.splits.calibration and not texts & {row.text_a for row in rows.splits.calibration}
    others = [text for text, _ in tiny.sentences(9, 14)]
    file = write_texts(tmp_path / "calibration.txt", [*WORDS[:3], *others])
    rows = read_own_task(replace(own, calibration=file), MODEL)
    assert {row.text_a for row in rows.splits.calibration} == set(others), "single texts, but for those above"
    assert len(rows.splits.evaluation) == 80
    with pytest.raises(InputError, match="every text to calibrate on is in evaluation too"):
        read_own_task(replace(own, calibration=write_texts(tmp_path / "c.txt", WORDS[:3])), MODEL)


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        (
            {"kind": "embedding"},
            ModelLabels("m", 2),
            "m: not an embedding model; own, of kind embedding, needs",
        ),
        ({"kind": "classification"}, MODEL, "model: an embedding model; own is of kind classification"),
        ({"kind": "embedding"}, None, "own: kind embedding needs --teacher"),
        ({"text": ("sentence1",)}, MODEL, "own: score holds scores of pairs of texts; name both columns"),
        ({"metrics": ("accuracy",)}, MODEL, "own: metrics accuracy; known for embedding with labels"),
        ({"label": None, "metrics": ("spearman",)}, MODEL, "metrics 'spearman' need labels; name their"),
        ({"threshold": 0.3}, MODEL, "threshold 0.3 is for multi_label tasks; own is of kind embedding"),
        ({"label": "sentence1", "text": ("sentence2", "score")}, MODEL, "expected a finite number"),
    ],
)
def test_descriptions_that_cannot_be(
    changes: dict[str, Any], model: ModelLabels | None, message: str, tmp_path: Path
) -> None:
    settings = {"text": ("sentence1", "sentence2"), "label": "score"} | changes
    with pytest.raises(InputError) as caught:
        read_own_task(OwnTask("own", write_pairs(tmp_path / "pairs.tsv"), **settings), model)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(InputError, match="model: embeddings of width 32; those of Texts have 16"):
        order_of(MODEL, replace(TEXTS, width=16))
    assert order_of(MODEL, TEXTS) == []


# A run


def options_for(evaluation: str, teacher: Path, tmp_path: Path, **changes: Any) -> ExperimentOptions:
    return ExperimentOptions(
        evaluation=evaluation, teacher=str(teacher), recipes=("dynamic_u8s8", "static_u8s8_smooth"),
        seq_len=32, threads=1, warmup_runs=0, num_runs=2, timing_seconds=0.0, output_dir=tmp_path / "runs",
        cache_dir=tmp_path / "cache", **changes,
    )  # fmt: skip


def results_of(options: ExperimentOptions) -> dict[str, Any]:
    path = options.output_dir / options.task_name / "results.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def test_texts_run_to_their_table(mean: Embedder, tmp_path: Path) -> None:
    options = options_for(write_texts(tmp_path / "texts.txt"), mean.checkpoint, tmp_path, kind="embedding")
    run_experiment(options)
    results = results_of(options)
    assert list(results["teacher"])[:3] == ["mean_cosine", "worst_cosine", "eval_loss"]
    assert (results["teacher"]["mean_cosine"], results["teacher"]["agreement"]) == (1.0, 1.0)
    assert results["teacher_compiled"]["worst_cosine"] == pytest.approx(1, abs=1e-5)
    for name in ("dynamic_u8s8", "static_u8s8_smooth"):
        values = results[name]
        assert 0.9 < values["worst_cosine"] < values["mean_cosine"] < 1
        assert values["accuracy_drop"] == pytest.approx(1 - values["mean_cosine"])
        assert values["drop_low"] <= values["accuracy_drop"] <= values["drop_high"]
        assert 0 < values["agreement"] <= 1 and values["logit_error"] > 0 and values["eval_loss"] is None


def test_pairs_run_to_their_table_from_an_onnx_file(mean: Embedder, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher" / "model.onnx"
    teacher.parent.mkdir()
    export_checkpoint(str(mean.checkpoint), teacher, seq_len=64)
    pairs = write_pairs(tmp_path / "pairs.tsv")
    columns: dict[str, Any] = {"text": ("sentence1", "sentence2"), "label": "score"}
    options = options_for(pairs, teacher, tmp_path, **columns)
    run_experiment(options)
    results = results_of(options)
    assert list(results["teacher"])[:3] == ["spearman", "pearson", "eval_loss"]
    quantized = results["static_u8s8_smooth"]
    assert abs(quantized["accuracy_drop"]) < 0.5
    assert 0.9 < quantized["worst_cosine"] < quantized["mean_cosine"] < 1


@pytest.mark.parametrize("scored", [False, True], ids=["texts", "pairs"])
def test_a_baseline_is_made_and_read(scored: bool, mean: Embedder, tmp_path: Path) -> None:
    if scored:
        options = options_for(
            write_pairs(tmp_path / "p.tsv"), mean.checkpoint, tmp_path,
            text=("sentence1", "sentence2"), label="score", no_student=True,
        )  # fmt: skip
    else:
        options = options_for(write_texts(tmp_path / "t.txt"), mean.checkpoint, tmp_path)
    options = replace(options, recipes=("dynamic_u8s8",))
    built = build(options)
    evaluations = evaluate(built, options)
    record = gating.record(built, evaluations, options)
    write_record(tmp_path / "baseline.json", record)
    again = read_record(tmp_path / "baseline.json")
    assert (again.scoring, again.labels) == (record.scoring, record.labels)
    assert len(again.labels) == (30 if scored else 0)
    (finding,) = judge_accuracy("dynamic_u8s8", again, None, LimitTable())
    metric = "spearman" if scored else "mean_cosine"
    assert finding.text.startswith(f"dynamic_u8s8: {metric} drop ")
    assert judge_accuracy("dynamic_u8s8", record, again, LimitTable())


def test_no_student_is_trained(mean: Embedder, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "p.tsv")
    columns: dict[str, Any] = {"text": ("sentence1", "sentence2"), "label": "score"}
    train = tmp_path / "train.tsv"
    text = "\n".join(f"{text}\t{text}\t1" for text, _ in tiny.sentences(40, 13))
    train.write_text(f"sentence1\tsentence2\tscore\n{text}\n", encoding="utf-8")
    options = options_for(pairs, mean.checkpoint, tmp_path, train=str(train), **columns)
    with pytest.raises(InputError, match="no student is trained for embeddings; leave it out: --no-student"):
        build(options)
