"""What other quantizers keep of a teacher's accuracy: recipes of ours, stock ONNX Runtime, OpenVINO's NNCF.

    python bench/peers_accuracy.py --task RTE --data-dir DIR --teacher DIR

All start from the same FP32 export, are calibrated on the same rows and judged on the same rows, each on the
engine that it is for. NNCF takes part where the extra `nncf` is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Option

from quantlib.cli.app import new_app, run_app
from quantlib.compression.recipes import DEFAULT_RECIPES, PEERS, RECIPES
from quantlib.compression.variants import TEACHER
from quantlib.data import scores, tasks
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import begin, build
from quantlib.experiment.measure import evaluate
from quantlib.experiment.work import tokenize
from quantlib.machine.engines import get_engine
from quantlib.machine.sessions import default_threads
from quantlib.report.columns import BYTES_PER_MB
from quantlib.support.console import plain_table
from quantlib.support.directories import atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import copy_file, make_dir, write_json
from quantlib.support.options import split_names
from quantlib.support.progress import Steps

if TYPE_CHECKING:
    from rich.table import Table

STOCK = "stock_dynamic"
# NNCF's default for ranges is the mean of each row's extremes, which clips the rows beyond it: on a
# regression it may lose what the extremes of all rows keep.
NNCF = ("nncf_int8@openvino", "nncf_int8_minmax@openvino")

EVALUATION, VALIDATION = SPLITS = ("evaluation", "validation")

Logits = npt.NDArray[Any]


@dataclass(frozen=True)
class Result:
    """One model against the teacher; units as in results.json: fractions, bytes, logits."""

    name: str
    metrics: dict[str, float]
    accuracy_drop: float
    drop_low: float
    drop_high: float
    agreement: float
    logit_error: float
    size_bytes: int
    compression_ratio: float


@dataclass(frozen=True)
class Compared:
    """What a comparison found, the teacher's result first.

    left_out: the peers that are not there, and why.
    """

    task: tasks.Task
    results: tuple[Result, ...]
    left_out: dict[str, str]
    provenance: dict[str, Any]


def peers() -> tuple[str, ...]:
    """The recipes of peers that can be made here."""
    return (STOCK, *(NNCF if importlib.util.find_spec("nncf") else ()))


def compare_peers(
    options: ExperimentOptions, keep: Path | None, steps: Steps, split: str = EVALUATION
) -> Compared:
    """Build and judge every model; with `keep`, leave the models and all logits there.

    split: whose rows they are judged on.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    built = build(options, steps)
    if split != EVALUATION:
        begun = begin(options)
        rows = tokenize(begun.work, split, begun.teacher)
        built = replace(built, variants=tuple(replace(variant, rows=rows) for variant in built.variants))
    evaluations = evaluate(built, options, steps)
    logits = {name: evaluation.logits for name, evaluation in evaluations.items()}
    sizes = {variant.name: variant.model.size_bytes for variant in built.variants}
    labels = evaluations[TEACHER].truth
    if keep is not None:
        with atomic_files(make_dir(keep)) as place:
            for file, path in {variant.file.name: variant.path for variant in built.variants}.items():
                copy_file(path, place / file)
            arrays: dict[str, Any] = {"labels": labels, **logits}
            np.savez(place / "logits.npz", allow_pickle=False, **arrays)
    engines = [get_engine(name) for name in options.every_engine]
    return Compared(
        task=built.task,
        results=tuple(judge(built.task, name, logits, labels, sizes) for name in logits),
        left_out={} if set(NNCF) <= set(peers()) else dict.fromkeys(NNCF, "the extra nncf is not installed"),
        provenance={
            "task": built.task.name,
            "calibration_rows": options.calibration_samples,
            "evaluation_rows": len(built.variants[0].rows),
            "rows_of": split,
            "seq_len": options.seq_len,
            "threads": options.threads,
            "packages": {"onnx": version("onnx"), **{each.package: each.version for each in engines}},
            "sha256": {**built.hashes, "fp32": built.variants[0].model.sha256},
        },
    )


