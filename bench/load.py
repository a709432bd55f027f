"""Keep one core busy, for a while or on and off, to see what that does to measurements.

    python bench/load.py [--on 7] [--off 11] [--seconds 600]

The load comes and goes at times that differ by up to half from turn to turn, so that it does not keep step
with what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import time
from collections.abc import Iterator


def spin(on: float, off: float) -> None:
    """Work for about `on` seconds, rest for about `off`, and so on; without rest if `off` is 0."""
    draw, value = random.Random(0), 1.0
    while True:
        until = time.monotonic() + on * draw.uniform(0.5, 1.5)
        while time.monotonic() < until:
            value = (value * 1.0000001) % 1e9
        time.sleep(off * draw.uniform(0.5, 1.5))


@contextlib.contextmanager
def load(on: float = 7.0, off: float = 11.0) -> Iterator[None]:
    """A process of its own that is busy on and off; it ends with the block."""
    process = multiprocessing.Process(target=spin, args=(on, off), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", type=float, default=7.0, help="seconds of work")
    parser.add_argument("--off", type=float, default=11.0, help="seconds of rest; 0 for none")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long in all")
    args = parser.parse_args()
    with load(args.on, args.off):
        time.sleep(args.seconds)


if __name__ == "__main__":
    main()
