"""Every model of a run: found in the cache, or made and kept there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from quantlib.compression.variants import COMPILED, STUDENT, TEACHER, at_engine
from quantlib.data import features, tasks
from quantlib.experiment import given_models
from quantlib.experiment.budget import budgeted
from quantlib.experiment.compiling import compiled
from quantlib.experiment.explaining import explained
from quantlib.experiment.options import ExperimentOptions, engines_for, float_steps, left_out, student_names
from quantlib.experiment.pruned_start import pruning_rows, write_pruned_start
from quantlib.experiment.pruning import scarcity
from quantlib.experiment.quantizing import quantized
from quantlib.experiment.rows import read_rows
from quantlib.experiment.targeting import targeted
from quantlib.experiment.work import Variant, Work, cached, cached_model, is_onnx, tokenize
from quantlib.machine.engines import DEFAULT_ENGINE
from quantlib.onnx_model.compile import Compiled
from quantlib.onnx_model.model import Model, copy_model
from quantlib.support.cache import code_key, open_cache, versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json, sha256_tree
from quantlib.support.progress import Step, Steps
from quantlib.training import checkpoints
from quantlib.training.student import StudentConfig, distil, parse_student_config
from quantlib.training.student.precision import chosen_precision
from quantlib.training.student.students import INITS
from quantlib.training.teacher import fine_tune

TEACHER_FOLDER = Path("ts_teacher_bert")


@dataclass(frozen=True)
class Built:
    """Every variant of a run, the teacher first, and the hashes of what they were made from.

    files: what else a run leaves beside its results, {name: path}. compiled: what compiling did to each
    float model, by the model's name. commits: of the checkpoints that came from the hub, by role.
    precision: of the products of the student that was trained; None if none was. examples: the evaluation
    rows as they were read.
    """

    task: tasks.Task
    variants: tuple[Variant, ...]
    hashes: Mapping[str, str]
    files: Mapping[str, Path] = field(default_factory=dict)
    compiled: Mapping[str, Compiled] = field(default_factory=dict)
    commits: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None
    examples: Sequence[tasks.Example] = ()

    @property
    def reference(self) -> str:
        """The name of the variant that the others are compared with, the first."""
        return self.variants[0].name


def build(options: ExperimentOptions, steps: Steps | None = None) -> Built:
    """Every model of the run, as files in the cache; what is there already is not made again.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    *_, built = stages(options, steps)
    return built


