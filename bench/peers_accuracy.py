"""What other quantizers keep of a teacher's accuracy: recipes of ours, stock ONNX Runtime, OpenVINO's NNCF.

    python bench/peers_accuracy.py --task RTE --data-dir DIR --teacher DIR --peers-python PEERS/bin/python

All start from the same FP32 export, are calibrated on the same rows and judged on the same rows. NNCF lives
in an environment of its own, so that its dependencies never meet ours:

    python -m venv PEERS && PEERS/bin/pip install numpy onnx openvino nncf
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Option

from quantlib.cli.app import new_app, run_app
from quantlib.compression.recipes import DEFAULT_RECIPES, RECIPES
from quantlib.compression.variants import TEACHER
from quantlib.data import features, scores, tasks
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.experiment.measure import evaluate
from quantlib.machine.sessions import default_threads
from quantlib.measuring import accuracy
from quantlib.onnx_model.model import size_bytes
from quantlib.report.columns import BYTES_PER_MB
from quantlib.support.console import plain_table
from quantlib.support.directories import atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import copy_file, make_dir, sha256_file, write_json
from quantlib.support.options import split_names
from quantlib.support.progress import Steps
from quantlib.training import checkpoints

if TYPE_CHECKING:
    from rich.table import Table

STOCK = "stock_dynamic"
# How NNCF takes the ranges of activations, by the name of the result. Its default is the mean of each row's
# extremes, which clips the rows beyond it: on a regression it may lose what MINMAX keeps.
NNCF_RANGES = {"nncf": "default", "nncf_minmax": "MINMAX"}
PEER_PACKAGES = ("nncf", "openvino", "numpy")
WORKER = Path(__file__).with_name("nncf_worker.py")
_VERSIONS = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""
_ROWS_AT_ONCE = 32  # as `accuracy.predict_onnx` takes them

Logits = npt.NDArray[Any]
Advance = Callable[[int], None]


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

    left_out: the peers that were not asked for, and why.
    """

    task: tasks.Task
    results: tuple[Result, ...]
    left_out: dict[str, str]
    provenance: dict[str, Any]


def compare_peers(
    options: ExperimentOptions, peers_python: Path | None, keep: Path | None, steps: Steps
) -> Compared:
    """Build and judge every model; with `keep`, leave the models and all logits there.

    Raises:
        InputError: something that the user gave cannot be used, or a peer failed.
    """
    versions = {name: version(name) for name in ("onnxruntime", "onnx")}
    if peers_python is not None:
        versions |= peer_versions(peers_python)
    built = build(options, steps)
    teacher = built.variants[0]
    samples = calibration_rows(options, built.task)
    evaluations = evaluate(built, options, steps)
    logits = {name: evaluation.logits for name, evaluation in evaluations.items()}
    sizes = {variant.name: size_bytes(variant.path) for variant in built.variants}
    with _place(keep) as place:
        fp32, stock = place / "fp32.onnx", place / f"{STOCK}.onnx"
        copy_file(teacher.path, fp32)
        with steps.step(f"quantize {STOCK}"):
            quantize_stock(fp32, stock)
        with steps.step(f"evaluate {STOCK}", total=len(teacher.rows)) as step:
            logits[STOCK] = accuracy.predict_onnx(
                stock, teacher.rows, built.task, threads=options.threads, progress=step.advance
            )
            sizes[STOCK] = size_bytes(stock)
        if peers_python is not None:
            for name, ranges in NNCF_RANGES.items():
                model = place / f"{name}.xml"
                with steps.step(f"quantize {name}") as step:
                    quantize_nncf(peers_python, fp32, samples, model, ranges, step.advance)
                with steps.step(f"evaluate {name}", total=len(teacher.rows)) as step:
                    logits[name] = predict_nncf(
                        peers_python, model, teacher.rows, built.task, options.threads, step.advance
                    )
                sizes[name] = sum(path.stat().st_size for path in (model, model.with_suffix(".bin")))
        labels = evaluations[TEACHER].truth
        np.savez(place / "logits.npz", labels=labels, allow_pickle=False, **logits)
    return Compared(
        task=built.task,
        results=tuple(judge(built.task, name, logits, labels, sizes) for name in logits),
        left_out={} if peers_python else dict.fromkeys(NNCF_RANGES, "no --peers-python"),
        provenance={
            "task": built.task.name,
            "calibration_rows": len(samples),
            "evaluation_rows": len(teacher.rows),
            "seq_len": options.seq_len,
            "threads": options.threads,
            "packages": versions,
            "sha256": {**built.hashes, "fp32": sha256_file(teacher.path)},
        },
    )


@contextmanager
def _place(keep: Path | None) -> Iterator[Path]:
    """Where models are made: a temporary directory, whose files then go to `keep`, all or none."""
    if keep is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
    else:
        with atomic_files(make_dir(keep)) as place:
            yield place


