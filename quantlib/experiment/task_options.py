"""The options that describe a task and its rows, and how models are measured on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantlib.data import tasks
from quantlib.data.metrics import METRICS
from quantlib.data.scoring import DEFAULT_THRESHOLD
from quantlib.machine.engines import DEFAULT_ENGINE, ENGINES, check_engines, get_engine
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND, check_ranges, option, options_of

DEFAULT_TASK = "BBC-News"
# How many rows are calibrated on when no number is given; fewer where the task has fewer.
CALIBRATION_SAMPLES = 512
_KNOWN_METRICS = "; ".join(f"{kind}: {', '.join(metrics)}" for kind, metrics in METRICS.items())
# The options that describe rows of the user's own, beside the evaluation rows.
_OF_OWN_TASKS = (
    "train", "calibration", "text", "label", "kind", "metrics", "labels", "threshold", "separator",
    "quotes",
)  # fmt: skip


@dataclass(frozen=True)
class TaskOptions:
    """Which rows are evaluated and calibrated on, and how they are read.

    Raises:
        InputError: an unknown task, a contradiction, or a value out of range.
    """

    task: str = option(
        DEFAULT_TASK,
        f"One of {', '.join(tasks.TASKS)}; or a name for your own, with --evaluation.",
        section="task",
        key="name",
    )
    data_dir: Path | None = option(
        None,
        "Directory with the task's GLUE files; without it, rows come from the hub.",
        section="task",
        advanced=True,
    )
    evaluation: str | None = option(
        None,
        "Your own evaluation rows: a .csv, .tsv, .jsonl, .parquet or .txt file, a directory of datasets, or "
        "hf://ORG/NAME@REVISION:SPLIT.",
        metavar="FILE",
        section="task",
        is_file=True,
    )
    train: str | None = option(
        None,
        "Your own train rows: to fine-tune, to distil, and to calibrate on.",
        metavar="FILE",
        section="task",
        is_file=True,
    )
    calibration: str | None = option(
        None,
        "Your own rows to calibrate on, without labels; default: some are set aside from train, else from "
        "evaluation.",
        metavar="FILE",
        section="task",
        is_file=True,
        advanced=True,
    )
    text: tuple[str, ...] = option(
        (),
        "The column with the text, or two for a pair; default: those with a usual name.",
        metavar="COLUMN[,COLUMN]",
        section="task",
        comma=True,
    )
    label: str | None = option(
        None,
        "The column with the label; without it, agreement with the teacher is what is judged.",
        metavar="COLUMN",
        section="task",
    )
    kind: str | None = option(
        None,
        f"One of {', '.join(tasks.KINDS)}; inferred if left out.",
        section="task",
        advanced=True,
    )
    metrics: tuple[str, ...] = option(
        (),
        f"The first decides. Known: {_KNOWN_METRICS}.",
        metavar="METRIC[,METRIC]",
        section="task",
        comma=True,
        advanced=True,
    )
    labels: Mapping[str, str] = option(
        dict,
        "What the checkpoint calls a label of the rows, where it is another word; may be repeated.",
        metavar="LABEL=NAME",
        section="task",
        advanced=True,
    )
    threshold: float = option(
        DEFAULT_THRESHOLD,
        "Least probability of a label that is predicted, for multi_label.",
        section="task",
        advanced=True,
    )
    separator: str | None = option(
        None,
        "What parts the labels of a cell, for multi_label.",
        metavar="TEXT",
        section="task",
        advanced=True,
    )
    quotes: str = option(
        "auto",
        f"Whether cells of CSV and TSV files may be quoted: {', '.join(tasks.QUOTES)}.",
        section="task",
        advanced=True,
    )
    seq_len: int = option(
        128, "Longest sequence in tokens, and the length that is timed.", least=8, recorded=True
    )
    # Thousands of threads make ONNX Runtime end the process without a word.
    threads: int = option(
        default_threads,
        "Threads of a session; default: the physical cores.",
        least=1,
        most=512,
        advanced=True,
    )
    calibration_samples: int = option(
        CALIBRATION_SAMPLES,
        "Rows to calibrate static recipes on.",
        least=1,
        recorded=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        _ = self.task_name
        if self.own_task is not None:
            if self.data_dir is not None:
                raise InputError("--data-dir contradicts --evaluation: it is for the tasks of GLUE")
            return
        for item in options_of(TaskOptions):
            nothing = {} if item.pairs else item.default
            if item.name in _OF_OWN_TASKS and getattr(self, item.name) != nothing:
                raise InputError(f"{item.flag} describes rows of your own; they need --evaluation FILE too")

    @cached_property
    def own_task(self) -> tasks.OwnTask | None:
        """The description of the user's own rows; None for a task of the table."""
        if self.evaluation is None:
            return None
        return tasks.OwnTask(
            # The default names the embedded task; own rows without a name are named after their file.
            name=tasks.name_of(self.evaluation) if self.task == DEFAULT_TASK else self.task,
            evaluation=self.evaluation,
            **{name: getattr(self, name) for name in _OF_OWN_TASKS},
        )

    @property
    def task_name(self) -> str:
        """The name of the task, and of the directory of its results."""
        return tasks.get_task(self.task).name if self.own_task is None else self.own_task.name


@dataclass(frozen=True)
class MeasuringOptions(TaskOptions):
    """How models are timed beside each other, and where what was computed is kept."""

    batch_size: int = option(
        1,
        "Rows in a batch that is timed.",
        least=1,
        offered=(COMMAND,),
        advanced=True,
    )
    warmup_runs: int = option(
        5,
        "Untimed runs before the timed ones.",
        least=0,
        advanced=True,
    )
    num_runs: int = option(
        30,
        "Timed runs.",
        least=2,
        advanced=True,
    )
    timing_seconds: float = option(
        60.0,
        "Seconds for timing the variants of a model in turns; two launches are timed at least.",
        least=0,
        advanced=True,
    )
    cache_dir: Path | None = option(
        None,
        "Where trained and built models are kept; default: the user's cache directory.",
        advanced=True,
    )
    stock_sessions: bool = option(
        False,
        "Time in sessions with ONNX Runtime's default options.",
        recorded=True,
        advanced=True,
    )

    engines: tuple[str, ...] = option(
        (DEFAULT_ENGINE,),
        f"Comma-separated names of what runs the variants: {', '.join(ENGINES)}; the teacher that they are "
        f"compared with always runs on {DEFAULT_ENGINE}.",
        comma=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_engines(self.engines)

    @property
    def session(self) -> SessionConfig:
        """How every variant's session runs when it is timed on the default engine."""
        return SessionConfig.stock(self.threads) if self.stock_sessions else SessionConfig(self.threads)

    def session_on(self, engine: str, *, stock: bool = False) -> Any:
        """How a session of an engine runs when it is timed; stock: with the engine's own defaults."""
        return get_engine(engine).config(self.threads, stock or self.stock_sessions)
