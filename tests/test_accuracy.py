from __future__ import annotations

import math
import subprocess
import sys
import time
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from quantlib.data.features import Feature
from quantlib.data.metrics import METRICS, Array, Metric, OutputMode, metric_names
from quantlib.data.scores import (
    agreement,
    compute_metrics,
    drop_interval,
    drop_interval_of_predictions,
    label_counter,
    logit_error,
    mean_loss,
    predictions_of,
)
from quantlib.data.scoring import Scoring
from quantlib.data.tasks import TASKS, Task
from quantlib.measuring.accuracy import Evaluation, evaluate_onnx
from quantlib.support.errors import InputError

CLASSES = ["CoLA", "SST-2", "MRPC", "RTE", "BBC-News"]
finite = st.floats(-50, 50, width=32)
# The first call imports scikit-learn or scipy, which takes longer than Hypothesis allows an example.
relaxed = settings(deadline=None)


def one_hot(answers: Array, classes: int) -> Array:
    return np.eye(classes, dtype=np.float32)[answers]


def scores(values: Array) -> Array:
    return np.asarray(values, dtype=np.float32)[:, None]


@st.composite
def classified(draw: st.DrawFn, names: list[str] = CLASSES, models: int = 1) -> tuple[Any, ...]:
    """A task, the logits of some models, and labels."""
    task = TASKS[draw(st.sampled_from(names))]
    rows = draw(st.integers(1, 40))
    shape = (rows, task.num_labels)
    logits = [draw(hnp.arrays(np.float32, shape, elements=finite)) for _ in range(models)]
    labels = draw(hnp.arrays(np.int64, rows, elements=st.integers(0, task.num_labels - 1)))
    return task, *logits, labels


