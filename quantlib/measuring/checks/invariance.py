"""Does the answer for a row depend on what else is in its batch, or on padding?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlib.data.features import Feature, pad
from quantlib.data.tasks import Task
from quantlib.machine.engines import DEFAULT_ENGINE, load_model
from quantlib.measuring.checks.check import Check, changed_cell, changed_words
from quantlib.measuring.checks.logits import Progress, labels_changed, largest_change, need_rows, predict
from quantlib.support.columns import Column

INVARIANCE_ROWS = 32
# A batch holds as many short rows, which are checked, as long ones, to whose length they are padded.
HALF_BATCH = 4


@dataclass(frozen=True)
class Invariance:
    """What changes in the logits of a row with the batch it is in, against those of the row alone.

    rows: how many were checked. in_batch: the largest change of a logit in a batch with longer rows. padded:
    the same, alone and with as much padding. labels_changed: rows with another label in either; None for
    regression.
    """

    rows: int
    in_batch: float
    padded: float
    labels_changed: int | None

    @property
    def max_diff(self) -> float:
        """The larger of both changes."""
        return max(self.in_batch, self.padded)


def check_invariance(
    onnx_path: Path,
    rows: Sequence[Feature],
    task: Task,
    *,
    seed: int = 0,
    engine: str = DEFAULT_ENGINE,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Invariance:
    """Run rows alone, in a batch with longer ones, and alone with as much padding, and compare the logits.

    FP32 changes by rounding at most. Static int8 can add the steps of values that rounding moves over an
    edge. Dynamic int8 takes its ranges from the whole batch, padding included, and changes with it.

    Args:
        onnx_path, rows, task, engine, threads, progress: as for `quantlib.measuring.checks.Subject`.
        seed: of the draw of rows; see `choose_rows`.

    Raises:
        InputError: as for `quantlib.measuring.checks.run_checks`.
    """
    need_rows(onnx_path, rows)
    model = load_model(onnx_path, engine, threads=threads)
    alone, in_batch, padded = [], [], []
    for short, long in choose_rows(rows, seed):
        batch = [*short, *long]
        length = max(map(len, batch))
        in_batch.append(predict(model, pad(batch, length), task)[: len(short)])
        for row in short:
            alone.append(predict(model, pad([row], len(row)), task))
            padded.append(predict(model, pad([row], length), task))
        if progress is not None:
            progress(len(short))
    reference, batched, longer = (np.concatenate(logits) for logits in (alone, in_batch, padded))
    return Invariance(
        rows=len(reference),
        in_batch=largest_change(reference, batched),
        padded=largest_change(reference, longer),
        labels_changed=labels_changed(task, reference, batched, longer),
    )


def choose_rows(rows: Sequence[Feature], seed: int = 0) -> list[tuple[list[Feature], list[Feature]]]:
    """Batches of (short rows, long rows): `INVARIANCE_ROWS` short ones in all, or as many as there are rows.

    Short rows are drawn from the shorter half, each once, and cut to half of the longest row where they are
    not that short (the last token stays): all rows of long texts are as long as the model allows. Their
    company is drawn from the longest tenth, anew for each batch.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort([len(row) for row in rows], kind="stable")
    half = max(2, len(rows[order[-1]]) // 2)
    shorter, longest = order[: max(INVARIANCE_ROWS, len(rows) // 2)], order[-max(1, len(rows) // 10) :]
    drawn = rng.choice(shorter, min(INVARIANCE_ROWS, len(shorter)), replace=False)
    return [
        (
            [_shortened(rows[i], half) for i in drawn[start : start + HALF_BATCH]],
            [rows[i] for i in rng.choice(longest, HALF_BATCH)],
        )
        for start in range(0, len(drawn), HALF_BATCH)
    ]


def _shortened(row: Feature, length: int) -> Feature:
    if len(row) <= length:
        return row
    kept = np.r_[: length - 1, len(row) - 1]
    return Feature(row.input_ids[kept], row.token_type_ids[kept], row.label)


def _remarks(result: Invariance) -> list[str]:
    changed = f"{result.labels_changed} of {result.rows} labels change with the batch"
    return [changed] if result.labels_changed else []


def _words(result: Invariance) -> str:
    if result.max_diff == 0:
        return f"No logit of {result.rows} rows changes with the rest of the batch or with padding."
    return (
        f"With the rest of the batch, or with padding, logits of {result.rows} rows change by at most "
        f"{result.max_diff:.2g}{changed_words(result.labels_changed)}."
    )


INVARIANCE = Check(
    "invariance",
    Invariance,
    lambda subject: check_invariance(
        subject.onnx_path,
        subject.rows,
        subject.task,
        engine=subject.engine,
        threads=subject.threads,
        progress=subject.progress,
    ),
    (
        Column(
            "invariance_max_diff",
            "the largest change of a logit of a row with longer rows in its batch, or with padding",
            lambda result: result.max_diff,
            heading="invariance",
            cell=lambda result: f"{result.max_diff:.2g}",
        ),
        Column(
            "invariance_labels_changed",
            "the number of rows whose label that changes; null for regression",
            lambda result: result.labels_changed,
            heading="labels",
            cell=lambda result: changed_cell(result.labels_changed, result.rows),
            justify="left",
        ),
    ),
    rows=INVARIANCE_ROWS,
    remarks=_remarks,
    words=_words,
    failed=lambda result, dynamic: bool(result.labels_changed) and not dynamic,
)
