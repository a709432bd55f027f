"""Run commands where a machine is hostile: full disks, damaged caches, many at once, limits, no locks.

    python bench/faults/bad_places.py --seed 1 [--cases full_disk,damage] [--world DIR]

What has to hold: exit code 0, or 2 with one line that says what is wrong; nothing that a later command would
read as good is broken; and in a good place the same command ends with the artifacts of an undisturbed run.
Full and read-only disks are tmpfs, which takes root; without it those cases are left out, and it is said.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attempts import Ended, Prepare, Strike, is_operation, run
from kills import Good, undisturbed
from world import (
    CACHE,
    RUNS,
    SCENARIOS,
    artifacts,
    broken,
    differences,
    fill_place,
    leftovers,
    main_of,
    make_world,
    new_place,
    outputs,
)

_MB = 2**20
# How a native library ends a process that has no memory left; docs/faults.md says that it may.
_NATIVE_ENDS = (-signal.SIGABRT, -signal.SIGSEGV)
_TEMPORARY = "tmp"  # where the system wants temporary files, in a place


@dataclass
class Report:
    """What became of the cases of a kind. ends: how the commands ended. failures: in words."""

    tried: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, what: str, ended: Ended, wrong: Sequence[str]) -> None:
        """Count a case, and show what is wrong with it."""
        self.tried += 1
        said = ended.err.strip().splitlines()
        self.ends[f"code {ended.code}" + (f": {_general(said[-1])}" if said else "")] += 1
        self.failures += [f"{what}: {each}" for each in wrong]
        print(f"  {what}: code {ended.code}", flush=True)
        for each in wrong:
            print(f"  FAILED {what}: {each}", flush=True)


def _general(line: str) -> str:
    """The reason in an error, without the file."""
    return line.rsplit(": ", 1)[-1][:100]


@dataclass(frozen=True)
class Place:
    """The world, its undisturbed runs by scenario, and what draws."""

    root: Path
    good: dict[str, Good]
    draw: random.Random


def judge(ended: Ended, codes: Sequence[int] = (0, 2)) -> list[str]:
    """What is wrong with how a command ended."""
    wrong = [f"lives on: {each}" for each in ended.left]
    if ended.code not in codes:
        wrong.append(f"exit code {ended.code}: {ended.err[-3000:]}")
    elif ended.code == 2:
        lines = ended.err.strip().splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: "):
            wrong.append(f"said {ended.err!r}")
    return wrong


def again(at: Place, name: str, place: Path, *, entries_may_lack: bool = False) -> list[str]:
    """What is wrong after the command has run once more, in peace."""
    ended = run(main_of(at.root, SCENARIOS[name]), place)
    wrong = [] if ended.code == 0 else [f"the second run: {ended}"]
    wrong += broken(place)
    wrong += differences(at.good[name].artifacts, artifacts(place), entries_may_lack=entries_may_lack)
    return wrong + [f"left: {each}" for each in leftovers(place)]


def prepared(
    at: Place,
    report: Report,
    name: str,
    what: str,
    prepare: Prepare | None,
    *,
    processes: bool = True,
    codes: Sequence[int] = (0, 2),
) -> None:
    """A scenario in a process that something is done to first; then again without. codes: how it may end."""
    place = new_place(at.root, "bad", SCENARIOS[name])
    main = main_of(at.root, SCENARIOS[name], processes=processes)
    ended = run(main, place, prepare=prepare)
    report.add(f"{name}, {what}", ended, [*judge(ended, codes), *broken(place), *again(at, name, place)])


# A disk that is full


def full_disk(at: Place) -> Iterator[Report]:
    """A tmpfs that fills at any moment: the cache, the results, or both are on it."""
    report = Report()
    for index in range(30):
        name = ("run", "prune", "gate")[index % 3]
        part = ("", CACHE, RUNS if name != "gate" else "baseline")[index // 3 % 3]
        place = at.root / "bad"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        good = at.root / f"good-{name}" / part
        needed = sum(-(-path.lstat().st_size // 4096) * 4096 + 4096 for path in good.rglob("*"))
        started = _started_bytes(at.root, name, part)
        size = int(started + at.draw.random() * 1.2 * max(65536, needed - started))
        with tmpfs(place, part, size, at.root, name):
            ended = run(main_of(at.root, SCENARIOS[name]), place)
            wrong = [*judge(ended), *broken(place)]
            _mount("-o", "remount,size=1g", str(place / part))
            wrong += again(at, name, place)
        report.add(f"{name}, {part or 'all'} on a disk of {size} bytes", ended, wrong)
    yield report


def _started_bytes(root: Path, name: str, part: str) -> int:
    scenario = SCENARIOS[name]
    taken = [root / f"good-{scenario.start}" / each for each in scenario.takes if part in ("", each)]
    return 65536 + sum(8192 + path.lstat().st_size for each in taken for path in each.rglob("*"))


@contextmanager
def tmpfs(place: Path, part: str, size: int, root: Path, name: str) -> Iterator[None]:
    """The place of a scenario, or a part of it, on a file system of its own."""
    mounted = place / part
    mounted.mkdir(exist_ok=True)
    start = root / "start"
    shutil.rmtree(start, ignore_errors=True)
    start.mkdir()
    fill_place(root, start, SCENARIOS[name])
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted))
    try:
        shutil.copytree(start, place, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def can_mount(root: Path) -> bool:
    """Whether this user may mount file systems."""
    place = root / "mount"
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True)
    if done.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    return done.returncode == 0


def write_errors(at: Place) -> Iterator[Report]:
    """Writing fails from the N-th operation on: no space, no quota, an I/O error."""
    report = Report()
    for index in range(30):
        name = ("run", "prune", "gate", "report", "distil")[index % 5]
        number = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)[index % 3]
        operation = at.draw.randint(1, max(1, at.good[name].operations))
        what = f"{errno.errorcode[number]} from operation {operation}"
        prepared(at, report, name, what, partial(fail_from, operation, number))
    yield report


def fail_from(operation: int, number: int) -> None:
    """From the N-th operation on files, let everything that needs space fail."""
    count = 0

    def fail(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_CREAT | os.O_WRONLY)
            if not (writes or set(mode or "") & set("wax")) or "/dev/" in str(path) or ".logs" in str(path):
                return
        elif event not in ("os.mkdir", "os.rename", "os.link"):
            return
        count += 1
        if count >= operation:
            raise OSError(number, os.strerror(number), str(arguments[0]))

    sys.addaudithook(fail)


def read_only(at: Place) -> Iterator[Report]:
    """The cache, the results, or the place for temporary files cannot be written."""
    report = Report()
    for name in ("run", "gate", "report"):
        for part in (CACHE, RUNS, "baseline", _TEMPORARY):
            place = new_place(at.root, "bad", SCENARIOS[name])
            (place / part).mkdir(exist_ok=True)
            _mount("--bind", str(place / part), str(place / part))
            _mount("-o", "remount,bind,ro", str(place / part))
            try:
                ended = run(main_of(at.root, SCENARIOS[name]), place)
                wrong = [*judge(ended), *broken(place)]
            finally:
                subprocess.run(["umount", str(place / part)], check=True)
            for each in (RUNS, "baseline", CACHE):  # not there in an undisturbed run
                if (place / each).is_dir() and not any((place / each).iterdir()):
                    (place / each).rmdir()
            wrong += again(at, name, place)
            report.add(f"{name}, {part} read-only", ended, wrong)
    yield report


# A cache that goes, or is damaged


_VANISHING = (
    ("run", CACHE),
    ("run", RUNS),
    ("run", _TEMPORARY),
    ("distil", CACHE),
    ("distil", RUNS),
    ("prune", CACHE),
    ("gate", CACHE),
    ("gate", "baseline"),
    ("report", RUNS),
    ("report", _TEMPORARY),
)


def vanish(at: Place) -> Iterator[Report]:
    """The cache, the directory of results, or that of temporary files, is removed while a command uses it."""
    report = Report()
    counts = {case: moments(at, *case) for case in _VANISHING}
    cases = [case for case in _VANISHING if counts[case]]
    print(
        "  left out, not used for long enough:", [case for case in _VANISHING if not counts[case]], flush=True
    )
    for index in range(50):
        name, part = case = cases[index % len(cases)]
        moment = at.draw.randint(1, counts[case])
        place = new_place(at.root, "bad", SCENARIOS[name])
        main = main_of(at.root, SCENARIOS[name], processes=index % 3 == 0)
        ended = run(main, place, prepare=partial(remove_at, moment, part))
        if (at.root / _MOMENT).read_text() != "removed":
            report.ends["had ended before"] += 1
            continue
        wrong = [*judge(ended), *broken(place), *_after_removal(at, name, part, place, ended)]
        if name == "report":  # its results are gone, as they should be
            place = new_place(at.root, "bad", SCENARIOS[name])
        (place / _TEMPORARY).mkdir(exist_ok=True)
        wrong += again(at, name, place, entries_may_lack=True)
        report.add(f"{name}, {part} removed at moment {moment} of {counts[case]}", ended, wrong)
    yield report


def _after_removal(at: Place, name: str, part: str, place: Path, ended: Ended) -> list[str]:
    """What is wrong with what a command said, or called done, while a directory was removed."""
    if ended.code == 2:
        return [] if "is gone: it was removed" in ended.err else [f"does not say it: {ended.err}"]
    if name == "report" and part == RUNS:
        return []
    made = outputs(artifacts(place))
    # Removed behind the last file that was written, all of them are gone.
    return differences(outputs(at.good[name].artifacts), made) if made or part in (CACHE, _TEMPORARY) else []


_MOMENT = "moment"


def moments(at: Place, name: str, part: str) -> int:
    """How many moments an undisturbed run has at which a directory of it can be removed."""
    place = new_place(at.root, "bad", SCENARIOS[name])
    ended = run(main_of(at.root, SCENARIOS[name]), place, prepare=partial(remove_at, None, part))
    if ended.code:
        raise RuntimeError(f"{name}: {ended}")
    return int((at.root / _MOMENT).read_text())


def remove_at(moment: int | None, part: str) -> None:
    """Remove a directory before the N-th operation on files since its first use, in it or elsewhere.

    Reading its files is an operation too. The file `moment` beside the place says that it was removed, or
    how many moments there were.
    """
    directory, told = Path(part).absolute(), Path("..").absolute() / _MOMENT
    count, in_use, busy = 0, False, False

    def remove(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, in_use, busy
        if busy or not (is_operation(event, arguments) or _reads(event, arguments, directory)):
            return
        if not in_use:
            in_use = _is_in(directory, arguments)
            return
        count += 1
        if count == moment:
            busy = True
            shutil.rmtree(directory, ignore_errors=True)
            told.write_text("removed")

    def tell() -> None:
        nonlocal busy
        if not busy:
            busy = True
            told.write_text(str(count))

    told.unlink(missing_ok=True)
    atexit.register(tell)
    sys.addaudithook(remove)


def _reads(event: str, arguments: tuple[Any, ...], directory: Path) -> bool:
    """Whether an event opens a file of a directory, or lists it."""
    return event in ("open", "os.listdir", "os.scandir") and _is_in(directory, arguments)


def _is_in(directory: Path, arguments: tuple[Any, ...]) -> bool:
    """Whether the first argument of an event is a path of a directory."""
    path = arguments[0] if arguments else None
    if not isinstance(path, str | os.PathLike):
        return False
    return Path(os.fsdecode(path)).absolute().is_relative_to(directory)


def damage(at: Place) -> Iterator[Report]:
    """A random byte of a file in the cache is another one, or the file is cut; of every kind of entry."""
    report, tried = Report(), set[str]()
    for name in ("run", "distil", "prune", "gate"):
        files: dict[str, list[Path]] = {}
        good = at.root / f"good-{name}"
        for path in sorted((good / CACHE).rglob("*")):
            if path.is_file() and path.stat().st_size:
                relative = path.relative_to(good)
                files.setdefault(f"{relative.parts[1]}/{path.name}", []).append(relative)
        for kind, paths in files.items():
            if kind in tried:
                continue
            tried.add(kind)
            for how in ("byte", "cut") if name == "run" else ("byte",):
                place = at.root / "bad"
                shutil.rmtree(place, ignore_errors=True)
                shutil.copytree(good, place)
                shutil.rmtree(place / RUNS, ignore_errors=True)
                chosen = place / at.draw.choice(paths)
                damage_file(chosen, how, at.draw)
                ended = run(main_of(at.root, SCENARIOS[name]), place)
                wrong = judge(ended, (0,))
                wrong += broken(place) + differences(at.good[name].artifacts, artifacts(place))
                report.add(f"{name}, {kind}, {how}", ended, wrong)
    yield report


def damage_file(path: Path, how: str, draw: random.Random) -> None:
    """Change a random bit of a file, or cut it at a random byte."""
    content = bytearray(path.read_bytes())
    position = draw.randrange(len(content))
    if how == "cut":
        del content[position:]
    else:
        content[position] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def resume_files(at: Place) -> Iterator[Report]:
    """The file from which a training goes on has a random byte changed, or is cut."""
    report, main = Report(), main_of(at.root, SCENARIOS["distil"])
    for index in range(12):
        states: list[Path] = []
        for number in (at.draw.randint(2, 4), 1):  # there is one, and perhaps more
            if not states:
                place = new_place(at.root, "bad", SCENARIOS["distil"])
                run(main, place, prepare=partial(kill_after_state, number))
                states = sorted(place.glob(f"{CACHE}/student/*.unfinished/*{_STATE}"))
        how = "cut" if index % 4 == 3 else "byte"
        damage_file(states[0], how, at.draw)
        ended = run(main, place)
        wrong = judge(ended, (0,)) + differences(at.good["distil"].artifacts, artifacts(place))
        report.add(f"distil, resume file {states[0].name}, {how}", ended, [*wrong, *leftovers(place)])
    yield report


_STATE = ".pt"


def kill_after_state(number: int) -> None:
    """Kill this process with SIGKILL when it has written the state of a training so often."""
    count = 0

    def kill(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if count >= number and is_operation(event, arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        count += event == "os.rename" and str(arguments[1]).endswith(_STATE)

    sys.addaudithook(kill)


# Several at once


def at_once(at: Place) -> Iterator[Report]:
    """Two and eight runs on one cache and one output directory, some of them killed."""
    report = Report()
    for count, killed in ((2, 0), (2, 0), (2, 1), (8, 0), (8, 3)):
        place = new_place(at.root, "bad", SCENARIOS["run"])
        strikes: list[Strike | None] = [
            Strike(signal.SIGKILL, operation=at.draw.randint(1, at.good["run"].operations))
            if index < killed
            else None
            for index in range(count)
        ]
        main, names = main_of(at.root, SCENARIOS["run"]), [f"logs{index}" for index in range(count)]
        with ThreadPoolExecutor(count) as pool:
            futures = [
                pool.submit(run, main, place, strike, logs_name=name)
                for strike, name in zip(strikes, names, strict=True)
            ]
        all_ended = [future.result() for future in futures]
        for ended, strike in zip(all_ended, strikes, strict=True):
            codes = (0,) if strike is None else (-9, 0)
            report.add(f"{count} at once, {killed} killed", ended, judge(ended, codes))
        wrong = [*broken(place), *differences(at.good["run"].artifacts, artifacts(place))]
        report.add(
            f"after {count} at once, {killed} killed", all_ended[-1], [*wrong, *again(at, "run", place)]
        )
    yield report


# Limits and systems


def clock(at: Place) -> Iterator[Report]:
    """The clock jumps by ten years in a run, in a cache that is too small for anything."""
    report = Report()
    for index in range(10):
        years = 10 if index % 2 else -10
        operation = at.draw.randint(1, at.good["run"].operations)
        place = new_place(at.root, "bad", SCENARIOS["run"])
        ended = run(main_of(at.root, SCENARIOS["run"]), place, prepare=partial(jump_at, operation, years))
        wrong = [
            *judge(ended, (0,)),
            *broken(place),
            *differences(at.good["run"].artifacts, artifacts(place)),
        ]
        report.add(f"run, {years} years at operation {operation}", ended, [*wrong, *again(at, "run", place)])
    yield report


def jump_at(operation: int, years: float) -> None:
    """Let the clock jump at the N-th operation on files; the cache has no room."""
    os.environ["QUANTLIB_CACHE_GIB"] = "0"
    count, now = 0, time.time

    def jump(event: str, _: tuple[Any, ...]) -> None:
        nonlocal count
        count += event.startswith(("os.", "open", "shutil."))
        if count == operation:
            time.time = lambda: now() + years * 365 * 86400

    sys.addaudithook(jump)


def memory(at: Place) -> Iterator[Report]:
    """`ulimit -v`, so much more than a process has when it starts."""
    report = Report()
    for index in range(20):
        name = ("run", "distil", "gate")[index % 3]
        more = int(2 ** at.draw.uniform(0, 10))
        limit = partial(limit_memory, more)
        prepared(at, report, name, f"{more} MB more memory", limit, codes=(0, 2, *_NATIVE_ENDS))
    yield report


def limit_memory(more_mb: int) -> None:
    """Allow this process, and those that it starts, so many MB more than it has."""
    import resource

    import psutil

    limit = psutil.Process().memory_info().vms + more_mb * _MB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def open_files(at: Place) -> Iterator[Report]:
    """`ulimit -n`."""
    report = Report()
    for index in range(20):
        name = ("run", "distil", "gate", "report")[index % 4]
        more = 1 + index * 2
        prepared(at, report, name, f"{more} more open files", partial(limit_files, more))
    yield report


def limit_files(more: int) -> None:
    """Allow this process so many open files more than it has."""
    import resource

    used = max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, used + more))


def no_locks(at: Place) -> Iterator[Report]:
    """A file system that knows no flock."""
    report = Report()
    for name in ("run", "gate", "report"):
        for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            prepared(at, report, name, f"flock gives {errno.errorcode[number]}", partial(no_flock, number))
    yield report


def no_flock(number: int) -> None:
    """Let every flock fail."""
    import fcntl

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    fcntl.flock = fail


CASES: dict[str, Callable[[Place], Iterator[Report]]] = {
    "full_disk": full_disk,
    "write_errors": write_errors,
    "read_only": read_only,
    "vanish": vanish,
    "damage": damage,
    "resume_files": resume_files,
    "at_once": at_once,
    "clock": clock,
    "memory": memory,
    "open_files": open_files,
    "no_locks": no_locks,
}
_NEED_ROOT = ("full_disk", "read_only")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--world", type=Path, help="where it all happens; default: a temporary directory")
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = make_world((args.world or Path(scratch)).absolute())
        good = {name: undisturbed(root, name) for name in ("run", "distil", "prune", "gate", "report")}
        for name in args.cases.split(","):
            if name in _NEED_ROOT and not can_mount(root):
                print(f"{name}: left out, this user may not mount a tmpfs")
                continue
            started = time.monotonic()
            for report in CASES[name](Place(root, good, random.Random(f"{args.seed} {name}"))):
                failures += len(report.failures)
                print(
                    f"{name}: {report.tried} tried, {len(report.failures)} failures, "
                    f"{time.monotonic() - started:.0f} s; {dict(report.ends.most_common())}",
                    flush=True,
                )
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
