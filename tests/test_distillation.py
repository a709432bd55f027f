"""Training a student: what it learns, what is kept, and that an interruption changes nothing."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from quantlib.data.features import Feature
from quantlib.data.tasks import TASKS
from quantlib.machine import hardware
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file
from quantlib.support.scratch import scratch_dir
from quantlib.training.checkpoints import check_for_task, load_classifier, read_config
from quantlib.training.student import DistillationOptions, PhaseOptions, StudentConfig, distil, precision
from quantlib.training.student.device import feed_of, prepare
from quantlib.training.student.losses import soft_cross_entropy, transformer_loss
from quantlib.training.student.phases import Phase, run_phase
from quantlib.training.student.precision import bfloat16_pays, chosen_precision, layer_steps
from quantlib.training.student.run import STATE_FILE, hold_out, with_extra_rows
from quantlib.training.student.saved import DamagedError, TrainingState, load_state, save_state
from quantlib.training.student.states import run_with_states
from quantlib.training.student.students import make_student
from quantlib.training.student.targets import Teacher, teacher_targets
from quantlib.training.teacher import predict_logits

SST2, RTE, STSB = TASKS["SST-2"], TASKS["RTE"], TASKS["STS-B"]
# With dropout, so that the random state of a training matters.
OPTIONS = DistillationOptions(
    dropout=None,
    transformer=PhaseOptions(4, 5e-3),
    prediction=PhaseOptions(8, 5e-3),
    batch_size=8,
    threads=1,
    patience=8,
)
SHORT = replace(OPTIONS, transformer=PhaseOptions(2, 5e-3), prediction=PhaseOptions(2, 5e-3))


@pytest.fixture(scope="module")
def rows(tiny_teacher: Path) -> list[Feature]:
    return tiny.features(tiny_teacher, 64)


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


def test_a_student_learns_what_the_teacher_says(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    progress: list[tuple[int, int, str]] = []
    options = replace(OPTIONS, label_weight=0.0)
    distil(tiny_teacher, SST2, rows, tmp_path / "a", options, lambda *step: progress.append(step))
    teacher, student = load_classifier(tiny_teacher), load_classifier(tmp_path / "a")
    teacher_logits = predict_logits(teacher, rows)
    untrained = soft_cross_entropy(
        predict_logits(make_student(teacher, StudentConfig(), 42), rows), teacher_logits
    )
    trained = soft_cross_entropy(predict_logits(student, rows), teacher_logits)
    least = soft_cross_entropy(teacher_logits, teacher_logits)
    assert float(trained - least) < 0.5 * float(untrained - least)
    assert student.config.num_hidden_layers == 1
    assert [done for done, _, _ in progress] == sorted(done for done, _, _ in progress)
    assert progress[-1][0] == progress[-1][1] == 4 + 12 * 8, "batches of the teacher, then steps of 12 epochs"
    for words in ("transformer loss ", "prediction loss ", "held-out accuracy "):
        assert words in progress[-1][2]
    distil(tiny_teacher, SST2, rows, tmp_path / "b", options)
    hashes = {sha256_file(tmp_path / name / "model.safetensors") for name in "ab"}
    assert len(hashes) == 1, "the same again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"], "nothing else is left"


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_labels_count_where_they_are_told_to(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path, weight: float
) -> None:
    """Labels of windows never count."""
    options = replace(SHORT, label_weight=weight, held_out=0.0)
    flipped = [replace(row, label=1 - row.label) for row in rows[:16]]
    data = [(rows[:8], rows[8:16]), (rows[:8], flipped[8:]), (flipped[:8], rows[8:16])]
    hashes = []
    for number, (train_rows, windows) in enumerate(data):
        out = tmp_path / str(number)
        distil(tiny_teacher, SST2, train_rows, out, options, further=[[window] for window in windows])
        hashes.append(sha256_file(out / "model.safetensors"))
    assert hashes[0] == hashes[1]
    assert (hashes[0] == hashes[2]) == (weight == 0)


@pytest.mark.parametrize("config", [StudentConfig(), StudentConfig(2, 16, 32, 2)], ids=["half", "narrow"])
def test_layers_learn_from_layers(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path, config: StudentConfig
) -> None:
    """The transformer loss falls on rows that were not trained on."""
    losses: list[float] = []

    def progress(_done: int, _steps: int, words: str) -> None:
        if words.startswith("transformer loss") and "prediction" not in words:
            losses.append(float(words.split()[2].rstrip(",")))

    options = replace(OPTIONS, transformer=PhaseOptions(12, 5e-3), prediction=PhaseOptions(1, 1e-6))
    distil(tiny_teacher, SST2, rows, tmp_path / "out", options, progress, student=config)
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    assert load_classifier(tmp_path / "out").config.hidden_size == (config.width or 32)


def test_a_student_takes_the_order_of_the_task(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    still = PhaseOptions(1, 1e-12)
    options = replace(OPTIONS, transformer=still, prediction=still)
    for name, order in (("plain", None), ("turned", [1, 0])):
        distil(tiny_teacher, RTE, rows, tmp_path / name, options, logit_order=order)
        assert check_for_task(tmp_path / name, RTE) == [0, 1]
        assert read_config(tmp_path / name)["id2label"] == {"0": "entailment", "1": "not_entailment"}
    plain, reversed_logits = (
        predict_logits(load_classifier(tmp_path / name), rows).numpy() for name in ("plain", "turned")
    )
    np.testing.assert_allclose(reversed_logits, plain[:, ::-1], atol=1e-4)
    assert np.abs(reversed_logits - plain).max() > 0.1


def test_regression(tmp_path: Path) -> None:
    teacher = tiny.write_checkpoint(tmp_path / "teacher", num_labels=1)
    rows = [replace(row, label=float(row.label)) for row in tiny.features(teacher, 64)]
    distil(teacher, STSB, rows, tmp_path / "out", OPTIONS)
    teacher_logits = predict_logits(load_classifier(teacher), rows)
    before = predict_logits(make_student(load_classifier(teacher), StudentConfig(), 42), rows)
    after = predict_logits(load_classifier(tmp_path / "out"), rows)
    assert float((after - teacher_logits).square().mean()) < 0.7 * float(
        (before - teacher_logits).square().mean()
    )
    assert check_for_task(tmp_path / "out", STSB) == [0]


def test_no_rows(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rows to train on"):
        distil(tiny_teacher, SST2, [], tmp_path / "out", OPTIONS)


def test_a_single_row_is_enough(tiny_teacher: Path, rows: list[Feature], tmp_path: Path) -> None:
    """Then no row is held out, and the last weights are kept."""
    distil(tiny_teacher, SST2, rows[:1], tmp_path / "out", SHORT)
    assert check_for_task(tmp_path / "out", SST2) == [0, 1]


def test_a_training_that_diverges_is_one_line(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    options = replace(SHORT, prediction=PhaseOptions(2, 1e-3), temperature=1e-45)
    with pytest.raises(
        InputError, match=r"the prediction loss is .*: training diverged at a learning rate of"
    ):
        distil(tiny_teacher, SST2, rows, tmp_path / "out", options)


# An interruption


class Interrupted(Exception):
    pass


def after(batches: int) -> Callable[[int, int, str], None]:
    def progress(done: int, _total: int, _words: str) -> None:
        if done == batches:
            raise Interrupted

    return progress


@pytest.fixture(scope="module")
def uninterrupted(
    tiny_teacher: Path, rows: list[Feature], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[StudentConfig], str]:
    """The hash of the weights of a training without interruption."""
    hashes: dict[StudentConfig, str] = {}

    def trained(config: StudentConfig) -> str:
        if config not in hashes:
            out = tmp_path_factory.mktemp("uninterrupted") / "out"
            distil(tiny_teacher, SST2, rows, out, SHORT, student=config)
            hashes[config] = sha256_file(out / "model.safetensors")
        return hashes[config]

    return trained


# 4 batches of the teacher, then 4 epochs of 8 steps, the first two of the transformer.
@pytest.mark.parametrize("batches", [2, 7, 11, 12, 17, 19, 20, 25, 36])
@pytest.mark.parametrize("config", [StudentConfig(), StudentConfig(1, 16, 32, 2)], ids=["half", "narrow"])
def test_an_interrupted_training_ends_with_the_same_weights(
    uninterrupted: Callable[[StudentConfig], str],
    tiny_teacher: Path,
    rows: list[Feature],
    tmp_path: Path,
    config: StudentConfig,
    batches: int,
) -> None:
    import torch

    options = replace(SHORT, checkpoint_steps=3)  # no option that decides weights
    work = tmp_path / "work"

    def run(progress: Callable[[int, int, str], None]) -> None:
        distil(tiny_teacher, SST2, rows, tmp_path / "out", options, progress, student=config, work_dir=work)

    with pytest.raises(Interrupted):
        run(after(batches))
    assert [path.name for path in work.iterdir()] == ([STATE_FILE] if batches > 6 else [])
    torch.manual_seed(batches)  # as in another process
    progress: list[int] = []
    run(lambda done, *_: progress.append(done))
    assert sha256_file(tmp_path / "out" / "model.safetensors") == uninterrupted(config)
    steps = [done for done in progress if done > 4]
    assert steps[0] > batches - 3, "it went on, and did not start anew"
    assert list(work.iterdir()) == []


def test_a_checkpoint_of_another_training_is_not_used(
    uninterrupted: Callable[[StudentConfig], str], tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    with pytest.raises(Interrupted):
        distil(tiny_teacher, SST2, rows, tmp_path / "x", replace(SHORT, seed=1), after(20), work_dir=work)
    distil(tiny_teacher, SST2, rows, tmp_path / "out", SHORT, work_dir=work)
    assert sha256_file(tmp_path / "out" / "model.safetensors") == uninterrupted(StudentConfig())


def test_a_damaged_checkpoint_is_reported_and_not_used(
    uninterrupted: Callable[[StudentConfig], str], tiny_teacher: Path, rows: list[Feature], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    with pytest.raises(Interrupted):
        distil(tiny_teacher, SST2, rows, tmp_path / "x", SHORT, after(20), work_dir=work)
    state = (work / STATE_FILE).read_bytes()
    (work / STATE_FILE).write_bytes(state[: len(state) // 2])
    notes: list[str] = []
    distil(
        tiny_teacher,
        SST2,
        rows,
        tmp_path / "out",
        SHORT,
        lambda _done, _total, note: notes.append(note),
        work_dir=work,
    )
    assert notes[-1].endswith(f"trained from the start, since {STATE_FILE} is damaged")
    assert sha256_file(tmp_path / "out" / "model.safetensors") == uninterrupted(StudentConfig())


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    save_state(tmp_path / "good.pt", "job", TrainingState(epoch=3))
    state = load_state(tmp_path / "good.pt", "job")
    assert state is not None
    assert state.epoch == 3
    assert load_state(tmp_path / "good.pt", "another") is None
    assert load_state(tmp_path / "missing.pt", "job") is None
    evil = io.BytesIO()
    torch.save({"job": "job", "epoch": Evil()}, evil)
    (tmp_path / "bad.pt").write_bytes(hashlib.sha256(evil.getvalue()).digest() + evil.getvalue())
    with pytest.raises(DamagedError, match=r"^bad\.pt$"):
        load_state(tmp_path / "bad.pt", "job")
    assert not (tmp_path / "touched").exists()


def test_a_weight_with_another_bit_is_noticed(tmp_path: Path) -> None:
    """torch reads it without a word."""
    import torch

    path = tmp_path / "state.pt"
    save_state(path, "job", TrainingState(weights={"w": torch.full((1000,), 0.5)}))
    content = bytearray(path.read_bytes())
    place = content.index(np.full(10, 0.5, np.float32).tobytes())
    content[place + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        load_state(path, "job")


# A phase


def scored_phase(scores: list[float], options: PhaseOptions) -> tuple[Phase, list[float], list[int]]:
    """A phase that trains a single weight, what it was at each score, and the rows that were trained on."""
    import torch

    module = torch.nn.ModuleDict({"student": torch.nn.Linear(1, 1, bias=False)})
    weight, weights, trained_rows = module["student"].weight, [], []

    def score() -> tuple[float, float]:
        weights.append(float(weight.detach()))
        return scores[len(weights) - 1], 0.0

    def loss(index: Any, _feed: Any) -> torch.Tensor:
        trained_rows.extend(index.tolist())
        return weight.sum()

    return Phase("test", options, module, loss, score), weights, trained_rows


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ([1, 3, 2, 2, 9], 2, 4, 1),
        ([1, 2, 3, 4, 5], 1, 5, 4),
        ([5, 5, 5, 5, 5], 1, 2, 0),
        ([1, 0, 2, 1, 3], 2, 5, 4),
    ],
)
def test_it_stops_early_with_the_best_weights(
    rows: list[Feature], scores: list[float], patience: int, epochs: int, best: int
) -> None:
    options = replace(OPTIONS, patience=patience)
    phase, weights, trained_rows = scored_phase(scores, PhaseOptions(5, 1e-2))
    state = run_phase(phase, rows, range(10, 40), options, TrainingState(), lambda _: None, lambda *_: None)
    assert state.epoch == len(weights) == epochs
    assert float(phase.modules["student"].weight.detach()) == weights[best]
    assert sorted(trained_rows) == sorted(epochs * list(range(10, 40)))


def test_weight_decay_decays(rows: list[Feature]) -> None:
    import torch

    remaining = {}
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        phase, _, _ = scored_phase([0.0], PhaseOptions(1, 1e-2, 0.0, decay, "constant"))
        weight = phase.modules["student"].weight
        before = float(weight.detach())
        run_phase(
            replace(phase, loss=lambda *_, weight=weight: 0 * weight.sum(), score=None),
            rows,
            range(8),
            OPTIONS,
            TrainingState(),
            lambda _: None,
            lambda *_: None,
        )
        remaining[decay] = float(weight.detach()) / before
    assert remaining == {0.0: 1.0, 0.1: pytest.approx(1 - 1e-2 * 0.1)}


@given(st.integers(1, 200), st.floats(0, 1), st.sampled_from(["linear", "constant"]))
def test_the_learning_rate_rises_to_its_value_and_then_does_as_told(
    steps: int, warmup: float, schedule: str
) -> None:
    options = PhaseOptions(1, 1e-3, warmup_ratio=warmup, schedule=schedule)
    rates = [options.rate(step, steps) for step in range(steps)]
    top = max(1, round(steps * warmup)) - 1
    assert max(rates) == pytest.approx(1e-3)
    assert rates[top] == pytest.approx(1e-3)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate > 0 for rate in rates)
    if schedule == "constant":
        assert rates[top:] == pytest.approx([1e-3] * (steps - top))
    elif top < steps - 1:
        assert rates[-1] == pytest.approx(1e-3 / (steps - top - 1))


@given(st.integers(1, 300), st.floats(0, 0.99), st.integers(0, 5))
def test_rows_are_held_out_once_and_for_all(count: int, share: float, seed: int) -> None:
    options = DistillationOptions(held_out=share, seed=seed)
    trained, held_out = hold_out(count, options)
    assert sorted(trained + held_out) == list(range(count))
    assert trained
    assert len(held_out) == min(round(count * share), count - 1)
    random.seed(1)
    assert hold_out(count, options) == (trained, held_out)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_windows_of_rows_that_are_trained_on_come_behind_all_rows(
    rows: list[Feature], tiny_teacher: Path, most: int
) -> None:
    """Windows of a held-out row are held out as well."""
    further = [[tiny_row(i, number) for number in range(i % 4)] for i in range(8)]
    options = replace(SHORT, windows=most)
    all_rows, trained = with_extra_rows(rows[:8], [0, 3, 5, 7], further, tiny_teacher, options, None)
    assert all_rows[:8] == rows[:8]
    expected = [(i, number) for i in (0, 3, 5, 7) for number in range(min(i % 4, most))]
    assert [tuple(row.input_ids[1:].tolist()) for row in all_rows[8:]] == expected
    assert trained == [0, 3, 5, 7, *range(8, 8 + len(expected))]
    assert with_extra_rows(rows[:8], [0, 3], (), tiny_teacher, options, None) == (rows[:8], [0, 3])


def tiny_row(*numbers: int) -> Feature:
    ids = np.array([2, *numbers], dtype=np.int64)
    return Feature(ids, np.zeros_like(ids), 1)


def test_windows_are_learned_from(tiny_teacher: Path, rows: list[Feature], tmp_path: Path) -> None:
    further = [[rows[-1 - i]] for i in range(16)]
    hashes = []
    for number, (more, most) in enumerate([((), 1), (further, 0), (further, 1)]):
        out = tmp_path / str(number)
        distil(tiny_teacher, SST2, rows[:16], out, replace(SHORT, windows=most), further=more)
        hashes.append(sha256_file(out / "model.safetensors"))
    assert hashes[0] == hashes[1] != hashes[2]


# The teacher's outputs


@pytest.mark.parametrize(("disk_bytes", "on_disk"), [(2**30, True), (1000, False)], ids=["disk", "anew"])
def test_the_teachers_states_are_those_it_computes(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path, disk_bytes: int, on_disk: bool
) -> None:
    import torch

    options = replace(OPTIONS, disk_bytes=disk_bytes)
    device = prepare(options)
    model = load_classifier(tiny_teacher).train()  # dropout must be turned off
    teacher = Teacher(model, (0, 2), device, "float32")
    index = np.array([40, 3, 17, 5])
    feed = feed_of(rows, index, device)
    with teacher_targets(teacher, rows, options, tmp_path / "work") as targets:
        assert targets.on_disk == on_disk
        size = sum(path.stat().st_size for path in tmp_path.rglob("states"))
        assert size == on_disk * 4 * sum(map(len, rows)) * 4 * 32, "2 hidden states, queries and keys"
        assert size <= disk_bytes
        target_states = targets.states(index, feed)
    with torch.no_grad():
        logits, states = run_with_states(load_classifier(tiny_teacher), feed)
    torch.testing.assert_close(targets.logits[index], logits, atol=1e-4, rtol=1e-4)
    assert (len(target_states.hidden), len(target_states.scores)) == (2, 1)
    assert float(transformer_loss(target_states, states.of_layers((0, 2)), feed["attention_mask"])) < 1e-8
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("epochs", [0, 1])
def test_states_that_are_needed_once_are_not_written(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path, epochs: int
) -> None:
    """Logits come with them, or when they are needed; a row keeps those of its first batch."""
    options = replace(OPTIONS, transformer=PhaseOptions(epochs, 5e-3))
    device = prepare(options)
    model = load_classifier(tiny_teacher)
    teacher = Teacher(model, (0, 2) if epochs else (), device, "float32")
    teacher_logits = predict_logits(model, rows).numpy()
    index = np.array([40, 3, 17])
    with teacher_targets(teacher, rows, options, tmp_path) as targets:
        assert not targets.on_disk
        if epochs:
            targets.states(index, feed_of(rows, index, device))
            np.testing.assert_allclose(targets.logits[index], teacher_logits[index], atol=1e-4)
        assert int(targets.logits.isnan().any(1).sum()) == len(rows) - epochs * len(index)
        more = np.array([3, 5])
        targets.logits[3] = 7.0  # as if it came from another batch
        logits = targets.logits_for(more, feed_of(rows, more, device)).numpy()
    assert logits[0].tolist() == [7.0, 7.0]
    np.testing.assert_allclose(logits[1], teacher_logits[5], atol=1e-4)
    assert list(tmp_path.iterdir()) == []


ONCE = replace(SHORT, transformer=PhaseOptions(1, 5e-3))


# 8 steps in each of 3 epochs, the first one of the transformer.
@pytest.mark.parametrize("steps", [2, 4, 8, 10, 17])
def test_it_goes_on_with_the_logits_that_it_knew(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path, steps: int
) -> None:
    options = replace(ONCE, checkpoint_steps=3)

    def run(name: str, progress: Callable[[int, int, str], None] = lambda *_: None) -> str:
        out = tmp_path / name
        distil(tiny_teacher, SST2, rows, out, options, progress, work_dir=tmp_path / f"work {name}")
        return sha256_file(out / "model.safetensors")

    with pytest.raises(Interrupted):
        run("interrupted", after(steps))
    assert run("interrupted") == run("whole")


def test_the_file_of_states_is_closed_before_its_directory_goes(
    tiny_teacher: Path, rows: list[Feature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no file that is open, or mapped."""
    import torch

    refused: list[str] = []

    @contextmanager
    def scratch(parent: Path) -> Iterator[Path]:
        with scratch_dir(parent) as path:
            yield path
            with pytest.raises(ValueError, match="closed file") as caught:
                targets.states(np.array([0]), feed)
            refused.append(str(caught.value))

    monkeypatch.setattr("quantlib.training.student.targets.scratch_dir", scratch)
    device = torch.device("cpu")
    teacher = Teacher(load_classifier(tiny_teacher), (0, 2), device, "float32")
    feed = feed_of(rows, np.array([0]), device)
    with teacher_targets(teacher, rows, OPTIONS, tmp_path) as targets:
        assert targets.on_disk
        targets.states(np.array([0]), feed)
    assert refused
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path) not in maps.read_text()