def stages(options: ExperimentOptions, steps: Steps | None = None) -> Iterator[Built]:
    """What is built so far: first the teacher's variants, then, if there are students, theirs too.

    What the user gave is checked before anything is built.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    begun = begin(options, steps)
    work, teacher, given = begun.work, begun.teacher, begun.students
    start = _start(options)
    hashes = {"data": tasks.data_hash(work.splits), TEACHER: given_models.hash_of(teacher)}
    sources = {TEACHER: teacher}
    reports: dict[str, Compiled] = {}
    fp32 = exported(work, TEACHER, TEACHER_FOLDER, teacher)
    fast = compiled_of(work, reports, fp32) if options.compile else None
    variants = _on_engine(work, reports, fp32, fast, teacher, DEFAULT_ENGINE)
    files: dict[str, Path] = {}
    if options.max_drop is not None:
        variant, files = budgeted(work, fp32, fast, teacher)
        variants.append(variant)
    if options.target_speedup is not None:
        variant, reasons = targeted(work, fp32, fast, teacher)
        variants.append(variant)
        files |= reasons
    for engine in engines_for(options, TEACHER)[1:]:
        variants += _on_engine(work, reports, fp32, fast, teacher, engine)
    if options.explain:
        files |= explained(work, fast or fp32, teacher)

    def so_far(precision: str | None = None) -> Built:
        commits = {name: checkpoints.hub_commit(source) for name, source in sources.items()}
        of_hub = {name: commit for name, commit in commits.items() if commit is not None}
        return Built(
            work.task,
            tuple(variants),
            dict(hashes),
            files,
            dict(reports),
            of_hub,
            precision,
            work.splits.evaluation,
        )

    yield so_far()
    if not student_names(options):
        return
    students = students_of(work, teacher, given)
    sources |= {name: student for name, _, student in students}
    sources |= {} if start is None else {"student_init": start}
    for name, folder, student in students:
        hashes[name] = given_models.hash_of(student)
        own = exported(work, name, folder, student)
        own_fast = compiled_of(work, reports, own) if options.compile else None
        for engine in engines_for(options, name):
            variants += _on_engine(work, reports, own, own_fast, student, engine)
    yield so_far(_precision(work) if options.trains_student else None)


@dataclass(frozen=True)
class Begun:
    """What a build starts from, checked: rows and options, the teacher, and students that the user named."""

    work: Work
    teacher: Path
    students: tuple[Path, ...]


def begin(options: ExperimentOptions, steps: Steps | None = None) -> Begun:
    """Read the rows, and find or train the teacher; what the user gave is checked before that.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    steps = steps or Steps()
    named = None if options.teacher is None else given_models.resolve(options.teacher, TEACHER)
    labels = None if named is None or options.own_task is None else given_models.labels_of(named)
    rows = read_rows(options, labels, steps, train_rows=options.train_rows)
    for note in (*rows.notes, *left_out(options)):
        steps.say(note)
    task = rows.task
    if task.output_mode == "embedding" and options.trains_student:
        raise InputError(f"{task.name}: no student is trained for embeddings; leave it out: --no-student")
    work = Work(task, rows.splits, options, open_cache(options.cache_dir), steps)
    _check_rows(work)
    given = tuple(_given(work, given_models.resolve(name, STUDENT)) for name in options.students)
    _start(options)
    gave_order = options.own_task is not None
    teacher = _trained_teacher(work) if named is None else _given(work, named, gave_order=gave_order)
    if options.trains_student:
        _student_shape(options, teacher)  # may be impossible, which is said before anything takes long
    return Begun(work, teacher, given)


def _on_engine(
    work: Work,
    reports: dict[str, Compiled],
    fp32: Variant,
    fast: Variant | None,
    checkpoint: Path,
    engine: str,
) -> list[Variant]:
    """The variants of a model on an engine: as it is exported, compiled, and quantized.

    fast: what is compiled for the default engine; None where compiling is turned off.
    """
    compiled_here = compiled_on(work, reports, fp32, fast, engine)
    shown = floats_on(work, fp32, compiled_here, engine)
    return [*shown, *quantized(work, fp32, compiled_here, checkpoint, engine)]


def compiled_on(
    work: Work, reports: dict[str, Compiled], fp32: Variant, fast: Variant | None, engine: str
) -> Variant | None:
    """A model compiled for an engine; None where compiling is turned off.

    reports: what compiling did is added to it. fast: what is compiled for the default engine.
    """
    if fast is None or engine == DEFAULT_ENGINE:
        return fast
    return compiled_of(work, reports, fp32, engine)


def floats_on(work: Work, fp32: Variant, compiled_here: Variant | None, engine: str) -> list[Variant]:
    """The float variants of a model that a run shows on an engine."""
    floats = {"": _named(fp32, engine), COMPILED: compiled_here}
    steps = float_steps(work.options, fp32.name, engine)
    return [variant for step in steps if (variant := floats[step]) is not None]


def _named(fp32: Variant, engine: str) -> Variant:
    """A model as it is exported, on an engine: the same file."""
    return replace(fp32, name=at_engine(fp32.name, engine), engine=engine)


def compiled_of(
    work: Work, reports: dict[str, Compiled], fp32: Variant, engine: str = DEFAULT_ENGINE
) -> Variant:
    """A model compiled for an engine; reports: what compiling did is added to it."""
    variant, reports[at_engine(fp32.name, engine)] = compiled(work, fp32, engine)
    return variant


