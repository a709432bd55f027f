"""Seconds and peak memory of each step that makes the models of a run; nothing is there before it starts.

    python bench/step_memory.py TEACHER --task SST-2 --data-dir DIR --recipes prune50_static_u8s8_smooth

TEACHER is a checkpoint, with random weights too, or an ONNX file beside its tokenizer. Linux alone says what
the peak of a step was; memory of files that are mapped counts. `--cache-dir` goes on from what is there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.support.errors import InputError
from quantlib.support.progress import Step, Steps


@dataclass
class MeasuredSteps(Steps):
    """Steps that print their seconds and memory in GiB: before, at the peak, and after."""

    @contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Step]:
        """A step of a run."""
        before = memory_gib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again
        started = self.clock()
        with super().step(name, total) as step:
            yield step
        peak, after = memory_gib("VmHWM"), memory_gib("VmRSS")
        seconds = self.clock() - started
        print(f"{seconds:7.1f} s  {before:5.2f} -> {peak:5.2f} -> {after:5.2f} GiB  {name}", flush=True)


def memory_gib(key: str) -> float:
    """What the kernel says of this process: VmRSS, its memory now, or VmHWM, the peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{key}:"))) / 2**20


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--recipes", nargs="+", required=True)
    parser.add_argument("--calibration-samples", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-dir", type=Path)
    args = parser.parse_args()
    try:
        measure(args)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")


def measure(args: argparse.Namespace) -> None:
    """Make the models that the arguments ask for; a line for each step.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = ExperimentOptions(
            task=args.task,
            data_dir=args.data_dir,
            teacher=args.teacher,
            no_student=True,
            recipes=tuple(args.recipes),
            calibration_samples=args.calibration_samples,
            threads=args.threads,
            cache_dir=args.cache_dir or Path(scratch),
        )
        steps = MeasuredSteps()
        build(options, steps)
        print(f"{sum(steps.durations_s.values()):7.1f} s in all")


if __name__ == "__main__":
    main()
