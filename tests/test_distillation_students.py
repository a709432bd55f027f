"""Layer mapping, the shapes of students, and the weights that they start from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from quantlib.support.errors import InputError
from quantlib.training.checkpoints import load_classifier
from quantlib.training.student import StudentConfig, parse_student_config
from quantlib.training.student.mapping import layer_mapping
from quantlib.training.student.students import PRESETS, make_student

BERT = {
    "model_type": "bert",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}


@given(st.integers(1, 48), st.integers(1, 48), st.sampled_from(["uniform", "last"]))
def test_a_mapping_rises_from_the_embeddings_to_the_last_layer(first: int, second: int, kind: str) -> None:
    student, teacher = sorted((first, second))
    mapping = layer_mapping(student, teacher, kind)
    assert len(mapping) == student + 1
    assert (mapping[0], mapping[-1]) == (0, teacher)
    assert all(low < high for low, high in pairwise(mapping))


@given(st.integers(1, 12), st.integers(1, 6))
def test_a_uniform_mapping_is_the_papers(student: int, times: int) -> None:
    assert layer_mapping(student, student * times) == tuple(m * times for m in range(student + 1))


@given(st.integers(1, 24), st.integers(1, 24))
def test_a_uniform_mapping_is_within_half_a_layer(first: int, second: int) -> None:
    student, teacher = sorted((first, second))
    for m, layer in enumerate(layer_mapping(student, teacher)):
        assert abs(layer - m * teacher / student) <= 0.5


def test_other_mappings() -> None:
    assert layer_mapping(4, 6) == (0, 2, 3, 5, 6)
    assert layer_mapping(2, 6, "last") == (0, 5, 6)
    assert layer_mapping(3, 6, "1, 2,6") == (0, 1, 2, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, 3), "a student of 4 layers cannot learn from a teacher of 3; it must have 1 to 3"),
        ((0, 3), "it must have 1 to 3"),
        ((2, 4, "first"), "unknown layer mapping 'first'; known: uniform, last, or a list"),
        ((2, 4, "1,2,3"), "it must name 2 layers of 1..4"),
        ((2, 4, "3,2"), "in rising order"),
        ((2, 4, "2,5"), "2 layers of 1..4"),
        ((2, 4, "0,4"), "2 layers of 1..4"),
        ((2, 4, "4,4"), "in rising order"),
    ],
    ids=str,
)
def test_a_mapping_that_cannot_be(arguments: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        layer_mapping(*arguments)


# Shapes


def test_presets_are_the_papers() -> None:
    assert PRESETS["half"].for_teacher(BERT) == StudentConfig(6, 768, 3072, 12)
    assert PRESETS["tinybert-4-312"].for_teacher(BERT) == StudentConfig(4, 312, 1200, 12)
    assert PRESETS["tinybert-6-768"].for_teacher(BERT) == StudentConfig(6, 768, 3072, 12)


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("half", StudentConfig()),
        ("tinybert-4-312", StudentConfig(4, 312, 1200, 12)),
        ("layers=4, width=312,ffn=1200,heads=12", StudentConfig(4, 312, 1200, 12)),
        ("layers=2", StudentConfig(layers=2)),
        ("half,init=random", StudentConfig(init="random")),
        ("tinybert-4-312,init=some/where", StudentConfig(4, 312, 1200, 12, "some/where")),
        ("tinybert-4-312,layers=3", StudentConfig(3, 312, 1200, 12)),
    ],
)
def test_the_words_of_the_command(text: str, config: StudentConfig) -> None:
    assert parse_student_config(text) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("quarter", "unknown student 'quarter'; known: half, tinybert-4-312, tinybert-6-768, a shape as"),
        ("", "unknown student ''"),
        ("depth=4", "'depth=4' is not one of layers, width, ffn, heads, init"),
        ("layers=4,layers=5", "'layers=5' is not one of .*each once"),
        ("half,", "'' is not one of"),
        ("half,4", "'4' is not one of"),
        ("layers=four", "layers must be a whole number, not 'four'"),
        ("layers=-4", "layers must be a whole number, not '-4'"),
        ("layers=0", "student layers 0 is out of range; it must be at least 1"),
        ("width=100,heads=12", "student width 100 is not a multiple of its 12 heads"),
        ("half,init=", "student init is empty"),
    ],
)
def test_words_that_are_no_student(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_student_config(text)


@pytest.mark.parametrize(
    ("changes", "config", "words"),
    [
        (
            {"model_type": "roberta"},
            StudentConfig(),
            "a student is made of a BERT teacher; this one is roberta",
        ),
        ({"num_hidden_layers": 1}, StudentConfig(), "needs a teacher of at least 2; this one has 1"),
        ({}, StudentConfig(layers=13), "a student of 13 layers cannot learn from a teacher of 12"),
        ({}, StudentConfig(heads=11), "student width 768 is not a multiple of its 11 heads"),
    ],
    ids=["roberta", "one_layer", "deeper", "heads"],
)
def test_a_shape_that_does_not_suit_the_teacher(
    changes: dict[str, Any], config: StudentConfig, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        config.for_teacher(BERT | changes)


# Weights


@pytest.mark.parametrize(("layers", "kept"), [(2, [1]), (3, [2]), (5, [2, 4]), (6, [1, 3, 5])])
def test_a_student_starts_with_the_layers_it_learns_from(
    tmp_path: Path, layers: int, kept: list[int]
) -> None:
    import torch

    directory = tiny.write_checkpoint(tmp_path / "teacher", num_hidden_layers=layers, num_labels=3)
    teacher = load_classifier(directory)
    student = make_student(teacher, StudentConfig(), seed=0)
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == len(kept)
    for number, source in enumerate(kept):
        source_weights = teacher.bert.encoder.layer[source].state_dict()
        for name, value in student.bert.encoder.layer[number].state_dict().items():
            assert torch.equal(value, source_weights[name]), (number, name)
            assert value.data_ptr() != source_weights[name].data_ptr(), "a copy"
    other_weights = {k: v for k, v in teacher.state_dict().items() if "encoder.layer." not in k}
    assert {"bert.pooler.dense.weight", "classifier.weight"} < set(other_weights)
    for name, value in other_weights.items():
        assert torch.equal(student.state_dict()[name], value), name
    assert teacher.config.num_hidden_layers == layers


def test_other_shapes_keep_what_fits(tiny_teacher: Path) -> None:
    import torch

    teacher = load_classifier(tiny_teacher)
    before = torch.get_rng_state()
    student = make_student(teacher, StudentConfig(layers=2, ffn=48), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    weights = teacher.state_dict()
    for name, value in student.state_dict().items():
        fits = "intermediate" not in name and not name.endswith("layer.0.output.dense.weight")
        fits = fits and not name.endswith("layer.1.output.dense.weight")
        assert (value.shape == weights[name].shape and torch.equal(value, weights[name])) == fits, name
    narrow = make_student(teacher, StudentConfig(1, 16, 32, 4), seed=0)
    assert narrow.config.vocab_size == teacher.config.vocab_size
    assert narrow.config.max_position_embeddings == teacher.config.max_position_embeddings
    assert narrow.config.type_vocab_size == teacher.config.type_vocab_size
    assert narrow.bert.embeddings.word_embeddings.weight.shape == (teacher.config.vocab_size, 16)


def test_random_weights_are_of_their_seed(tiny_teacher: Path) -> None:
    import torch

    teacher = load_classifier(tiny_teacher)
    weights = [
        make_student(teacher, StudentConfig(init="random"), seed=seed).bert.pooler.dense.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], teacher.bert.pooler.dense.weight)


def test_a_student_starts_from_a_general_checkpoint(tiny_teacher: Path, tmp_path: Path) -> None:
    import torch

    teacher = load_classifier(tiny_teacher)
    general = load_classifier(
        tiny.write_checkpoint(tmp_path / "classifier", seed=5, num_hidden_layers=1)
    ).bert
    general.save_pretrained(tmp_path / "general")
    config = StudentConfig(layers=1, init=str(tmp_path / "general"))
    student, again = (make_student(teacher, config, seed=0) for _ in range(2))
    for name, value in general.state_dict().items():
        assert torch.equal(student.bert.state_dict()[name], value), name
    assert torch.equal(student.classifier.weight, again.classifier.weight), "a new head, seeded"
    with pytest.raises(
        InputError, match="num_hidden_layers is 1, the student's is 2; the checkpoint it starts"
    ):
        make_student(teacher, StudentConfig(layers=2, init=str(tmp_path / "general")), seed=0)
    (tmp_path / "general" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError):
        make_student(teacher, config, seed=0)
    with pytest.raises(InputError, match="student /no/where: no such directory"):
        make_student(teacher, StudentConfig(init="/no/where"), seed=0)
