"""The commit of a checkout, and the files of another one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from quantlib.support.errors import Unavailable
from quantlib.support.git import Revision, revision_of, worktree


def git(directory: Path, *words: str) -> str:
    command = ["git", "-C", str(directory), "-c", "user.name=A", "-c", "user.email=a@example.org", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8")


def commit(directory: Path, files: dict[str, str]) -> str:
    """Write files and commit them, in a repository that is made if need be."""
    directory.mkdir(exist_ok=True)
    git(directory, "init", "-q")
    write(directory, files)
    git(directory, "add", "-A")
    git(directory, "commit", "-q", "-m", "change")
    return git(directory, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    commit(tmp_path / "repository", {"quantlib/__init__.py": "AGE = 1\n", "notes.txt": "a"})
    return tmp_path / "repository"


def test_the_revision_of_a_checkout(checkout: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD")
    assert revision_of(checkout) == Revision(head, changed=False)
    write(checkout, {"notes.txt": "b"})
    assert revision_of(checkout) == Revision(head, changed=False)
    write(checkout, {"quantlib/new.py": ""})
    assert revision_of(checkout) == Revision(head, changed=True)


def test_a_hook_s_variables_do_not_name_another_repository(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert revision_of(checkout) is not None


def test_a_package_that_is_only_installed_in_a_repository_is_not_of_it(tmp_path: Path) -> None:
    commit(tmp_path / "other", {"main.py": ""})
    write(tmp_path / "other", {"quantlib/__init__.py": ""})
    assert revision_of(tmp_path / "other") is None
    assert revision_of(tmp_path) is None


def test_without_git_there_is_no_revision(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert revision_of(checkout) is None


def test_a_worktree_has_the_old_files_and_goes_again(checkout: Path, tmp_path: Path) -> None:
    old = git(checkout, "rev-parse", "HEAD")
    commit(checkout, {"quantlib/__init__.py": "AGE = 2\n"})
    with worktree(checkout, old, tmp_path) as tree:
        assert (tree / "quantlib" / "__init__.py").read_text(encoding="utf-8") == "AGE = 1\n"
        write(tree, {"left/behind.txt": "x"})
    assert not tree.exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_a_revision_that_is_not_here(checkout: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r"revision a{12} is not in this repository \(a shallow clone"),
        worktree(checkout, "a" * 40, tmp_path),
    ):
        pass
