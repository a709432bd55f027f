"""Is a student worth distilling? Distilled, and fine-tuned alone from the same start, against its teacher.

    python bench/distillation.py --teacher DIR                                  # the embedded BBC News
    python bench/distillation.py --task CoLA --data-dir DIR --teacher DIR --seeds 42,43,44

Both students of a seed start from the same weights and see the same rows; the same held-out rows decide
which epoch's weights are kept. The one fine-tuned alone has epochs and a learning rate of its own. The
distilled one can also read what truncation cut off of its rows, for which there is no label (`--windows`),
and the rows that `--augment` makes. Scores are on the evaluation rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from quantlib.cli.app import new_app, run_app
from quantlib.data import features, tasks
from quantlib.data.scores import agreement, compute_metrics
from quantlib.experiment.pruned_start import pruning_rows, write_pruned_start
from quantlib.machine.sessions import default_threads
from quantlib.support.console import plain_table
from quantlib.support.errors import InputError
from quantlib.support.files import make_dir, sha256_tree, write_json
from quantlib.support.progress import Steps
from quantlib.training import checkpoints
from quantlib.training.student import (
    AugmentationOptions,
    DistillationOptions,
    PhaseOptions,
    StudentConfig,
    distil,
    parse_student_config,
)
from quantlib.training.student.device import prepare
from quantlib.training.student.phases import Phase
from quantlib.training.student.report import Report
from quantlib.training.student.run import hold_out, run_phases
from quantlib.training.student.students import make_student
from quantlib.training.student.trainee import Trainee, metric_score
from quantlib.training.teacher import predict_logits, save_classifier, task_loss

if TYPE_CHECKING:
    from rich.table import Table

TEACHER, DISTILLED, FINE_TUNED = "teacher", "distilled", "fine-tuned"
KINDS = (DISTILLED, FINE_TUNED)
# More epochs than distilling takes by default, and a rate that suits them.
ALONE = PhaseOptions(3, 2e-4)


@dataclass(frozen=True)
class Result:
    """One model on the evaluation rows: metrics as fractions, the share of the teacher's labels, seconds."""

    kind: str
    seed: int | None
    metrics: dict[str, float]
    agreement: float
    train_s: float


def fine_tune_alone(
    teacher_dir: Path,
    task: tasks.Task,
    rows: Sequence[features.Feature],
    out_dir: Path,
    options: DistillationOptions,
    progress: Callable[[int, int, str], None],
    *,
    student: StudentConfig,
    logit_order: Sequence[int] | None = None,
    training: PhaseOptions,
) -> None:
    """Train the student that `distil` starts from on the labels instead, as `training` says."""
    import torch

    device = prepare(options)
    teacher = checkpoints.load_classifier(teacher_dir)
    if logit_order is not None:
        checkpoints.reorder_logits(teacher, logit_order)
    model = make_student(teacher, student, options.seed, options.mapping).to(device)
    trainee = Trainee(model, task, rows, *hold_out(len(rows), options), options, len(rows))
    loss = task_loss(task)
    label_array = features.labels_array(rows, task)
    assert label_array is not None, f"{task.name} has labels"
    labels = torch.from_numpy(label_array)

    def on_labels(index: Any, feed: Any) -> Any:
        return loss(trainee.run(feed), labels[torch.from_numpy(index)].to(device))

    phase = Phase(
        "label",
        training,
        torch.nn.ModuleDict({"student": model}),
        on_labels,
        metric_score(trainee, on_labels),
    )
    run_phases([phase], trainee, Report(progress, task.primary_metric), None, "")
    save_classifier(model.cpu(), teacher_dir, out_dir, task)


def compare(
    teacher_dir: Path,
    task: tasks.Task,
    splits: tasks.Splits,
    seq_len: int,
    seeds: Sequence[int],
    student: StudentConfig,
    options: DistillationOptions,
    alone: PhaseOptions,
    steps: Steps,
) -> list[Result]:
    """The teacher's result, then that of both students of each seed."""
    order = checkpoints.check_for_task(teacher_dir, task)
    tokenizer = features.load_tokenizer(teacher_dir)
    rows, judged = (
        features.convert_examples_to_features(part, task.labels, seq_len, tokenizer, task.output_mode)
        for part in (splits.train, splits.evaluation)
    )
    further = features.further_windows(splits.train, rows, seq_len, tokenizer)
    trainings: dict[str, Callable[..., object]] = {
        DISTILLED: partial(distil, further=further),
        FINE_TUNED: partial(fine_tune_alone, training=alone),
    }
    labels = features.labels_array(judged, task)
    assert labels is not None, f"{task.name} has labels"
    with steps.step("evaluate the teacher"):
        model = checkpoints.load_classifier(teacher_dir)
        checkpoints.reorder_logits(model, order)
        teacher_logits = predict_logits(model, judged).numpy()
    results = [Result(TEACHER, None, compute_metrics(task, teacher_logits, labels), 1.0, 0.0)]
    for seed in seeds:
        for kind, train in trainings.items():
            with tempfile.TemporaryDirectory() as scratch, steps.step(f"{kind}, seed {seed}") as step:
                out, started = Path(scratch) / "student", time.perf_counter()
                start = first_weights(teacher_dir, task, rows, Path(scratch), student, seed, options, order)
                train(
                    teacher_dir,
                    task,
                    rows,
                    out,
                    replace(options, seed=seed),
                    step.reached,
                    student=start,
                    logit_order=order,
                )
                seconds = time.perf_counter() - started
                logits = predict_logits(checkpoints.load_classifier(out), judged).numpy()
            metrics = compute_metrics(task, logits, labels)
            results.append(Result(kind, seed, metrics, agreement(task, logits, teacher_logits), seconds))
    return results


