"""Runs that never ran: directories of results as `quantlib run` leaves them, for tests of their page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from quantlib.data.metrics import Array
from quantlib.data.scores import agreement, compute_metrics, mean_loss, predictions_of
from quantlib.data.tasks import Example, Task
from quantlib.machine import hardware
from quantlib.measuring.accuracy import Evaluation
from quantlib.measuring.checks import Checks, Invariance, Saturation
from quantlib.measuring.latency import LatencyStats
from quantlib.measuring.latency.paired import PairedRatio
from quantlib.measuring.latency.speedup import EQUAL, Speedup
from quantlib.measuring.throughput import Throughput
from quantlib.onnx_model.coverage import KEPT, Coverage, NotQuantized
from quantlib.report.changes import changes_of, write_changes
from quantlib.report.columns import VariantResult
from quantlib.report.results import write_results, write_run
from quantlib.support.files import sha256_json
from quantlib.sweep.table import SCHEMA_VERSION, Row, SweepTable

LABELS = ("business", "politics", "sport")
NEWS = Task("news", "classification", LABELS, ("accuracy",))
TOPICS = Task("topics", "multi_label", LABELS, ("micro_f1",))
STARS = Task("stars", "regression", (), ("pearson",), score_range=(0.0, 5.0))
UNLABELLED = Task("texts", "classification", LABELS, ("agreement",), labelled=False)
PAIRS = Task("pairs", "embedding", (), ("spearman",), score_range=(0.0, 5.0), width=4)
EMBEDDED = Task("embedded", "embedding", (), ("mean_cosine",), labelled=False, width=4)
TASKS = (NEWS, TOPICS, STARS, UNLABELLED, PAIRS, EMBEDDED)
VARIANTS = ("teacher_compiled", "quant_1", "prune50_static_u8s8_disk4", "student", "student_quant_1")


def examples(task: Task, count: int, texts: Sequence[str] = ()) -> list[Example]:
    """Rows with labels that are right for what `write_run` makes of them: see `truth`."""
    words = texts or ("the book was great", "a dull and empty film", "the city in summer")
    rows = []
    for number in range(2 * count if task.output_mode == "embedding" and task.labelled else count):
        label: Any = None
        if task.labelled:
            label = {
                "classification": LABELS[number % 3],
                "multi_label": LABELS[: number % 3],
                "regression": float(number % 6),
                "embedding": float(number // 2 % 6),
            }[task.output_mode]
            label = task.labels[number % 3] if task.output_mode == "classification" else label
        rows.append(Example(f"dev-{number + 1}", words[number % len(words)], None, label))
    return rows


def truth(task: Task, rows: Sequence[Example], predictions: Array) -> Array:
    if not task.labelled:
        return predictions
    if task.output_mode == "classification":
        return np.array([task.labels.index(str(row.label)) for row in rows])
    if task.output_mode == "multi_label":
        sets = [row.label if isinstance(row.label, tuple) else () for row in rows]
        return np.array([[label in each for label in task.labels] for each in sets], dtype=np.int8)
    step = 2 if task.output_mode == "embedding" else 1
    return np.array([row.label for row in rows[::step]], dtype=np.float32)


def evaluation(task: Task, rows: Sequence[Example], logits: Array, teacher: Array) -> Evaluation:
    predictions = predictions_of(task, logits, teacher)
    right = truth(task, rows, predictions_of(task, teacher, teacher))
    with_loss = task.labelled and task.output_mode != "embedding"
    return Evaluation(
        logits,
        predictions,
        right,
        compute_metrics(task, logits, right, teacher),
        mean_loss(task, logits, right) if with_loss else None,
    )


def logits_of(task: Task, rows: Sequence[Example], rng: np.random.Generator) -> Array:
    """A teacher's: right most of the time."""
    noise: Array = rng.normal(size=(len(rows), task.num_labels)).astype(np.float32)
    if not task.labelled or task.output_mode == "embedding":
        return noise
    right = truth(task, rows, np.zeros(0)).astype(np.float32)
    if task.output_mode == "regression":
        noisy: Array = right[:, None] + 0.5 * noise
        return noisy
    if task.output_mode == "classification":
        noise += 3 * np.eye(len(task.labels), dtype=np.float32)[right.astype(int)]
        return noise
    of_sets: Array = noise + 4 * right - 2
    return of_sets


