from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from quantlib.data.features import Feature, pad
from quantlib.data.tasks import TASKS, Task
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file
from quantlib.training.checkpoints import check_for_task, load_classifier
from quantlib.training.forward import logits_of
from quantlib.training.teacher import TrainingOptions, _epochs, fine_tune, predict_logits, task_loss
from quantlib.training.upper import upper_layers

SST2, STSB, BBC = TASKS["SST-2"], TASKS["STS-B"], TASKS["BBC-News"]
OPTIONS = TrainingOptions(epochs=10, learning_rate=5e-3, batch_size=8, threads=1, trained_layers=None)
UPPER = replace(OPTIONS, trained_layers=1)


def rows_of(lengths: list[int]) -> list[Feature]:
    zeros = [np.zeros(length, dtype=np.int64) for length in lengths]
    return [Feature(zero, zero, 0) for zero in zeros]


@pytest.fixture(scope="module")
def rows(tiny_teacher: Path) -> list[Feature]:
    return tiny.features(tiny_teacher, 96)


@pytest.fixture(scope="module")
def trained(tiny_teacher: Path, rows: list[Feature], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The directory of a fine-tuned model, and what was reported after each step."""
    steps: list[tuple[int, int, float]] = []
    out = tmp_path_factory.mktemp("trained")
    fine_tune(tiny_teacher, SST2, rows, out, OPTIONS, lambda *step: steps.append(step))
    return out, steps


def test_the_loss_falls(trained: Any) -> None:
    _, steps = trained
    assert [(step, total) for step, total, _ in steps] == [(i, 120) for i in range(1, 121)]
    losses = [loss for _, _, loss in steps]
    assert np.mean(losses[-12:]) < 0.5 * np.mean(losses[:12])


def test_what_was_learned_is_saved(trained: Any, rows: list[Feature]) -> None:
    out, _ = trained
    logits = predict_logits(load_classifier(out), rows)
    labels = np.array([row.label for row in rows])
    assert (logits.argmax(1).numpy() == labels).mean() > 0.9
    assert check_for_task(out, SST2) == [0, 1]
    assert (out / "tokenizer.json").is_file()


def test_the_same_options_give_the_same_weights(
    trained: Any, tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    out, _ = trained
    hashes = {}
    for name, options in {"same": OPTIONS, "seed": replace(OPTIONS, seed=43)}.items():
        fine_tune(tiny_teacher, SST2, rows, tmp_path / name, options)
        hashes[name] = sha256_file(tmp_path / name / "model.safetensors")
    assert hashes["same"] == sha256_file(out / "model.safetensors")
    assert hashes["seed"] != hashes["same"]


def test_a_saved_model_names_its_labels_and_no_path(trained: Any, tiny_teacher: Path) -> None:
    out, _ = trained
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"}
    assert config["label2id"] == {"0": 0, "1": 1}
    for file in out.iterdir():
        data = file.read_bytes()
        for word in (tiny_teacher, out, Path.home(), "site-packages"):
            assert str(word).encode() not in data, (file, word)


def test_a_model_without_a_classifier_gets_one(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    load_classifier(tiny_teacher).bert.save_pretrained(base)
    tiny.write_tokenizer(base)
    fine_tune(base, BBC, rows[:16], tmp_path / "out", replace(OPTIONS, epochs=1))
    assert check_for_task(tmp_path / "out", BBC) == [0, 1, 2, 3, 4]
    assert load_classifier(tmp_path / "out").config.num_labels == 5


def test_regression(tiny_teacher: Path, rows: list[Feature], tmp_path: Path) -> None:
    scored = [replace(row, label=2.0 + 2 * row.label) for row in rows]
    losses: list[float] = []
    base = tmp_path / "base"
    load_classifier(tiny_teacher).bert.save_pretrained(base)
    tiny.write_tokenizer(base)
    fine_tune(base, STSB, scored, tmp_path / "out", OPTIONS, lambda *step: losses.append(step[2]))
    assert np.mean(losses[-12:]) < 0.3 * np.mean(losses[:12])
    logits = predict_logits(load_classifier(tmp_path / "out"), scored)
    assert logits.shape == (96, 1)
    assert check_for_task(tmp_path / "out", STSB) == [0]


def test_upper_layers_learn_and_the_rest_stays(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    import torch

    losses: list[float] = []
    fine_tune(tiny_teacher, SST2, rows, tmp_path / "out", UPPER, lambda *step: losses.append(step[2]))
    assert np.mean(losses[-12:]) < 0.7 * np.mean(losses[:12])
    before, after = (load_classifier(path).state_dict() for path in (tiny_teacher, tmp_path / "out"))
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    trained = ("bert.encoder.layer.1.", "bert.pooler.", "classifier.")
    assert changed == {name for name in before if name.startswith(trained)}


@pytest.mark.parametrize("most", [2**30, 0], ids=["kept", "anew"])
def test_upper_layers_start_from_what_the_rest_gives(
    tiny_teacher: Path, rows: list[Feature], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    import torch

    monkeypatch.setattr("quantlib.training.upper._MAX_STATE_BYTES", most)
    model = load_classifier(tiny_teacher)
    index = np.array([40, 3, 17, 5])
    logits = upper_layers(model, rows, 1).logits(index).detach()
    torch.testing.assert_close(logits, predict_logits(model, rows)[index], atol=1e-4, rtol=1e-4)


def test_upper_layers_end_with_the_same_weights(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    for name in "ab":
        fine_tune(tiny_teacher, SST2, rows, tmp_path / name, replace(UPPER, epochs=1))
    assert len({sha256_file(tmp_path / name / "model.safetensors") for name in "ab"}) == 1


def test_parts_give_the_logits_of_the_whole(tiny_teacher: Path, rows: list[Feature]) -> None:
    """With gradients: rows of one length, and with padding."""
    import torch

    model = load_classifier(tiny_teacher)
    longest = max(map(len, rows))
    for batch in ([row for row in rows if len(row) == len(rows[0])], rows[:12]):
        feed = {k: torch.from_numpy(v) for k, v in pad(batch, longest).items()}
        results = []
        for logits in (model(**feed).logits, logits_of(model, feed)):
            model.zero_grad()
            logits.square().sum().backward()
            gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            results.append((logits.detach(), gradients))
        (expected, slopes), (part_logits, part_slopes) = results
        torch.testing.assert_close(part_logits, expected, atol=1e-5, rtol=1e-4)
        assert slopes.keys() == part_slopes.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(part_slopes[name], slope, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        ("bert", 3, "trained layers 3 is out of range; the model has 2"),
        ("roberta", 1, "trained layers 1: a roberta can only be trained as a whole"),
    ],
    ids=["too_many", "roberta"],
)
def test_layers_that_cannot_be_trained_alone(tmp_path: Path, kind: str, count: int, words: str) -> None:
    base = tiny.write_checkpoint(tmp_path / "base", kind)
    options = replace(OPTIONS, trained_layers=count)
    with pytest.raises(InputError, match=words):
        fine_tune(base, SST2, tiny.features(base, 8), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_losses_against_numpy() -> None:
    import torch

    draw = np.random.default_rng(0)
    logits = draw.normal(size=(5, 2)).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1])
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(5), labels])
    loss = task_loss(SST2)(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    scores = draw.normal(size=5).astype(np.float32)
    loss = task_loss(STSB)(torch.from_numpy(logits[:, :1]), torch.from_numpy(scores))
    assert float(loss) == pytest.approx(np.mean((logits[:, 0] - scores) ** 2), rel=1e-5)


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=60),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_each_epoch_has_each_row_once(lengths: list[int], size: int, epochs: int, seed: int) -> None:
    options = TrainingOptions(epochs=epochs, batch_size=size, seed=seed)
    batches = list(_epochs(rows_of(lengths), options))
    per_epoch = -(-len(lengths) // size)
    assert len(batches) == epochs * per_epoch
    for epoch in range(epochs):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(part).tolist()) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= size for batch in part)
    assert [b.tolist() for b in _epochs(rows_of(lengths), options)] == [b.tolist() for b in batches]


def test_little_padding_is_left() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 512)
    for index in _epochs(rows_of(lengths.tolist()), TrainingOptions(epochs=1, batch_size=16)):
        assert np.ptp(lengths[index]) <= 12


def test_predictions_are_in_the_order_of_the_rows(tiny_teacher: Path, rows: list[Feature]) -> None:
    model = load_classifier(tiny_teacher)
    logits = predict_logits(model.train(), rows, batch_size=7).numpy()
    expected = np.concatenate([predict_logits(model, [row]).numpy() for row in rows])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "electra", "roberta"])
def test_other_architectures_are_run_too(kind: str, tmp_path: Path) -> None:
    model = load_classifier(tiny.write_checkpoint(tmp_path / kind, kind))
    rows = tiny.features(tmp_path / kind, 5)
    assert np.isfinite(predict_logits(model, rows).numpy()).all()


@pytest.mark.parametrize("task", [SST2, STSB], ids=lambda task: task.name)
def test_no_rows(tiny_teacher: Path, tmp_path: Path, task: Task) -> None:
    with pytest.raises(InputError, match="no rows to train on: the train split is empty"):
        fine_tune(tiny_teacher, SST2, [], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs 0 is out of range; it must be at least 1"),
        ({"batch_size": 0}, "batch_size 0 is out of range"),
        ({"threads": 0}, "threads 0 is out of range"),
        ({"learning_rate": 0.0}, "learning rate 0.0 is out of range"),
        ({"learning_rate": 1.0}, "learning rate 1.0 is out of range"),
        ({"learning_rate": float("nan")}, "learning rate nan is out of range"),
        ({"trained_layers": 0}, "trained layers 0 is out of range; it must be at least 1"),
        ({"warmup_ratio": 1.1}, "warm-up ratio 1.1 is out of range"),
    ],
    ids=str,
)
def test_options_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainingOptions(**changes)
