"""A sample of bench/faults, whose scripts do more of it: kills, disks that fail, caches that are damaged."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "faults"))
import bad_places
import kills
from attempts import Ended, Strike, run
from world import (
    CACHE,
    RUNS,
    SCENARIOS,
    TASK,
    artifacts,
    broken,
    differences,
    leftovers,
    main_of,
    make_world,
    new_place,
)

import quantlib

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and sessions")

# In threads, not in processes, and so as quick as can be.
_QUICK = (False,)


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> bad_places.Place:
    root = make_world(tmp_path_factory.mktemp("world"))
    good = {name: kills.undisturbed(root, name, _QUICK) for name in ("run", "report")}
    return bad_places.Place(root, good, random.Random(7))


@pytest.mark.parametrize("name", ["run", "report"])
@pytest.mark.parametrize("number", kills.SIGNALS, ids=lambda number: signal.Signals(number).name)
def test_a_command_that_was_killed_ends_as_if_it_had_not_been(
    at: bad_places.Place, name: str, number: signal.Signals
) -> None:
    strike = Strike(number, operation=at.draw.randint(1, 9 * at.good[name].operations // 10))
    end, wrong, _ = kills.one_round(at.root, name, at.good[name], strike)
    assert wrong == []
    assert end != "had ended"


@pytest.mark.parametrize("file", [pytest.__file__, kills.__file__, quantlib.__file__])
def test_ctrl_c_while_pytest_closes_is_pytest_s_own(file: str) -> None:
    lines = ["Traceback (most recent call last):", f'  File "{file}", line 1, in close', "KeyboardInterrupt"]
    closing = [*lines[:1], '  File "config.py", line 1382, in _ensure_unconfigure', *lines[1:]]
    ended = Ended(1, "", "\n".join(closing), seconds=1.0, after=0.1, operations=1, left=())
    assert kills._closing(ended) == (file != quantlib.__file__)
    assert not kills._closing(replace(ended, err="\n".join(lines)))
    assert not kills._closing(replace(ended, code=2))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=lambda number: errno.errorcode[number])
def test_a_disk_that_fails_is_one_line(at: bad_places.Place, number: int) -> None:
    report = bad_places.Report()
    prepare = partial(bad_places.fail_from, at.draw.randint(1, 60), number)
    bad_places.prepared(at, report, "run", errno.errorcode[number], prepare, processes=False)
    assert report.failures == []
    assert [end[:6] for end in report.ends] == ["code 2"]


@pytest.mark.parametrize(
    ("name", "part", "event", "file"),
    [
        ("report", RUNS, "os.rename", f"{TASK}/report.html$"),
        ("report", RUNS, "open", f"{TASK}/run.json$"),
        ("report", RUNS, "open", r"/\.quantlib-\w+\.lock$"),
        ("run", RUNS, "os.rename", "new/results.csv$"),
        ("run", CACHE, "open", "/quantized/"),
        ("run", CACHE, "open", "/tmp$"),
    ],
    ids=lambda value: value.replace("/", "-"),
)
def test_a_directory_that_is_removed_while_it_is_used(
    at: bad_places.Place, name: str, part: str, event: str, file: str
) -> None:
    place = new_place(at.root, "bad", SCENARIOS[name])
    ended = run(main_of(at.root, SCENARIOS[name]), place, prepare=partial(remove_before, event, file, part))
    assert bad_places.judge(ended, (2,)) + broken(place) == []
    assert " is gone: it was removed while this command used it; run the command again\n" in ended.err
    if name == "run":
        assert bad_places.again(at, name, place, entries_may_lack=True) == []


def remove_before(event: str, file: str, part: str) -> None:
    """Remove a directory before each such operation on a file whose path matches."""
    directory = Path(part).absolute()

    def remove(happens: str, arguments: tuple[Any, ...]) -> None:
        if happens == event and any(re.search(file, str(path)) for path in arguments[:2]):
            shutil.rmtree(directory, ignore_errors=True)

    sys.addaudithook(remove)


def test_what_may_lack_of_a_cache_and_what_may_not() -> None:
    good = {f"{CACHE}/a/1/x": "x", f"{CACHE}/a/1/y": "y", f"{CACHE}/b/2/z": "z", f"{RUNS}/r.json": "r"}
    compared = partial(differences, good, entries_may_lack=True)
    entry = {name: good[name] for name in good if "/a/" not in name}
    assert differences(good, entry) != []
    assert compared(entry) == []
    assert compared({**entry, f"{CACHE}/a/1/x": "x"}) == [f"{CACHE}/a/1/y: y, found nothing"], "half of it"
    assert compared({**good, f"{CACHE}/b/2/z": "?"}) == [f"{CACHE}/b/2/z: z, found ?"]
    assert compared({**good, f"{RUNS}/r.json": "?"}) == [f"{RUNS}/r.json: r, found ?"]
    assert compared({f"{CACHE}/a/1/x": "x", f"{CACHE}/a/1/y": "y"}) == [f"{RUNS}/r.json: r, found nothing"]
    assert compared({**good, f"{CACHE}/c/3/x": "x"}) == [f"{CACHE}/c/3/x: not expected, found x"]


@pytest.mark.parametrize("kind", ["quantized", "statistics", "predictions"])
def test_a_damaged_byte_is_never_read_as_good(at: bad_places.Place, kind: str, tmp_path: Path) -> None:
    good = at.root / "good-run"
    place = shutil.copytree(good, at.root / "bad", dirs_exist_ok=True)
    shutil.rmtree(place / RUNS)
    for file in sorted((place / CACHE / kind).glob("*/*")):
        if file.name != "entry.json":
            bad_places.damage_file(file, "byte", at.draw)
    assert broken(place)
    ended = run(main_of(at.root, SCENARIOS["run"]), place)
    assert ended.code == 0
    assert differences(at.good["run"].artifacts, artifacts(place)) + broken(place) == []
    shutil.rmtree(place)


def test_two_runs_at_once_one_of_them_killed(at: bad_places.Place) -> None:
    place, main = new_place(at.root, "bad", SCENARIOS["run"]), main_of(at.root, SCENARIOS["run"])
    strike = Strike(signal.SIGKILL, operation=at.draw.randint(1, 60))  # early: it may wait for the other
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(run, main, place, strike, logs_name="killed")
        ended = pool.submit(run, main, place, logs_name="other").result()
    assert (killed.result().code, ended.code) == (-signal.SIGKILL, 0)
    assert bad_places.again(at, "run", place) + leftovers(place) == []
