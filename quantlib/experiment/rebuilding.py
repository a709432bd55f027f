"""The models of an earlier revision, made by its own code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import quantlib
from quantlib.experiment import rebuild_driver
from quantlib.experiment.options import ExperimentOptions
from quantlib.gate import Origin
from quantlib.support.cache import Cache
from quantlib.support.errors import Unavailable
from quantlib.support.git import worktree
from quantlib.support.options import options_of

CHECKOUT = Path(quantlib.__file__).resolve().parents[1]
"""Where the code that runs was checked out, if it was."""

# What this run says instead of the baseline: where things are, and what decides no model. The rows are the
# same, since the gate has compared their hash.
_OF_THE_RUN = ("data_dir", "cache_dir")
_DECIDE_NO_MODEL = frozenset(
    {*_OF_THE_RUN, "output_dir", "threads", "batch_size", "warmup_runs", "num_runs", "profile", "explain"}
)


def arguments_of(options: ExperimentOptions, checkout: Path) -> dict[str, Any]:
    """The options that decide models, where they are not the defaults, as JSON knows them.

    Args:
        options: of the run.
        checkout: paths in it are written relative to it.
    """
    return {
        item.name: _plain(getattr(options, item.name), checkout if item.may_be_path else None)
        for item in options_of(type(options))
        if item.name not in _DECIDE_NO_MODEL and getattr(options, item.name) not in (item.default, {})
    }


def _plain(value: Any, checkout: Path | None) -> Any:
    """As JSON knows it; with a checkout, what is a path in it is written relative to it."""
    if isinstance(value, tuple):
        return [_plain(item, checkout) for item in value]
    if not isinstance(value, str | Path):
        return value
    if checkout is None:
        return str(value)
    path = Path(value).absolute()
    if not path.exists():
        return str(value)
    return path.relative_to(checkout).as_posix() if path.is_relative_to(checkout) else str(path)


def rebuild(origin: Origin, options: ExperimentOptions, checkout: Path, cache: Cache) -> dict[str, Path]:
    """The models that a revision makes from the recorded arguments, by the names of the variants.

    It runs that revision's code in a process of its own, in a worktree of the checkout that is removed again.
    The models are in the cache of this run.

    Raises:
        Unavailable: the revision is not recorded or not here, or its code fails.
    """
    if not origin.commit:
        raise Unavailable("the baseline was not made in a checkout, so it names no revision")
    # Paths in an argument of the command are relative to where it was given.
    places = {name: getattr(options, name) for name in _OF_THE_RUN}
    given = {name: str(Path(path).absolute()) for name, path in places.items() if path is not None}
    with worktree(checkout, origin.commit, cache.root) as tree:
        answer = tree / ".quantlib-rebuilt.json"
        request = json.dumps({"arguments": {**origin.arguments, **given}, "answer": str(answer)})
        command = [sys.executable, "-P", str(Path(rebuild_driver.__file__).resolve())]
        done = subprocess.run(
            command, input=request, cwd=tree, env=_environment(tree), capture_output=True, text=True
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no message"]
            raise Unavailable(f"the code of {origin.commit[:12]} cannot build them: {said[-1]}")
        models: Mapping[str, str] = json.loads(answer.read_text(encoding="utf-8"))
    return {name: Path(path) for name, path in models.items()}


def package_of(origin: Origin, checkout: Path, cache: Cache) -> Path:
    """The directory of the quantlib that timed the baseline, kept in the cache.

    Raises:
        Unavailable: its revision is not recorded or not here, or has other code than timed the baseline.
    """
    if not origin.commit:
        raise Unavailable("the baseline names no revision whose code could time it")

    def copy(directory: Path) -> None:
        with worktree(checkout, origin.commit, cache.root) as tree:
            shutil.copytree(tree / "quantlib", directory / "quantlib")

    directory = cache.get("gate-code", {"commit": origin.commit}, copy).path
    code = "from quantlib.experiment.gating import worker_code; print(worker_code())"
    command = [sys.executable, "-B", "-P", "-c", code]
    done = subprocess.run(command, env=_environment(directory), capture_output=True, text=True)
    if done.returncode or done.stdout.strip() != origin.worker:
        raise Unavailable(f"the code of {origin.commit[:12]} is not what timed the baseline")
    return directory / "quantlib"


def _environment(tree: Path) -> dict[str, str]:
    """This environment, with the quantlib of another tree before any other."""
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(tree), inherited] if inherited else [str(tree)])
    return os.environ | {"PYTHONPATH": path}