# Options


@pytest.mark.parametrize(
    ("build", "changes", "words"),
    [
        (PhaseOptions, {"epochs": -1}, "epochs -1 is out of range; it must be at least 0"),
        (PhaseOptions, {"learning_rate": 0.0}, "learning rate 0.0 is out of range"),
        (PhaseOptions, {"warmup_ratio": 1.1}, "warm-up ratio 1.1 is out of range"),
        (PhaseOptions, {"weight_decay": -0.1}, "weight decay -0.1 is out of range"),
        (PhaseOptions, {"schedule": "cosine"}, "unknown schedule 'cosine'; known: linear, constant"),
        (DistillationOptions, {"prediction": PhaseOptions(0, 0.1)}, "prediction epochs 0 is out of range"),
        (DistillationOptions, {"temperature": 0.0}, "temperature 0.0 is out of range"),
        (DistillationOptions, {"temperature": float("nan")}, "temperature nan is out of range"),
        (DistillationOptions, {"label_weight": 1.1}, "label weight 1.1 is out of range"),
        (DistillationOptions, {"dropout": 1.0}, "dropout 1.0 is out of range"),
        (DistillationOptions, {"held_out": 1.0}, "held-out share 1.0 is out of range"),
        (DistillationOptions, {"patience": 0}, "patience 0 is out of range"),
        (DistillationOptions, {"windows": -1}, "windows -1 is out of range; it must be at least 0"),
        (DistillationOptions, {"disk_bytes": -1}, "disk_bytes -1 is out of range"),
        (DistillationOptions, {"precision": "int8"}, "unknown precision 'int8'; known: auto, float32, bfl"),
        (DistillationOptions, {"mapping": "first"}, "unknown layer mapping 'first'"),
    ],
    ids=str,
)
def test_options_are_checked(build: Callable[..., Any], changes: dict[str, Any], words: str) -> None:
    required = {"epochs": 1, "learning_rate": 0.1} if build is PhaseOptions else {}
    with pytest.raises(InputError, match=words):
        build(**(required | changes))


