"""Does this CPU's u8·s8 arithmetic overflow?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantlib.data.features import Feature, batches
from quantlib.data.tasks import Task
from quantlib.machine import hardware
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine, load_model
from quantlib.measuring.checks.check import Check, changed_cell, changed_words
from quantlib.measuring.checks.logits import Progress, labels_changed, largest_change, need_rows, predict
from quantlib.onnx_model.coverage import has_integer_products
from quantlib.support.columns import Column
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError

SATURATION_ROWS = 64


@dataclass(frozen=True)
class Saturation:
    """What changes when u8·s8 products are summed by slower kernels that cannot overflow.

    vnni: the CPU's flags name VNNI, with which neither kind can. rows: how many were compared. max_diff: the
    largest change of a logit. labels_changed: rows with another label; None for regression. why_not: why the
    question does not arise; then no row is compared, and max_diff and labels_changed are None.
    """

    vnni: bool
    rows: int = 0
    max_diff: float | None = None
    labels_changed: int | None = None
    why_not: str = ""

    def __post_init__(self) -> None:
        compared = self.rows > 0 and self.max_diff is not None
        if compared == bool(self.why_not):
            raise ValueError(f"either rows are compared or there is a reason why not: {self}")


def check_saturation(
    onnx_path: Path,
    rows: Sequence[Feature],
    task: Task,
    *,
    engine: str = DEFAULT_ENGINE,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Saturation:
    """Run the first `SATURATION_ROWS` rows with `quant_precision` off and on, and compare the logits.

    Integer sums are exact or saturated, nothing between, so a CPU that does not overflow gives a change of 0.
    ONNX Runtime 1.32 turns an s8 constant to u8 once for each use, and fails at the second one; so the model
    that is run with the option is a copy in which each use has a constant of its own.

    Raises:
        InputError: as for `quantlib.measuring.checks.run_checks`.
    """
    machine = hardware.describe()
    vnni = hardware.has_vnni(machine)
    if engine != DEFAULT_ENGINE:
        return Saturation(vnni, why_not=f"{get_engine(engine).label} has no kernels to compare with")
    if not hardware.is_x86(machine):
        return Saturation(vnni, why_not=f"{machine.architecture} is not x86")
    if not has_integer_products(onnx_path):
        return Saturation(vnni, why_not="no products of integers")
    need_rows(onnx_path, rows)
    sample = rows[:SATURATION_ROWS]
    feeds = [feed for _, feed in batches(sample, 32)]
    model = load_model(onnx_path, threads=threads)
    usual = [predict(model, feed, task) for feed in feeds]
    with temporary_dir() as scratch:
        copy = _unshared(onnx_path, scratch / "model.onnx")
        try:
            model = load_model(copy, threads=threads, quant_precision=True)
        except InputError:
            # The model was loaded without the option a moment ago, so the option is what fails.
            return Saturation(vnni, why_not="ONNX Runtime cannot load it with quant_precision")
    exact = []
    for feed in feeds:
        exact.append(predict(model, feed, task))
        if progress is not None:
            progress(len(exact[-1]))
    return Saturation(
        vnni,
        rows=len(sample),
        max_diff=largest_change(np.concatenate(exact), np.concatenate(usual)),
        labels_changed=labels_changed(task, np.concatenate(exact), np.concatenate(usual)),
    )


def _unshared(onnx_path: Path, copy_path: Path) -> Path:
    """The same model with an s8 constant of its own for each use: a copy, or itself if that is so already."""
    import onnx

    model = onnx.load(onnx_path)
    constants = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    uses: Counter[str] = Counter()
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name not in constants:
                continue
            uses[name] += 1
            if uses[name] > 1:
                copy = model.graph.initializer.add()
                copy.CopyFrom(constants[name])
                copy.name = node.input[place] = f"{name}/use_{uses[name]}"
    if all(count == 1 for count in uses.values()):
        return onnx_path
    onnx.save(model, copy_path)
    return copy_path


def _remarks(result: Saturation) -> list[str]:
    if result.why_not:
        return [f"saturation: {result.why_not}"]
    changed = f"{result.labels_changed} of {result.rows} labels change by saturation"
    return [changed] if result.labels_changed else []


def _words(result: Saturation) -> str:
    if result.why_not:
        return f"Overflow of 16-bit sums was not looked for: {result.why_not}."
    if result.max_diff == 0:
        return f"No logit of {result.rows} rows changes on kernels whose sums cannot overflow."
    return (
        f"On kernels whose sums cannot overflow, as other CPUs have them, logits of {result.rows} rows "
        f"change by at most {result.max_diff:.2g}{changed_words(result.labels_changed)}."
    )


SATURATION = Check(
    "saturation",
    Saturation,
    lambda subject: check_saturation(
        subject.onnx_path,
        subject.rows,
        subject.task,
        engine=subject.engine,
        threads=subject.threads,
        progress=subject.progress,
    ),
    (
        Column(
            "saturation_max_diff",
            "the largest change of a logit on kernels whose sums cannot overflow; null where none can",
            lambda result: result.max_diff,
            heading="saturation",
            cell=lambda result: "" if result.max_diff is None else f"{result.max_diff:.2g}",
        ),
        Column(
            "saturation_labels_changed",
            "the number of rows with another label on those kernels; null for regression too",
            lambda result: result.labels_changed,
            heading="labels",
            cell=lambda result: (
                "n/a" if result.max_diff is None else changed_cell(result.labels_changed, result.rows)
            ),
            justify="left",
        ),
    ),
    rows=SATURATION_ROWS,
    remarks=_remarks,
    words=_words,
)