def synthetic(task: Task, rows: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Logits of a variant and its teacher, and labels: both are mostly right, and mostly agree."""
    rng = np.random.default_rng(seed)
    if task.output_mode == "regression":
        labels = rng.uniform(0, 5, rows).astype(np.float32)
        teacher = labels + rng.normal(0, 1.0, rows)
        return scores(teacher + rng.normal(0, 0.7, rows)), scores(teacher), labels
    if task.output_mode == "multi_label":
        sets = rng.integers(2, size=(rows, task.num_labels))
        teacher = 1.5 * (2 * sets - 1) + rng.normal(0, 1.5, sets.shape)
        variant = teacher + rng.normal(0, 1, sets.shape)
        return variant.astype(np.float32), teacher.astype(np.float32), sets
    labels = rng.integers(task.num_labels, size=rows)
    teacher = 1.5 * one_hot(labels, task.num_labels) + rng.normal(0, 1, (rows, task.num_labels))
    variant = teacher + rng.normal(0, 0.7, teacher.shape)
    return variant.astype(np.float32), teacher.astype(np.float32), labels


def test_importing_accuracy_is_light() -> None:
    heavy = "{'torch', 'transformers', 'sklearn', 'scipy', 'onnx', 'onnxruntime'}"
    code = f"import sys, quantlib.measuring.accuracy; print(sorted({heavy} & set(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


# Metrics


@relaxed
@given(classified())
def test_class_metrics_follow_their_formulas(case: tuple[Task, Array, Array]) -> None:
    task, logits, labels = case
    answers = [max(range(task.num_labels), key=lambda k: row[k]) for row in logits]
    pairs = list(zip(labels.tolist(), answers, strict=True))
    metrics = compute_metrics(task, logits, labels)
    assert tuple(metrics) == task.metrics
    if "accuracy" in metrics:
        assert metrics["accuracy"] == pytest.approx(sum(t == a for t, a in pairs) / len(pairs))
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((1, 1), (0, 0), (0, 1), (1, 0)))
    if "f1" in metrics:
        assert metrics["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0)
    if "mcc" in metrics:
        root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        assert metrics["mcc"] == pytest.approx((tp * tn - fp * fn) / root if root else 0)


def average_ranks(values: Array) -> Array:
    below = (values[:, None] > values[None, :]).sum(axis=1)
    same = (values[:, None] == values[None, :]).sum(axis=1)
    return below + (same + 1) / 2


def direct_pearson(x: Array, y: Array) -> float:
    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    x, y = x - x.mean(), y - y.mean()
    root = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / root) if root else 0.0


quarters = st.integers(-40, 40).map(lambda i: i / 4)


@relaxed
@given(st.integers(1, 30).flatmap(lambda n: hnp.arrays(np.float32, (2, n), elements=quarters)))
def test_score_metrics_follow_their_formulas(case: Array) -> None:
    truth, answers = case
    metrics = compute_metrics(TASKS["STS-B"], scores(answers), truth)
    assert list(metrics) == ["pearson", "spearman"]
    assert metrics["pearson"] == pytest.approx(direct_pearson(truth, answers), abs=1e-9)
    ranked = direct_pearson(average_ranks(truth), average_ranks(answers))
    assert metrics["spearman"] == pytest.approx(ranked, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -3.3])
def test_constant_scores_have_no_correlation(value: float) -> None:
    labels = np.linspace(0, 5, 7, dtype=np.float32)
    constant = np.full(7, value, dtype=np.float32)
    assert compute_metrics(TASKS["STS-B"], scores(constant), labels) == {"pearson": 0.0, "spearman": 0.0}
    assert compute_metrics(TASKS["STS-B"], scores(labels), constant) == {"pearson": 0.0, "spearman": 0.0}


def test_nearly_constant_scores_raise_no_warning() -> None:
    labels = np.linspace(0, 5, 7, dtype=np.float32)
    logits = (1.0 + np.arange(7) * 2e-16)[:, None]
    assert compute_metrics(TASKS["STS-B"], logits, labels)["pearson"] == 0.0


@pytest.mark.parametrize(("label", "answer"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_single_class_is_scored_without_warning(label: int, answer: int) -> None:
    labels = np.full(4, label)
    logits = one_hot(np.full(4, answer), 2)
    assert compute_metrics(TASKS["CoLA"], logits, labels) == {"mcc": 0.0}
    expected = {"f1": float(label == answer == 1), "accuracy": float(label == answer)}
    assert compute_metrics(TASKS["MRPC"], logits, labels) == expected


# Loss


@relaxed
@given(classified())
def test_cross_entropy_follows_its_formula(case: tuple[Task, Array, Array]) -> None:
    task, logits, labels = case
    losses = [
        math.log(math.fsum(math.exp(float(v) - float(row[label])) for v in row))
        for row, label in zip(logits, labels, strict=True)
    ]
    assert mean_loss(task, logits, labels) == pytest.approx(math.fsum(losses) / len(losses), abs=1e-6)


def test_cross_entropy_is_stable_for_large_logits() -> None:
    logits = np.array([[1e4, 0.0], [0.0, 1e4]], dtype=np.float32)
    assert mean_loss(TASKS["SST-2"], logits, np.array([0, 0])) == pytest.approx(5000.0)


def test_squared_error() -> None:
    assert mean_loss(TASKS["STS-B"], scores([1.0, 2.0]), np.array([0.0, 4.0], dtype=np.float32)) == 2.5


# Against the teacher


@relaxed
@given(classified())
def test_logits_agree_with_themselves(case: tuple[Task, Array, Array]) -> None:
    task, logits, _ = case
    assert agreement(task, logits, logits) == 1.0
    assert agreement(task, logits, 2 * logits) == 1.0
    assert logit_error(logits, logits) == 0.0


@relaxed
@given(hnp.arrays(np.float32, (5, 1), elements=quarters))
def test_scores_agree_with_themselves(logits: Array) -> None:
    assert agreement(TASKS["STS-B"], logits, logits) == pytest.approx(1.0)


def test_agreement_counts_labels_and_correlates_scores() -> None:
    teacher = one_hot(np.array([0, 1, 1, 0]), 2)
    assert agreement(TASKS["RTE"], one_hot(np.array([0, 1, 0, 1]), 2), teacher) == 0.5
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0])
    assert agreement(TASKS["STS-B"], scores(x), scores(y)) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert agreement(TASKS["STS-B"], scores(np.ones(3)), scores(y)) == 0.0


def test_logit_error_is_a_mean_over_all_logits() -> None:
    assert logit_error(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.0, 2.0], [3.0, 1.0]])) == 1.0


# What is refused


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["RTE", "STS-B"])
def test_logits_that_are_not_finite(name: str, bad: float) -> None:
    logits, teacher, labels = synthetic(TASKS[name], 8)
    logits[3, 0] = logits[5, 0] = bad
    for refused in (
        lambda: compute_metrics(TASKS[name], logits, labels),
        lambda: mean_loss(TASKS[name], logits, labels),
        lambda: agreement(TASKS[name], teacher, logits),
        lambda: drop_interval(TASKS[name], logits, teacher, labels),
    ):
        with pytest.raises(ValueError, match="the logits of row 3 are not finite"):
            refused()


@pytest.mark.parametrize(
    ("name", "logits", "labels", "reason"),
    [
        ("RTE", np.zeros((0, 2)), np.zeros(0, dtype=int), r"logits have shape \(0, 2\)"),
        ("RTE", np.zeros((3, 3)), np.zeros(3, dtype=int), r"the task needs \(examples, 2\)"),
        ("STS-B", np.zeros(3), np.zeros(3), r"the task needs \(examples, 1\)"),
        ("RTE", np.zeros((3, 2)), np.zeros(2, dtype=int), r"labels have shape \(2,\)"),
        ("RTE", np.zeros((3, 2)), np.array([0, 2, 1]), "label 2 of row 1 is not a class index below 2"),
        ("RTE", np.zeros((3, 2)), np.array([0, 1, -1]), "label -1 of row 2"),
        ("STS-B", np.zeros((2, 1)), np.array([0, np.nan]), "the score of row 1 is not finite"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit(name: str, logits: Array, labels: Array, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compute_metrics(TASKS[name], logits, labels)
    with pytest.raises(ValueError, match=reason):
        mean_loss(TASKS[name], logits, labels)


def test_teachers_of_other_rows_are_refused() -> None:
    logits, labels = np.zeros((3, 2)), np.zeros(3, dtype=int)
    for refused in (
        lambda: logit_error(logits, logits[:2]),
        lambda: agreement(TASKS["RTE"], logits, logits[:2]),
        lambda: drop_interval(TASKS["RTE"], logits, logits[:2], labels),
    ):
        with pytest.raises(ValueError, match="differ in shape"):
            refused()


@pytest.mark.parametrize("options", [{"confidence": 1.0}, {"confidence": 0.0}, {"resamples": 0}], ids=str)
def test_bootstrap_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        drop_interval(TASKS["RTE"], *synthetic(TASKS["RTE"], 5), **options)


# The interval of a drop


@relaxed
@given(classified())
def test_equal_answers_have_no_drop(case: tuple[Task, Array, Array]) -> None:
    task, logits, labels = case
    assert drop_interval(task, logits, logits, labels, resamples=50) == (0.0, 0.0)
    assert drop_interval(task, 2 * logits, logits, labels, resamples=50) == (0.0, 0.0)


@relaxed
@given(st.integers(1, 20).flatmap(lambda n: hnp.arrays(np.float32, (2, n), elements=quarters)))
def test_equal_scores_have_no_drop(case: Array) -> None:
    truth, answers = case
    interval = drop_interval(TASKS["STS-B"], scores(answers), scores(answers), truth, resamples=50)
    assert interval == (0.0, 0.0)


@relaxed
@given(classified(models=2))
def test_a_higher_confidence_widens_the_interval(case: tuple[Task, Array, Array, Array]) -> None:
    task, variant, teacher, labels = case
    low, high = drop_interval(task, variant, teacher, labels, resamples=100)
    assert -2 <= low <= high <= 2
    wider = drop_interval(task, variant, teacher, labels, resamples=100, confidence=0.99)
    assert wider[0] <= low
    assert high <= wider[1]


def judged_by(mode: OutputMode, metric: str) -> Task:
    """A task with this metric alone."""
    task = TASKS["STS-B"] if mode == "regression" else TASKS["BBC-News"]
    row = METRICS[mode][metric]
    return replace(
        task,
        name=f"{mode}_{metric}",
        output_mode=mode,
        labels=task.labels[: row.num_labels],
        metrics=(metric,),
        labelled=row.needs == "labels",
    )


# Embeddings have tests of their own.
MODES = [mode for mode in METRICS if mode != "embedding"]
JUDGED = [judged_by(mode, metric) for mode in MODES for metric in METRICS[mode]]


def with_truth(task: Task, rows: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """`synthetic`, with the teacher's predictions for the truth where the task has no labels."""
    variant, teacher, labels = synthetic(task, rows, seed)
    return variant, teacher, labels if task.labelled else predictions_of(task, teacher)


# Of each kind one; that each metric is resampled as it is computed is checked below, exactly.
LOOPED = [
    *(TASKS[name] for name in ("CoLA", "MRPC", "BBC-News", "STS-B")),
    *(judged_by("multi_label", name) for name in ("macro_f1", "exact_match")),
    *(judged_by(mode, "agreement") for mode in MODES),
]


@pytest.mark.parametrize("task", LOOPED, ids=lambda task: task.name)
def test_the_interval_is_that_of_a_plain_loop(task: Task) -> None:
    variant, teacher, truth = with_truth(task, 60, seed=3)
    rng = np.random.default_rng(1)
    drops = []
    for _ in range(200):
        rows = rng.integers(60, size=60)
        scored = (compute_metrics(task, logits[rows], truth[rows]) for logits in (teacher, variant))
        drops.append(np.subtract(*(metrics[task.primary_metric] for metrics in scored)))
    interval = drop_interval(task, variant, teacher, truth, resamples=20_000)
    # Two bootstraps of the same rows differ by the noise of their quantiles only.
    assert interval == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=0.15 * np.ptp(interval))


