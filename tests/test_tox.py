"""tox's environments and the steps of the example workflow get as far as they can without a network.

tox makes each environment and installs what its configuration lists, but not this package: the environment
sees the packages beside this interpreter. Commands end after their help; the tools of lint only print their
arguments.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "quantization.yml"
ENVIRONMENTS = ("tests", "lint", "docs", "demo", "bench", "gate")
TOOLS = {
    "ruff": "echo ruff $*",
    "mypy": "echo mypy $*",
    "lint-imports": "echo lint-imports $*",
    "mkdocs": "echo mkdocs $*",
    # Behind `--` of the step's own, or behind one that is added.
    "tox": f'[[ " $* " == *" -- "* ]] || set -- "$@" --\nexec "{sys.executable}" -m tox "$@" --help',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables for tox and for steps of the workflow: TOX_X stands for tox's option --x."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in TOOLS.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    packages = f"{ROOT}{os.pathsep}{sysconfig.get_path('purelib')}"
    inherited = {name: value for name, value in os.environ.items() if not re.match("TOX|PYTEST|COV", name)}
    return inherited | {
        "PATH": f"{tools}{os.pathsep}{inherited['PATH']}",
        "TOX_CONFIG_FILE": str(ROOT / "tox.ini"),
        "TOX_WORK_DIR": str(tmp_path / "environments"),
        "TOX_OVERRIDE": ";".join(
            [
                f"testenv.set_env+=PYTHONPATH={packages}",
                f"testenv:docs.set_env+=PYTHONPATH={packages}",
                "testenv.allowlist_externals=*",
                *(f"testenv{name}.commands_pre=" for name in ("", ":docs", ":demo")),
            ]
        ),
        "PIP_NO_INDEX": "1",
        "NO_COLOR": "1",
    }


def run(command: str, directory: Path, environment: dict[str, str]) -> str:
    """What a step prints, run as GitHub's runner does; it has to succeed."""
    process = subprocess.run(
        ["bash", "-e", "-c", command],
        cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-3000:]
    return process.stdout


def test_every_environment_gets_to_its_commands(tmp_path: Path, environment: dict[str, str]) -> None:
    files = set(ROOT.iterdir())
    output = run(f"tox -e {','.join(ENVIRONMENTS)}", tmp_path, environment)
    sections = re.findall(r"^\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(ENVIRONMENTS)
    for name in ENVIRONMENTS:
        assert re.search(rf"^  {name}: OK", output, re.MULTILINE), name
    for words in (
        "ruff check",
        "ruff format --check",
        "lint-imports",
        "mypy",
        "mypy tests",
        "mkdocs build --strict",
    ):
        assert re.search(rf"^{words}$", output, re.MULTILINE), words
    assert "--gate-update" in output, "bench/ and its options are loaded"
    assert "quantization_experiments.py [OPTIONS]" in output
    assert not {ROOT / ".venv", ROOT / ".tox"} & (set(ROOT.iterdir()) - files), "the repository is left alone"


def test_the_tests_run_on_each_python_that_is_at_hand(tmp_path: Path, environment: dict[str, str]) -> None:
    """Of those that pyproject.toml names; one that is missing is skipped, and does not fail the others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"Python :: 3\.(\d+)", "\n".join(project["classifiers"]))
    versions = [f"py3{minor}" for minor in named]
    assert re.findall(r"^py3\d+", run("tox list", tmp_path, environment), re.MULTILINE) == versions
    output = run("tox -e tests,py399 --notest", tmp_path, environment)
    assert re.search("^  py399: SKIP", output, re.MULTILINE)
    assert re.search("^  tests: OK", output, re.MULTILINE)


def steps() -> dict[str, list[str]]:
    """{job: its `run:` steps} of the example workflow."""
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    return {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}


@pytest.mark.parametrize("job", steps())
def test_steps_of_the_example_workflow(job: str, tmp_path: Path, environment: dict[str, str]) -> None:
    """All but the installation of tox, which needs a network, and the actions (`uses:`) of GitHub."""
    installed = "pip install --require-hashes -r requirements/tox.lock"
    commands = [command for command in steps()[job] if command != installed]
    assert len(commands) == len(steps()[job]) - 1
    (tmp_path / "gate.md").write_text("the gate's table\n", encoding="utf-8")  # help leaves none
    summary = tmp_path / "summary.md"
    outputs = [run(c, tmp_path, environment | {"GITHUB_STEP_SUMMARY": str(summary)}) for c in commands]
    assert "congratulations" in outputs[0]
    if job == "gate":
        assert summary.read_text(encoding="utf-8") == "the gate's table\n"
