"""Tasks without labels: models are judged by their agreement with the teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantlib.compression.recipes import RECIPES
from quantlib.data.features import Feature, convert_examples_to_features, labels_array, load_tokenizer
from quantlib.data.metrics import METRICS, OutputMode
from quantlib.data.scores import agreement, compute_metrics, drop_interval, predictions_of
from quantlib.data.scoring import Scoring
from quantlib.data.tasks import TASKS, Task, data_hash, read_splits
from quantlib.experiment import ExperimentOptions, gating, run
from quantlib.experiment.build import build
from quantlib.experiment.measure import evaluate, field_of
from quantlib.gate import (
    GateRecord,
    LimitTable,
    VariantRecord,
    judge_accuracy,
    read_record,
    write_record,
)
from quantlib.gate.accuracy import changed_predictions
from quantlib.measuring.accuracy import evaluate_onnx, predict_onnx, score
from quantlib.measuring.sensitivity import Problem, choose, measure_costs
from quantlib.report.results import read_results
from quantlib.support.errors import InputError
from quantlib.training.checkpoints import load_classifier
from quantlib.training.student import DistillationOptions, PhaseOptions, distil
from quantlib.training.teacher import TrainingOptions, fine_tune, predict_logits

Array = np.ndarray[Any, Any]
TASK = tiny.unlabelled_task()
SCORES = tiny.unlabelled_task(output_mode="regression", labels=())
SETS = tiny.unlabelled_task(output_mode="multi_label", labels=("a", "b", "c"))
KINDS = pytest.mark.parametrize("task", [TASK, SCORES, SETS], ids=lambda task: task.output_mode)


def logits_of(task: Task, rows: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, task.num_labels)).astype(np.float32)


# Tasks and rows


@pytest.mark.parametrize(
    "wrong", [{"metrics": ("accuracy",)}, {"metrics": ()}, {"labelled": True}, {"labels": ()}], ids=str
)
def test_tasks_that_contradict_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Bare: "):
        replace(TASK, **wrong)


@KINDS
def test_rows_have_no_labels(task: Task, tiny_teacher: Path) -> None:
    splits = read_splits(task)
    assert {row.label for part in splits.parts().values() for row in part} == {None}
    assert len(data_hash(splits)) == 64
    rows = tiny.task_features(task, tiny_teacher)
    assert {row.label for row in rows} == {None}
    assert labels_array(rows, task) is None
    with pytest.raises(ValueError, match=r"Bare has no labels, but here gives 'x'"):
        task.example("row-1", ["a text"], "x", "here")


def test_a_missing_label_is_refused_where_labels_are_needed(tiny_teacher: Path) -> None:
    (row, *_) = read_splits(TASK).train
    tokenizer = load_tokenizer(tiny_teacher)
    rows = convert_examples_to_features([row], ("0", "1"), 16, tokenizer, "classification")
    with pytest.raises(ValueError, match="SST-2 has labels, but not all of these rows have one"):
        score(TASKS["SST-2"], np.zeros((1, 2)), rows)


# Scores


@KINDS
def test_a_model_is_judged_by_the_teacher(task: Task, tiny_teacher: Path) -> None:
    rows = tiny.task_features(task, tiny_teacher)
    teacher, variant = (logits_of(task, len(rows), seed) for seed in (0, 1))
    variant = teacher + variant / 2
    judged = score(task, variant, rows, teacher)
    assert judged.metrics == {"agreement": agreement(task, variant, teacher)}
    assert 0.3 < judged.metrics["agreement"] < 1
    assert judged.eval_loss is None
    np.testing.assert_array_equal(judged.truth, predictions_of(task, teacher))
    assert score(task, teacher, rows, teacher).metrics == {"agreement": 1.0}
    with pytest.raises(
        ValueError, match="Bare has no labels: a model is scored against the teacher's logits"
    ):
        score(task, variant, rows)


@KINDS
def test_the_drop_is_what_agreement_lacks(task: Task) -> None:
    teacher, variant = (logits_of(task, 80, seed) for seed in (0, 1))
    variant = teacher + variant / 2
    truth = predictions_of(task, teacher)
    low, high = drop_interval(task, variant, teacher, truth)
    assert low < 1 - agreement(task, variant, teacher) < high
    assert drop_interval(task, teacher, teacher, truth) == (0.0, 0.0)
    # Of two variants, the first is the better one.
    worse = teacher + 4 * (variant - teacher)
    assert drop_interval(task, worse, variant, truth)[0] > 0


def test_variants_are_compared_by_the_teacher_and_not_by_each_other() -> None:
    rows = 100
    teacher = np.tile(np.array([[1, -1]], np.float32), (rows, 1))
    # Each is wrong on half of the rows, but on another half.
    logits = {"teacher": teacher, "a": teacher.copy(), "b": teacher.copy(), "c": teacher.copy()}
    logits["a"][: rows // 2] *= -1
    logits["b"][rows // 2 :] *= -1
    features = [Feature(np.zeros(2, np.int64), np.zeros(2, np.int64), None)] * rows
    measured: dict[str, Any] = {
        name: SimpleNamespace(
            evaluation=score(TASK, variant_logits, features, teacher), timing=SimpleNamespace(log_ratios={})
        )
        for name, variant_logits in logits.items()
    }
    variants = [
        SimpleNamespace(name=name, model=SimpleNamespace(size_bytes=1), recipe=None) for name in logits
    ]
    built: Any = SimpleNamespace(task=TASK, variants=variants, reference="teacher")
    field = field_of(built, measured)
    assert not field.sure("a", "b")
    assert field.sure("a", "c")


@settings(deadline=None)
@given(hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])))
@pytest.mark.parametrize("mode", [mode for mode in METRICS if mode != "embedding"])
def test_a_teacher_agrees_with_itself(mode: OutputMode, logits: Array) -> None:
    count = 1 if mode == "regression" else 3
    scoring, teacher_logits = Scoring(mode, count, ("agreement",), labelled=False), logits[:, :count]
    assert compute_metrics(scoring, teacher_logits, predictions_of(scoring, teacher_logits)) == {
        "agreement": 1.0
    }


# Models


def test_models_are_evaluated(tiny_teacher: Path, tiny_onnx: Path) -> None:
    rows = tiny.task_features(TASK, tiny_teacher)
    logits = predict_onnx(tiny_onnx, rows, TASK, threads=1)
    evaluation = evaluate_onnx(tiny_onnx, rows, TASK, threads=1, teacher_logits=-logits)
    assert (evaluation.metrics, evaluation.eval_loss) == ({"agreement": 0.0}, None)
    with pytest.raises(ValueError, match="scored against the teacher's logits"):
        evaluate_onnx(tiny_onnx, rows, TASK, threads=1)


def test_a_budget_is_met_without_labels(tiny_teacher: Path, tiny_onnx: Path) -> None:
    rows = tiny.task_features(TASK, tiny_teacher)
    problem = Problem(tiny_onnx, RECIPES["dynamic_u8s8"], None, TASK, rows[:8], rows[8:], threads=1)
    best = choose(problem, 0.2, measure_costs(problem)).best
    assert best.drop == pytest.approx(1 - best.agreement)
    assert best.drop <= best.drop_high <= 0.2


def test_no_teacher_is_fine_tuned(tiny_teacher: Path, tmp_path: Path) -> None:
    rows = tiny.task_features(TASK, tiny_teacher)
    with pytest.raises(InputError) as caught:
        fine_tune(tiny_teacher, TASK, rows, tmp_path / "out", TrainingOptions(threads=1))
    assert str(caught.value) == "Bare has no labels to fine-tune a teacher on; give a fine-tuned teacher"


@KINDS
def test_a_student_learns_from_the_teacher_alone(task: Task, tmp_path: Path) -> None:
    teacher = tiny.write_checkpoint(tmp_path / "teacher", num_labels=task.num_labels)
    rows = tiny.task_features(task, teacher)
    phases = {"transformer": PhaseOptions(2, 5e-3), "prediction": PhaseOptions(6, 5e-3)}
    options = DistillationOptions(**phases, batch_size=8, threads=1)
    notes: list[str] = []
    distil(teacher, task, rows, tmp_path / "out", options, lambda *step: notes.append(step[2]))
    assert "held-out agreement " in notes[-1]
    pair = (predict_logits(load_classifier(path), rows).numpy() for path in (tmp_path / "out", teacher))
    assert agreement(task, *pair) > 0.5


# The gate


def record_of(predictions: tuple[float, ...], agrees: float = 1.0, **changes: Any) -> VariantRecord:
    values: dict[str, Any] = {
        "metrics": {"agreement": agrees},
        "eval_loss": None,
        "accuracy_drop": 1.0 - agrees,
        "predictions": predictions,
        "size_bytes": 1000,
        "compression_ratio": 1.0,
        "quantized_share": None,
        "op_counts": {},
    }
    return VariantRecord(**(values | changes))


TEACHERS = (0.0, 1.0) * 10
OTHERS = (1.0, *TEACHERS[1:])


def gate_record(
    teacher: tuple[float, ...] = TEACHERS, variant: tuple[float, ...] = OTHERS, **changes: Any
) -> GateRecord:
    agreed = float(np.mean(np.equal(teacher, variant)))
    values: dict[str, Any] = {
        "task": "Bare",
        "data_hash": "d",
        "labels": (),
        "machine": {},
        "settings": {},
        "variants": {"teacher": record_of(teacher), "quant_2": record_of(variant, agreed)},
        "scoring": TASK.scoring,
    }
    return GateRecord(**(values | changes))


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    write_record(tmp_path / "b.json", gate_record())
    values = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert (values["labels"], values["variants"]["teacher"]["eval_loss"]) == ([], None)
    assert read_record(tmp_path / "b.json") == gate_record()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": TEACHERS}, "labels of Bare, a task without labels"),
        (
            {"variants": {"teacher": record_of(TEACHERS, eval_loss=0.5)}},
            "teacher: eval_loss 0.5; without labels",
        ),
        (
            {"variants": {"teacher": record_of(TEACHERS), "quant_2": record_of(OTHERS[1:], 0.95)}},
            "quant_2: 19 predictions for 20 labels",
        ),
        ({"task": "SST-2", "scoring": None, "labels": TEACHERS}, "first metric must be accuracy"),
    ],
    ids=["labels", "loss", "rows", "labelled"],
)
def test_records_that_contradict_themselves(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gate_record(**changes)


def test_a_record_with_labels_has_a_loss() -> None:
    variant = record_of(TEACHERS, metrics={"accuracy": 1.0})
    with pytest.raises(ValueError, match="teacher: eval_loss None"):
        GateRecord("SST-2", "d", TEACHERS, {}, {}, {"teacher": variant})


def test_a_variant_is_judged_by_the_teacher() -> None:
    (finding,) = judge_accuracy("quant_2", gate_record(), None, LimitTable())
    assert finding.text.startswith("quant_2: agreement drop 5.00 points [0.00, ")
    assert finding.text.endswith("no limit"), "there is no right and wrong to count"


def test_a_changed_teacher_is_judged_by_the_one_before() -> None:
    before = gate_record()
    changed = (1.0, 0.0, *TEACHERS[2:])
    findings = judge_accuracy("teacher", gate_record(changed, changed), before, LimitTable())
    assert [finding.text.split(" points")[0] for finding in findings] == [
        "teacher: agreement 0.9000, baseline 1.0000: drop 10.00",
        "teacher: 2 of 20 predictions changed since the baseline (rows 1, 2)",
    ]
    text = changed_predictions(SCORES.scoring, (1.0, 2.0), (1.0, 2.5), None)
    assert text == "1 of 2 scores changed since the baseline (rows 2), by 0.5 at most"


# The whole


@pytest.fixture
def options(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentOptions:
    monkeypatch.setitem(TASKS, "Bare", TASK)
    return ExperimentOptions(
        task="Bare",
        teacher=str(tiny_teacher),
        seq_len=32,
        threads=1,
        calibration_samples=16,
        recipes=("dynamic_u8s8", "quant_2"),
        no_student=True,
        warmup_runs=0,
        num_runs=3,
        timing_seconds=0.0,
        cache_dir=tmp_path / "cache",
        output_dir=tmp_path / "runs",
    )


def test_a_run_writes_its_results(options: ExperimentOptions) -> None:
    run(replace(options, max_drop=0.3, explain=True))
    directory = options.output_dir / "Bare"
    results = read_results(directory / "results.json")
    assert list(results["teacher"])[:2] == ["agreement", "eval_loss"]
    for name, values in results.items():
        assert values["eval_loss"] is None
        assert values["accuracy_drop"] == pytest.approx(1 - float(values["agreement"] or 0)), name
    assert results["teacher"]["agreement"] == 1.0
    header, teacher, *_ = (directory / "results.csv").read_text(encoding="utf-8").splitlines()
    assert header.startswith("variant,agreement,eval_loss,model_size,")
    assert teacher.startswith("teacher,1.0,,")


def test_a_record_is_made_and_read(
    options: ExperimentOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of scores, since those of a quantized model are never quite the teacher's."""
    monkeypatch.setitem(TASKS, "Bare", SCORES)
    teacher = tiny.write_checkpoint(tmp_path / "teacher", num_labels=1)
    options = replace(options, teacher=str(teacher))
    built = build(options)
    evaluations = evaluate(built, options)
    reference = evaluations["teacher"].logits
    for name, evaluation in evaluations.items():
        agreed = agreement(SCORES, evaluation.logits, reference)
        assert evaluation.metrics == {"agreement": agreed}
        assert (agreed == 1.0) == (name == "teacher"), name
    record = gating.record(built, evaluations, options)
    write_record(tmp_path / "b.json", record)
    monkeypatch.undo()  # a record is read where its task is unknown
    again = read_record(tmp_path / "b.json")
    assert (again.scoring, again.labels) == (record.scoring, record.labels)
    assert [v.predictions for v in again.variants.values()] == [
        v.predictions for v in record.variants.values()
    ]