@pytest.mark.parametrize("name", ["tpu9", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"device '{name}' cannot be used: "):
        prepare(replace(OPTIONS, device=name))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[tuple[str, ...], float], list[bool]]]:
    """Sets a CPU's instruction sets and its gain by bfloat16; gives the list of steps that are taken."""

    def machine(sets: tuple[str, ...], speed: float) -> list[bool]:
        machine = replace(hardware.describe(), instruction_sets=sets)
        monkeypatch.setattr("quantlib.training.student.precision.describe", lambda: machine)
        steps: list[bool] = []
        time_s = [0.0]

        def step(in_bfloat16: bool) -> None:
            steps.append(in_bfloat16)
            time_s[0] += 1.0 / (speed if in_bfloat16 else 1.0) + len(steps) % 3

        monkeypatch.setattr("quantlib.training.student.precision.layer_steps", lambda: step)
        clocked = partial(precision.faster_in_bfloat16, clock=lambda: time_s[0])
        monkeypatch.setattr("quantlib.training.student.precision.faster_in_bfloat16", clocked)
        return steps

    bfloat16_pays.cache_clear()
    yield machine
    bfloat16_pays.cache_clear()


@pytest.mark.parametrize(
    ("device", "sets", "speed", "pays"),
    [
        ("cpu", ("amx_bf16", "avx512_vnni"), 2.5, True),
        ("cpu", ("avx512_bf16",), 1.5, True),
        ("cpu", ("avx512_bf16",), 1.1, False),
        ("cpu", ("avx512_bf16",), 0.7, False),
        ("cpu", ("avx2",), 2.0, False),
        ("cuda", (), 0.0, True),
        ("mps", ("amx_bf16",), 2.0, False),
    ],
    ids=["amx", "faster", "hardly_faster", "slower", "no_instructions", "cuda", "mps"],
)
def test_bfloat16_is_for_machines_that_win_by_it(
    measured: Callable[..., list[bool]], device: str, sets: tuple[str, ...], speed: float, pays: bool
) -> None:
    measured(sets, speed)
    assert bfloat16_pays(device) == pays


