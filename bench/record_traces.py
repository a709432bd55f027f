"""Record timing traces of this machine: block times of the teacher and one variant, launch after launch.

    python bench/record_traces.py TEACHER.onnx VARIANT.onnx OUT.json [--launches 20] [--turns 20] [--busy]

The simulation in `bench/gate_power.py` resamples them. With --busy a process keeps one core at work.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from quantlib.machine.hardware import describe
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.measuring.latency import TimedProcess, take_turns
from quantlib.support.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path)
    parser.add_argument("variant", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--wake-seconds", type=float, default=0.05)
    parser.add_argument("--shape", default="1x128")
    parser.add_argument("--busy", action="store_true")
    args = parser.parse_args()
    batch, length = map(int, args.shape.split("x"))
    feeds = [random_feed(batch, length)]
    config = SessionConfig(default_threads())
    launches = []
    with busy_core() if args.busy else contextlib.nullcontext():
        for launch in range(args.launches):
            with (
                TimedProcess(args.teacher, feeds, config) as a,
                TimedProcess(args.variant, feeds, config) as b,
            ):
                blocks = take_turns([a, b], args.turns, args.block, wake_seconds=args.wake_seconds)
            launches.append({"teacher_ms": rounded(blocks[0]), "variant_ms": rounded(blocks[1])})
            ratio = np.median(np.log(blocks[0] / blocks[1]))
            print(
                f"launch {launch + 1}: log ratio {ratio:.4f}, teacher {np.median(blocks[0]):.2f} ms",
                flush=True,
            )
    machine = describe()
    write_json(
        args.out,
        {
            "cpu_model": machine.cpu_model,
            "instruction_sets": list(machine.instruction_sets),
            "threads": config.threads,
            "shape": args.shape,
            "block": args.block,
            "busy": args.busy,
            "launches": launches,
        },
    )


def random_feed(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random ids without padding, (batch, length)."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def rounded(times_ms: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in times_ms]


def spin() -> None:
    value = 1.0
    while True:
        value = (value * 1.0000001) % 1e9


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    process = multiprocessing.Process(target=spin, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
