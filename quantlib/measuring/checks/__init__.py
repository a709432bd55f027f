"""Beyond accuracy: does the arithmetic saturate, do answers depend on the batch, what is left in float."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.data.features import Feature
from quantlib.data.tasks import Task
from quantlib.measuring.checks.invariance import INVARIANCE_ROWS, Invariance, check_invariance
from quantlib.measuring.checks.logits import Progress
from quantlib.measuring.checks.saturation import SATURATION_ROWS, Saturation, check_saturation
from quantlib.onnx_model.coverage import Coverage, coverage

__all__ = [
    "CHECKED_ROWS", "Checks", "Invariance", "Saturation",
    "check_invariance", "check_saturation", "run_checks",
]  # fmt: skip

# The rows that all checks together compare, at most.
CHECKED_ROWS = SATURATION_ROWS + INVARIANCE_ROWS


@dataclass(frozen=True)
class Checks:
    """What was checked of one variant. coverage: None for a float model."""

    saturation: Saturation
    invariance: Invariance
    coverage: Coverage | None = None

    @property
    def note(self) -> str:
        """What deserves a word: labels that change, and why saturation was not checked."""
        saturation, invariance = self.saturation, self.invariance
        notes = [f"saturation: {saturation.why_not}"] if saturation.why_not else []
        if saturation.labels_changed:
            notes.append(f"{saturation.labels_changed} of {saturation.rows} labels change by saturation")
        if invariance.labels_changed:
            notes.append(f"{invariance.labels_changed} of {invariance.rows} labels change with the batch")
        return ", ".join(notes)

    def values(self) -> dict[str, float | int | None]:
        """What results.json and results.csv hold of it; None where a question does not arise."""
        return {
            "quantized_share": None if self.coverage is None else self.coverage.share,
            "saturation_max_diff": self.saturation.max_diff,
            "saturation_labels_changed": self.saturation.labels_changed,
            "invariance_max_diff": self.invariance.max_diff,
            "invariance_labels_changed": self.invariance.labels_changed,
        }


def run_checks(
    onnx_path: Path,
    rows: Sequence[Feature],
    task: Task,
    *,
    quantized: bool,
    kept: Collection[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Checks:
    """Run every check on a model.

    Args:
        onnx_path: the model.
        rows: the evaluation rows, at least one; a few of them are used.
        task: says how many logits a row must get.
        quantized: whether the model is meant to be, so that what it leaves in float needs a reason.
        kept: the names of the nodes that its recipe keeps in float.
        threads: of the sessions; None for the physical cores.
        progress: called with the number of rows that were just compared, at most `CHECKED_ROWS` in all.

    Raises:
        InputError: no rows, a missing or corrupt model, one that cannot take the rows or has another number
            of logits than the task has labels, logits that are not finite, or a quantized model without
            weights to multiply by.
    """
    return Checks(
        check_saturation(onnx_path, rows, task, threads=threads, progress=progress),
        check_invariance(onnx_path, rows, task, threads=threads, progress=progress),
        coverage(onnx_path, kept) if quantized else None,
    )