def _check_rows(work: Work) -> None:
    """Check that there are rows for every step that needs some."""
    if work.options.max_drop is not None and not work.splits.validation:
        raise InputError("--max-drop verifies what it finds on rows set aside from train; there are none")
    if work.options.students or not work.options.no_training or work.options.no_student:
        return
    work.steps.say(f"no student: none is given, and none can be trained, as {work.options.no_training}")


def _given(work: Work, model: Path, *, gave_order: bool = False) -> Path:
    """A model that the user named, checked before any step that takes long."""
    given_models.check_for_task(model, work.task, work.options.seq_len, gave_order=gave_order)
    return model


def _trained_teacher(work: Work) -> Path:
    checkpoints.need_torch("to fine-tune a teacher")
    base = checkpoints.packaged_minilm()
    checkpoints.check_sequence_length(base, work.options.seq_len)

    def train(directory: Path, step: Step) -> None:
        rows = tokenize(work, "train", base)
        fine_tune(base, work.task, rows, directory, work.options.fine_tuning, step.training)

    key = _training_key(work) | {"base": sha256_tree(base)}
    return cached(work, "fine-tune the teacher", TEACHER, key, train)


def students_of(work: Work, teacher: Path, given: Sequence[Path]) -> list[tuple[str, Path, Path]]:
    """(result key, folder, checkpoint) of each student: those given, else one made from the teacher."""
    if not given:
        stem = re.sub(r"[^\w.-]+", "_", work.options.student_config)
        return [(STUDENT, Path(f"ts_student_{stem}"), _distilled(work, teacher))]
    folders: list[Path] = []
    for name, checkpoint in zip(work.options.students, given, strict=True):
        stem = re.sub(r"[^\w.-]+", "_", Path(name).name.removesuffix(".onnx") or checkpoint.resolve().name)
        folder, number = Path(f"ts_student_{stem}"), 1
        while folder in folders:
            number += 1
            folder = Path(f"ts_student_{stem}_{number}")
        folders.append(folder)
    return list(zip(student_names(work.options), folders, given, strict=True))


def _start(options: ExperimentOptions) -> Path | None:
    """The checkpoint whose weights a new student starts from; None where it starts from no checkpoint."""
    init = parse_student_config(options.student_config).init
    if not options.trains_student or init in INITS:
        return None
    return checkpoints.resolve(init, STUDENT)


def _student_shape(options: ExperimentOptions, teacher: Path) -> StudentConfig:
    """The shape of the student that is made of a teacher."""
    return parse_student_config(options.student_config).for_teacher(checkpoints.read_config(teacher))


def _distilled(work: Work, teacher: Path) -> Path:
    order = checkpoints.check_for_task(teacher, work.task)
    shape = _student_shape(work.options, teacher)
    options = replace(work.options.distillation, precision=_precision(work))
    key = _training_key(work) | {
        "teacher": sha256_tree(teacher),
        "order": order,
        "options": asdict(options),
        "student": asdict(shape),
    }
    start = _pruned_start(work, teacher, order) or _start(work.options)
    if start is not None:
        key["init"] = sha256_tree(start)
    student = shape if start is None else replace(shape, init=str(start))

    def train(directory: Path, step: Step) -> None:
        rows = tokenize(work, "train", teacher)
        tokenizer = features.load_tokenizer(teacher)
        distil(
            teacher,
            work.task,
            rows,
            directory,
            options,
            step.reached,
            student=student,
            further=features.further_windows(work.splits.train, rows, work.options.seq_len, tokenizer),
            logit_order=order,
            work_dir=unfinished,
            cache=work.cache,
        )

    key["code"] = code_key(train)  # another code does not go on from where this one stopped
    unfinished = work.cache.unfinished(STUDENT, key)
    return cached(work, "train the student", STUDENT, key, train)


