"""Distil a student: the straight line through this package."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.accuracy import compute_metrics
from quantlib.checkpoints import load_classifier, reorder_logits
from quantlib.distillation.augmentation import augmented
from quantlib.distillation.device import autocast, bfloat16_pays, feed_of, prepare
from quantlib.distillation.losses import (
    NO_LABEL,
    States,
    mixed_cross_entropy,
    score_loss,
    soft_cross_entropy,
    transformer_loss,
)
from quantlib.distillation.mapping import layer_mapping
from quantlib.distillation.options import DistillationOptions
from quantlib.distillation.phases import Phase, run_phase
from quantlib.distillation.saved import Score, Standing, load_standing, save_standing
from quantlib.distillation.states import run_with_states
from quantlib.distillation.students import StudentConfig, make_student
from quantlib.distillation.targets import Targets, Teacher, teacher_targets
from quantlib.distillation.vocabulary import only_words_of
from quantlib.errors import InputError
from quantlib.features import Feature, features_hash, labels_array
from quantlib.files import sha256_json, sha256_tree
from quantlib.training import save_classifier

if TYPE_CHECKING:
    import torch

    from quantlib.distillation.phases import Index
    from quantlib.tasks import Task

    Loss = Callable[[Index, dict[str, torch.Tensor]], torch.Tensor]

Progress = Callable[[int, int, str], None]
"""Called with (batches done, batches in all, what to tell): the teacher's batches first, then steps."""

STATE_FILE = "training.pt"
CHECKPOINT_VERSION = 2  # 2: of the words only those that occur
MAX_HELD_OUT = 1000
_ROWS_AT_ONCE = 32


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
    cache_dir: Path | None = None,
) -> None:
    """Train a student on what a teacher computes, as TinyBERT (Jiao et al. 2020); save it to `out_dir`.

    First its hidden states and attention scores learn from the teacher's, then its logits. Some of the rows
    are held out: they decide which epoch's weights are kept. What is drawn comes from the seed.

    Args:
        teacher_dir: a fine-tuned BERT classifier.
        task: what it was fine-tuned on.
        features: the rows to train on, tokenized for the teacher; at least one.
        out_dir: where the student goes, with the teacher's tokenizer.
        options: see `DistillationOptions`.
        progress: called after each step.
        student: its shape and start; by default half of the teacher's layers.
        further: for each row, what follows where it was cut off (`features.further_windows`): the teacher
            needs no label to say what it thinks of that. Empty: nothing follows anywhere.
        logit_order: the teacher's logit index of each of the task's labels, where the order differs.
        work_dir: where the teacher's states and checkpoints of the training lie until it is finished; one
            that was interrupted goes on from there, to the same weights. None: beside `out_dir`, and nothing
            is kept of a training that is interrupted.
        cache_dir: where augmented rows are kept; None: nowhere.

    Raises:
        InputError: the teacher is no BERT, the student cannot be made from it, there are no rows, or training
            diverges.
    """
    if not features:
        raise InputError("no rows to train on: the train split is empty")
    device = prepare(options)
    teacher = load_classifier(teacher_dir)
    if logit_order is not None:
        reorder_logits(teacher, logit_order)
    pupil = make_student(teacher, student or StudentConfig(), options.seed, options.mapping)
    depths = pupil.config.num_hidden_layers, teacher.config.num_hidden_layers
    layers = layer_mapping(*depths, options.mapping) if options.transformer.epochs else ()
    rows, held = hold_out(len(features), options)
    kept = features
    features, rows = with_more(features, rows, further, teacher_dir, options, cache_dir)
    source = Teacher(teacher.to(device), layers, device, options.precision)
    report = Report(progress or (lambda *_: None), task.primary_metric)
    with teacher_targets(source, features, options, work_dir or out_dir.parent, report.teacher) as targets:
        trainee = Trainee(pupil.to(device), task, features, rows, held, options, len(kept))
        phases = distillation_phases(trainee, teacher.config.hidden_size, targets)
        # All that decides the weights: only the same training goes on from a checkpoint.
        job = {
            "checkpoint": CHECKPOINT_VERSION,
            "teacher": sha256_tree(teacher_dir),
            "task": task.name,
            "rows": features_hash(kept),
            "further": [features_hash(windows) for windows in further],
            "labels": labels_array(kept).tolist(),
            "options": asdict(options),
            "bfloat16": bfloat16_pays(device.type),
            "student": asdict(student or StudentConfig()),
            "order": logit_order,
        }
        run_phases(phases, trainee, report, work_dir and work_dir / STATE_FILE, sha256_json(job))
    save_classifier(pupil.cpu(), teacher_dir, out_dir, task)
    if work_dir is not None:
        (work_dir / STATE_FILE).unlink(missing_ok=True)


