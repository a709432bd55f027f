"""Try hostile files, in processes that are held to 10 s a file and to 4 GiB."""

from __future__ import annotations

import multiprocessing
import random
import re
import resource
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import psutil

from quantlib.support.errors import InputError

SECONDS, BYTES = 10.0, 4 * 2**30
_WAIT = 0.1  # seconds
_PER_PROCESS = 100  # files: what one leaves behind in a process does not stay for long
_MESSAGE_CHARACTERS = 2000
_NO_MEMORY = re.compile(r"bad.alloc|failed to allocate|not enough memory|cannot allocate", re.IGNORECASE)

Result = Literal["read", "refused", "traceback", "hang", "memory", "died", "wrong", "words"]
GOOD: tuple[Result, ...] = ("read", "refused")


class WrongResult(AssertionError):
    """What was read is known to be wrong."""


@dataclass(frozen=True)
class Seeds:
    """Good files to start from.

    checkpoint: the directory of a classifier. model: an ONNX file of it, its tokenizer and config.json beside
    it. run: what a run wrote for a task. baseline: of the gate.
    """

    checkpoint: Path
    model: Path
    run: Path
    baseline: Path


@dataclass(frozen=True)
class Format:
    """A form of file.

    make: writes a hostile one into an empty directory. read: reads it as the commands do, and checks what can
    be known of the result; it may do other things for other numbers of the case.
    """

    make: Callable[[Seeds, Path, random.Random], object]
    read: Callable[[Seeds, Path, int], object]


@dataclass(frozen=True)
class Outcome:
    """What came of a file: its number, and the words of a refusal or of what went wrong."""

    number: int
    result: Result
    words: str = ""


def try_one(name: str, form: Format, seeds: Seeds, number: int, seed: int = 0) -> Outcome:
    """Make a hostile file and read it, in this process."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        directory = Path(scratch)
        form.make(seeds, directory, random.Random(f"{name} {number} {seed}"))
        try:
            form.read(seeds, directory, number)
        except InputError as error:
            return Outcome(number, _of_refusal(str(error)), str(error))
        except MemoryError:
            return Outcome(number, "memory", traceback.format_exc())
        except WrongResult as error:
            return Outcome(number, "wrong", str(error))
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - what is looked for; panics of Rust are no `Exception`
            return Outcome(number, "traceback", traceback.format_exc())
    return Outcome(number, "read")


def _of_refusal(words: str) -> Result:
    if _NO_MEMORY.search(words):
        return "memory"
    one_line = words.splitlines() == [words] and words.isprintable()
    return "refused" if one_line and len(words) <= _MESSAGE_CHARACTERS else "words"


def try_many(
    name: str, form: Format, seeds: Seeds, numbers: Sequence[int], seed: int = 0
) -> Iterator[Outcome]:
    """`try_one` for each number, in processes that are ended after 10 s and held to 4 GiB."""
    left = list(numbers)
    fork = multiprocessing.get_context("fork")
    while left:
        batch, left = left[:_PER_PROCESS], left[_PER_PROCESS:]
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_serve, args=(theirs, name, form, seeds, batch, seed))
        process.start()
        theirs.close()
        for place, number in enumerate(batch):
            outcome = _answer(ours, number, psutil.Process(process.pid))
            yield outcome
            if outcome.result in ("hang", "died"):
                left = batch[place + 1 :] + left
                process.kill()
                break
        process.join()
        ours.close()


def _answer(ours: Connection, number: int, process: psutil.Process) -> Outcome:
    # What a process computes and what it sleeps; a process that waits for the processor does not hang.
    computed, slept = _cpu_seconds(process), 0.0
    while not ours.poll(_WAIT):
        if process.status() in (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP):
            slept += _WAIT
        if max(slept, _cpu_seconds(process) - computed) > SECONDS:
            return Outcome(number, "hang", f"more than {SECONDS:.0f} s")
    try:
        outcome: Outcome = ours.recv()
    except EOFError:
        return Outcome(number, "died", "the process ended")
    return outcome


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _serve(
    theirs: Connection, name: str, form: Format, seeds: Seeds, numbers: Sequence[int], seed: int
) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        theirs.send(try_one(name, form, seeds, number, seed))
