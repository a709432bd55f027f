"""Another version of an engine, in an environment of its own beside this one."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from quantlib.support.cache import Cache, versions_key
from quantlib.support.errors import Unavailable

_ORT = "onnxruntime"
# What a timing process imports besides the runtime.
_BESIDE = ("numpy", "onnx", "psutil", "py-cpuinfo", "filelock", "platformdirs")

MakeEnvironment = Callable[[Path, Sequence[str]], None]
"""Makes an environment in a directory, with these requirements installed."""


def python_with(
    version: str, cache: Cache, make: MakeEnvironment | None = None, *, package: str = _ORT
) -> Path:
    """The interpreter of an environment with that version of an engine, made once and kept in the cache.

    Raises:
        Unavailable: it cannot be installed, for example without a package index.
    """
    try:
        beside = versions_key(*_BESIDE)
    except PackageNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed, which a timing process needs") from error
    # Every engine's code opens models with onnx at hand, and asks for ONNX Runtime's own classes.
    wanted = {package: version, **({} if package == _ORT else versions_key(_ORT)), **beside}
    requirements = [f"{name}=={number}" for name, number in wanted.items()]
    key = {"requirements": requirements, "python": platform.python_version()}
    entry = cache.get("runtime", key, lambda directory: (make or install)(directory, requirements))
    return entry.path / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def install(directory: Path, requirements: Sequence[str]) -> None:
    """Make a virtual environment in a directory, and install requirements there.

    Raises:
        Unavailable: one of them cannot be had.
    """
    python = directory / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1")
    commands = (
        (sys.executable, "-m", "venv", str(directory)),
        (str(python), *pip, "--only-binary", ":all:", *requirements),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
            raise Unavailable(f"{requirements[0]} cannot be installed: {said[-1]}")