def judge(
    task: tasks.Task, name: str, logits: Mapping[str, Logits], labels: Logits, sizes: Mapping[str, int]
) -> Result:
    """One model's result against the teacher's logits for the same rows."""
    predicted, teachers = logits[name], logits[TEACHER]
    metrics, reference = (scores.compute_metrics(task, array, labels) for array in (predicted, teachers))
    low, high = scores.drop_interval(task, predicted, teachers, labels)
    return Result(
        name=name,
        metrics=metrics,
        accuracy_drop=reference[task.primary_metric] - metrics[task.primary_metric],
        drop_low=low,
        drop_high=high,
        agreement=scores.agreement(task, predicted, teachers),
        logit_error=scores.logit_error(predicted, teachers),
        size_bytes=sizes[name],
        compression_ratio=sizes[TEACHER] / sizes[name],
    )


# What is shown and written


def as_table(compared: Compared) -> Table:
    """The results for a person to read: drops in points with their 95 % intervals, agreement in percent."""
    primary = compared.task.primary_metric
    table = plain_table()
    table.add_column("model", justify="left", no_wrap=True)
    for column in (
        primary,
        "drop\npoints",
        "95 %\ninterval",
        "agree\n%",
        "logit\nerror",
        "size\nMB",
        "compr.",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    for result in compared.results:
        low, high = 100 * result.drop_low, 100 * result.drop_high
        table.add_row(
            result.name,
            f"{result.metrics[primary]:z.4f}",
            f"{100 * result.accuracy_drop:z.2f}",
            f"{low:z.2f} to {high:z.2f}",
            f"{100 * result.agreement:z.2f}",
            f"{result.logit_error:.4f}",
            f"{result.size_bytes / BYTES_PER_MB:.1f}",
            f"{result.compression_ratio:.2f}x",
        )
    return table


def as_json(compared: Compared) -> dict[str, Any]:
    """The same for a file: fractions and bytes, as in results.json."""
    rows = [asdict(result) for result in compared.results]
    results = {row.pop("name"): row for row in rows}
    return {**compared.provenance, "left_out": compared.left_out, "results": results}


# The command

app = new_app()


@app.command()
def main(
    teacher: Annotated[str, Option(help="Fine-tuned checkpoint, DIR or HUB_ID.")],
    task: Annotated[str, Option(help=f"One of {', '.join(tasks.TASKS)}.")] = "BBC-News",
    data_dir: Annotated[Path | None, Option(help="Directory with the task's GLUE files.")] = None,
    recipes: Annotated[
        str, Option(help=f"Comma-separated names. Known: {', '.join(RECIPES | PEERS)}.")
    ] = ",".join(DEFAULT_RECIPES),
    seq_len: Annotated[int, Option(help="Longest sequence in tokens.")] = 128,
    threads: Annotated[int | None, Option(help="Threads of a session; default: the physical cores.")] = None,
    calibration_samples: Annotated[int, Option(help="Rows that are calibrated on.")] = 512,
    train_rows: Annotated[int | None, Option(help="As the teacher was trained.")] = None,
    cache_dir: Annotated[Path | None, Option(help="Where built models are kept.")] = None,
    rows: Annotated[
        str,
        Option(help=f"What all are judged on: {' or '.join(SPLITS)}, the rows of train that are set aside."),
    ] = EVALUATION,
    json_file: Annotated[Path | None, Option("--json", help="Write the results to this file too.")] = None,
    keep: Annotated[Path | None, Option(help="Directory for all models and logits.")] = None,
) -> None:
    """Compare recipes with stock ONNX Runtime and OpenVINO's NNCF on accuracy and size."""
    from rich.console import Console

    options = ExperimentOptions(
        task=task,
        data_dir=data_dir,
        teacher=teacher,
        no_student=True,
        recipes=(*split_names(recipes), *peers()),
        seq_len=seq_len,
        threads=default_threads() if threads is None else threads,
        calibration_samples=calibration_samples,
        train_rows=train_rows,
        cache_dir=cache_dir,
    )
    if rows not in SPLITS:
        raise InputError(f"--rows {rows!r} is none of: {', '.join(SPLITS)}")
    if json_file is not None:
        make_dir(json_file.parent)
    out = Console()
    compared = compare_peers(options, keep, Steps(out), rows)
    if json_file is not None:
        write_json(json_file, as_json(compared))
    out.print(as_table(compared))
    for name, reason in compared.left_out.items():
        out.print(f"{name} is left out: {reason}", highlight=False, markup=False, soft_wrap=True)


def cli(arguments: list[str] | None = None) -> int:
    """Run the command; what the user got wrong is one line on stderr and exit code 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(cli())