@relaxed
@given(st.integers(1, 8), st.integers(1, 5), st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2**16))
@pytest.mark.parametrize("task", [t for t in JUDGED if t.output_mode != "regression"], ids=lambda t: t.name)
def test_resamples_of_labels_are_scored_as_written_out(
    task: Task, rows: int, occurring: int, share: float, seed: int
) -> None:
    """Few labels occur, and predictions are often right: labels that do not occur make the difference."""
    rng = np.random.default_rng(seed)
    if task.output_mode == "multi_label":
        task = replace(task, labels=task.labels[: 1 + seed % 5])
        truth, other = (rng.random((2, rows, task.num_labels)) < share).astype(np.int64)
        predictions = np.where(rng.random(truth.shape) < 0.7, truth, other)
    else:
        truth, other = rng.integers(min(occurring, task.num_labels), size=(2, rows))
        other = np.where(rng.random(rows) < share, task.num_labels - 1 - other, other)
        predictions = np.where(rng.random(rows) < 0.7, truth, other)
    index = rng.integers(rows, size=(3, rows))
    draws = np.stack([np.bincount(expected, minlength=rows) for expected in index]).astype(np.float64)
    metric = METRICS[task.output_mode][task.primary_metric]
    expected = [metric.function(truth[drawn], predictions[drawn]) for drawn in index]
    scores = metric.resampled(label_counter(task, truth, predictions)(draws))
    np.testing.assert_allclose(scores, expected, atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(0, 2**16))
