"""A student by pruning: its description, its start, and its way through a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from quantlib.data.features import Feature
from quantlib.data.tasks import TASKS
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.experiment.pruned_start import MAX_TOKENS, pruning_rows, write_pruned_start
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps
from quantlib.training.checkpoints import load_classifier, read_config
from quantlib.training.student import StudentConfig, parse_student_config
from quantlib.training.student.neurons import Remaining, neuron_grams, output_weights, with_neurons
from quantlib.training.student.students import make_student
from quantlib.training.teacher import predict_logits

BERT = {
    "model_type": "bert",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
HALF = StudentConfig(prune=0.5)
SST2 = TASKS["SST-2"]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with enough neurons to choose from."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("wide"), num_hidden_layers=3, intermediate_size=128)


@pytest.fixture(scope="module")
def rows(teacher_dir: Path) -> list[Feature]:
    return tiny.features(teacher_dir, 256)


def start(teacher_dir: Path, rows: Sequence[Feature], out: Path, student: StudentConfig, **more: Any) -> Path:
    write_pruned_start(teacher_dir, SST2, rows, out, student, seed=0, threads=1, **more)
    return out


# The description


@pytest.mark.parametrize(
    ("text", "config", "shape"),
    [
        ("prune=0.5", StudentConfig(prune=0.5), (12, 768, 1536, 12)),
        ("layers=6,prune=0.65", StudentConfig(layers=6, prune=0.65), (6, 768, 1088, 12)),
        ("prune=.25,init=teacher", StudentConfig(prune=0.25), (12, 768, 2304, 12)),
        ("prune=0.98", StudentConfig(prune=0.98), (12, 768, 64, 12)),
    ],
)
def test_the_words_of_the_command(text: str, config: StudentConfig, shape: tuple[int, ...]) -> None:
    assert parse_student_config(text) == config
    assert config.for_teacher(BERT) == StudentConfig(*shape)


def test_a_teacher_of_one_layer_can_be_pruned() -> None:
    assert HALF.for_teacher(BERT | {"num_hidden_layers": 1}).layers == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune=0", "student prune 0.0 is out of range; it must be above 0 and below 1"),
        ("prune=1", "student prune 1.0 is out of range"),
        ("prune=-0.5", "student prune -0.5 is out of range"),
        ("prune=nan", "student prune nan is out of range"),
        ("prune=half", "prune must be a share such as 0.5, not 'half'"),
        ("prune=", "prune must be a share such as 0.5, not ''"),
        ("prune=0.5,ffn=64", "it can be combined with layers, not with ffn"),
        ("prune=0.5,width=64", "it can be combined with layers, not with width"),
        ("prune=0.5,heads=4", "it can be combined with layers, not with heads"),
        ("prune=0.5,init=random", "it can be combined with layers, not with init"),
        ("half,prune=0.5", "prune can be combined with layers, not with half; .* layers=3,prune=0.5"),
        ("tinybert-4-312,prune=0.5", "prune can be combined with layers, not with tinybert-4-312"),
        ("prune=0.5,prune=0.6", "'prune=0.6' is not one of .*each once"),
    ],
)
def test_words_that_are_no_student(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_student_config(text)


@pytest.mark.parametrize(
    ("changes", "share", "words"),
    [
        ({}, 0.999, "prune 0.999 leaves 0 of the 3072 neurons of a feed-forward block, in multiples of 32"),
        ({}, 0.001, "prune 0.001 leaves 3072 of the 3072 neurons"),
        ({"intermediate_size": 32}, 0.5, "leaves 0 of the 32 neurons"),
        ({"model_type": "modernbert"}, 0.5, "a student is made of a BERT teacher; this one is modernbert"),
    ],
    ids=["nothing_left", "nothing_gone", "narrow", "gated"],
)
def test_a_share_that_does_not_suit_the_teacher(changes: dict[str, Any], share: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        StudentConfig(prune=share).for_teacher(BERT | changes)


def test_an_onnx_teacher_has_no_student() -> None:
    with pytest.raises(InputError, match=r"--student-config prune=0\.5: .* the teacher is an ONNX file"):
        ExperimentOptions(teacher="model.onnx", student_config="prune=0.5")


def test_the_start_is_made_elsewhere(teacher_dir: Path) -> None:
    with pytest.raises(InputError, match=r"student prune 0\.5: its start is a checkpoint"):
        make_student(load_classifier(teacher_dir), HALF, seed=0)


# The start


def test_moments_are_of_real_tokens(teacher_dir: Path, rows: list[Feature]) -> None:
    import torch

    model = load_classifier(teacher_dir)
    moments = neuron_grams(model, rows)
    assert len(moments) == 3
    read: list[Any] = []
    hook = model.bert.encoder.layer[1].output.dense.register_forward_pre_hook(
        lambda _, given: read.append(given[0][0])
    )
    with torch.no_grad():
        for row in rows:  # one by one, so that none is padded
            model(
                input_ids=torch.from_numpy(row.input_ids[None]),
                token_type_ids=torch.from_numpy(row.token_type_ids[None]),
            )
    hook.remove()
    values = torch.cat(read).double().numpy()
    assert moments[1].count == len(values) == sum(map(len, rows))
    np.testing.assert_allclose(moments[1].total, values.sum(axis=0), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(moments[1].products, values.T @ values, rtol=1e-4, atol=1e-2)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_all_neurons_are_the_model_itself(teacher_dir: Path, rows: list[Feature]) -> None:
    model = load_classifier(teacher_dir)
    blocks = [Remaining(np.arange(128), *weights) for weights in output_weights(model)]
    same = with_neurons(model, blocks)
    assert all((same.state_dict()[name] == value).all() for name, value in model.state_dict().items())


def test_the_start_is_closer_to_the_teacher_than_other_neurons(
    teacher_dir: Path, rows: list[Feature], tmp_path: Path
) -> None:
    """On rows that it was not pruned on."""
    teacher = load_classifier(teacher_dir)
    pruned = load_classifier(start(teacher_dir, rows[:192], tmp_path, HALF))
    shape = HALF.for_teacher(teacher.config.to_dict())

    def first(kept: Any) -> Any:
        blocks = [Remaining(kept, weight[kept], bias) for weight, bias in output_weights(teacher)]
        return with_neurons(teacher, blocks)

    draw = np.sort(np.random.default_rng(0).permutation(128)[:64])
    others = [first(np.arange(64)), first(draw), make_student(teacher, shape, seed=0)]
    unseen = rows[192:]
    exact = predict_logits(teacher, unseen).numpy()
    error, *more = (np.square(predict_logits(m, unseen).numpy() - exact).mean() for m in (pruned, *others))
    assert 3 * error < min(more)


@pytest.mark.parametrize(("student", "layers"), [(HALF, 3), (StudentConfig(layers=1, prune=0.75), 1)])
def test_plain_transformers_loads_it(
    teacher_dir: Path, rows: list[Feature], tmp_path: Path, student: StudentConfig, layers: int
) -> None:
    import transformers

    start(teacher_dir, rows, tmp_path, student)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    teacher = load_classifier(teacher_dir)
    neurons = 128 - round(128 * (student.prune or 0))
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (layers, neurons)
    assert model.config.hidden_size == teacher.config.hidden_size
    block = model.bert.encoder.layer[layers - 1]
    assert block.intermediate.dense.weight.shape == (neurons, 32)
    assert block.output.dense.weight.shape == (32, neurons)
    attention = teacher.bert.encoder.layer[2].attention.state_dict()
    assert all((block.attention.state_dict()[name] == value).all() for name, value in attention.items())
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("good film")["input_ids"]


def test_its_layers_are_those_that_it_learns_from(
    teacher_dir: Path, rows: list[Feature], tmp_path: Path
) -> None:
    student = load_classifier(
        start(teacher_dir, rows, tmp_path, StudentConfig(layers=1, prune=0.5), mapping="1")
    )
    own, theirs = (
        model.bert.encoder.layer[0].attention.state_dict()
        for model in (student, load_classifier(teacher_dir))
    )
    assert all((own[name] == value).all() for name, value in theirs.items())


def test_its_logits_stand_in_the_tasks_order(teacher_dir: Path, rows: list[Feature], tmp_path: Path) -> None:
    plain, turned = (
        predict_logits(load_classifier(start(teacher_dir, rows, tmp_path / name, HALF, logit_order=o)), rows)
        for name, o in (("plain", None), ("turned", [1, 0]))
    )
    np.testing.assert_allclose(turned.numpy(), plain.numpy()[:, ::-1], rtol=1e-6)


def test_an_error_of_the_surgeon_names_the_block(
    teacher_dir: Path, rows: list[Feature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        moments = neuron_grams(load_classifier(teacher_dir), rows[:4])
        moments[1].products[5, 5] = np.nan
        return moments

    monkeypatch.setattr("quantlib.experiment.pruned_start.neuron_grams", broken)
    with pytest.raises(InputError, match=r"layer\.1\.ffn: its Gram matrix is not finite"):
        start(teacher_dir, rows, tmp_path, HALF)


def test_rows_are_drawn_until_there_are_enough(rows: list[Feature], monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(map(len, rows)) < MAX_TOKENS
    everything = pruning_rows(rows, 0)
    assert sorted(map(id, everything)) == sorted(map(id, rows))
    monkeypatch.setattr("quantlib.experiment.pruned_start.MAX_TOKENS", 100)
    some = pruning_rows(rows, 0)
    assert sum(map(len, some[:-1])) < 100 <= sum(map(len, some))
    assert [id(row) for row in some] == [id(row) for row in everything[: len(some)]]
    assert [id(row) for row in some] != [id(row) for row in pruning_rows(rows, 1)]


# A run


def test_few_tokens_are_said(glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a matrix of more neurons than tokens is solved."""
    sentences: list[str] = []

    class Said(Exception):
        pass

    def start(*_: Any, **__: Any) -> None:
        raise Said

    monkeypatch.setattr(Steps, "say", lambda _, sentence: sentences.append(sentence))
    monkeypatch.setattr("quantlib.experiment.build.write_pruned_start", start)
    teacher = tiny.write_checkpoint(tmp_path / "teacher", intermediate_size=1024)
    options = replace(
        tiny.run_options(teacher, glue_dir),
        recipes=(), compile=False, student_config="prune=0.5", train_rows=32, cache_dir=tmp_path / "cache",
    )  # fmt: skip
    with pytest.raises(Said):
        build(options)
    (said,) = [sentence for sentence in sentences if "neurons" in sentence]
    assert "tokens of train rows for the 1024 neurons of each layer; at least 1024 would do better" in said


