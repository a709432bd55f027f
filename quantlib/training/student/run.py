"""Distil a student."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.data.features import Feature, features_hash
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json, sha256_tree
from quantlib.training.checkpoints import load_classifier, reorder_logits
from quantlib.training.student.augmentation import augmented
from quantlib.training.student.device import prepare
from quantlib.training.student.mapping import layer_mapping
from quantlib.training.student.options import DistillationOptions
from quantlib.training.student.phases import Phase, run_phase
from quantlib.training.student.precision import bfloat16_pays
from quantlib.training.student.report import Progress, Report
from quantlib.training.student.saved import DamagedError, TrainingState, load_state, save_state
from quantlib.training.student.students import StudentConfig, make_student
from quantlib.training.student.targets import Teacher, teacher_targets
from quantlib.training.student.trainee import Trainee, distillation_phases
from quantlib.training.student.vocabulary import only_tokens_of
from quantlib.training.teacher import save_classifier

if TYPE_CHECKING:
    import torch

    from quantlib.data.tasks import Task
    from quantlib.support.cache import Cache

STATE_FILE = "training.pt"
CHECKPOINT_VERSION = 4  # 4: behind the SHA-256 of its bytes
MAX_HELD_OUT = 1000


def distil(
    teacher_dir: Path,
    task: Task,
    features: Sequence[Feature],
    out_dir: Path,
    options: DistillationOptions,
    progress: Progress | None = None,
    *,
    student: StudentConfig | None = None,
    further: Sequence[Sequence[Feature]] = (),
    logit_order: Sequence[int] | None = None,
    work_dir: Path | None = None,
    cache: Cache | None = None,
) -> None:
    """Train a student on what a teacher computes, as TinyBERT (Jiao et al. 2020); save it to `out_dir`.

    First its hidden states and attention scores learn from the teacher's, then its logits. Some of the rows
    are held out: they decide which epoch's weights are kept. All random draws come from the seed.

    Args:
        teacher_dir: a fine-tuned BERT classifier.
        task: what it was fine-tuned on.
        features: the rows to train on, tokenized for the teacher; at least one.
        out_dir: where the student is saved, with the teacher's tokenizer.
        options: see `DistillationOptions`.
        progress: called after each step.
        student: its shape and start; by default half of the teacher's layers.
        further: for each row, windows of the text that was cut off (`features.further_windows`), for which
            the teacher gives the targets. Empty if nothing was cut off.
        logit_order: the teacher's logit index of each of the task's labels, where the order differs.
        work_dir: where the teacher's states and checkpoints of the training are kept until it is finished;
            an interrupted training continues from there, to the same weights. None puts the states beside
            `out_dir` and keeps no checkpoints.
        cache: where augmented rows are kept; None keeps none.

    Raises:
        InputError: the teacher is no BERT, the student cannot be made from it, there are no rows, or training
            diverges.
    """
    if not features:
        raise InputError("no rows to train on: the train split is empty")
    device = prepare(options)
    teacher_model = load_classifier(teacher_dir)
    if logit_order is not None:
        reorder_logits(teacher_model, logit_order)
    student_model = make_student(teacher_model, student or StudentConfig(), options.seed, options.mapping)
    depths = student_model.config.num_hidden_layers, teacher_model.config.num_hidden_layers
    layers = layer_mapping(*depths, options.mapping) if options.transformer.epochs else ()
    rows, held_out = hold_out(len(features), options)
    labelled = features
    features, rows = with_extra_rows(features, rows, further, teacher_dir, options, cache)
    teacher = Teacher(teacher_model.to(device), layers, device, options.precision)
    report = Report(progress or (lambda *_: None), task.primary_metric)
    with teacher_targets(teacher, features, options, work_dir or out_dir.parent, report.teacher) as targets:
        trainee = Trainee(student_model.to(device), task, features, rows, held_out, options, len(labelled))
        phases = distillation_phases(trainee, teacher_model.config.hidden_size, targets)
        # Everything that decides the weights: only the same training continues from a checkpoint.
        job = {
            "checkpoint": CHECKPOINT_VERSION,
            "teacher": sha256_tree(teacher_dir),
            "task": task.name,
            "scoring": asdict(task.scoring),
            "rows": features_hash(labelled),
            "further": [features_hash(windows) for windows in further],
            "labels": [row.label for row in labelled],
            "options": asdict(options),
            "bfloat16": options.precision == "auto" and bfloat16_pays(device.type),
            "student": asdict(student or StudentConfig()),
            "order": logit_order,
        }
        state_file = work_dir and work_dir / STATE_FILE
        run_phases(phases, trainee, report, state_file, sha256_json(job), targets.logits)
    save_classifier(student_model.cpu(), teacher_dir, out_dir, task)
    if work_dir is not None:
        (work_dir / STATE_FILE).unlink(missing_ok=True)


def with_extra_rows(
    features: Sequence[Feature],
    rows: Sequence[int],
    further: Sequence[Sequence[Feature]],
    checkpoint: Path,
    options: DistillationOptions,
    cache: Cache | None,
) -> tuple[list[Feature], list[int]]:
    """All features followed by windows and augmented copies of `rows`, and the indices to train on."""
    extra = [window for row in rows if further for window in further[row][: options.windows]]
    originals = [features[row] for row in rows]
    extra += augmented(originals, checkpoint, options.augmentation, options.seed, cache)
    return [*features, *extra], [*rows, *range(len(features), len(features) + len(extra))]


def hold_out(count: int, options: DistillationOptions) -> tuple[list[int], list[int]]:
    """The indices of `count` rows to train on, and of those to hold out; the same for the same seed."""
    order = list(range(count))
    random.Random(f"{options.seed} held out").shuffle(order)
    size = min(round(count * options.held_out), MAX_HELD_OUT, count - 1)
    return sorted(order[size:]), sorted(order[:size])


def run_phases(
    phases: Sequence[Phase],
    trainee: Trainee,
    report: Report,
    state_file: Path | None,
    job: str,
    teacher_logits: torch.Tensor | None = None,
) -> None:
    """Train all phases in order, continuing from the checkpoint at `state_file` if there is one.

    teacher_logits: `Targets.logits`, if there is a teacher; a checkpoint holds those that are known.
    """
    import torch

    options, rows = trainee.options, trainee.rows
    if options.dropout is not None:
        for module in trainee.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = options.dropout
    per_epoch = -(-len(rows) // options.batch_size)
    report.plan([phase.options.epochs * per_epoch for phase in phases])

    def save(state: TrainingState) -> None:
        if state_file is not None:
            state.teacher_logits = teacher_logits
            save_state(state_file, job, state)

    state = TrainingState()
    try:
        state = (state_file and load_state(state_file, job)) or state
    except DamagedError as error:
        report.remark = f"trained from the start, since {error} is damaged"
    if teacher_logits is not None and state.teacher_logits is not None:
        teacher_logits.copy_(state.teacher_logits)
    with only_tokens_of(trainee.student, trainee.features):
        for number, phase in enumerate(phases):
            if number == state.phase:
                state = run_phase(phase, trainee.features, rows, options, state, save, report.training)
                if number + 1 < len(phases):
                    state = state.next_phase()
    report.finish(state)