@pytest.mark.parametrize("mode", ["classification", "multi_label"])
def test_metrics_of_labels_are_those_of_scikit_learn(
    mode: OutputMode, rows: int, occurring: int, seed: int
) -> None:
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    shape = (rows, 3)[: 1 + (mode == "multi_label")]
    truth, other = rng.integers(2 if mode == "multi_label" else occurring, size=(2, *shape))
    predictions = np.where(rng.random(shape) < 0.6, truth, other)
    plain: dict[str, Any] = {"zero_division": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of labels that are never true
        expected = {
            "classification": {
                "accuracy": metrics.accuracy_score(truth, predictions),
                "balanced_accuracy": metrics.balanced_accuracy_score(truth, predictions)
                if mode == "classification"
                else 0,
                "cohen_kappa": np.nan_to_num(metrics.cohen_kappa_score(truth, predictions))
                if mode == "classification"
                else 0,
                "weighted_f1": metrics.f1_score(truth, predictions, average="weighted", **plain),
                "macro_f1": metrics.f1_score(truth, predictions, average="macro", **plain),
                "macro_precision": metrics.precision_score(truth, predictions, average="macro", **plain),
                "macro_recall": metrics.recall_score(truth, predictions, average="macro", **plain),
            },
            "multi_label": {
                "exact_match": metrics.accuracy_score(truth, predictions),
                "micro_f1": metrics.f1_score(truth, predictions, average="micro", **plain),
                "macro_f1": metrics.f1_score(truth, predictions, average="macro", **plain),
                "micro_precision": metrics.precision_score(truth, predictions, average="micro", **plain),
                "micro_recall": metrics.recall_score(truth, predictions, average="micro", **plain),
            },
        }[mode]
    scores = {name: METRICS[mode][name].function(truth, predictions) for name in expected}
    assert scores == pytest.approx(expected)
    assert set(metric_names(mode)) - set(expected) <= {"f1", "mcc"}  # which have formulas above


@pytest.mark.parametrize("mode", METRICS)
def test_undefined_metrics_are_0_without_a_warning(mode: OutputMode) -> None:
    shape = (4, 2) if mode == "multi_label" else (4,)
    truth = np.zeros(shape, dtype=np.int64)
    undefined = {"f1", "mcc", "cohen_kappa", "micro_f1", "micro_precision", "micro_recall", "r2", "pearson"}
    for name in METRICS[mode].keys() & (undefined | ({"macro_f1"} if mode == "multi_label" else set())):
        assert METRICS[mode][name].function(truth, truth) == 0.0, name


def test_errors_of_regression_are_negative_and_in_their_own_unit() -> None:
    names = ("neg_mean_absolute_error", "neg_root_mean_squared_error", "r2")
    task = replace(TASKS["STS-B"], metrics=names)
    truth, answers = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 3.0, 0.0])
    metrics = compute_metrics(task, scores(answers), truth)
    assert metrics == pytest.approx(dict(zip(names, (-1.0, -2.0, 1 - 16 / 5), strict=True)))
    low, high = drop_interval(task, scores(answers), scores(truth), truth)
    assert 0 <= low < 1 < high  # the teacher is right, the variant off by 1 on average


