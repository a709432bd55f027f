"""A tiny world for commands to be disturbed in: a teacher, rows, scenarios, and what they end with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attempts import begin

TESTS = Path(__file__).resolve().parents[2] / "tests"
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

TASK, CACHE, RUNS, BASELINE = "SST-2", "cache", "runs", "baseline/SST-2.json"
_PREFIX = ".quantlib-"

# Of files that hold times, and what follows from times.
_TIMED_KEYS = re.compile(
    r"(_ms|speedup|speedup_low|speedup_high|others|trusted|_per_s|beaten_by|durations_s|cached|choices|notes|"
    r"peak_memory_bytes|files|latency|disturbed|commit|changed)$|^throughput_"
)
_TIMED_ENTRIES = ("machine", "blocks")  # kinds of the cache whose files hold times
_SHOWN = (".html", ".csv", ".png")  # made from files that are compared


@dataclass(frozen=True)
class Scenario:
    """A command, and what is there before it.

    words: of the command. start: scenarios whose undisturbed place it starts in: what it takes from there.
    """

    words: tuple[str, ...]
    start: str | None = None
    takes: tuple[str, ...] = ()
    pytest: bool = False


def _run(*more: str) -> tuple[str, ...]:
    return ("run", *_COMMON, "--warmup-runs", "0", "--timing-seconds", "0", "--output-dir", RUNS, *more)


_COMMON = (
    *("--task", TASK, "--data-dir", "../glue", "--teacher", "../teacher", "--cache-dir", CACHE),
    *("--seq-len", "32", "--threads", "1", "--calibration-samples", "16", "--num-runs", "2"),
)
_TINY = ("--recipes", "quant_2,dynamic_u8s8", "--no-student")
_GATED = (
    *("--gate-launches", "3", "--gate-max-others", "1", "--gate-seconds", "1", "--shapes", "1x16"),
    *("--limits", "../limits.toml"),
)
SCENARIOS = {
    "run": Scenario(_run(*_TINY)),
    "distil": Scenario(
        _run("--recipes", "quant_2", "--student-config", "layers=1", "--training-threads", "1"),
        start="run",
        takes=(CACHE,),
    ),
    "prune": Scenario(
        _run("--recipes", "prune50_static_u8s8_smooth", "--no-student", "--max-drop", "0.5"),
        start="run",
        takes=(CACHE,),
    ),
    "gate": Scenario(
        ("gate", BASELINE, "--gate-update", *_GATED, *_COMMON, *_TINY), start="run", takes=(CACHE,)
    ),
    "report": Scenario(("report", RUNS), start="run", takes=(RUNS,)),
    "pytest": Scenario(("--gate-update",), start="run", takes=(CACHE,), pytest=True),
}


def make_world(root: Path) -> Path:
    """The teacher, the rows and the limits that all places share."""
    import tiny

    root.mkdir(parents=True, exist_ok=True)
    if not (root / "limits.toml").exists():
        tiny.write_checkpoint(root / "teacher")
        tiny.write_sst2(root / "glue")
        (root / "limits.toml").write_text("[default]\nmax_drop_points = 100.0\n", encoding="utf-8")
    return root


def new_place(root: Path, name: str, scenario: Scenario) -> Path:
    """A directory in which a scenario is about to run; what was there goes."""
    place = root / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    fill_place(root, place, scenario)
    return place


def fill_place(root: Path, place: Path, scenario: Scenario) -> None:
    """Put into an empty directory what a scenario starts with."""
    (place / "tmp").mkdir()
    if scenario.start is not None:
        for part in scenario.takes:
            shutil.copytree(root / f"good-{scenario.start}" / part, place / part)
    if scenario.start == "run" and RUNS in scenario.takes:
        shutil.copytree(place / RUNS / TASK, place / RUNS / "Other")


def main_of(
    root: Path, scenario: Scenario, *, processes: bool = False, signals: bool = True
) -> Callable[[], int]:
    """The command of a scenario, to be run in a warm process.

    processes: whether models are timed in processes of their own, as they are; else in threads, in no time.
    signals: whether the process is the command's, and its signals too.
    """
    return partial(command, root, scenario.pytest, processes, signals, scenario.words)


def command(root: Path, in_pytest: bool, processes: bool, signals: bool, words: Sequence[str]) -> int:
    """Run a command of quantlib as its console script does; PyTorch's exporter traces a structure once."""
    import warm

    from quantlib.support.interruption import main_process

    os.environ["TMPDIR"] = str(Path("tmp").absolute())
    tempfile.tempdir = None  # the process that this one was forked from has chosen another one
    os.environ["OMP_NUM_THREADS"] = "1"
    with traced_once(root), contextlib.nullcontext() if processes else warm.timed_here():
        more = (*_COMMON, *_TINY, *_GATED) if in_pytest else ()
        # Not relative to the place: a baseline records where its teacher was.
        words = [word.replace("../", f"{root}/") for word in (*words, *more)]
        if in_pytest:
            return _pytest(words)
        return main_process(partial(_quantlib, words)) if signals else _quantlib(words)


def _quantlib(words: Sequence[str]) -> int:
    from quantlib.cli.main import quantlib

    begin()
    return quantlib(list(words))


