"""Record timing traces of this machine: block times of three processes in turns, launch after launch.

    python bench/record_traces.py TEACHER.onnx VARIANT.onnx OUT.json [--launches 20] [--turns 20] [--load]

The third process runs the variant too: what it differs by from the second is what identical models differ by.
The simulation in `bench/gate_power.py` resamples the traces. With --load one core is busy on and off.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import numpy as np
from load import load

from quantlib.machine.hardware import describe
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.measuring.latency import TimedProcess, take_turns
from quantlib.measuring.latency.others import watch_others
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
    parser.add_argument("--load", action="store_true")
    args = parser.parse_args()
    batch, length = map(int, args.shape.split("x"))
    feeds = [random_feed(batch, length)]
    config = SessionConfig(default_threads())
    launches: list[dict[str, object]] = []
    with load() if args.load else contextlib.nullcontext():
        for launch in range(args.launches):
            with (
                TimedProcess(args.teacher, feeds, config) as a,
                TimedProcess(args.variant, feeds, config) as b,
                TimedProcess(args.variant, feeds, config) as c,
            ):
                share = watch_others([a, b, c])
                blocks = take_turns([a, b, c], args.turns, args.block, wake_seconds=args.wake_seconds)
                others = round(share(), 4)
            names = ("teacher_ms", "variant_ms", "same_ms")
            launches.append({name: rounded(row) for name, row in zip(names, blocks, strict=True)})
            launches[-1]["others"] = others
            print(
                f"launch {launch + 1}: teacher {np.median(blocks[0]):.2f} ms, log ratio "
                f"{np.median(np.log(blocks[0] / blocks[1])):.4f}, of identical models "
                f"{np.median(np.log(blocks[1] / blocks[2])):.4f}, others {others:.2f}",
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
            "busy": args.load,
            "launches": launches,
        },
    )


def random_feed(batch: int, length: int) -> dict[str, np.ndarray]:
    """Random ids without padding, (batch, length)."""
    ids = np.random.default_rng(0).integers(1000, 20000, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def rounded(times_ms: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in times_ms]


if __name__ == "__main__":
    main()
