"""What calibration costs: peak memory and time, against a plain inference pass that returns the same tensors.

    python bench/calibration_memory.py [MODEL.onnx] [--rows 64 512 2048] [--all-tensors]

Each figure comes from a process of its own, since a peak never falls. The model is the packaged MiniLM with a
classifier of random weights, if none is given; rows are those of the embedded default, repeated.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from step_memory import memory_gib

from quantlib.compression import calibration
from quantlib.compression.calibration import graph
from quantlib.compression.quantize import tensors_to_calibrate
from quantlib.compression.recipes import RECIPES
from quantlib.data import features, tasks
from quantlib.machine.sessions import feed_for, open_session
from quantlib.training import checkpoints

METHODS = ("MinMax", "MovingAverage", "Percentile:99.99", "Entropy", "MSE")
SEQ_LEN = 128


def write_model(path: Path) -> Path:
    """Export the packaged MiniLM with a classifier of random weights."""
    import torch
    import transformers

    from quantlib.onnx_model.export import export_bert_to_onnx

    torch.manual_seed(0)
    base = checkpoints.packaged_minilm()
    with tempfile.TemporaryDirectory() as scratch, checkpoints.quiet_transformers():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)
        model.save_pretrained(scratch)
        for name in ("tokenizer.json", "vocab.txt"):
            shutil.copy(base / name, scratch)
        export_bert_to_onnx(scratch, path, SEQ_LEN)
    return path


def read_feeds(count: int) -> features.CalibrationReader:
    """`count` rows of the embedded default's calibration split, repeated where it has fewer."""
    task = tasks.get_task("BBC-News")
    pool = tasks.read_splits(task).calibration
    rows = features.convert_examples_to_features(
        [pool[i % len(pool)] for i in range(count)],
        task.labels,
        SEQ_LEN,
        features.load_tokenizer(checkpoints.packaged_minilm()),
        task.output_mode,
    )
    return features.CalibrationReader(rows, batch_size=4)


def plain(model_path: Path, tensors: Sequence[str], feeds: features.CalibrationReader) -> None:
    """Run every feed and drop the outputs."""
    model = calibration.load_with_shapes(model_path)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        calibration.save(graph.with_outputs(model, tensors), path)
        session = open_session(path)
    for feed in feeds:
        session.run(None, feed_for(session, feed))


def measure(what: str, model_path: Path, count: int, all_tensors: bool) -> str:
    """`what` is "plain" or "collect": seconds of the pass, seconds of the methods, MiB at the peak."""
    if all_tensors:
        tensors = calibration.activations(calibration.load_with_shapes(model_path))
    else:
        tensors = tensors_to_calibrate(model_path, RECIPES["quant_2"])
    feeds = read_feeds(count)
    words, started = "", time.perf_counter()
    if what == "plain":
        plain(model_path, tensors, feeds)
        seconds = time.perf_counter() - started
    else:
        statistics = calibration.collect(model_path, feeds, tensors)
        seconds = time.perf_counter() - started
        for method in METHODS:
            started = time.perf_counter()
            calibration.derive(statistics, method)
            words += f", {method} {time.perf_counter() - started:.1f} s"
    peak_mib = 1024 * memory_gib("VmHWM")
    figures = f"{len(tensors)} tensors  {seconds:7.1f} s  peak {peak_mib:6.0f} MiB"
    return f"{what:<8} {count:>5} rows  {figures}{words}"


def main() -> None:
    """Print a line for each pass and number of rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rows", nargs="+", type=int, default=[64, 512, 2048])
    parser.add_argument(
        "--all-tensors", action="store_true", help="every activation, not only what recipes need"
    )
    parser.add_argument("--only", choices=["plain", "collect"], help="measure in this process")
    args = parser.parse_args()
    if args.only:
        print(measure(args.only, args.model, args.rows[0], args.all_tensors))
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model or write_model(Path(scratch) / "model.onnx")
        for count in args.rows:
            for what in ("plain", "collect"):
                command = [sys.executable, __file__, str(model), "--rows", str(count), "--only", what]
                subprocess.run([*command, *(["--all-tensors"] if args.all_tensors else [])], check=True)


if __name__ == "__main__":
    main()