def test_the_precision_of_a_machine_is_measured_once(
    measured: Callable[..., list[bool]], tmp_path: Path
) -> None:
    steps = measured(("avx512_bf16",), 1.5)
    assert chosen_precision(1, Cache(tmp_path)) == "bfloat16"
    assert len(steps) > 2
    steps = measured(("avx512_bf16",), 0.5)  # a later run
    assert chosen_precision(1, Cache(tmp_path)) == "bfloat16"
    assert steps == []
    assert chosen_precision(2, Cache(tmp_path)) == "float32", "measured for each number of threads"
    steps = measured(("avx2",), 2.0)
    assert chosen_precision(1, Cache(tmp_path)) == "float32"
    assert steps == []


def test_a_layer_is_stepped_without_changing_random_numbers() -> None:
    import torch

    state = torch.get_rng_state()
    layer_steps()(False)
    assert torch.equal(state, torch.get_rng_state())


def test_products_in_16_bits(tiny_teacher: Path, rows: list[Feature], tmp_path: Path) -> None:
    """Sums differ; weights stay in float32."""
    import torch

    hashes = set()
    for name in ("float32", "bfloat16"):
        distil(tiny_teacher, SST2, rows, tmp_path / name, replace(SHORT, precision=name))
        hashes.add(sha256_file(tmp_path / name / "model.safetensors"))
        weights = load_classifier(tmp_path / name).state_dict().values()
        assert all(value.dtype == torch.float32 for value in weights if value.is_floating_point())
    assert len(hashes) == 2
