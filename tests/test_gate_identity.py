"""What a latency depends on, and what differs between two records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_gate import MACHINE, damaged, gate_record, int8_record, variant_record

from quantlib.gate import GateRecord, Origin, changes_since, read_record, write_record
from quantlib.support.errors import InputError

SESSION = {"threads": 2, "spinning": True, "providers": ["CPUExecutionProvider"]}
ORIGIN = Origin(SESSION, "w" * 64, "a" * 40, False, {"recipes": ["quant_2"]})


def known(sha256: str = "1" * 64, origin: Origin | None = ORIGIN, **changes: Any) -> GateRecord:
    """A run that records what its latencies depend on."""
    run = gate_record(int8_record(sha256=sha256), **changes)
    variants = {**run.variants, "teacher": variant_record(sha256="0" * 64)}
    return replace(run, variants=variants, origin=origin)


def test_a_run_has_not_changed_since_itself() -> None:
    changes = changes_since("quant_2", known(), known())
    assert changes.same_program
    assert changes.words == ""


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        (known("2" * 64), "model 111111111111, baseline 222222222222"),
        (
            known(origin=replace(ORIGIN, session=SESSION | {"spinning": False})),
            "spinning: True, baseline False",
        ),
        (known(machine=MACHINE | {"onnxruntime": "1.31.0"}), "onnxruntime: 1.32.0, baseline 1.31.0"),
        (known(origin=replace(ORIGIN, worker="v" * 64)), "the code that times has changed"),
        (known(origin=None), "the baseline does not record which model it timed and how"),
        (known(""), "the baseline does not record which model it timed and how"),
    ],
    ids=["model", "session", "runtime", "worker", "no_origin", "no_hash"],
)
def test_another_program_is_told(baseline: GateRecord, words: str) -> None:
    changes = changes_since("quant_2", known(), baseline)
    assert not changes.same_program
    assert changes.words == words


def test_another_processor_is_told_but_the_same_would_run() -> None:
    other_processor = known(
        machine=MACHINE | {"cpu_model": "EPYC", "threads": 4},
        origin=replace(ORIGIN, session=SESSION | {"threads": 4}),
    )
    changes = changes_since("quant_2", known(), other_processor)
    assert changes.same_program
    assert changes.words == "cpu_model: Xeon, baseline EPYC; threads: 2, baseline 4"


def test_a_run_has_to_record_it() -> None:
    with pytest.raises(ValueError, match="does not record what the latency of quant_2 depends on"):
        changes_since("quant_2", gate_record(), known())


def test_what_is_recorded_survives_the_file(tmp_path: Path) -> None:
    write_record(tmp_path / "b.json", known())
    assert read_record(tmp_path / "b.json") == known()


def test_an_older_baseline_is_read(tmp_path: Path) -> None:
    def older(values: dict[str, Any]) -> None:
        del values["origin"]
        for variant in values["variants"].values():
            del variant["sha256"]

    record = read_record(damaged(tmp_path / "b.json", older))
    assert (record.origin, record.variants["quant_2"].sha256) == (None, "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["variants"]["quant_2"].update(sha256="12"), "sha256 '12' must be 64 hexadecimal digits"),
        (
            lambda v: v.update(
                origin={"session": {}, "worker": "", "commit": "--x", "changed": False, "arguments": {}}
            ),
            "commit '--x' must be 40 or 64 hexadecimal digits",
        ),
    ],
    ids=["hash", "commit"],
)
def test_damaged_origins(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_record(damaged(tmp_path / "b.json", change))