def calibration_rows(options: ExperimentOptions, task: tasks.Task) -> list[features.Feature]:
    """The rows that `build` calibrates static recipes on, tokenized for the teacher."""
    splits = tasks.read_splits(task, options.data_dir, train_rows=options.train_rows)
    tokenizer = features.load_tokenizer(checkpoints.resolve(options.teacher or "", TEACHER))
    return features.convert_examples_to_features(
        splits.calibration[: options.calibration_samples],
        task.labels,
        options.seq_len,
        tokenizer,
        task.output_mode,
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


# Stock ONNX Runtime


def quantize_stock(fp32: Path, out_path: Path) -> None:
    """Dynamic int8 as ONNX Runtime's own tool makes it from the plain export."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises its own pre-processing
    try:
        quantize_dynamic(
            fp32,
            out_path,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(previous)


# NNCF, in the peers' environment


def peer_versions(python: Path) -> dict[str, str]:
    """The versions of what the peers' environment must hold.

    Raises:
        InputError: the interpreter cannot be run, or a package is missing.
    """
    process = _start([str(python), "-I", "-c", _VERSIONS, *PEER_PACKAGES])
    out, err = process.communicate()
    if process.returncode != 0:
        raise InputError(
            f"--peers-python {python}: {_last_line(err)}; it needs the packages {', '.join(PEER_PACKAGES)}"
        )
    try:
        versions: dict[str, str] = json.loads(out)
    except ValueError as error:
        raise InputError(f"--peers-python {python}: not a Python interpreter") from error
    return versions


def quantize_nncf(
    python: Path,
    fp32: Path,
    rows: Sequence[features.Feature],
    out_path: Path,
    ranges: str,
    advance: Advance,
) -> None:
    """Write NNCF's int8 model, `out_path` and a .bin beside it; calibrated on single rows without padding."""
    feeds = [features.pad([row], len(row)) for row in rows]
    _run_worker(python, "quantize", fp32, feeds, out_path, ranges, lambda _: advance(1))


def predict_nncf(
    python: Path,
    model: Path,
    rows: Sequence[features.Feature],
    task: tasks.Task,
    threads: int,
    advance: Advance,
) -> Logits:
    """The logits of an OpenVINO model: float32, (rows, labels); batches are those of `predict_onnx`."""
    batches = list(features.batches(rows, _ROWS_AT_ONCE))
    logits = np.full((len(rows), task.num_labels), np.nan, dtype=np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        out_path = Path(scratch) / "logits.npz"
        _run_worker(
            python,
            "predict",
            model,
            [feed for _, feed in batches],
            out_path,
            str(threads),
            lambda number: advance(len(batches[number][0])),
        )
        with np.load(out_path) as arrays:
            for number, (index, _) in enumerate(batches):
                outputs = arrays[str(number)]
                if outputs.shape != (len(index), task.num_labels):
                    raise InputError(f"{model.name}: logits of shape {outputs.shape} for {len(index)} rows")
                logits[index] = outputs
    if not np.isfinite(logits).all():
        raise InputError(f"{model.name}: logits that are not finite")
    return logits


def _run_worker(
    python: Path,
    what: str,
    model: Path,
    feeds: Sequence[features.Feed],
    out_path: Path,
    setting: str,
    done: Callable[[int], None],
) -> None:
    """Run the worker once; `done(number)` is called as feeds are finished, counted from 0."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile("w+") as messages:
        path = Path(scratch) / "feeds.npz"
        arrays = {f"{i}.{name}": array for i, feed in enumerate(feeds) for name, array in feed.items()}
        np.savez(path, allow_pickle=False, **arrays)
        words = [str(word) for word in (python, "-I", WORKER, what, model, path, out_path, setting)]
        with _start(words, stderr=messages) as process:
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout):
                done(number)
        if process.returncode != 0:
            messages.seek(0)
            raise InputError(f"NNCF: {what} failed ({process.returncode}): {_last_line(messages.read())}")


def _start(words: Sequence[str], stderr: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True)
    except OSError as error:
        raise InputError(f"--peers-python {words[0]}: cannot be run: {error.strerror or error}") from error


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


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
        str, Option(help=f"Comma-separated names, or all. Known: {', '.join(RECIPES)}.")
    ] = ",".join(DEFAULT_RECIPES),
    peers_python: Annotated[
        Path | None, Option(help="Interpreter of an environment with openvino and nncf; default: no NNCF.")
    ] = None,
    seq_len: Annotated[int, Option(help="Longest sequence in tokens.")] = 128,
    threads: Annotated[int | None, Option(help="Threads of a session; default: the physical cores.")] = None,
    calibration_samples: Annotated[int, Option(help="Rows that are calibrated on.")] = 512,
    train_rows: Annotated[int | None, Option(help="As the teacher was trained.")] = None,
    cache_dir: Annotated[Path | None, Option(help="Where built models are kept.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="Write the results to this file too.")] = None,
    keep: Annotated[
        Path | None, Option(help="Directory for the FP32 model, the peers' models, and all logits.")
    ] = None,
) -> None:
    """Compare recipes with stock ONNX Runtime and OpenVINO's NNCF on accuracy and size."""
    from rich.console import Console

    options = ExperimentOptions(
        task=task,
        data_dir=data_dir,
        teacher=teacher,
        no_student=True,
        recipes=split_names(recipes),
        seq_len=seq_len,
        threads=default_threads() if threads is None else threads,
        calibration_samples=calibration_samples,
        train_rows=train_rows,
        cache_dir=cache_dir,
    )
    if json_file is not None:
        make_dir(json_file.parent)
    out = Console()
    compared = compare_peers(options, peers_python, keep, Steps(out))
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
