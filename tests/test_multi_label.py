"""Tasks whose rows have any number of labels: read, learned, judged, checked, recorded."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantlib.data.features import convert_examples_to_features, labels_array, load_tokenizer
from quantlib.data.scores import agreement, compute_metrics, drop_interval, mean_loss, predictions_of
from quantlib.data.scoring import Scoring
from quantlib.data.tasks import TASKS, Example, Task, data_hash, read_splits
from quantlib.experiment import ExperimentOptions, gating
from quantlib.experiment.build import build
from quantlib.experiment.measure import check, evaluate
from quantlib.gate import (
    GateRecord,
    LimitTable,
    VariantRecord,
    judge_accuracy,
    markdown,
    read_record,
    recorded_array,
    recorded_predictions,
    write_record,
)
from quantlib.gate.accuracy import changed_predictions, mcnemar_p
from quantlib.gate.findings import Verdict
from quantlib.measuring.checks import Invariance
from quantlib.measuring.checks.logits import labels_changed
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError
from quantlib.training.checkpoints import PROBLEM_TYPES, check_for_task, load_classifier
from quantlib.training.student import AugmentationOptions, DistillationOptions, PhaseOptions, distil
from quantlib.training.student.augmentation import augmented
from quantlib.training.student.losses import (
    NO_LABEL,
    mixed_binary_cross_entropy,
    soft_binary_cross_entropy,
)
from quantlib.training.teacher import TrainingOptions, fine_tune, predict_logits

Array = np.ndarray[Any, Any]
TASK = tiny.topics_task(200)
OPTIONS = TrainingOptions(epochs=25, learning_rate=5e-3, batch_size=8, threads=1, trained_layers=None)
some_logits = hnp.arrays(np.float32, (5, 3), elements=st.floats(-50, 50, width=32))
some_sets = hnp.arrays(np.int64, (5, 3), elements=st.integers(0, 1))


# Tasks and rows


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": ()},
        {"labels": ("a", "a")},
        {"metrics": ("accuracy",)},
        {"metrics": ("micro_f1", "micro_f1")},
        {"metrics": ("agreement",)},
        {"threshold": 0.0},
        {"threshold": 1.0},
        {"threshold": math.nan},
        {"score_range": (0.0, 1.0)},
        {"output_mode": "classification", "metrics": ("accuracy",), "threshold": 0.4},
        {"output_mode": "sets"},
    ],
    ids=str,
)
def test_tasks_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Topics: "):
        replace(TASK, **wrong)


def test_one_label_is_enough() -> None:
    assert replace(TASK, labels=("spam",), metrics=("macro_f1",)).num_labels == 1
    assert TASK.num_labels == 3


@pytest.mark.parametrize("labels", [["blame", "praise"], ("praise", "blame")], ids=str)
def test_labels_of_a_row_stand_in_the_order_of_the_task(labels: Any) -> None:
    assert TASK.example("row-1", ["a text"], labels, "here").label == ("praise", "blame")
    assert TASK.example("row-1", ["a text"], [], "here").label == ()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["praise", "prais"], "here: label 'prais'; known: praise, blame, nothing new"),
        (["praise", "praise"], "here: labels ['praise', 'praise']; each can be there once"),
        ("praise", "here: labels 'praise'; expected a list of them, empty for none"),
        (None, "here: labels None; expected a list of them, empty for none"),
        ([["praise"]], "here: label ['praise']; known: praise, blame, nothing new"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_used(labels: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        TASK.example("row-1", ["a text"], labels, "here")
    assert str(caught.value) == words


def test_a_message_names_twenty_labels_at_most() -> None:
    many = replace(TASK, labels=tuple(f"label_{i}" for i in range(5000)))
    with pytest.raises(InputError, match=r"known: label_0, .*, label_19, ... \(5000 in all\)$"):
        many.example("row-1", ["a text"], ["none"], "here")


def test_the_hash_of_the_data_knows_the_labels() -> None:
    splits = read_splits(TASK)
    first = splits.evaluation[0]
    for label in ((), ("praise", "blame", "nothing new")):
        changed = replace(splits, evaluation=(replace(first, label=label), *splits.evaluation[1:]))
        assert data_hash(changed) != data_hash(splits)
    assert data_hash(read_splits(tiny.topics_task(200))) == data_hash(splits)


def test_features_have_class_indices(tiny_teacher: Path) -> None:
    rows = [
        Example(f"row-{i}", "a good day", None, label)
        for i, label in enumerate([("nothing new", "praise"), ()])
    ]
    tokenizer = load_tokenizer(tiny_teacher)
    features = convert_examples_to_features(rows, TASK.labels, 16, tokenizer, "multi_label")
    assert [row.label for row in features] == [(0, 2), ()]
    wrong: list[tuple[Any, str]] = [
        ("praise", "row row-1: label 'praise' is not a tuple of labels"),
        (("prize",), "row row-1: label 'prize' is not one of praise, blame, nothing new"),
    ]
    for label, words in wrong:
        with pytest.raises(InputError) as caught:
            row = Example("row-1", "a good day", None, label)
            convert_examples_to_features([row], TASK.labels, 16, tokenizer, "multi_label")
        assert str(caught.value) == words
    with pytest.raises(InputError, match=r"are several labels; classification has one"):
        convert_examples_to_features(rows, TASK.labels, 16, tokenizer, "classification")


# Scores


@settings(deadline=None)
@given(some_logits, st.floats(0.01, 0.99))
def test_a_label_is_predicted_from_the_threshold_on(logits: Array, threshold: float) -> None:
    from scipy.special import expit, logit

    logits = logits[np.abs(logits - logit(threshold)).min(axis=1) > 1e-3]
    task = replace(TASK, threshold=threshold)
    predictions = predictions_of(task, logits)
    assert predictions.dtype == np.int8
    np.testing.assert_array_equal(predictions, expit(logits.astype(np.float64)) >= threshold)
    np.testing.assert_array_equal(predictions_of(task.scoring, logits), predictions)


def test_a_logit_of_0_is_half_a_probability() -> None:
    just_below = np.nextafter(np.float32(0), np.float32(-1))
    assert predictions_of(TASK, np.array([[0.0, just_below, 1.0]], dtype=np.float32)).tolist() == [[1, 0, 1]]


@settings(deadline=None)
@given(some_logits, some_sets)
def test_the_loss_is_that_of_torch(logits: Array, sets: Array) -> None:
    import torch

    expected = torch.nn.BCEWithLogitsLoss()(
        torch.from_numpy(logits).double(), torch.from_numpy(sets).double()
    )
    assert mean_loss(TASK, logits, sets) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_the_loss_is_stable_for_large_logits() -> None:
    logits = np.array([[1e4, -1e4, 0.0]], dtype=np.float32)
    assert mean_loss(TASK, logits, np.array([[0, 1, 1]])) == pytest.approx((2e4 + math.log(2)) / 3)


def test_the_loss_of_many_rows_is_that_of_few() -> None:
    rng = np.random.default_rng(0)
    task = replace(TASK, labels=tuple(map(str, range(60_000))))
    logits, sets = rng.normal(size=(20, 60_000)), rng.integers(2, size=(20, 60_000))
    losses = [mean_loss(task, logits[i : i + 1], sets[i : i + 1]) for i in range(20)]
    assert mean_loss(task, logits, sets) == pytest.approx(np.mean(losses))


def test_rows_agree_that_have_the_same_set() -> None:
    teacher = np.array([[1, 1, -1], [-1, -1, -1], [1, -1, 1], [1, 1, 1]], dtype=np.float32)
    variant = teacher * [[2.0], [3.0], [-1.0], [1.0]]
    variant[3, 2] = -0.1
    assert agreement(TASK, variant, teacher) == 0.5
    assert agreement(TASK, teacher, teacher) == 1.0
    assert agreement(replace(TASK, threshold=0.3), variant, teacher) == 0.75


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (np.zeros(2), r"labels have shape \(2,\); the logits need \(2, 3\)"),
        (np.array([[0, 1, 0], [0, 2, 0]]), "the labels of row 1 are not all 0 or 1"),
    ],
    ids=["indices", "counts"],
)
def test_sets_that_are_none(sets: Array, words: str) -> None:
    for refused in (compute_metrics, mean_loss):
        with pytest.raises(ValueError, match=words):
            refused(TASK, np.zeros((2, 3)), sets)
    with pytest.raises(ValueError, match=words):
        drop_interval(TASK, np.zeros((2, 3)), np.zeros((2, 3)), sets)


def test_a_row_counts_once_however_many_of_its_labels_change() -> None:
    logits = np.array([[1, 1, 1], [-1, -1, -1], [1, -1, 1]], dtype=np.float32)
    other = np.array([[-1, -1, 1], [-1, -1, -2], [3, -1, 1]], dtype=np.float32)
    assert labels_changed(TASK, logits, logits * 2) == 0
    assert labels_changed(TASK, logits, other) == 1
    assert labels_changed(TASK, logits, other, np.roll(logits, 1, axis=1)) == 2
    # The largest logit says nothing here: what counts is the side of the threshold.
    assert labels_changed(TASK, np.array([[1.0, 2.0, -1.0]]), np.array([[2.0, 1.0, -1.0]])) == 0


# Checkpoints


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["praise", "blame", "nothing new"], [0, 1, 2]),
        (["nothing new", "blame", "praise"], [2, 1, 0]),
        (["Nothing_New", "PRAISE", "blame"], [1, 2, 0]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2]),
        (["x", "y", "z"], [0, 1, 2]),
        (["praise", "Praise", "nothing new"], [0, 1, 2]),
    ],
    ids=str,
)
def test_checkpoints_keep_their_order(tmp_path: Path, names: list[str], order: list[int]) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "a", id2label=dict(enumerate(names)))
    tiny.edit_config(checkpoint, problem_type="multi_label_classification")
    assert check_for_task(checkpoint, TASK) == order


def test_labels_that_differ_in_case_alone_are_told_apart(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "a", id2label={0: "it", 1: "IT"})
    assert check_for_task(checkpoint, replace(TASK, labels=("IT", "it"))) == [1, 0]


@pytest.mark.parametrize(
    ("problem", "task"),
    [
        ("single_label_classification", replace(TASK, labels=("a", "b"))),
        ("regression", TASKS["SST-2"]),
        ("multi_label_classification", TASKS["SST-2"]),
        (["regression"], TASKS["SST-2"]),
    ],
    ids=str,
)
def test_checkpoints_of_another_kind_of_task(tmp_path: Path, problem: Any, task: Task) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "a")
    assert check_for_task(checkpoint, task) == [0, 1]
    tiny.edit_config(checkpoint, problem_type=problem)
    with pytest.raises(InputError) as caught:
        check_for_task(checkpoint, task)
    expected = "single_label_classification" if task.name == "SST-2" else "multi_label_classification"
    place = checkpoint / "config.json"
    known = isinstance(problem, str) and problem in PROBLEM_TYPES.values()
    words = (
        f"is {problem!r}, but {task.name} needs {expected!r}" if known else f"{problem!r} is unknown; known: "
    )
    assert str(caught.value).startswith(f"{place}: problem_type {words}")


# Training


def sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def bce(logits: Array, targets: Array) -> Array:
    return np.asarray(-targets * np.log(sigmoid(logits)) - (1 - targets) * np.log(1 - sigmoid(logits)))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_losses_of_a_student_against_numpy(temperature: float) -> None:
    import torch

    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 4, 3))
    tensors = [torch.from_numpy(array) for array in (student, teacher)]
    soft = bce(student / temperature, sigmoid(teacher / temperature))
    assert float(soft_binary_cross_entropy(*tensors, temperature)) == pytest.approx(soft.mean())
    sets = np.array([[0, 1, 1], [0, 0, 0], [NO_LABEL] * 3, [1, 1, 1]], dtype=np.int8)
    for weight in (0.0, 0.3, 1.0):
        share = np.where(sets == NO_LABEL, 0.0, weight)
        expected = ((1 - share) * temperature**2 * soft + share * bce(student, np.maximum(sets, 0))).mean()
        loss = mixed_binary_cross_entropy(*tensors, torch.from_numpy(sets), weight, temperature)
        assert float(loss) == pytest.approx(expected, rel=1e-12)


@pytest.fixture(scope="module")
def trained(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """The directory of a fine-tuned model, and the loss of each step."""
    losses: list[float] = []
    base, out = (tmp_path_factory.mktemp(name) for name in ("base", "trained"))
    load_classifier(tiny_teacher).bert.save_pretrained(base)
    tiny.write_tokenizer(base)
    rows = tiny.task_features(TASK, tiny_teacher)
    fine_tune(base, TASK, rows, out, OPTIONS, lambda *step: losses.append(step[2]))
    return out, losses


def test_a_teacher_is_fine_tuned(trained: tuple[Path, list[float]]) -> None:
    out, losses = trained
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
    rows = tiny.task_features(TASK, out)
    sets = labels_array(rows, TASK)
    assert sets is not None
    assert compute_metrics(TASK, predict_logits(load_classifier(out), rows).numpy(), sets)["micro_f1"] > 0.9
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "praise", "1": "blame", "2": "nothing new"}
    assert check_for_task(out, TASK) == [0, 1, 2]


def test_a_student_learns_its_sets(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    teacher, _ = trained
    rows = tiny.task_features(TASK, teacher)
    options = DistillationOptions(
        transformer=PhaseOptions(2, 5e-3), prediction=PhaseOptions(6, 5e-3), batch_size=8, threads=1
    )
    logits = {}
    for weight in (0.0, 0.5):
        out = tmp_path / str(weight)
        distil(teacher, TASK, rows, out, replace(options, label_weight=weight))
        logits[weight] = predict_logits(load_classifier(out), rows).numpy()
        teacher_logits = predict_logits(load_classifier(teacher), rows).numpy()
        assert agreement(TASK, logits[weight], teacher_logits) > 0.7
        assert check_for_task(out, TASK) == [0, 1, 2]
    assert not np.array_equal(logits[0.0], logits[0.5]), "labels count"


def test_augmented_rows_keep_their_sets(tiny_teacher: Path, tmp_path: Path) -> None:
    rows = tiny.task_features(TASK, tiny_teacher)[:4]
    options, cache = AugmentationOptions(copies=2), Cache(tmp_path)
    for _ in range(2):  # made, and read
        copies = augmented(rows, tiny_teacher, options, 1, cache)
        assert [copy.label for copy in copies] == [row.label for row in rows for _ in range(2)]


# The gate

SCORING = Scoring("multi_label", 3, ("micro_f1", "exact_match"))
LABELS = ((0,), (0, 1), (), (2,)) * 10


def variant_record(predictions: Any, truth: Any = LABELS, **changes: Any) -> VariantRecord:
    arrays = (recorded_array(SCORING, rows) for rows in (predictions, truth))
    predicted, labels = arrays
    logits = np.where(predicted, 1.0, -1.0)
    metrics = compute_metrics(SCORING, logits, labels)
    values: dict[str, Any] = {
        "metrics": metrics,
        "eval_loss": 0.5,
        "accuracy_drop": 0.0,
        "predictions": tuple(predictions),
        "size_bytes": 1000,
        "compression_ratio": 1.0,
        "quantized_share": None,
        "op_counts": {},
    }
    return VariantRecord(**(values | changes))


def gate_record(predictions: Any = LABELS, **changes: Any) -> GateRecord:
    teacher = variant_record(LABELS)
    variant = variant_record(predictions)
    variant = replace(variant, accuracy_drop=teacher.score - variant.score)
    values: dict[str, Any] = {
        "task": "Topics",
        "data_hash": "d",
        "labels": LABELS,
        "machine": {},
        "settings": {},
        "variants": {"teacher": teacher, "quant_2": variant},
        "scoring": SCORING,
    }
    return GateRecord(**(values | changes))


WORSE = ((0,), (0, 1), (1,), (2,)) * 2 + LABELS[8:]  # rows 3 and 7


def test_a_record_survives_its_file_and_is_short(tmp_path: Path) -> None:
    run = gate_record(WORSE)
    write_record(tmp_path / "b.json", run)
    assert read_record(tmp_path / "b.json") == run
    text = (tmp_path / "b.json").read_text(encoding="utf-8")
    assert '"labels": [[0], [0, 1], [], [2], [0],' in text
    assert '"threshold": 0.5' in text
    assert len(text.splitlines()) < 60


def test_predictions_are_recorded_and_read_back() -> None:
    sets = np.array([[1, 0, 1], [0, 0, 0]], dtype=np.int8)
    rows = recorded_predictions(SCORING, sets)
    assert rows == ((0, 2), ())
    np.testing.assert_array_equal(recorded_array(SCORING, rows), sets)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scoring": None}, "unknown task 'Topics'; known: CoLA"),
        ({"labels": (0.0, *LABELS[1:])}, "labels: row 1 must be rising class indices below 3, not 0.0"),
        ({"labels": ((3,), *LABELS[1:])}, r"labels: row 1 must be rising class indices below 3, not \(3,\)"),
        ({"labels": ((1, 0), *LABELS[1:])}, r"row 1 must be rising class indices below 3, not \(1, 0\)"),
        ({"labels": ((1, 1), *LABELS[1:])}, r"row 1 must be rising class indices below 3, not \(1, 1\)"),
        ({"scoring": replace(SCORING, metrics=("exact_match",))}, "first metric must be exact_match"),
        ({"scoring": Scoring("classification", 3, ("accuracy",))}, "row 1 must be a class index below 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_records_that_contradict_themselves(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gate_record(**changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda v: v["labels"].__setitem__(1, ["a"]),
            "labels: 1 must be a number or a list, not \"\\['a'\\]",
        ),
        (lambda v: v["labels"].__setitem__(1, [7]), "labels: row 2 must be rising class indices below 3"),
        (lambda v: v["scoring"].update(threshold=2), "scoring: threshold 2.0 must lie between 0 and 1"),
        (lambda v: v["scoring"].update(output_mode="sets"), "scoring: output_mode must be one of"),
        (lambda v: v["scoring"].update(metrics=["f1"]), "scoring: metrics f1; known for multi_label with"),
    ],
    ids=["word", "index", "threshold", "mode", "metric"],
)
def test_damaged_records(tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    path = tmp_path / "b.json"
    write_record(path, gate_record())
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_record(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_drop_is_judged_by_sets() -> None:
    run = gate_record(WORSE)
    (finding,) = judge_accuracy("quant_2", run, None, LimitTable())
    # 40 labels of 42 predicted are true, and none is missing: F1 is 80 / 82.
    assert finding.text.startswith("quant_2: micro_f1 drop 2.44 points [")
    assert finding.text.endswith("no limit; McNemar p = 0.5")
    assert "quant_2" in markdown(Verdict((finding,)), run, None)


def test_changed_sets_are_counted_by_row() -> None:
    run, before = gate_record(WORSE), gate_record()
    _, changed = judge_accuracy("quant_2", run, before, LimitTable())
    assert changed.text == (
        "quant_2: 2 of 40 predictions changed since the baseline (rows 3, 7): 0 better, 2 worse"
    )
    text = changed_predictions(SCORING, ((0, 1), (1,)), ((1, 2), (1, 2)), ((0,), (1,)))
    assert text == (
        "2 of 2 predictions changed since the baseline (rows 1, 2): 1 better, 0 worse, 1 wrong before and now"
    )


def test_a_row_is_right_with_exactly_its_set() -> None:
    truth, good, half = ((0, 1),) * 6, ((0, 1),) * 6, ((0,),) * 6
    assert mcnemar_p(good, half, truth) == pytest.approx(2 / 2**6)
    assert mcnemar_p(half, ((1,),) * 6, truth) == 1.0


def test_a_baseline_that_was_judged_otherwise_is_refused() -> None:
    other = gate_record(scoring=replace(SCORING, threshold=0.4))
    with pytest.raises(InputError, match=r"Topics was judged otherwise .*\(threshold: 0.5, baseline 0.4\)"):
        judge_accuracy("quant_2", gate_record(), other, LimitTable())
    fewer = gate_record(scoring=replace(SCORING, metrics=("micro_f1",)))
    judge_accuracy("quant_2", gate_record(), fewer, LimitTable())


# The whole


def test_models_are_built_judged_checked_and_recorded(
    trained: tuple[Path, list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "Topics", TASK)
    options = ExperimentOptions(
        task="Topics",
        teacher=str(trained[0]),
        seq_len=32,
        threads=1,
        calibration_samples=16,
        recipes=("dynamic_u8s8", "quant_2"),
        no_student=True,
        max_drop=0.2,
        cache_dir=tmp_path / "cache",
    )
    built = build(options)
    evaluations = evaluate(built, options)
    teacher = evaluations["teacher"]
    assert teacher.predictions.shape == teacher.truth.shape == (40, 3)
    assert teacher.metrics["micro_f1"] > 0.6
    for name, checks in check(built, options).items():
        result = checks.get(Invariance)
        assert result is not None, name
        assert result.labels_changed is not None
    check_entries = len(list((tmp_path / "cache" / "checks").iterdir()))
    check(replace(built, task=replace(TASK, threshold=0.9)), options)
    again = len(list((tmp_path / "cache" / "checks").iterdir()))
    assert again == 2 * check_entries, "labels that change depend on the threshold"
    record = gating.record(built, evaluations, options)
    assert record.scoring == TASK.scoring
    assert recorded_array(SCORING, record.labels).tolist() == teacher.truth.tolist()
    write_record(tmp_path / "b.json", record)
    monkeypatch.undo()  # a record is read where its task is unknown
    again = read_record(tmp_path / "b.json")
    assert (again.scoring, again.labels) == (record.scoring, record.labels)
    assert [v.predictions for v in again.variants.values()] == [
        v.predictions for v in record.variants.values()
    ]
    for name in record.variants:
        assert all(finding.kind == "note" for finding in judge_accuracy(name, record, again, LimitTable()))
