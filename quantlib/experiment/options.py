"""What a run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from quantlib import recipes, tasks
from quantlib.errors import InputError
from quantlib.runtime import default_threads

# How many rows are calibrated on when no number is given; fewer where the task has fewer.
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True)
class ExperimentOptions:
    """What the command takes; see `quantization_experiments.py --help`.

    Raises:
        InputError: an unknown task or recipe, or a value out of range.
    """

    task: str = "BBC-News"
    data_dir: Path | None = None
    teacher: str | None = None
    students: tuple[str, ...] = ()
    no_student: bool = False
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

    def __post_init__(self) -> None:
        tasks.get_task(self.task)
        recipes.get_recipes(self.recipes)
        for name, least in (
            ("seq_len", 8),
            ("batch_size", 1),
            ("threads", 1),
            ("calibration_samples", 1),
            ("warmup_runs", 0),
            ("num_runs", 2),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise InputError(
                    f"--{flag} {getattr(self, name)} is out of range; it must be at least {least}"
                )
        if self.no_student and self.students:
            raise InputError("--no-student contradicts --student")