def first_weights(
    teacher_dir: Path,
    task: tasks.Task,
    rows: Sequence[features.Feature],
    directory: Path,
    student: StudentConfig,
    seed: int,
    options: DistillationOptions,
    order: Sequence[int],
) -> StudentConfig:
    """The student with the start of one by pruning, which is written to `directory`, as its init."""
    if student.prune is None:
        return student
    start = directory / "start"
    chosen = pruning_rows(rows, seed)
    threads = options.threads
    write_pruned_start(
        teacher_dir, task, chosen, start, student, seed=seed, threads=threads, logit_order=order
    )
    return replace(student.for_teacher(checkpoints.read_config(teacher_dir)), init=str(start))


def as_table(task: tasks.Task, results: Sequence[Result]) -> Table:
    """Each model, then the mean and standard deviation of each kind."""
    primary, teacher = task.primary_metric, results[0].metrics[task.primary_metric]
    table = plain_table()
    for name in ("model", "seed", primary, "teacher's %", "agree %", "training s"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for result in results:
        value = result.metrics[primary]
        seed = "" if result.seed is None else str(result.seed)
        table.add_row(
            result.kind,
            seed,
            f"{value:.4f}",
            f"{100 * value / teacher:.1f}" if teacher else "",
            f"{100 * result.agreement:.1f}",
            f"{result.train_s:.0f}" if seed else "",
        )
    for kind in KINDS:
        values = [result.metrics[primary] for result in results if result.kind == kind]
        if len(values) > 1:
            share = f"{100 * mean(values) / teacher:.1f}" if teacher else ""
            table.add_row(kind, "mean", f"{mean(values):.4f} ± {stdev(values):.4f}", share, "", "")
    return table


# The command

app = new_app()
_DEFAULTS = DistillationOptions()


@app.command()
def main(
    teacher: Annotated[str, Option(help="Fine-tuned BERT checkpoint, DIR or HUB_ID.")],
    task: Annotated[str, Option(help=f"One of {', '.join(tasks.TASKS)}.")] = "BBC-News",
    data_dir: Annotated[Path | None, Option(help="Directory with the task's GLUE files.")] = None,
    seeds: Annotated[str, Option(help="Comma-separated seeds.")] = "42,43,44",
    student_config: Annotated[str, Option(help="As the command's.")] = "half",
    train_rows: Annotated[int | None, Option(help="Train on the first N rows only.")] = None,
    seq_len: Annotated[int, Option(help="Longest sequence in tokens.")] = 128,
    transformer_epochs: Annotated[
        int, Option(help="Epochs of transformer distillation.", min=0)
    ] = _DEFAULTS.transformer.epochs,
    transformer_rate: Annotated[
        float, Option(help="Its learning rate.")
    ] = _DEFAULTS.transformer.learning_rate,
    prediction_epochs: Annotated[
        int, Option(help="Epochs of prediction-layer distillation.", min=1)
    ] = _DEFAULTS.prediction.epochs,
    prediction_rate: Annotated[float, Option(help="Its learning rate.")] = _DEFAULTS.prediction.learning_rate,
    alone_epochs: Annotated[int, Option(help="Epochs of fine-tuning alone.", min=1)] = ALONE.epochs,
    alone_rate: Annotated[float, Option(help="Its learning rate.")] = ALONE.learning_rate,
    temperature: Annotated[float, Option(help="Of the soft cross-entropy.")] = _DEFAULTS.temperature,
    label_weight: Annotated[
        float, Option(help="The part of the labels in the prediction-layer loss.")
    ] = _DEFAULTS.label_weight,
    windows: Annotated[
        int, Option(help="Windows of what was cut off of a row that are learned from too.", min=0)
    ] = _DEFAULTS.windows,
    augment: Annotated[
        int, Option(help="Copies of each row, words replaced, that are learned from too.", min=0)
    ] = _DEFAULTS.augmentation.copies,
    json_file: Annotated[Path | None, Option("--json", help="Write the results to this file too.")] = None,
) -> None:
    """Compare a distilled student with the same one fine-tuned alone, over seeds."""
    from rich.console import Console

    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise InputError(f"--seeds {seeds}: whole numbers, as 42,43,44")
    the_task, config = tasks.get_task(task), parse_student_config(student_config)
    place = checkpoints.resolve(teacher, TEACHER)
    if json_file is not None:
        make_dir(json_file.parent)
    options = DistillationOptions(
        transformer=PhaseOptions(transformer_epochs, transformer_rate),
        prediction=PhaseOptions(prediction_epochs, prediction_rate),
        temperature=temperature,
        label_weight=label_weight,
        windows=windows,
        augmentation=AugmentationOptions(copies=augment),
        threads=default_threads(),
    )
    alone = PhaseOptions(alone_epochs, alone_rate)
    splits = tasks.read_splits(the_task, data_dir, train_rows=train_rows)
    out = Console()
    numbers = [int(seed) for seed in seeds.split(",")]
    results = compare(place, the_task, splits, seq_len, numbers, config, options, alone, Steps(out))
    if json_file is not None:
        results_json = {
            "task": the_task.name,
            "train_rows": len(splits.train),
            "evaluation_rows": len(splits.evaluation),
            "seq_len": seq_len,
            "teacher_sha256": sha256_tree(place),
            "student": asdict(config.for_teacher(checkpoints.read_config(place))) | {"prune": config.prune},
            "options": asdict(options),
            "alone": asdict(alone),
            "results": [asdict(result) for result in results],
        }
        write_json(json_file, results_json)
    out.print(as_table(the_task, results))


def cli(arguments: list[str] | None = None) -> int:
    """Run the command; what the user got wrong is one line on stderr and exit code 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(cli())
