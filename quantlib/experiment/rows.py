"""The rows of a run, of a task of the table or of the user's own."""

from __future__ import annotations

from collections.abc import Iterable

from quantlib.data import tasks
from quantlib.data.tasks.splits import limit_train
from quantlib.experiment.task_options import CALIBRATION_SAMPLES, TaskOptions
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps


def read_rows(
    options: TaskOptions,
    model: tasks.ModelLabels | None,
    steps: Steps | None = None,
    *,
    train_rows: int | None = None,
    calibrate: bool = True,
    need_train: bool = True,
) -> tasks.OwnRows:
    """The task and its rows, and what was inferred or dropped on the way.

    Args:
        options: the description.
        model: what the teacher says of its logits; None where it is yet to be trained.
        steps: where the step is shown.
        train_rows: keep only the first so many rows of the train part.
        calibrate: whether calibration rows are needed.
        need_train: False where GLUE's train file may be missing.

    Raises:
        InputError: rows that cannot be read, or too few of them.
    """
    with (steps or Steps()).step("read rows") as step:
        own = options.own_task
        if own is None:
            task = tasks.get_task(options.task)
            splits = tasks.read_splits(task, options.data_dir, train_rows=train_rows, need_train=need_train)
            rows = tasks.OwnRows(task, splits, ())
        else:
            rows = tasks.read_own_task(own, model, calibrate=calibrate)
            if train_rows is not None:
                rows = tasks.OwnRows(rows.task, limit_train(rows.splits, train_rows), rows.notes)
        pool, wanted = len(rows.splits.calibration), options.calibration_samples
        if calibrate and wanted > pool and wanted != CALIBRATION_SAMPLES:
            raise InputError(f"--calibration-samples {wanted}: {rows.task.name} has {pool} calibration rows")
        step.note = ", ".join(_counts(rows.splits))
    return rows


def _counts(splits: tasks.Splits) -> Iterable[str]:
    """How many rows there are, of the parts that have some."""
    return (f"{name} {len(rows)}" for name, rows in splits.parts().items() if rows)
