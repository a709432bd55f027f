"""This machine's CPU: its cores, its memory, its instruction sets, and what those mean for int8."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# The sets that decide how fast, and how exact, integer and reduced-precision matrix products are. Every
# operating system spells them a little differently (avx512vnni, sse4.1); these are Linux's spellings.
_SETS_OF_INTEREST = (
    "sse4_1",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "avx_vnni_int8",
    "amx_bf16",
    "amx_fp16",
    "amx_int8",
    "neon",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
_X86 = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Hardware:
    """What a latency was measured on. `dataclasses.asdict` gives a JSON-able description.

    cpu_model: the CPU's own name for itself; on virtual machines it may be generic.
    instruction_sets: those of interest for inference, sorted.
    physical_cores: cores without hyper-threads, at most usable_cores.
    usable_cores: logical CPUs this process may use (affinity and the container's quota).
    memory_bytes: of the machine.
    """

    cpu_model: str
    instruction_sets: tuple[str, ...]
    physical_cores: int
    usable_cores: int
    architecture: str
    memory_bytes: int

    def __post_init__(self) -> None:
        if not 1 <= self.physical_cores <= self.usable_cores:
            raise ValueError(f"physical_cores {self.physical_cores} must lie in 1..{self.usable_cores}")
        if list(self.instruction_sets) != sorted(set(self.instruction_sets)):
            raise ValueError(f"instruction_sets must be sorted, each once: {self.instruction_sets}")


@cache
def describe() -> Hardware:
    """Describe this machine, once a process (asking the CPU takes some 0.2 s)."""
    import cpuinfo
    import psutil

    info = cpuinfo.get_cpu_info()
    return Hardware(
        cpu_model=info.get("brand_raw") or platform.processor() or "unknown",
        instruction_sets=instruction_sets(info.get("flags", [])),
        physical_cores=physical_cores(),
        usable_cores=usable_cores(),
        architecture=platform.machine(),
        memory_bytes=int(psutil.virtual_memory().total),
    )


def instruction_sets(flags: list[str]) -> tuple[str, ...]:
    """The CPU flags of interest, sorted, in Linux's spelling."""
    canonical = {_letters(name): name for name in _SETS_OF_INTEREST}
    return tuple(sorted({canonical[_letters(flag)] for flag in flags if _letters(flag) in canonical}))


def _letters(flag: str) -> str:
    return flag.lower().replace("_", "").replace(".", "")


def usable_cores() -> int:
    """The logical CPUs this process may use: its affinity mask, bounded by the container's CPU quota."""
    # Only Linux has affinity masks; elsewhere a process may use every CPU.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _quota_cores(_CGROUP_QUOTA) or allowed)


def _quota_cores(cpu_max: Path) -> int | None:
    """The CPU quota of a cgroup (version 2) in cores, rounded up; None where there is no quota.

    More threads than this are stopped in the middle of a run until the next period begins.
    """
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, -(-int(quota) // int(period)))


def physical_cores() -> int:
    """The physical cores this process may use: the default number of threads of a session.

    Hyper-threads share the multipliers, so a second thread on a core wins nothing in matrix products.
    """
    import psutil

    usable = usable_cores()
    # psutil counts all cores of the machine, whatever the affinity mask says.
    return min(_cores_in_mask(_CPUS) or psutil.cpu_count(logical=False) or usable, usable)


def _cores_in_mask(cpus: Path) -> int | None:
    """The cores that the logical CPUs of the affinity mask belong to; None where the topology is not known.

    Args:
        cpus: Linux's directory of logical CPUs. CPUs of one core list the same siblings.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    try:
        siblings = {
            (cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
            for cpu in os.sched_getaffinity(0)
        }
    except OSError:
        return None
    return len(siblings)


def is_x86(hardware: Hardware) -> bool:
    """Whether the CPU is of the x86 family, 32 or 64 bits; each operating system has its own word for it."""
    return hardware.architecture.lower() in _X86


def on_x86() -> bool:
    """Whether this process runs on an x86 CPU, without the time that `describe` takes."""
    return platform.machine().lower() in _X86


def has_vnni(hardware: Hardware) -> bool:
    """Whether the CPU sums u8·s8 products in 32 bits, judged by its flags, since family names say little."""
    return bool({"avx512_vnni", "avx_vnni"} & set(hardware.instruction_sets))


def has_bfloat16(hardware: Hardware) -> bool:
    """Whether the CPU multiplies bfloat16, by its flags."""
    return bool({"avx512_bf16", "amx_bf16"} & set(hardware.instruction_sets))


def int8_note(hardware: Hardware) -> str:
    """One sentence: what this CPU's instruction sets mean for int8 models in ONNX Runtime."""
    sets = set(hardware.instruction_sets)
    exact = [name for name in ("amx_int8", "avx512_vnni", "avx_vnni") if name in sets]
    if exact:
        return f"{', '.join(exact)}: u8·s8 products are summed exactly in 32 bits, and fast; prefer U8S8."
    if sets & {"avx512f", "avx2", "sse4_1"}:
        return (
            "no VNNI and no AMX: sums of two u8·s8 products saturate at 16 bits, which changes predictions; "
            "quantize weights to 7 bits (reduce_range) or set session.x64quantprecision, which is slower."
        )
    if sets & {"asimddp", "i8mm"}:
        dot = ", ".join(name for name in ("asimddp", "i8mm") if name in sets)
        return f"{dot}: s8 dot products are summed exactly in 32 bits, and fast; S8S8 and U8S8 both do."
    return "no int8 dot-product instructions are reported: int8 may be no faster than float; measure."