def test_thousands_of_labels_take_little_memory() -> None:
    rng, count = np.random.default_rng(0), 2000
    truth = rng.integers(count, size=count)
    teachers = np.where(rng.random(count) < 0.8, truth, rng.integers(count, size=count))
    variants = np.where(rng.random(count) < 0.8, teachers, rng.integers(count, size=count))
    tracemalloc.start()
    low, high = drop_interval_of_predictions(
        Scoring("classification", count, ("macro_f1",)), variants, teachers, truth, resamples=200
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.1 < low < high < 0.25
    # Confusion matrices would take 8 * 200 * 2000**2 bytes, 6 GB.
    assert peak < 300e6


@relaxed
@given(hnp.arrays(np.float64, (3, 7), elements=quarters))
@pytest.mark.parametrize(
    "metric",
    (METRICS["regression"] | METRICS["embedding"]).values(),
    ids=lambda metric: metric.name,
)
def test_resamples_are_scored_as_each_would_be(metric: Metric, resamples: Array) -> None:
    truth, predictions = resamples, resamples[:, ::-1]
    expected = [metric.function(*pair) for pair in zip(truth, predictions, strict=True)]
    np.testing.assert_allclose(metric.resampled(truth, predictions), expected, rtol=1e-12, atol=1e-12)


def test_the_interval_is_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    task = TASKS["SST-2"]
    variant, teacher, labels = synthetic(task, 200, seed=5)
    right = [logits.argmax(axis=1) == labels for logits in (teacher, variant)]
    differences = right[0].astype(float) - right[1]
    expected = bootstrap(
        (differences,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert drop_interval(task, variant, teacher, labels, resamples=9999) == pytest.approx(expected, abs=0.006)


def test_the_interval_covers_the_true_drop_as_often_as_it_says() -> None:
    task = TASKS["SST-2"]
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        right = rng.random((2, 300)) < [[0.9], [0.85]]
        teacher, variant = (one_hot(answers.astype(int), 2) for answers in right)
        labels = np.ones(300, dtype=np.int64)
        low, high = drop_interval(task, variant, teacher, labels, resamples=500, seed=i)
        covered += low <= 0.05 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    task = TASKS["STS-B"]
    arrays = synthetic(task, 50)
    assert drop_interval(task, *arrays, seed=4) == drop_interval(task, *arrays, seed=4)
    assert drop_interval(task, *arrays, seed=4) != drop_interval(task, *arrays, seed=5)


@pytest.mark.parametrize("task", [TASKS["CoLA"], *JUDGED], ids=lambda task: task.name)
def test_the_interval_is_fast(task: Task) -> None:
    arrays = with_truth(task, 1000)
    start = time.process_time()
    drop_interval(task, *arrays)
    # Under 1 s on an idle machine; a shared one gets twice that.
    assert time.process_time() - start < 2


# Evaluating a model


def feature(ids: list[int], label: int | float) -> Feature:
    return Feature(np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.int64), label)


def save_model(
    path: Path,
    *,
    weights: list[list[float]],
    dtype: int = TensorProto.INT64,
    inputs: int = 1,
    output: str = "logits",
) -> Path:
    """logits = (sum of the ids of a row, 1) @ weights; a second output comes first, as a trap."""
    names = ["input_ids", "attention_mask"][:inputs]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axes"], ["sums"], keepdims=1),
        helper.make_node("MatMul", ["sums", "slope"], ["product"]),
        helper.make_node("Add", ["product", "offset"], [output]),
    ]
    slope, offset = (np.array([row], dtype=np.float32) for row in weights)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, dtype, ["batch", "length"]) for name in names],
        [
            helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", len(weights[0])]),
        ],
        [
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
            numpy_helper.from_array(slope, "slope"),
            numpy_helper.from_array(offset, "offset"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def features() -> list[Feature]:
    """Rows of mixed lengths; the label is whether the sum of the ids is above 10, but for the last row."""
    rows = [[9, 9], [1], [2, 2, 2], [30], [1, 1, 1, 1, 1], [5, 6], [0, 3]]
    labels = [int(sum(ids) > 10) for ids in rows]
    labels[-1] = 1
    return [feature(ids, label) for ids, label in zip(rows, labels, strict=True)]


ABOVE_TEN = [[0.0, 1.0], [10.0, 0.0]]


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32], ids=["int64", "int32"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("inputs", [1, 2])
def test_a_model_is_evaluated_in_the_order_of_the_rows(
    dtype: int, batch_size: int, inputs: int, tmp_path: Path, features: list[Feature]
) -> None:
    path = save_model(tmp_path / "m.onnx", weights=ABOVE_TEN, dtype=dtype, inputs=inputs)
    steps: list[int] = []
    result = evaluate_onnx(
        path, features, TASKS["SST-2"], batch_size=batch_size, threads=1, progress=steps.append
    )
    sums = [18, 1, 6, 30, 5, 11, 3]
    assert result.logits.dtype == np.float32
    assert result.logits.tolist() == [[10.0, float(total)] for total in sums]
    assert result.predictions.tolist() == [1, 0, 0, 1, 0, 1, 0]
    assert result.truth.tolist() == [1, 0, 0, 1, 0, 1, 1]
    assert result.metrics == {"accuracy": pytest.approx(6 / 7)}
    assert result.eval_loss == mean_loss(TASKS["SST-2"], result.logits, result.truth)
    assert steps == [min(batch_size, 7 - done) for done in range(0, 7, batch_size)]


def test_a_regression_is_evaluated(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", weights=[[0.5], [0.0]], output="score")
    rows = [feature([i], float(i)) for i in (4, 1, 3)]
    with pytest.raises(InputError, match="its outputs are sums, score; a classifier gives logits of"):
        evaluate_onnx(path, rows, TASKS["BBC-News"], threads=1)
    named = save_model(tmp_path / "named.onnx", weights=[[0.5], [0.0]])
    result = evaluate_onnx(named, rows, TASKS["STS-B"], threads=1)
    assert result.predictions.tolist() == [2.0, 0.5, 1.5]
    assert result.truth.dtype == np.float32
    assert result.metrics == {"pearson": pytest.approx(1.0), "spearman": pytest.approx(1.0)}
    assert result.eval_loss == pytest.approx((4 + 0.25 + 2.25) / 3)


def refusal(path: Path, rows: list[Feature], name: str = "SST-2", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        evaluate_onnx(path, rows, TASKS[name], threads=1, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_a_model_with_another_number_of_labels(tmp_path: Path, features: list[Feature]) -> None:
    path = save_model(tmp_path / "m.onnx", weights=[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert refusal(path, features) == f"{path}: logits of shape (7, 3) for 7 rows; SST-2 needs (7, 2)"


def test_a_model_whose_logits_are_not_finite(tmp_path: Path, features: list[Feature]) -> None:
    path = save_model(tmp_path / "m.onnx", weights=[[0.0, 1e38], [0.0, 0.0]])
    assert refusal(path, features) == f"{path}: the logits of row 0 are not finite: [0.0, inf]"


def test_a_model_with_an_unknown_input(tmp_path: Path, features: list[Feature]) -> None:
    path = save_model(tmp_path / "m.onnx", weights=ABOVE_TEN)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("pixels", TensorProto.INT64, ["batch", "length"]))
    onnx.save(model, path)
    text = refusal(path, features)
    assert text.startswith(f"{path}: ")
    assert "pixels" in text


def test_a_model_that_cannot_take_the_rows(tmp_path: Path, features: list[Feature]) -> None:
    path = save_model(tmp_path / "m.onnx", weights=ABOVE_TEN)
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 128
    onnx.save(model, path)
    assert refusal(path, features).startswith(f"{path}: cannot be run on (7, 5): ")


def test_a_corrupt_model(tmp_path: Path, features: list[Feature]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    assert str(path) in refusal(path, features)


def test_no_rows_and_no_batch(tmp_path: Path, features: list[Feature]) -> None:
    path = save_model(tmp_path / "m.onnx", weights=ABOVE_TEN)
    assert "no rows to evaluate" in refusal(path, [])
    assert refusal(path, features, batch_size=0) == "batch size 0 is out of range; it must be at least 1"


def test_an_evaluation_whose_arrays_do_not_fit_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        Evaluation(np.zeros((2, 2)), np.zeros(2), np.zeros(3), {}, 0.0)
    with pytest.raises(ValueError, match="do not fit together"):
        Evaluation(np.zeros((2, 2)), np.zeros(3), np.zeros(2), {}, 0.0)