def with_more(
    features: Sequence[Feature],
    rows: Sequence[int],
    further: Sequence[Sequence[Feature]],
    checkpoint: Path,
    options: DistillationOptions,
    cache_dir: Path | None,
) -> tuple[list[Feature], list[int]]:
    """All features, behind them the windows and augmented copies of `rows`, and what to train on."""
    more = [window for row in rows if further for window in further[row][: options.windows]]
    own = [features[row] for row in rows]
    more += augmented(own, checkpoint, options.augmentation, options.seed, cache_dir)
    return [*features, *more], [*rows, *range(len(features), len(features) + len(more))]


def hold_out(count: int, options: DistillationOptions) -> tuple[list[int], list[int]]:
    """Which of `count` rows to train on, and which are held out; the same for the same seed."""
    order = list(range(count))
    random.Random(f"{options.seed} held out").shuffle(order)
    held = min(round(count * options.held_out), MAX_HELD_OUT, count - 1)
    return sorted(order[held:]), sorted(order[:held])


@dataclass(frozen=True)
class Trainee:
    """A student that is trained on `rows` of the features, judged on those that are held out, and how.

    labelled: the features from there on have no label of their own.
    """

    student: Any
    task: Task
    features: Sequence[Feature]
    rows: Sequence[int]
    held: Sequence[int]
    options: DistillationOptions
    labelled: int

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        device: torch.device = self.student.device
        return device

    def run(self, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        """The student's logits, float32 (rows, labels)."""
        with autocast(self.device, self.options.precision):
            logits: torch.Tensor = self.student(**feed).logits
        return logits.float()

    def run_with_states(self, feed: dict[str, torch.Tensor]) -> States:
        """The student's states of a batch, float32."""
        with autocast(self.device, self.options.precision):
            states = run_with_states(self.student, feed)[1]
        return states.float()

    def batches(self, rows: Sequence[int]) -> Iterator[tuple[Index, dict[str, torch.Tensor]]]:
        """Rows of like length together, in batches on the device."""
        order = np.array(sorted(rows, key=lambda row: len(self.features[row])), dtype=np.int64)
        for start in range(0, len(order), _ROWS_AT_ONCE):
            index = order[start : start + _ROWS_AT_ONCE]
            yield index, feed_of(self.features, index, self.device)


def distillation_phases(trainee: Trainee, teacher_width: int, targets: Targets) -> list[Phase]:
    """The two phases of TinyBERT, in order; the first one only if it has epochs."""
    import torch

    options, modules = trainee.options, torch.nn.ModuleDict({"student": trainee.student})
    width = trainee.student.config.hidden_size
    labels = torch.full((len(trainee.features),), NO_LABEL)
    if trainee.task.output_mode == "classification":
        labels[: trainee.labelled] = torch.from_numpy(labels_array(trainee.features[: trainee.labelled]))
    project = None
    if width != teacher_width:
        project = torch.nn.Linear(width, teacher_width, device=trainee.device)

    def layers(index: Index, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        wanted = targets.states(index, feed)
        return transformer_loss(trainee.run_with_states(feed), wanted, feed["attention_mask"], project)

    def logits(index: Index, feed: dict[str, torch.Tensor]) -> torch.Tensor:
        wanted = targets.logits[torch.from_numpy(index)].to(trainee.device)
        if trainee.task.output_mode == "regression":
            return score_loss(trainee.run(feed), wanted)
        if not options.label_weight:
            return soft_cross_entropy(trainee.run(feed), wanted, options.temperature)
        known = labels[torch.from_numpy(index)].to(trainee.device)
        weights = options.label_weight, options.temperature
        return mixed_cross_entropy(trainee.run(feed), wanted, known, *weights)

    both = torch.nn.ModuleDict({"student": trainee.student} | ({"projection": project} if project else {}))
    first = Phase("transformer", options.transformer, both, layers, loss_score(trainee, layers))
    second = Phase("prediction", options.prediction, modules, logits, metric_score(trainee, logits))
    return [first, second] if options.transformer.epochs else [second]


def loss_score(trainee: Trainee, loss: Loss) -> Callable[[], Score] | None:
    """Less loss on held-out rows is better."""
    return (lambda: (-_mean_loss(trainee, loss), 0.0)) if trainee.held else None


def metric_score(trainee: Trainee, loss: Loss) -> Callable[[], Score] | None:
    """More of the task's primary metric on held-out rows is better; where that is equal, less loss."""
    import torch

    held = list(trainee.held)

    def score() -> Score:
        logits = torch.empty(len(trainee.features), trainee.task.num_labels)
        with torch.no_grad():
            for index, feed in trainee.batches(held):
                logits[index] = trainee.run(feed).cpu()
        labels = labels_array([trainee.features[row] for row in held])
        metrics = compute_metrics(trainee.task, logits[held].numpy(), labels)
        return metrics[trainee.task.primary_metric], -_mean_loss(trainee, loss)

    return score if held else None


def _mean_loss(trainee: Trainee, loss: Loss) -> float:
    """Over the rows that are held out."""
    import torch

    total = 0.0
    with torch.no_grad():
        for index, feed in trainee.batches(trainee.held):
            total += float(loss(index, feed)) * len(index)
    return total / len(trainee.held)


def run_phases(
    phases: Sequence[Phase], trainee: Trainee, report: Report, state_file: Path | None, job: str
) -> None:
    """Train all phases in order, from where the checkpoint at `state_file` stands."""
    import torch

    options, rows = trainee.options, trainee.rows
    if options.dropout is not None:
        for module in trainee.student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = options.dropout
    per_epoch = -(-len(rows) // options.batch_size)
    report.plan([phase.options.epochs * per_epoch for phase in phases])

    def save(standing: Standing) -> None:
        if state_file is not None:
            save_standing(state_file, job, standing)

    standing = (state_file and load_standing(state_file, job)) or Standing()
    with only_words_of(trainee.student, trainee.features):
        for number, phase in enumerate(phases):
            if number == standing.phase:
                standing = run_phase(phase, trainee.features, rows, options, standing, save, report.training)
                if number + 1 < len(phases):
                    standing = standing.next_phase()
    report.finish(standing)


class Report:
    """Tells how far a distillation is: batches of the teacher first, then steps of the student."""

    def __init__(self, progress: Progress, metric: str) -> None:
        self._progress, self._metric = progress, metric
        self._teacher, self._steps = 0, [0, 0]

    def teacher(self, done: int, count: int) -> None:
        """`done` of the teacher's `count` batches are done."""
        self._teacher = count
        self._progress(done, 2 * count, "the teacher's outputs")

    def plan(self, steps: list[int]) -> None:
        """Each phase will take as many steps, or fewer."""
        self._steps = steps

    def training(self, standing: Standing, steps: int) -> None:
        """`steps` of the phase in which training stands are done."""
        before = self._teacher + sum(self._steps[: standing.phase])
        self._progress(before + steps, self._teacher + sum(self._steps), self._words(standing))

    def finish(self, standing: Standing) -> None:
        """No step will follow, as many as were planned or not."""
        total = self._teacher + sum(self._steps)
        self._progress(total, total, self._words(standing))

    def _words(self, standing: Standing) -> str:
        words = [f"{name} loss {loss:.3f}" for name, loss in standing.losses.items()]
        if standing.phase == len(self._steps) - 1 and standing.best_score is not None:
            words.append(f"held-out {self._metric} {standing.best_score[0]:.3f}")
        return ", ".join(words)
