from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from quantlib.machine import hardware
from quantlib.machine.hardware import Hardware, describe, has_vnni, instruction_sets, int8_note, is_x86


def machine(*sets: str, **changes: Any) -> Hardware:
    values: dict[str, Any] = {
        "cpu_model": "Some CPU",
        "instruction_sets": tuple(sorted(sets)),
        "physical_cores": 2,
        "usable_cores": 4,
        "architecture": "x86_64",
        "memory_bytes": 2**34,
    }
    return Hardware(**(values | changes))


def test_describe_this_machine() -> None:
    machine = describe()
    assert 1 <= machine.physical_cores <= machine.usable_cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes > 2**28
    assert machine.cpu_model
    assert describe() is machine
    assert json.loads(json.dumps(dataclasses.asdict(machine)))["architecture"] == machine.architecture


def test_flags_are_filtered_sorted_and_spelled_as_on_linux() -> None:
    flags = ["fpu", "avx512vnni", "AVX2", "sse4.1", "avx2", "amx_int8"]
    assert instruction_sets(flags) == ("amx_int8", "avx2", "avx512_vnni", "sse4_1")


@pytest.mark.parametrize("flag", ["avx512_vnni", "avx_vnni"])
def test_vnni_by_its_flag(flag: str) -> None:
    assert has_vnni(machine("avx2", flag))


@pytest.mark.parametrize(
    ("word", "expected"),
    [("x86_64", True), ("AMD64", True), ("i686", True), ("aarch64", False), ("arm64", False)],
)
def test_x86_in_the_words_of_each_system(word: str, expected: bool) -> None:
    assert is_x86(machine(architecture=word)) == expected


def test_a_family_name_does_not_make_vnni() -> None:
    assert not has_vnni(machine("avx2", "avx512f", cpu_model="Intel(R) Xeon(R) Platinum 8275CL"))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["avx2", "avx512f", "avx512_vnni"], "exactly in 32 bits"),
        (["avx2", "amx_int8"], "amx_int8"),
        (["avx2", "avx512f"], "reduce_range"),
        (["avx2"], "x64quantprecision"),
        (["asimd", "asimddp", "i8mm"], "asimddp, i8mm: s8 dot products"),
        (["asimd"], "no int8 dot-product"),
        ([], "no int8 dot-product"),
    ],
    ids=["vnni", "amx", "avx512", "avx2", "arm_dot", "arm", "nothing"],
)
def test_int8_note(sets: list[str], words: str) -> None:
    note = int8_note(machine(*sets))
    assert words in note
    assert "\n" not in note
    assert note.endswith(".")


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("max 100000\n", None),
        ("", None),
    ],
    ids=["two", "one_and_a_half", "a_tenth", "no_quota", "empty"],
)
def test_container_quota(tmp_path: Path, text: str, cores: int | None) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert hardware._quota_cores(path) == cores


def test_cores_without_quota_file_or_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "_CGROUP_QUOTA", tmp_path / "missing")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert hardware.usable_cores() == os.cpu_count()


@pytest.mark.parametrize(
    ("mask", "cores"),
    [({0, 1}, 1), ({0, 2}, 2), ({0, 1, 2, 3}, 2), ({3}, 1)],
    ids=["siblings", "two_cores", "all", "one_cpu"],
)
def test_hyper_threads_of_one_core_are_one_core(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mask: set[int], cores: int
) -> None:
    for cpu, siblings in enumerate(["0-1", "0-1", "2-3", "2-3"]):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(hardware, "_CPUS", tmp_path)
    monkeypatch.setattr(hardware, "_CGROUP_QUOTA", tmp_path / "no quota")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mask, raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    assert hardware.usable_cores() == len(mask)
    assert hardware.physical_cores() == cores


@pytest.mark.parametrize("psutil_cores", [3, None], ids=["by_psutil", "by_nobody"])
def test_without_a_topology_psutil_counts_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, psutil_cores: int | None
) -> None:
    monkeypatch.setattr(hardware, "_CPUS", tmp_path)
    monkeypatch.setattr(hardware, "_CGROUP_QUOTA", tmp_path / "no quota")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: psutil_cores)
    assert hardware.physical_cores() == (psutil_cores or 4)


def test_physical_cores_stay_within_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0}, raising=False)
    assert hardware.usable_cores() == hardware.physical_cores() == 1


@pytest.mark.parametrize(
    "changes",
    [{"physical_cores": 0}, {"physical_cores": 5}, {"instruction_sets": ("b", "a")}],
    ids=["no_core", "more_physical_than_usable", "unsorted"],
)
def test_impossible_descriptions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        machine(**changes)
