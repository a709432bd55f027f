"""Which code runs, and where: results of two codes do not mix, and those of two machines say so."""

from __future__ import annotations

import hashlib
import platform
import socket
from functools import cache
from pathlib import Path
from typing import Any

import quantlib
from quantlib.machine import hardware
from quantlib.support.cache import installed_version
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json

PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "onnx", "onnxruntime", "onnxscript", "onnx-ir",
    "numpy", "scipy", "scikit-learn", "openvino", "nncf",
)  # fmt: skip


@cache
def code() -> dict[str, Any]:
    """What decides results beside the inputs: quantlib's sources, by their hash, and versions of packages."""
    root = Path(quantlib.__file__).parent
    digests = [
        [path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(root.rglob("*.py"))
    ]
    return {
        "quantlib": sha256_json(digests),
        "packages": {name: installed_version(name) for name in PACKAGES},
    }


def check_code(wanted: dict[str, Any]) -> None:
    """Check that this process runs the code that the sweep was started with.

    Raises:
        InputError: it does not; the message says what differs.
    """
    ours = code()
    differing = [
        f"{name} {ours['packages'].get(name) or 'missing'}, not {version or 'missing'}"
        for name, version in wanted["packages"].items()
        if ours["packages"].get(name) != version
    ]
    if ours["quantlib"] != wanted["quantlib"]:
        differing.insert(0, "other sources of quantlib")
    if differing:
        raise InputError(f"the worker on {host()} has {', '.join(differing)}")


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


@cache
def here() -> dict[str, Any]:
    """This machine, as provenance says it."""
    machine = hardware.describe()
    return {
        "host": host(),
        "cpu": machine.cpu_model,
        "instruction_sets": list(machine.instruction_sets),
        "python": platform.python_version(),
    }
