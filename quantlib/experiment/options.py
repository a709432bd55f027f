"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from quantlib.compression import recipes
from quantlib.compression.variants import BUDGETED
from quantlib.data import tasks
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.onnx_model.export.opset import check_opset
from quantlib.support.errors import InputError
from quantlib.training.student.augmentation import AugmentationOptions
from quantlib.training.student.options import DistillationOptions
from quantlib.training.student.students import parse_student_config

_RANGES: tuple[tuple[str, int, int | None], ...] = (
    ("seq_len", 8, None),
    ("batch_size", 1, None),
    ("threads", 1, 512),  # thousands of threads make ONNX Runtime end the process without a word
    ("calibration_samples", 1, None),
    ("warmup_runs", 0, None),
    ("num_runs", 2, None),
    ("transformer_epochs", 0, None),
    ("prediction_epochs", 1, None),
    ("augment", 0, None),
    ("seed", 0, 2**32 - 1),
)

_DISTILLATION = DistillationOptions()

# What only a student that is to be made can be told.
_OF_A_NEW_STUDENT = ("distill", "student_config", "transformer_epochs", "prediction_epochs", "augment")

# How many rows are calibrated on when no number is given; fewer where the task has fewer.
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class ExperimentOptions:
    """What the command takes; see `quantization_experiments.py --help`.

    distill: say that a student is to be made, which also happens where none is given. student_config: its
    shape, see `parse_student_config`. transformer_epochs, prediction_epochs, augment: how it is trained, see
    `distillation`. compile: off, variants are made from the graph as it is exported.
    stock_sessions: on, they are timed in sessions as ONNX Runtime opens them by default; what they compute is
    the same.

    Raises:
        InputError: an unknown task or recipe, or a value out of range.
    """

    task: str = "BBC-News"
    data_dir: Path | None = None
    teacher: str | None = None
    students: tuple[str, ...] = ()
    no_student: bool = False
    distill: bool = False
    student_config: str = "half"
    transformer_epochs: int = _DISTILLATION.transformer.epochs
    prediction_epochs: int = _DISTILLATION.prediction.epochs
    augment: int = _DISTILLATION.augmentation.copies
    recipes: tuple[str, ...] = recipes.DEFAULT_RECIPES
    seq_len: int = 128
    opset: int = 17
    batch_size: int = 1
    threads: int = field(default_factory=default_threads)
    calibration_samples: int = CALIBRATION_SAMPLES
    train_rows: int | None = None
    warmup_runs: int = 5
    num_runs: int = 30
    output_dir: Path = Path("runs")
    cache_dir: Path | None = None
    seed: int = 42
    max_drop: float | None = None
    max_drop_base: str = "static_u8s8_smooth"
    explain: bool = False
    compile: bool = True
    stock_sessions: bool = False
    profile: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        tasks.get_task(self.task)
        recipes.get_recipes(self.recipes)
        check_opset(self.opset)
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= (value if most is None else most):
                limits = f"at least {least}" if most is None else f"within {least}..{most}"
                raise InputError(f"--{name.replace('_', '-')} {value} is out of range; it must be {limits}")
        if self.max_drop is not None:
            self._check_budget()
        if self.no_student and self.students:
            raise InputError("--no-student contradicts --student")
        self._check_distillation()
        self._check_profile()

    def _check_distillation(self) -> None:
        parse_student_config(self.student_config)
        if not (self.no_student or self.students):
            return
        for name in _OF_A_NEW_STUDENT:
            value = getattr(self, name)
            if value != getattr(ExperimentOptions, name):
                said = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                raise InputError(f"{said} contradicts {'--no-student' if self.no_student else '--student'}")

    @property
    def distillation(self) -> DistillationOptions:
        """How the student is trained. Not by `threads`: how a model is timed must not decide its weights."""
        return replace(
            _DISTILLATION,
            transformer=replace(_DISTILLATION.transformer, epochs=self.transformer_epochs),
            prediction=replace(_DISTILLATION.prediction, epochs=self.prediction_epochs),
            augmentation=AugmentationOptions(copies=self.augment),
            seed=self.seed,
            threads=default_threads(),
        )

    def _check_profile(self) -> None:
        from quantlib.experiment.build import variant_names  # which needs this module

        names = variant_names(self) if self.profile else ()
        unknown = [name for name in self.profile if name not in names]
        if unknown:
            raise InputError(f"--profile {unknown[0]}: unknown variant; this run makes: {', '.join(names)}")

    @property
    def session(self) -> SessionConfig:
        """How every variant's session runs when it is timed."""
        return SessionConfig.stock(self.threads) if self.stock_sessions else SessionConfig(self.threads)

    def _check_budget(self) -> None:
        if self.max_drop is None or not 0 <= self.max_drop < 1:
            raise InputError(
                f"--max-drop {self.max_drop} is out of range; it is a fraction, at least 0 and below 1: "
                "0.005 is half a point"
            )
        (base,) = recipes.get_recipes((self.max_drop_base,))
        if base.quantizer != "quantlib" or base.nodes:
            raise InputError(
                f"--max-drop-base {base.name}: it must be one of quantlib's own recipes, without exceptions "
                "for nodes"
            )
        if any(recipe.name == BUDGETED for recipe in recipes.get_recipes(self.recipes)):
            raise InputError(f"--max-drop makes a variant {BUDGETED!r}, and --recipes names one of that name")
