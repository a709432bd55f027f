"""What commands, tox and the workflows install is pinned: packages by hash, actions by commit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
WORKFLOWS = [
    ROOT / ".github" / "workflows" / "quantization.yml",
    ROOT / "quantlib" / "experiment" / "templates" / "quantlib.yml",
]


def pinned(path: Path) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """{package: its pins, each with its hashes}: one for each marker."""
    pins: dict[str, list[tuple[Requirement, list[str]]]] = {}
    text = re.sub(r"(?m)^#.*\n", "", path.read_text(encoding="utf-8")).replace("\\\n", " ")
    for line in text.splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        parsed = Requirement(requirement)
        pins.setdefault(canonicalize_name(parsed.name), []).append((parsed, hashes))
    return pins


def test_there_is_a_lock_for_each_use() -> None:
    assert [path.stem for path in LOCKS] == ["demo", "docs", "test", "tox"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_each_package_is_pinned_with_hashes(path: Path) -> None:
    pins = pinned(path)
    for name, each in pins.items():
        for requirement, hashes in each:
            assert [specifier.operator for specifier in requirement.specifier] == ["=="], name
            assert hashes, name
            assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), name
    assert "://" not in path.read_text(encoding="utf-8"), "no index is named"


@pytest.mark.parametrize(
    ("lock", "extras"), [("demo", {"demo"}), ("test", {"demo", "test"})], ids=["demo", "test"]
)
def test_a_lock_has_what_the_extras_need(lock: str, extras: set[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted, waiting = [*project["dependencies"], "setuptools>=77"], set(extras)
    while waiting:
        for text in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                waiting |= requirement.extras
            else:
                wanted.append(text)
    pins = pinned(ROOT / "requirements" / f"{lock}.lock")
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name == "torch":  # its build is the index's
            assert "torch" not in pins
            continue
        for pin, _ in pins[canonicalize_name(requirement.name)]:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), text


def test_locks_agree_with_the_constraints() -> None:
    constraints = {
        canonicalize_name(parsed.name): str(parsed.specifier)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
        for parsed in [Requirement(line)]
    }
    assert constraints["torch"] == "==2.13.0"
    for path in LOCKS:
        for name, each in pinned(path).items():
            for pin, _ in each:
                assert str(pin.specifier) == constraints.get(name, str(pin.specifier)), (path.stem, name)


def test_the_commands_use_the_locks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo", "test"):
        command = readme.split(f"<!-- {name} command -->")[1].split("```")[1]
        assert f"--no-deps --require-hashes -r requirements/{name}.lock" in command
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    assert set(re.findall(r"locked\}/(\w+)\.lock", tox)) == {"demo", "docs", "test"}
    assert "--require-hashes" in tox


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_may_only_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    workflow: dict[str, Any] = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    for action in actions:
        assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action
        assert re.search(rf"{action} # v\d+\.\d+\.\d+$", text, re.MULTILINE), "its version stands behind it"
    checkouts = [step for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
    assert not any("permissions" in job for job in workflow["jobs"].values())