def results_of(
    task: Task, rows: Sequence[Example], variants: Sequence[str] = VARIANTS, seed: int = 0
) -> list[VariantResult]:
    """Results of a teacher and of variants: the further back, the faster and the further from the teacher."""
    rng = np.random.default_rng(seed)
    of_teacher = logits_of(task, rows, rng)
    results: list[VariantResult] = []
    for number, name in enumerate(("teacher", *variants)):
        change = 0.12 * number * rng.normal(size=of_teacher.shape).astype(np.float32)
        logits = of_teacher + (change if number > 1 else 0)
        evaluated = evaluation(task, rows, logits, of_teacher)
        ratio = 1.0 + 0.4 * number
        wide = number % 4 == 3
        paired = Speedup(
            ratio, ratio * (0.8 if wide else 0.98), ratio * 1.02, others=0.2 * wide, doubtful=wide
        )
        result = VariantResult(
            name,
            metrics=evaluated.metrics,
            eval_loss=evaluated.eval_loss,
            size_bytes=90_000_000 // (1 + number),
            latency=LatencyStats((19.0 / ratio, 20.0 / ratio, 21.0 / ratio), warmup_runs=5),
            throughput=Throughput(
                rows=160, tokens=4000, batches=8, passes=3, seconds=2 / ratio, padded_rows_per_s=8 * ratio
            ),
            agreement=agreement(task, logits, of_teacher),
            teacher=results[0] if results else None,
            recipe=None if number < 2 else f"recipe {name}",
            task=task,
            evaluation=evaluated,
            on_front=number not in (1, 2),
            beaten_by="quant_1" if number == 1 and "quant_1" in variants else None,
            checks=checks_of(number),
            paired=paired if number else EQUAL,
            throughput_ratio=PairedRatio(ratio, ratio * 0.97, ratio * 1.03, turns=6, confidence=0.95),
        )
        results.append(result)
    return results


def checks_of(number: int) -> Checks:
    invariance = Invariance(32, 0.0, 1e-6 * number, 0)
    if number < 2:
        return Checks((Saturation(True, why_not="no products of integers"), invariance))
    kept = (NotQuantized("pooler", KEPT),) if number == 3 else ()
    return Checks((Saturation(False, 64, 0.25, 1), invariance, Coverage(38, kept)))


def run_json(results: Sequence[VariantResult], **changes: Any) -> dict[str, Any]:
    """What run.json would say of them."""
    machine = replace(hardware.describe(), cpu_model="A CPU of a test")
    return {
        "arguments": {
            "task": "news",
            "batch_size": 1,
            "seq_len": 128,
            "max_drop_points": 1.0,
            "min_speedup": None,
        },
        "command": "quantlib run --max-drop-points 1.0",
        "packages": {"onnxruntime": "1.32.0", "torch": None},
        "python": "3.11.2",
        "hardware": asdict(machine),
        "int8": hardware.int8_note(machine),
        "threads": 2,
        "seeds": {"training": 42, "split": 20191206},
        "sha256": {"data": "d" * 64, "teacher": "e" * 64, "models": {r.name: "f" * 64 for r in results}},
        "recipes": {r.name: {"prune": 0.5 if "prune" in r.name else 0.0} for r in results if r.recipe},
        "durations_s": {"read rows": 0.25, "export teacher": 12.5},
        "cached": ["export teacher"],
        "checks": {
            r.name: {c.name: asdict(found) for c, found in r.checks if found is not None and c.in_run_json}
            for r in results
            if r.checks is not None
        },
        "not_quantized": {},
        "choices": [
            {"wish": "fastest within half a point", "variant": results[-1].name, "why": "it is"},
            {"wish": "smallest within half a point", "variant": results[-1].name, "why": "it is"},
            {"wish": "within your limits", "variant": results[2].name, "why": "it is"},
        ],
        "notes": {results[3].name: "1.00x and 2.00x: this machine had two states"}
        if len(results) > 3
        else {},
        **changes,
    }


