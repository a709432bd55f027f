#!/usr/bin/env python3
"""Write requirements/*.lock: every package of the README's commands and of the site, pinned with its hashes.

    python .ci/lock.py [--upgrade] [NAME...]

It needs uv. The locks hold for each Python and system that pyproject.toml names. PyTorch is not in them: pip
takes a file whose hash the index names before one beside it, so that a lock with both hashes would bring the
gigabytes of CUDA where a build for CPUs is at hand, and one with a single hash would fail elsewhere.
constraints.txt pins its version.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "test": ["pyproject.toml", "--extra", "demo", "--extra", "test"],
    "demo": ["pyproject.toml", "--extra", "demo"],
    "tox": [],
    "docs": ["pyproject.toml:docs"],
}
# PyTorch, and what its CUDA build needs and its CPU build does not.
LEFT_OUT = re.compile(r"(torch==|nvidia-|cuda-|triton==)")
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
    return HEADER + "".join(block for block in blocks if not LEFT_OUT.match(block))


def main() -> None:
    """Write the locks that are named, or all."""
    (ROOT / "requirements").mkdir(exist_ok=True)
    names = [word for word in sys.argv[1:] if word != "--upgrade"]
    for name in names or LOCKS:
        source = LOCKS[name]
        lock = compile_lock(name, source, "--upgrade" in sys.argv)
        (ROOT / "requirements" / f"{name}.lock").write_text(lock, encoding="utf-8")


if __name__ == "__main__":
    main()
