from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from quantlib.checkpoints import check_for_task, load_classifier, read_config
from quantlib.distillation import _mean_squared_error, distil, every_second_layer, soft_cross_entropy
from quantlib.errors import InputError
from quantlib.features import Feature
from quantlib.files import sha256_file
from quantlib.tasks import TASKS
from quantlib.training import TrainingOptions, predict_logits

SST2, RTE, STSB = TASKS["SST-2"], TASKS["RTE"], TASKS["STS-B"]
OPTIONS = TrainingOptions(epochs=16, learning_rate=5e-3, batch_size=8, threads=1)


@pytest.fixture(scope="module")
def rows(tiny_teacher: Path) -> list[Feature]:
    return tiny.features(tiny_teacher, 64)


@pytest.mark.parametrize(("layers", "kept"), [(2, [1]), (3, [1]), (5, [1, 3]), (6, [1, 3, 5])])
def test_every_second_layer_is_copied(tmp_path: Path, layers: int, kept: list[int]) -> None:
    import torch

    directory = tiny.write_checkpoint(tmp_path / "teacher", num_hidden_layers=layers, num_labels=3)
    teacher = load_classifier(directory)
    student = every_second_layer(teacher)
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == len(kept)
    for number, source in enumerate(kept):
        wanted = teacher.bert.encoder.layer[source].state_dict()
        for name, value in student.bert.encoder.layer[number].state_dict().items():
            assert torch.equal(value, wanted[name]), (number, name)
            assert value.data_ptr() != wanted[name].data_ptr(), "a copy"
    rest = {k: v for k, v in teacher.state_dict().items() if "encoder.layer." not in k}
    assert {"bert.pooler.dense.weight", "classifier.weight"} < set(rest)
    for name, value in rest.items():
        assert torch.equal(student.state_dict()[name], value), name
    assert teacher.config.num_hidden_layers == layers


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("roberta", {}, "a student is made of a BERT teacher; this one is roberta"),
        ("distilbert", {}, "a student is made of a BERT teacher; this one is distilbert"),
        ("bert", {"num_hidden_layers": 1}, "needs a teacher of at least 2; this one has 1"),
    ],
    ids=["roberta", "distilbert", "one_layer"],
)
def test_teachers_without_a_student(tmp_path: Path, kind: str, changes: dict[str, int], words: str) -> None:
    teacher = tiny.write_checkpoint(tmp_path / "teacher", kind, **changes)
    with pytest.raises(InputError, match=words):
        distil(teacher, SST2, tiny.features(teacher, 8), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_the_loss_against_numpy() -> None:
    import torch

    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 7, 3)).astype(np.float32)

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    want = -(softmax(teacher) * np.log(softmax(student))).sum(axis=1).mean()
    found = soft_cross_entropy(torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(found) == pytest.approx(want, rel=1e-5)
    found = _mean_squared_error(torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(found) == pytest.approx(np.mean((student - teacher) ** 2), rel=1e-5)


def test_a_student_learns_what_the_teacher_says(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    distil(tiny_teacher, SST2, rows, tmp_path / "a", OPTIONS)
    teacher, student = load_classifier(tiny_teacher), load_classifier(tmp_path / "a")
    wanted = predict_logits(teacher, rows)
    untrained = soft_cross_entropy(predict_logits(every_second_layer(teacher), rows), wanted)
    trained = soft_cross_entropy(predict_logits(student, rows), wanted)
    least = soft_cross_entropy(wanted, wanted)
    assert float(trained - least) < 0.5 * float(untrained - least)
    assert student.config.num_hidden_layers == 1
    distil(tiny_teacher, SST2, rows, tmp_path / "b", OPTIONS)
    hashes = {sha256_file(tmp_path / name / "model.safetensors") for name in "ab"}
    assert len(hashes) == 1, "the same again"


def test_a_student_takes_the_order_of_the_task(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    options = replace(OPTIONS, epochs=1, learning_rate=1e-12)
    for name, order in (("plain", None), ("turned", [1, 0])):
        distil(tiny_teacher, RTE, rows, tmp_path / name, options, logit_order=order)
        assert check_for_task(tmp_path / name, RTE) == [0, 1]
        assert read_config(tmp_path / name)["id2label"] == {"0": "entailment", "1": "not_entailment"}
    plain, turned = (
        predict_logits(load_classifier(tmp_path / name), rows).numpy() for name in ("plain", "turned")
    )
    np.testing.assert_allclose(turned, plain[:, ::-1], atol=1e-4)
    assert np.abs(turned - plain).max() > 0.1


def test_regression(tmp_path: Path) -> None:
    teacher = tiny.write_checkpoint(tmp_path / "teacher", num_labels=1)
    rows = tiny.features(teacher, 64)
    losses: list[float] = []
    distil(teacher, STSB, rows, tmp_path / "out", OPTIONS, lambda *step: losses.append(step[2]))
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    assert check_for_task(tmp_path / "out", STSB) == [0]
    assert (
        "id2label" not in read_config(tmp_path / "out") or len(read_config(tmp_path / "out")["id2label"]) == 1
    )


def test_no_rows(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows to train on"):
        distil(tiny_teacher, SST2, [], tmp_path / "out", OPTIONS)