def write_task(
    directory: Path,
    task: Task = NEWS,
    *,
    variants: Sequence[str] = VARIANTS,
    rows: int = 60,
    texts: Sequence[str] = (),
    most_rows: int = 20,
    **run: Any,
) -> list[VariantResult]:
    """The files of a run of a task; run: what run.json says otherwise."""
    directory.mkdir(parents=True)
    given = examples(task, rows, texts)
    results = results_of(task, given, variants)
    write_results(directory, results)
    write_changes(directory, changes_of(results, given, most_rows))
    write_run(directory, run_json(results, **run))
    return results


# Sweeps

_HERE = {"cpu": "A CPU of a test", "instruction_sets": ["avx2"], "python": "3.12.0", "threads": 1}


def sweep_row(
    task: str,
    teacher: str,
    variant: str,
    score: float,
    ms: float | None,
    speedup: float | None,
    student: str | None = None,
) -> Row:
    """A row of a sweep; without times there is no machine."""
    values: dict[str, Any] = {
        "accuracy": score,
        "eval_loss": 0.4,
        "model_size": 80.0 if variant == "teacher" else 20.0,
        "accuracy_drop": 0.9 - score,
        "agreement": 0.99,
        "drop_low": 0.9 - score - 0.01,
        "drop_high": 0.9 - score + 0.01,
    }
    if ms is not None and speedup is not None:
        ends = (1.0, 1.0) if variant == "teacher" else (0.95 * speedup, 1.05 * speedup)
        values |= {"median_ms": ms, "speedup": speedup, "speedup_low": ends[0], "speedup_high": ends[1]}
        values["trusted"] = variant != "quant_2"
    name = " / ".join(part for part in (task, teacher, student, variant) if part)
    provenance = {
        "key": sha256_json(["key", name]),
        "model_sha256": sha256_json(["model", name]),
        "inputs": {"teacher": "1" * 64},
        "checkpoints": {"teacher": "2" * 64},
        "made_on": _HERE | {"host": "host-1"},
        "seconds": 1.5,
        "cached": ["export teacher"],
    }
    provenance |= {} if ms is None else {"timed_on": _HERE | {"host": "host-2"}, "timed_key": "3" * 64}
    return Row(task, teacher, student, variant, None if ms is None else "host-2", None, values, provenance)


def sweep_table() -> SweepTable:
    """A sweep of two tasks, one of them with two checkpoints and a student; two cells failed."""
    rows = [
        sweep_row("news", "a", "teacher", 0.90, 20.0, 1.0),
        sweep_row("news", "a", "quant_1", 0.89, 10.0, 2.0),
        sweep_row("news", "a", "quant_2", 0.90, 3.0, 4.0),
        sweep_row("news", "a", "student_quant_2", 0.88, 2.4, 8.0, student="half"),
        sweep_row("news", "b", "teacher", 0.85, 10.0, 1.0),
        sweep_row("stars", "a", "teacher", 0.90, 20.0, 1.0),
        sweep_row("stars", "a", "quant_1", 0.91, 10.0, 2.0),
    ]
    trace = {"trace": "Traceback of a test", "inputs": {}}
    rows += [
        Row("news", "b", None, name, "host-2", "ValueError: of two cells", provenance=trace)
        for name in ("quant_1", "quant_2")
    ]
    code = {"quantlib": "f" * 64, "packages": {"onnxruntime": "1.32.0", "nncf": None}}
    provenance = {
        "file": "somewhere/sweep.toml",
        "file_sha256": "4" * 64,
        "shard": "1/1",
        "code": code,
        "started_on": _HERE | {"host": "host-1"},
        "arguments": {"jobs": 2, "machines": ["host-2"], "scheduler": None},
    }
    return SweepTable(SCHEMA_VERSION, provenance, tuple(row.cell for row in rows), tuple(rows))