def test_a_run_makes_it_and_finds_it_again(
    teacher_dir: Path, glue_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(
        tiny.run_options(teacher_dir, glue_dir),
        recipes=(),
        compile=False,
        student_config="prune=0.5",
        train_rows=32,
        cache_dir=tmp_path,
    )
    made = ("prune the student's start", "train the student", "export student")
    first = build(options)
    assert [variant.name for variant in first.variants] == ["teacher", "student"]
    assert first.variants[1].file == Path("ts_student_prune_0.5") / "model.onnx"
    again = Steps()
    assert build(options, again).hashes == first.hashes
    assert again.cached >= set(made)
    monkeypatch.setattr(
        "quantlib.onnx_model.export.export_bert_to_onnx", lambda _, path, *__, **___: path.write_bytes(b"x")
    )
    # Another share is another start and another student; fewer epochs are another student of the same start.
    other = Steps()
    build(replace(options, student_config="prune=0.75"), other)
    assert not other.cached & set(made)
    shorter = Steps()
    build(replace(options, transformer_epochs=1), shorter)
    assert shorter.cached & set(made) == {made[0]}
    starts = [read_config(path.parent) for path in tmp_path.glob("start/*/model.safetensors")]
    assert sorted(config["intermediate_size"] for config in starts) == [32, 64]


def test_a_share_that_leaves_nothing_is_said_first(
    teacher_dir: Path, glue_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "quantlib.onnx_model.export.export_bert_to_onnx", lambda *_, **__: pytest.fail("exported first")
    )
    options = replace(tiny.run_options(teacher_dir, glue_dir), student_config="prune=0.95")
    with pytest.raises(InputError, match="leaves 0 of the 128 neurons"):
        build(options)