def _pruned_start(work: Work, teacher: Path, order: Sequence[int]) -> Path | None:
    """The teacher without some of its neurons, as a checkpoint; None where the student does not start so."""
    student, options = parse_student_config(work.options.student_config), work.options.distillation
    if student.prune is None:
        return None
    seed, threads, mapping = options.seed, options.threads, options.mapping
    rows = pruning_rows(tokenize(work, "train", teacher), seed)
    tokens = sum(map(len, rows))
    neurons = StudentConfig(layers=1).for_teacher(checkpoints.read_config(teacher)).ffn
    if neurons is not None and tokens < neurons:
        said = scarcity(f"{tokens} tokens of train rows", neurons, "each layer")
        work.steps.say(f"pruning the student's start: {said}")
    key = {
        "teacher": sha256_tree(teacher),
        "order": order,
        "student": asdict(student),
        "rows": features.features_hash(rows),
        "task": work.task.name,
        "output_mode": work.task.output_mode,
        "labels": work.task.labels,
        "label_names": work.task.label_names,
        "seed": seed,
        "threads": threads,
        "mapping": mapping,
        "versions": versions_key("torch", "transformers", "numpy", "scipy", "safetensors"),
    }

    def prune(directory: Path, step: Step) -> None:
        write_pruned_start(
            teacher,
            work.task,
            rows,
            directory,
            student,
            seed=seed,
            threads=threads,
            mapping=mapping,
            logit_order=order,
            progress=step.advance,
        )

    return cached(work, "prune the student's start", "start", key, prune, total=len(rows))


def _precision(work: Work) -> str:
    """How a student's products are computed: as this machine once measured to be faster."""
    return chosen_precision(work.options.distillation.threads, work.cache)


def _training_key(work: Work) -> dict[str, Any]:
    """Everything but the checkpoint that decides the weights of a trained model."""
    return {
        "task": work.task.name,
        "labels": work.task.labels,
        "scoring": asdict(work.task.scoring),
        "label_names": work.task.label_names,
        "rows": sha256_json([[row.text_a, row.text_b, row.label] for row in work.splits.train]),
        "options": asdict(work.options.fine_tuning),
        "seq_len": work.options.seq_len,
        "versions": versions_key("torch", "transformers", "tokenizers", "numpy", "safetensors"),
    }


def exported(work: Work, name: str, folder: Path, checkpoint: Path) -> Variant:
    """Export a checkpoint, and tokenize the evaluation rows for it; an ONNX file is taken as it is."""
    rows = tokenize(work, "evaluation", checkpoint)
    if is_onnx(checkpoint):
        return Variant(name, _taken(work, name, checkpoint), folder / "model.onnx", rows)
    order = checkpoints.order_of(given_models.labels_of(checkpoint), work.task) or None
    seq_len, opset = work.options.seq_len, work.options.opset
    key = {
        "checkpoint": sha256_tree(checkpoint),
        "seq_len": seq_len,
        "opset": opset,
        "order": order,
        "versions": versions_key("torch", "transformers", "onnx", "onnxscript"),
    }
    threads = work.options.threads  # of the parity check: they do not decide the model

    def export(directory: Path, _: Step) -> None:
        from quantlib.onnx_model.export import export_bert_to_onnx

        export_bert_to_onnx(
            checkpoint, directory / "model.onnx", seq_len, opset, logit_order=order, threads=threads
        )

    model = cached_model(work, f"export {name}", "export", key, export)
    return Variant(name, model, folder / "model.onnx", rows)


def _taken(work: Work, name: str, onnx_path: Path) -> Model:
    """An ONNX file that the user named, as one file in the cache: theirs may change, or be in parts."""

    def take(directory: Path, _: Step) -> None:
        copy_model(onnx_path, directory / "model.onnx")

    return cached_model(work, f"take {name}", "given", {"model": given_models.hash_of(onnx_path)}, take)
