"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from quantlib.compression.quantize.nncf_library import need_nncf
from quantlib.compression.recipes import (
    DEFAULT_RECIPES,
    Asked,
    Recipe,
    asked_recipes,
    distinct_on,
    get_recipes,
    reason_against,
)
from quantlib.compression.variants import BUDGETED, COMPILED, STUDENT, TARGETED, TEACHER, VariantName
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.machine.engines import DEFAULT_ENGINE, check_engines, get_engine
from quantlib.machine.sessions import default_threads
from quantlib.onnx_model.export.opset import check_opset
from quantlib.report.choices import Wishes
from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND, option, options_of
from quantlib.training.student.augmentation import AugmentationOptions
from quantlib.training.student.options import FROM_LITTLE, FROM_PRUNED, DistillationOptions, PhaseOptions
from quantlib.training.student.students import parse_student_config
from quantlib.training.teacher import TrainingOptions

_DISTILLATION, _TRAINING = DistillationOptions(), TrainingOptions()


@dataclass(frozen=True)
class ExperimentOptions(MeasuringOptions):
    """The options of a run; each field carries its help, see `quantization_experiments.py --help`.

    To add an option is to add a field. compile: off, variants are made from the graph as it is exported.
    stock_sessions: on, they are timed in sessions as ONNX Runtime opens them by default; what they compute is
    the same.

    Raises:
        InputError: an unknown task or recipe, or a value out of range.
    """

    teacher: str | None = option(
        None,
        "Fine-tuned checkpoint or embedding model, DIR or HUB_ID, or an ONNX file with its tokenizer beside "
        "it; default: fine-tune the packaged MiniLM.",
        section="models",
        is_place=True,
    )
    teacher_epochs: int = option(
        _TRAINING.epochs,
        "Epochs in which a teacher is fine-tuned.",
        least=1,
        recorded=True,
        trains=TEACHER,
        section="models",
        advanced=True,
    )
    teacher_layers: int = option(
        _TRAINING.trained_layers or 0,
        "Upper layers of a teacher that are fine-tuned; 0 for all of it, which takes three times as long.",
        least=0,
        recorded=True,
        trains=TEACHER,
        section="models",
        advanced=True,
    )
    teacher_learning_rate: float = option(
        _TRAINING.learning_rate,
        "Highest learning rate at which a teacher is fine-tuned; it rises for a tenth of the steps, and "
        "falls to zero.",
        least=1e-7,
        most=0.1,
        recorded=True,
        trains=TEACHER,
        section="models",
        advanced=True,
    )
    training_threads: int | None = option(
        None,
        "Threads of training; default: the physical cores.",
        least=1,
        most=512,
        section="models",
        advanced=True,
    )
    students: tuple[str, ...] = option(
        (),
        "Distilled checkpoint, DIR or HUB_ID; may be repeated; default: make one, if there are train rows.",
        flag="--student",
        section="models",
        is_place=True,
    )
    no_student: bool = option(False, "Leave the student out.", section="models")
    distill: bool = option(
        False,
        "Distil a student from the teacher; the default if no student is given.",
        offered=(COMMAND,),
        trains=STUDENT,
        section="models",
        advanced=True,
    )
    student_config: str = option(
        "half",
        "The student to distil: half (of the teacher's layers), tinybert-4-312, tinybert-6-768, or "
        "layers=4,width=312,ffn=1200,heads=12; init=random or init=DIR_OR_HUB_ID gives its first weights. "
        "Or prune=0.5: the teacher without so many of its neurons.",
        recorded=True,
        trains=STUDENT,
        section="models",
        advanced=True,
    )
    transformer_epochs: int | None = option(
        None,
        f"Epochs in which a student learns from the teacher's layers. Default: "
        f"{_DISTILLATION.transformer.epochs}, for one by pruning {FROM_PRUNED.transformer.epochs}.",
        least=0,
        recorded=True,
        trains=STUDENT,
        section="models",
        advanced=True,
    )
    prediction_epochs: int | None = option(
        None,
        f"Epochs in which a student learns from logits and labels. Default: "
        f"{_DISTILLATION.prediction.epochs}, for one by pruning {FROM_PRUNED.prediction.epochs}.",
        least=1,
        recorded=True,
        trains=STUDENT,
        section="models",
        advanced=True,
    )
    augment: int = option(
        _DISTILLATION.augmentation.copies,
        "Copies of each row, with words replaced by likely ones, to train a student on too.",
        least=0,
        recorded=True,
        trains=STUDENT,
        section="models",
        advanced=True,
    )
    recipes: tuple[str, ...] = option(
        DEFAULT_RECIPES,
        "Comma-separated names or recipe files, or all; `quantlib recipes` lists them. A name may have an "
        "engine behind it (quant_1@openvino); else it is for each of --engines that can run it.",
        comma=True,
        is_place=True,
    )
    opset: int = option(
        17,
        "ONNX operator set of the export, 13 to 18.",
        recorded=True,
        advanced=True,
    )
    train_rows: int | None = option(
        None,
        "Train on the first N rows only.",
        recorded=True,
        advanced=True,
    )
    output_dir: Path = option(
        Path("runs"),
        "Where OUTPUT_DIR/TASK/ is written.",
        offered=(COMMAND,),
        advanced=True,
    )
    seed: int = option(
        42,
        "Seed of the training.",
        least=0,
        most=2**32 - 1,
        recorded=True,
        advanced=True,
    )
    max_drop: float | None = option(
        None,
        "Also find the variant that loses at most this fraction of the primary metric (0.005 is half a "
        "point), and write its recipe.",
        offered=(COMMAND,),
        advanced=True,
    )
    max_drop_base: str = option(
        "static_u8s8_smooth",
        "The recipe from which the searches for --max-drop and --target-speedup start.",
        offered=(COMMAND,),
        is_place=True,
        advanced=True,
    )
    target_speedup: float | None = option(
        None,
        "Also prune neurons and heads until the variant is so many times as fast as the teacher on this "
        "machine, and write its recipe.",
        offered=(COMMAND,),
        advanced=True,
    )
    time_blocks: bool = option(
        True,
        "Let --target-speedup weigh what it prunes by operations, not by the time of single blocks here.",
        offered=(COMMAND,),
        advanced=True,
    )
    max_drop_points: float | None = option(
        None,
        "Choose a variant that loses at most so many points (hundredths) of the primary metric.",
        least=0,
        most=100,
        offered=(COMMAND,),
        section="limits",
    )
    min_speedup: float | None = option(
        None,
        "Choose a variant that is surely so many times as fast as the teacher.",
        offered=(COMMAND,),
        section="limits",
        advanced=True,
    )
    max_size: float | None = option(
        None,
        "Choose a variant of at most so many MB.",
        offered=(COMMAND,),
        section="limits",
        advanced=True,
    )
    explain: bool = option(
        False,
        "Also show what 8 bits cost each layer of the teacher, worst first.",
        offered=(COMMAND,),
        advanced=True,
    )
    compile: bool = option(
        True,
        "Quantize the exported graph without compiling it, to see what compiling wins.",
        recorded=True,
        advanced=True,
    )
    profile: tuple[str, ...] = option(
        (),
        "Also show where the time of this variant goes, and how much of the machine's peak it uses; may be "
        "repeated.",
        metavar="VARIANT",
        offered=(COMMAND,),
        advanced=True,
    )

    report_rows: int = option(
        50,
        "Texts in report.html and changes.json: rows of each variant whose label changed, at most; 0 keeps "
        "texts out of both.",
        least=0,
        offered=(COMMAND,),
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        recipes = self.resolved_recipes
        check_engines(self.every_engine)
        self._check_peers()
        check_opset(self.opset)
        _ = self.wishes
        if self.max_drop is not None:
            self._check_budget(recipes)
        if self.target_speedup is not None:
            self._check_target(recipes)
        if self.no_student and self.students:
            raise InputError("--no-student contradicts --student")
        self._check_training()
        self._check_profile()

    @property
    def teacher_is_onnx(self) -> bool:
        """Whether the teacher is an ONNX file, of which nothing can be trained."""
        return self.teacher is not None and Path(self.teacher).suffix == ".onnx"

    @cached_property
    def asked(self) -> tuple[Asked, ...]:
        """The recipes that `recipes` names; recipe files are read once, when the options are built."""
        return asked_recipes(self.recipes)

    @property
    def resolved_recipes(self) -> tuple[Recipe, ...]:
        """The same, each once, whatever engines are named with them."""
        return tuple({each.recipe.name: each.recipe for each in self.asked}.values())

    @property
    def every_engine(self) -> tuple[str, ...]:
        """The engines of the run's variants: those of `engines`, then what is named with a recipe alone."""
        named = [each.engine for each in self.asked if each.engine is not None]
        return tuple(dict.fromkeys((*self.engines, *named)))

    def recipes_on(self, engine: str) -> tuple[Recipe, ...]:
        """The recipes for an engine, as it takes them."""
        asked = [a for a in self.asked if (a.engine or engine) == engine]
        if engine not in self.engines:
            asked = [a for a in asked if a.engine is not None]
        return distinct_on((a.recipe for a in asked), get_engine(engine))

    @cached_property
    def resolved_base(self) -> Recipe:
        """The recipe from which the searches for --max-drop and --target-speedup start."""
        if self.max_drop_base in self.recipes:  # a file is read once
            return self.asked[self.recipes.index(self.max_drop_base)].recipe
        return get_recipes((self.max_drop_base,))[0]

    @property
    def wishes(self) -> Wishes:
        """What the user asks of a variant that is to be chosen."""
        drops = [self.max_drop, None if self.max_drop_points is None else self.max_drop_points / 100]
        asked = [drop for drop in drops if drop is not None]
        return Wishes(min(asked, default=None), self.min_speedup, self.max_size)

    @property
    def trains_student(self) -> bool:
        """Whether a student is trained in this run."""
        return not (self.no_student or self.students or self.no_training)

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles whose models are trained in this run."""
        roles = {TEACHER: self.teacher is None, STUDENT: self.trains_student}
        return tuple(role for role, trains in roles.items() if trains)

    @property
    def no_training(self) -> str:
        """Why no student can be trained; empty where one can be."""
        if self.teacher_is_onnx:
            return "the teacher is an ONNX file"
        own = self.own_task
        if own is not None and own.train is None:
            return "there are no train rows"
        if own is not None and own.label is None:
            return "the train rows have no labels"
        return ""

    @property
    def settings(self) -> dict[str, object]:
        """The options that decide what models are made and how they run, as the gate records them."""
        settings: dict[str, object] = {
            item.name: getattr(self, item.name)
            for item in options_of(type(self))
            if item.recorded and (not item.trains or item.trains in self.trained)
        }
        if "transformer_epochs" in settings:
            chosen = self.distillation
            settings["transformer_epochs"] = chosen.transformer.epochs
            settings["prediction_epochs"] = chosen.prediction.epochs
        return settings

    @property
    def fine_tuning(self) -> TrainingOptions:
        """How the teacher is trained. Not by `threads`: how a model is timed must not decide its weights."""
        return TrainingOptions(
            epochs=self.teacher_epochs,
            learning_rate=self.teacher_learning_rate,
            trained_layers=self.teacher_layers or None,
            seed=self.seed,
            threads=self.training_threads or default_threads(),
        )

    @property
    def distillation(self) -> DistillationOptions:
        """How the student is trained. Not by `threads`: how a model is timed must not decide its weights."""
        student = parse_student_config(self.student_config)
        start = FROM_PRUNED if student.prune else _DISTILLATION if student.copies_all else FROM_LITTLE
        return replace(
            start,
            transformer=_lasting(start.transformer, self.transformer_epochs),
            prediction=_lasting(start.prediction, self.prediction_epochs),
            augmentation=AugmentationOptions(copies=self.augment),
            seed=self.seed,
            threads=self.training_threads or default_threads(),
        )

    def _check_training(self) -> None:
        parse_student_config(self.student_config)
        for item in options_of(type(self)):
            value = getattr(self, item.name)
            if not item.trains or item.trains in self.trained or value == item.default:
                continue
            written = item.flag if item.is_switch else f"{item.flag} {value}"
            if item.trains == TEACHER or self.no_student or self.students:
                given = "--no-student" if self.no_student else "--student"
                raise InputError(f"{written} contradicts {'--teacher' if item.trains == TEACHER else given}")
            raise InputError(f"{written}: no student can be trained, as {self.no_training}")

    def _check_profile(self) -> None:
        names = variant_names(self) if self.profile else ()
        unknown = [name for name in self.profile if name not in names]
        if unknown:
            raise InputError(f"--profile {unknown[0]}: unknown variant; this run makes: {', '.join(names)}")
        for name in self.profile:
            engine = get_engine(VariantName.parse(name).engine)
            if not engine.profiles:
                raise InputError(
                    f"--profile {name}: {engine.label} keeps no trace of a run that is read here"
                )

    def _check_peers(self) -> None:
        """What another tool makes must be for one of the engines; other recipes are just left out on one."""
        for each in self.asked:
            engines = [get_engine(name) for name in self.engines]
            reasons = [reason_against(each.recipe, engine) for engine in engines]
            if each.engine is None and each.recipe.report_only and all(reasons):
                raise InputError(
                    f"recipe {each.recipe.name}: {reasons[0]}; put the engine behind the name, as in "
                    "NAME@ENGINE, or name it with --engines"
                )
            if each.recipe.quantizer == "nncf":
                need_nncf()

    def _check_budget(self, recipes: tuple[Recipe, ...]) -> None:
        if self.max_drop is None or not 0 <= self.max_drop < 1:
            raise InputError(
                f"--max-drop {self.max_drop} is out of range; it is a fraction, at least 0 and below 1: "
                "0.005 is half a point"
            )
        base = self.resolved_base
        if base.quantizer != "quantlib" or base.nodes or base.prunes:
            raise InputError(
                f"--max-drop-base {base.name}: it must be one of quantlib's own recipes, without exceptions "
                "for nodes and with nothing pruned"
            )
        if any(recipe.name == BUDGETED for recipe in recipes):
            raise InputError(f"--max-drop makes a variant {BUDGETED!r}, and --recipes names one of that name")

    def _check_target(self, recipes: tuple[Recipe, ...]) -> None:
        target, base = self.target_speedup, self.resolved_base
        if target is None or not 0 < target < 1000:
            raise InputError(f"--target-speedup {target} is out of range; it is a factor, such as 2.5")
        if base.prunes:
            raise InputError(
                f"--max-drop-base {base.name}: --target-speedup prunes by itself; name a recipe that does not"
            )
        if base.quantizer == "nncf":
            raise InputError(
                f"--max-drop-base {base.name}: nncf takes the model as it is; name a recipe that can be on a "
                "pruned one"
            )
        if any(recipe.name == TARGETED for recipe in recipes):
            raise InputError(
                f"--target-speedup makes a variant {TARGETED!r}, and --recipes names one of that name"
            )


def variant_names(options: ExperimentOptions) -> tuple[str, ...]:
    """The names of the variants of a run, in their order, without building them."""
    names = []
    for number, model in enumerate((TEACHER, *student_names(options))):
        for engine in engines_for(options, model):
            steps = float_steps(options, model, engine)
            steps += [recipe.name for recipe in recipes_for(options, model, engine)]
            if engine == DEFAULT_ENGINE and model == TEACHER and options.max_drop is not None:
                steps.append(BUDGETED)
            if engine == DEFAULT_ENGINE and model == TEACHER and options.target_speedup is not None:
                steps.append(TARGETED)
            names += [str(VariantName(number, step, engine)) for step in steps]
    return tuple(names)


def left_out(options: ExperimentOptions) -> list[str]:
    """Which recipes are not for an engine of the run, or are there what another one is: a sentence each."""
    sentences = []
    for name in (name for name in options.engines if name != DEFAULT_ENGINE):
        engine = get_engine(name)
        made = {recipe.name for recipe in options.recipes_on(name)}
        for each in options.asked:
            if (each.engine or name) != name or each.recipe.name in made or each.recipe.report_only:
                continue
            reason = reason_against(each.recipe, engine) or "another recipe makes the same file for it"
            sentences.append(f"{each.recipe.name}: not on {name}: {reason}")
    return sentences


def engines_for(options: ExperimentOptions, model: str) -> tuple[str, ...]:
    """The engines of a model's variants; the teacher is on the default one whatever is asked."""
    engines = options.every_engine
    if model == TEACHER:
        return tuple(dict.fromkeys((DEFAULT_ENGINE, *engines)))
    return engines


def float_steps(options: ExperimentOptions, model: str, engine: str) -> list[str]:
    """What a run shows of a float model on an engine: the model as it is exported, and compiled."""
    if engine in options.engines:
        return ["", COMPILED] if options.compile else [""]
    return [""] if (model, engine) == (TEACHER, DEFAULT_ENGINE) else []


def student_names(options: ExperimentOptions) -> tuple[str, ...]:
    """The names of the students, in their order."""
    count = 1 if options.trains_student else len(options.students)
    return tuple(str(VariantName(number)) for number in range(1, count + 1))


def recipes_for(options: ExperimentOptions, model: str, engine: str = DEFAULT_ENGINE) -> tuple[Recipe, ...]:
    """The recipes of a run that apply to a model on an engine: a student has other layers than the teacher.

    So recipes whose exceptions name nodes or numbered layers apply to the teacher only.
    """
    return tuple(r for r in options.recipes_on(engine) if model == TEACHER or r.fits_any_depth)


def _lasting(phase: PhaseOptions, epochs: int | None) -> PhaseOptions:
    return phase if epochs is None else replace(phase, epochs=epochs)