def _pytest(words: Sequence[str]) -> int:
    import pytest

    Path("test_gate.py").write_text("def test_gate(quant_verdict):\n    quant_verdict.check()\n")
    Path("pytest.ini").write_text("[pytest]\nquantlib_bench = .\n")
    ours = [word.startswith("--") and not word.startswith("--gate") for word in words]
    given = [
        word.replace("--", "--quant-", 1) if our else word for our, word in zip(ours, words, strict=True)
    ]
    begin()
    late = "-Wignore::pytest.PytestAssertRewriteWarning"
    return int(pytest.main([late, "-p", "no:cacheprovider", "--basetemp=tmp/pytest", *given]))


@contextlib.contextmanager
def traced_once(root: Path) -> Iterator[None]:
    """PyTorch's exporter, which takes seconds and writes no file, is given a structure once."""
    import tiny

    from quantlib.onnx_model import export

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        directory = root / "traces" / name
        if not directory.exists():
            scratch = directory.with_name(f"{name}.{os.getpid()}")
            scratch.mkdir(parents=True)
            make(scratch)
            scratch.rename(directory)
        return directory

    before = export._to_onnx
    export._to_onnx = tiny.traced(made_once)
    try:
        yield
    finally:
        export._to_onnx = before


# What is there


def artifacts(place: Path) -> dict[str, str]:
    """What a scenario ends with, {name: content or hash}, but for times."""
    found: dict[str, str] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        timed = name.startswith(tuple(f"{CACHE}/{kind}/" for kind in _TIMED_ENTRIES))
        if path.is_file() and name.split("/")[0] in (CACHE, RUNS, "baseline") and not timed:
            found[name] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.suffix in _SHOWN:
        return "there" if path.stat().st_size else "empty"
    if path.suffix == ".json":
        return _digest(json.dumps(_untimed(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True))
    return _digest(path.read_bytes())


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(each) for key, each in value.items() if not _TIMED_KEYS.search(key)}
    return [_untimed(each) for each in value] if isinstance(value, list) else value


def outputs(found: Mapping[str, str]) -> dict[str, str]:
    """Of artifacts, those that a user asked for: results, models, pages, baselines; not the cache."""
    return {name: content for name, content in found.items() if name.split("/")[0] != CACHE}


def differences(
    expected: Mapping[str, str], found: Mapping[str, str], *, entries_may_lack: bool = False
) -> list[str]:
    """The names whose content differs, each with what is wrong with it.

    entries_may_lack: whether whole entries of the cache may be missing, as after a cache was removed while a
    command ran: what the command made later is enough for the next one, which needs nothing below it then.
    """
    if entries_may_lack:
        there = {_entry_of(name) for name in found}
        expected = {
            name: content
            for name, content in expected.items()
            if name.split("/")[0] != CACHE or _entry_of(name) in there
        }
    names = sorted(expected.keys() | found.keys())
    return [
        f"{name}: {expected.get(name, 'not expected')}, found {found.get(name, 'nothing')}"
        for name in names
        if expected.get(name) != found.get(name)
    ]


def _entry_of(name: str) -> str:
    """The directory, or the file, that is an entry of the cache: CACHE/kind/name."""
    return "/".join(name.split("/")[:3])


def broken(place: Path) -> list[str]:
    """Files that would be read as good, and are not: half an entry of the cache, a run, a baseline."""
    found: list[str] = []
    for record in place.glob(f"{CACHE}/*/*/entry.json"):
        found += _unlike(record.parent, json.loads(record.read_text(encoding="utf-8"))["files"])
    for entry in place.glob(f"{CACHE}/*/*"):
        entry_like = entry.is_dir() and not entry.name.startswith(".") and entry.suffix != ".unfinished"
        if entry_like and not (entry / "entry.json").exists():
            found.append(f"{entry.relative_to(place)}: an entry without a record")
    for run in place.glob(f"{RUNS}/*/run.json"):
        record = json.loads(run.read_text(encoding="utf-8"))["files"]
        # A page that is made again is another one.
        found += _unlike(run.parent, {name: sha for name, sha in record.items() if name != "report.html"})
    for results in place.glob(f"{RUNS}/*/results.json"):
        if not (results.parent / "run.json").exists():
            found.append(f"{results.relative_to(place)}: without its run.json")
    for model in place.glob(f"{CACHE}/gate-models/*.onnx"):
        if hashlib.sha256(model.read_bytes()).hexdigest() != model.stem:
            found.append(f"{model.relative_to(place)}: other bytes than its name says")
    for page in place.rglob("report.html"):
        if not page.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            found.append(f"{page.relative_to(place)}: half a page")
    for baseline in place.glob("baseline/*.json"):
        json.loads(baseline.read_text(encoding="utf-8"))
    return found


def _unlike(directory: Path, files: Mapping[str, str]) -> list[str]:
    found = []
    for name, sha256 in files.items():
        file = directory / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            found.append(f"{file}: not as its record says")
    return found


def leftovers(place: Path) -> list[str]:
    """Scratch directories, lock files and temporary files that are there though nothing runs."""
    found = [
        path.relative_to(place).as_posix()
        for path in place.rglob("*")
        if path.name.startswith(_PREFIX) or path.suffix in (".lock", ".unfinished")
    ]
    own = [path for path in (place / "tmp").rglob("*") if not _is_expected(path)]
    return sorted({*found, *(path.relative_to(place).as_posix() for path in own)})


def _is_expected(path: Path) -> bool:
    """The directory of temporary ones, what pytest keeps of its runs, and ONNX Runtime's session id."""
    return path.name.endswith("-scratch") or "pytest" in path.parts or path.name == ".ses"
