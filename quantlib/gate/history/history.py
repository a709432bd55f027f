"""All that a repository's commits say of its variants."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from quantlib.gate.history.series import Machine, Point, Series, Source
from quantlib.gate.history.sources import Recorded, of_baseline, of_results, of_saved_run, parse_saved_run
from quantlib.gate.history.steps import Step, steps_of
from quantlib.support.commits import (
    Change,
    Commit,
    changes_of,
    commits_since,
    files_at,
    is_shallow,
    line_of,
    page_of_commits,
    repository_of,
)
from quantlib.support.errors import InputError
from quantlib.support.parsing import read_bytes

# Git's patterns, relative to the root of the repository.
_BASELINES, _RESULTS = ":(glob)**/baseline/*.json", ":(glob)**/results.json"
STORAGE = Path(".benchmarks")
"""Where pytest-benchmark saves runs by default."""


@dataclass(frozen=True)
class History:
    """What the commits say.

    Attributes:
        root: of the repository.
        commits: those of the line in which a file was read, and those of saved runs, the oldest first.
        series: a variant each, in the order in which they first appear.
        steps: of all series, the oldest first.
        problems: a line for each file of a commit that could not be read.
        notes: what else was left out, and why.
        url: to which a commit's hash is added; None if there is no page of it.
        recent: the hashes of the commits whose steps are listed.
    """

    root: Path
    commits: tuple[Commit, ...]
    series: tuple[Series, ...]
    steps: tuple[Step, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    url: str | None = None
    recent: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """Of the repository: the last part of its page's address, else of its directory."""
        return self.root.name if self.url is None else unquote(PurePosixPath(self.url).parent.name)

    @property
    def recent_steps(self) -> list[Step]:
        """The steps at the commits that were asked for."""
        return [step for step in self.steps if step.at.sha in self.recent]

    @property
    def regressions(self) -> list[Step]:
        """Those of them that are for the worse, sure, and still there."""
        return [step for step in self.recent_steps if step.worse and step.sure and step.lasts]


def read_history(
    directory: Path,
    *,
    files: Sequence[Path] = (),
    storage: Path | None = None,
    since: str | None = None,
    state_spread: float,
) -> History:
    """Read baselines, results and saved runs over the commits that lead to HEAD.

    Args:
        directory: in the repository.
        files: baselines and results files, seen from the directory, also such as are there no more; empty for
            each baseline/*.json and results.json.
        storage: pytest-benchmark's; None for .benchmarks at the root, if there and no files are named.
        since: a revision or a date; steps at it and before are not listed.
        state_spread: see `steps_of`.

    Raises:
        InputError: no repository, no such revision, no file to read, or none that can be read.
    """
    root = repository_of(directory)
    line = line_of(root)
    recent = line if since is None else commits_since(root, line, since)
    read = _Reading(root, line)
    read.files(_patterns(root, directory, files))
    if storage is not None:
        read.saved_runs(storage)
    elif not files and (root / STORAGE).is_dir():
        read.saved_runs(root / STORAGE)
    if not read.recorded:
        raise InputError(read.problems[0] if read.problems else _nothing_there(root, files))
    notes = list(read.notes)
    if is_shallow(root):
        notes.append(
            f"a shallow clone: commits before {line[0].short} are not here (fetch-depth: 0 brings them)"
        )
    series = read.series()
    steps = [step for each in series for step in steps_of(each, state_spread)]
    commits = {point.commit for each in series for point in each.points}
    return History(
        root,
        tuple(sorted(commits, key=lambda commit: commit.place)),
        tuple(series),
        tuple(sorted(steps, key=lambda step: step.at.place)),
        tuple(read.problems),
        tuple(notes),
        page_of_commits(root),
        frozenset(commit.sha for commit in recent),
    )


def _patterns(root: Path, directory: Path, files: Sequence[Path]) -> list[str]:
    if not files:
        return [_BASELINES, _RESULTS]
    paths = [os.path.relpath((directory / path).resolve(), root.resolve()) for path in files]
    for given, path in zip(files, paths, strict=True):
        if path.startswith(os.pardir):
            raise InputError(f"{given}: not in the repository {root}")
    return [f":(literal){Path(path).as_posix()}" for path in paths]


def _nothing_there(root: Path, files: Sequence[Path]) -> str:
    if files:
        return f"{root}: no commit has {', '.join(map(str, files))}"
    return (
        f"{root}: no commit has a baseline/*.json or a results.json, and {STORAGE} no saved run; make a "
        "baseline and commit it: quantlib gate --gate-update"
    )


class _Reading:
    """Collects what files say.

    recorded: (source, file by its name today, what it says), in the order of commits.
    """

    def __init__(self, root: Path, line: Sequence[Commit]) -> None:
        self.root, self.line = root, line
        self.recorded: list[tuple[Source, str, Recorded]] = []
        self.problems: list[str] = []
        self.notes: list[str] = []

    def files(self, patterns: Sequence[str]) -> None:
        """Read files of the commits that changed them."""
        changes = changes_of(self.root, self.line, patterns)
        runs = [_beside(change) for change in changes]
        texts = files_at(self.root, [(change.commit.sha, change.path) for change in changes])
        beside = files_at(
            self.root, [(change.commit.sha, run) for change, run in zip(changes, runs, strict=True)]
        )
        for change, text, run in zip(changes, texts, beside, strict=True):
            if text is None:
                continue  # a submodule of that name
            self._file(change, text, run)

    def _file(self, change: Change, text: bytes, run: bytes | None) -> None:
        name = f"{change.path} at {change.commit.short}"
        if PurePosixPath(change.path).name == "results.json":
            read = partial(of_results, text, run, change.path, name, change.commit)
            self._keep("results", change.name, read)
        else:
            self._keep("baseline", change.name, partial(of_baseline, text, name, change.commit))

    def saved_runs(self, storage: Path) -> None:
        """Read what pytest-benchmark saved of commits of the line."""
        if not storage.is_dir():
            raise InputError(f"--storage {storage}: no such directory")
        by_sha = {commit.sha: commit for commit in self.line}
        runs = []
        for path in sorted(storage.rglob("*.json")):
            try:
                runs.append((parse_saved_run(read_bytes(path), str(path)), str(path)))
            except InputError as error:
                self.problems.append(str(error))
        elsewhere = 0
        for run, name in sorted(runs, key=lambda pair: pair[0].when):
            commit = by_sha.get(run.sha)
            if commit is None:
                elsewhere += 1
                continue
            self._keep("saved run", storage.name, partial(of_saved_run, run, name, commit))
        if elsewhere:
            self.notes.append(f"{elsewhere} saved runs are of commits that are not on the line to HEAD")

    def _keep(self, source: Source, file: str, read: Callable[[], Recorded | None]) -> None:
        try:
            recorded = read()
        except InputError as error:
            self.problems.append(str(error))
            return
        if recorded is not None:
            self.recorded.append((source, file, recorded))

    def series(self) -> list[Series]:
        """The points by what they belong to: those of two machines do not compare."""
        groups: dict[tuple[Source, str, str, str, Machine], list[Point]] = {}
        for source, file, recorded in self.recorded:
            for variant, point in recorded.points.items():
                groups.setdefault((source, file, recorded.task, variant, recorded.machine), []).append(point)
        return [
            Series(*key, points=tuple(sorted(points, key=lambda point: point.commit.place)))
            for key, points in groups.items()
        ]


def _beside(change: Change) -> str:
    return str(PurePosixPath(change.path).with_name("run.json"))
