"""What a variant's latency depends on, and which of it differs between a run and its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantlib.compression.variants import VariantName
from quantlib.gate.record import GateRecord, differences
from quantlib.machine.engines import DEFAULT_ENGINE

_RUNTIME = ("onnxruntime",)
_PROCESSOR = ("cpu_model", "instruction_sets", "architecture", "threads")


@dataclass(frozen=True)
class Changes:
    """What of a variant's latency differs from the baseline's, in words; empty for what is the same.

    unknown: why that cannot be said. model: its bytes. session: the options of its session. runtime: the
    version of its engine. worker: the code of the process that times it. processor: the CPU and the number
    of threads. When nothing but the processor differs, the old and the new model are the same here.
    """

    unknown: str = ""
    model: str = ""
    session: str = ""
    runtime: str = ""
    worker: str = ""
    processor: str = ""

    @property
    def same_program(self) -> bool:
        """Whether the same would run on this machine as ran for the baseline."""
        return not (self.unknown or self.model or self.session or self.runtime or self.worker)

    @property
    def words(self) -> str:
        """All that differs, in one line."""
        texts = (self.unknown, self.model, self.session, self.runtime, self.worker, self.processor)
        return "; ".join(text for text in texts if text)


def changes_since(variant: str, current: GateRecord, baseline: GateRecord) -> Changes:
    """Compare all that the latency of a variant depends on; both records have the variant.

    Raises:
        KeyError: a record has no such variant.
        ValueError: the current run does not record it all.
    """
    ours, theirs = current.variants[variant], baseline.variants[variant]
    now, before = current.origin, baseline.origin
    if now is None or not ours.sha256:
        raise ValueError(f"this run does not record what the latency of {variant} depends on")
    if before is None or not theirs.sha256:
        return Changes(unknown="the baseline does not record which model it timed and how")
    engine = VariantName.parse(variant).engine
    session, runtime = _session_and_runtime(engine, current)
    old_session, old_runtime = _session_and_runtime(engine, baseline)
    return Changes(
        model=""
        if ours.sha256 == theirs.sha256
        else f"model {ours.sha256[:12]}, baseline {theirs.sha256[:12]}",
        session=_words(session, old_session),
        runtime=_words(runtime, old_runtime),
        worker="" if now.worker == before.worker else "the code that times has changed",
        processor=_words(_only(current.machine, _PROCESSOR), _only(baseline.machine, _PROCESSOR)),
    )


def _session_and_runtime(engine: str, record: GateRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of an engine's sessions but for the threads, and its version."""
    assert record.origin is not None
    if engine == DEFAULT_ENGINE:
        return _without(record.origin.session, "threads"), _only(record.machine, _RUNTIME)
    recorded = record.origin.engines.get(engine, {})
    version = {engine: recorded["version"]} if "version" in recorded else {}
    return _without(recorded.get("session", {}), "threads"), version


def _words(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    return "; ".join(differences(ours, theirs))


def _only(values: Mapping[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    return {key: values[key] for key in keys if key in values}


def _without(values: Mapping[str, object], key: str) -> dict[str, object]:
    return {name: value for name, value in values.items() if name != key}
