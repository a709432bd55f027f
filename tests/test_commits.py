"""The line of commits to HEAD, what each of them wrote, and where a browser finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_git import commit, git

from quantlib.support.commits import (
    changes_of,
    commits_since,
    files_at,
    is_shallow,
    line_of,
    page_of_commits,
    repository_of,
)
from quantlib.support.errors import InputError


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two baselines, one of them renamed; the other is changed on a branch and merged. Not to be changed."""
    root = tmp_path_factory.mktemp("commits") / "repository"
    commit(root, {"old/baseline/a b.json": "first " * 20, "other.txt": "x"})
    git(root, "branch", "-M", "main")
    git(root, "tag", "start")
    (root / "new").mkdir()
    git(root, "mv", "old/baseline", "new/baseline")
    commit(root, {"other.txt": "y"})
    git(root, "checkout", "-q", "-b", "side")
    commit(root, {"new/baseline/ü.json": "1"})
    commit(root, {"new/baseline/ü.json": "2"})
    git(root, "checkout", "-q", "main")
    commit(root, {"other.txt": "z"})
    git(root, "merge", "-q", "--no-ff", "-m", "merged", "side")
    return root


PATTERNS = [":(glob)**/baseline/*.json"]


def test_a_merge_is_one_commit_and_a_rename_is_followed(repository: Path) -> None:
    line = line_of(repository)
    assert [each.subject for each in line] == ["change", "change", "change", "merged"]
    assert [each.place for each in line] == [0, 1, 2, 3]
    changes = changes_of(repository, line, PATTERNS)
    assert [(each.commit.place, each.path, each.name) for each in changes] == [
        (0, "old/baseline/a b.json", "new/baseline/a b.json"),
        (1, "new/baseline/a b.json", "new/baseline/a b.json"),
        (3, "new/baseline/ü.json", "new/baseline/ü.json"),
    ]


def test_files_as_they_were(repository: Path) -> None:
    line = line_of(repository)
    places = [
        (line[0].sha, "old/baseline/a b.json"),
        (line[0].sha, "new/baseline/ü.json"),
        (line[3].sha, "new/baseline/ü.json"),
        (line[3].sha, "no\nline"),
    ]
    assert files_at(repository, places) == [b"first " * 20, None, b"2", None]
    assert files_at(repository, []) == []


def test_since_a_revision_or_a_date(repository: Path) -> None:
    line = line_of(repository)
    assert commits_since(repository, line, "start") == line[1:]
    assert commits_since(repository, line, line[2].short) == line[3:]
    assert commits_since(repository, line, "2000-01-01") == line
    assert commits_since(repository, line, "2999-01-01T00:00:00+00:00") == []


@pytest.mark.parametrize("since", ["yesterday", "2026-13-40", "--all", "", "v9"])
def test_what_is_neither_is_refused(repository: Path, since: str) -> None:
    with pytest.raises(InputError, match=r"--since .* date as 2026-01-31"):
        commits_since(repository, line_of(repository), since)


def test_a_directory_outside_of_a_repository(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no git repository with commits"):
        repository_of(tmp_path)


def test_a_repository_without_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(InputError, match="no git repository with commits"):
        repository_of(tmp_path)


def test_a_shallow_clone(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "clone")
    assert is_shallow(tmp_path / "clone")
    assert len(line_of(tmp_path / "clone")) == 1
    assert not is_shallow(repository)
    assert repository_of(repository / "new" / "baseline") == repository.resolve()


@pytest.mark.parametrize(
    ("remote", "page"),
    [
        ("https://example.org/team/bert.git", "https://example.org/team/bert/commit/"),
        ("http://me:secret@example.org:8080/bert/", "http://example.org:8080/bert/commit/"),
        ("https://bitbucket.org/team/bert", "https://bitbucket.org/team/bert/commits/"),
        ('https://example.org/a"><script>.git', "https://example.org/a%22%3E%3Cscript%3E/commit/"),
        ("https://[::1]:81/bert", "https://[::1]:81/bert/commit/"),
        ("https://example.org:port/bert", None),
        ("git@example.org:team/bert.git", None),
        ("javascript:alert(1)", None),
        ("/srv/bert.git", None),
    ],
)
def test_the_page_of_a_commit(tmp_path: Path, remote: str, page: str | None) -> None:
    git(tmp_path, "init", "-q")
    assert page_of_commits(tmp_path) is None
    git(tmp_path, "remote", "add", "origin", remote)
    assert page_of_commits(tmp_path) == page
