"""The git checkout that this code runs from: its commit, and the files of another commit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quantlib.support.errors import Unavailable
from quantlib.support.scratch import scratch_dir

PACKAGE = "quantlib"


@dataclass(frozen=True)
class Revision:
    """commit: 40 hexadecimal digits. changed: whether the package's code differed from that commit's."""

    commit: str
    changed: bool


def revision_of(checkout: Path) -> Revision | None:
    """The commit of the checkout in which the package lies; None outside of one, and without git.

    A package that is only installed inside a repository does not belong to it.
    """
    try:
        run_git(checkout, "ls-files", "--error-unmatch", f"{PACKAGE}/__init__.py")
        commit = run_git(checkout, "rev-parse", "--verify", "HEAD")
        return Revision(commit, changed=bool(run_git(checkout, "status", "--porcelain", "--", PACKAGE)))
    except Unavailable:
        return None


@contextmanager
def worktree(checkout: Path, commit: str, parent: Path) -> Iterator[Path]:
    """A temporary directory in `parent` with the files of a commit.

    It is no worktree of git's: the repository would list one whose process was killed.

    Raises:
        Unavailable: there is no git, no repository, or no such commit in it, as in a shallow clone.
    """
    try:
        run_git(checkout, "cat-file", "-e", f"{commit}^{{commit}}")
    except Unavailable as error:
        raise Unavailable(
            f"revision {commit[:12]} is not in this repository (a shallow clone has the newest one only)"
        ) from error
    with scratch_dir(parent) as scratch:
        tree, index = scratch / "tree", str((scratch / "index").absolute())
        top = Path(run_git(checkout, "rev-parse", "--show-toplevel"))
        run_git(top, "read-tree", commit, index=index)
        run_git(top, "checkout-index", "--all", "--quiet", f"--prefix={tree.absolute()}/", index=index)
        yield tree


def run_git(directory: Path, *arguments: str, given: str | None = None, index: str | None = None) -> str:
    """What git prints, without white space at its ends.

    Args:
        directory: in the repository.
        arguments: of git.
        given: its standard input.
        index: the file to use as git's index; the repository's own by default.

    Raises:
        Unavailable: git is not installed, or it failed; the message is its last line.
    """
    printed = git_bytes(directory, *arguments, given=given, index=index)
    return printed.decode("utf-8", errors="replace").strip()


def git_bytes(directory: Path, *arguments: str, given: str | None = None, index: str | None = None) -> bytes:
    """`run_git`, for output that is no text, or whose ends matter."""
    # Inside a hook git names the repository in variables, which would win over the directory.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {} if index is None else {"GIT_INDEX_FILE": index}
    command = ["git", "-C", str(directory), *arguments]
    try:
        result = subprocess.run(
            command, env=environment, capture_output=True, input=None if given is None else given.encode()
        )
    except FileNotFoundError as error:
        raise Unavailable("git is not installed") from error
    if result.returncode:
        stderr_lines = result.stderr.decode("utf-8", errors="replace").strip().splitlines() or ["no message"]
        raise Unavailable(f"git {arguments[0]}: {stderr_lines[-1]}")
    return result.stdout
