#!/usr/bin/env python3
"""Write requirements/*.lock: every package of the README's commands and of the site, pinned with its hashes.

    python .ci/lock.py [--upgrade] [NAME...]

It needs uv and pip. The locks hold for each Python and system that pyproject.toml names. PyTorch's hashes are
those of the public wheels and of the wheel that pip gets here, which may be a build for CPUs alone; the
packages that a CUDA build needs besides are in constraints.txt, as pip alone knows which build it took.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "test": ["pyproject.toml", "--extra", "demo", "--extra", "test"],
    "demo": ["pyproject.toml", "--extra", "demo"],
    "tox": [],
    "docs": ["pyproject.toml:docs"],
}
# What PyTorch's CUDA build needs and its CPU build does not.
CUDA = re.compile(r"(nvidia-|cuda-|triton==)")
HEADER = "# Written by .ci/lock.py; pip install --no-deps --require-hashes -r of it.\n"


def compile_lock(name: str, source: list[str], upgrade: bool) -> str:
    """The lines of a lock, one block a package: name, version, marker, hashes."""
    groups = [f"--group={each}" for each in source if ":" in each]
    command = ["uv", "pip", "compile", *groups, *(each for each in source if ":" not in each)]
    command += [
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
        "--no-annotate",
        "--no-header",
    ]
    command += ["-c", "constraints.txt", "--quiet"]
    earlier = ROOT / "requirements" / "test.lock"  # the same versions in all locks, and no newer ones unasked
    if earlier.is_file() and not (upgrade and name == "test"):
        command += ["-c", str(earlier)]
    if name != "docs":  # editable installs without isolation
        command += ["-"]
    given = "tox\n" if name == "tox" else "setuptools\n"
    text = subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        input=None if name == "docs" else given,
    ).stdout
    blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)
    return HEADER + "".join(block for block in blocks if not CUDA.match(block))


def with_wheel_of_here(lock: str) -> str:
    """The lock with the hash of the wheel of PyTorch that pip gets here."""
    match = re.search(r"(?m)^torch==(\S+)", lock)
    if match is None:
        return lock
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, match[0]]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).iterdir()
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest in lock:
        return lock
    return lock.replace(match[0], f"{match[0]} \\\n    --hash=sha256:{digest}", 1)


def main() -> None:
    """Write the locks that are named, or all."""
    (ROOT / "requirements").mkdir(exist_ok=True)
    names = [word for word in sys.argv[1:] if word != "--upgrade"]
    for name in names or LOCKS:
        source = LOCKS[name]
        lock = with_wheel_of_here(compile_lock(name, source, "--upgrade" in sys.argv))
        (ROOT / "requirements" / f"{name}.lock").write_text(lock, encoding="utf-8")


if __name__ == "__main__":
    main()
