"""The line of commits that leads to HEAD, what each of them changed, and files as they were at one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from quantlib.support.errors import InputError, Unavailable
from quantlib.support.git import git_bytes, run_git

_SHOWN_DIGITS = 7


@dataclass(frozen=True)
class Commit:
    """A commit of the line. sha: 40 or 64 hexadecimal digits. seconds: since 1970, when it was committed.

    subject: the first line of its message. place: on the line, 0 for the oldest.
    """

    sha: str
    seconds: int
    subject: str
    place: int

    @property
    def short(self) -> str:
        """The first digits of its hash."""
        return self.sha[:_SHOWN_DIGITS]


@dataclass(frozen=True)
class Change:
    """A file that a commit wrote. path: where it was then. name: where it is at the end of the line."""

    commit: Commit
    path: str
    name: str


def repository_of(directory: Path) -> Path:
    """The root of the repository in which a directory lies.

    Raises:
        InputError: it lies in none, git is not installed, or the repository has no commit.
    """
    try:
        root = Path(run_git(directory, "rev-parse", "--show-toplevel"))
        run_git(root, "rev-parse", "--verify", "HEAD")
    except Unavailable as error:
        reason = str(error).removeprefix("git rev-parse: ").removeprefix("fatal: ")
        raise InputError(f"{directory}: no git repository with commits: {reason}") from error
    return root


def is_shallow(root: Path) -> bool:
    """Whether older commits were left out when the repository was cloned."""
    return run_git(root, "rev-parse", "--is-shallow-repository") == "true"


def line_of(root: Path) -> list[Commit]:
    """The commits from the first one to HEAD; of a merge, what it was merged into is followed."""
    text = git_bytes(root, "log", "--first-parent", "-z", "--format=%H%x00%ct%x00%s").decode(
        "utf-8", errors="replace"
    )
    # No field has a NUL in it; the last record may or may not end with one.
    parts = text.removesuffix("\0").split("\0")
    records = list(zip(parts[0::3], parts[1::3], parts[2::3], strict=True))
    return [
        Commit(sha, int(seconds), subject, place)
        for place, (sha, seconds, subject) in enumerate(reversed(records))
    ]


def changes_of(root: Path, line: Sequence[Commit], patterns: Sequence[str]) -> list[Change]:
    """The files of certain names that the commits of a line wrote, the oldest first; renames are followed.

    Args:
        root: of the repository.
        line: of its commits.
        patterns: git's pathspecs, relative to the root.
    """
    arguments = ("log", "--first-parent", "-m", "--name-status", "-M", "-z", "--format=%H", "--", *patterns)
    text = git_bytes(root, *arguments).decode("utf-8", errors="surrogateescape")
    by_sha = {commit.sha: commit for commit in line}
    tokens = iter(token for token in text.split("\0") if token)
    changes: list[Change] = []
    later_name: dict[str, str] = {}
    commit = line[-1]
    for token in tokens:
        status = token.strip("\n")
        if re.fullmatch("[0-9a-f]{40,64}", status):
            commit = by_sha[status]
            continue
        path = next(tokens)
        if status[0] in "RC":
            old, path = path, next(tokens)
            if status[0] == "R":
                later_name[old] = later_name.get(path, path)
        if status[0] != "D":
            changes.append(Change(commit, path, later_name.get(path, path)))
    return changes[::-1]


def files_at(root: Path, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
    """Files as they were.

    Args:
        root: of the repository.
        places: (commit, path from the root) of each.

    Returns:
        What they held; None for one that was not there.
    """
    if not places:
        return []
    # A line for each: a name with a line break in it cannot be asked for.
    askable = [place for place in places if "\n" not in place[1]]
    given = "".join(f"{sha}:{path}\n" for sha, path in askable)
    output, held = git_bytes(root, "cat-file", "--batch", given=given), {}
    start = 0
    for place in askable:
        end = output.index(b"\n", start)
        header, start = output[start:end].split(b" "), end + 1
        if header[-1] == b"missing":
            continue
        size = int(header[-1])
        held[place] = output[start : start + size]
        start += size + 1
    return [held.get(place) for place in places]


def commits_since(root: Path, line: Sequence[Commit], since: str) -> list[Commit]:
    """The commits of a line after a revision, or from a date on.

    Args:
        root: of the repository.
        line: its commits.
        since: a commit, tag or branch, or a date as 2026-01-31.

    Raises:
        InputError: it is neither.
    """
    if re.match(r"\d{4}-\d\d-\d\d", since):
        try:
            start = datetime.fromisoformat(since)
        except ValueError as error:
            raise InputError(f"--since {since!r}: no date as 2026-01-31 ({error})") from error
        seconds = (start if start.tzinfo else start.replace(tzinfo=UTC)).timestamp()
        return [commit for commit in line if commit.seconds >= seconds]
    try:
        sha = run_git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{since}^{{commit}}")
    except Unavailable as error:
        raise InputError(
            f"--since {since!r}: neither a commit of this repository nor a date as 2026-01-31"
        ) from error
    after = set(run_git(root, "rev-list", "--first-parent", f"{sha}..HEAD").split())
    return [commit for commit in line if commit.sha in after]


def page_of_commits(root: Path) -> str | None:
    """Where a browser finds the commits of a repository: a URL to which a hash is added.

    It is made from the URL of the remote `origin`, or of the first one; None if there is none, or it is not
    one of http or https. Names and passwords in it are left out.
    """
    try:
        names = run_git(root, "remote").split()
        if not names:
            return None
        remote = "origin" if "origin" in names else names[0]
        url = urlsplit(run_git(root, "remote", "get-url", remote))
        host, port = url.hostname, url.port
    except (Unavailable, ValueError):
        return None
    if url.scheme not in ("http", "https") or not host:
        return None
    host = f"[{host}]" if ":" in host else host
    place = f"{host}:{port}" if port else host
    path = quote(url.path.rstrip("/").removesuffix(".git"), safe="/%~")
    commits = "commits" if host == "bitbucket.org" else "commit"
    return f"{url.scheme}://{place}{path}/{commits}/"
