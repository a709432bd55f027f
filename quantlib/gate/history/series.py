"""A variant over the commits: what was recorded of it at each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quantlib.gate.record import GateRecord
from quantlib.measuring.latency.estimate import LogRatio
from quantlib.support.commits import Commit

Source = Literal["baseline", "results", "saved run"]
"""A baseline of the gate, a results.json, or a run that pytest-benchmark saved."""


@dataclass(frozen=True)
class Machine:
    """What latencies were measured on: those of two machines do not compare. Empty where not recorded."""

    cpu_model: str = ""
    instruction_sets: tuple[str, ...] = ()
    threads: int | None = None

    def __str__(self) -> str:
        if not self.cpu_model:
            return "a CPU that was not recorded"
        sets = f" ({' '.join(self.instruction_sets)})" if self.instruction_sets else ""
        threads = "" if self.threads is None else f", {self.threads} threads"
        return f"{self.cpu_model}{sets}{threads}"


@dataclass(frozen=True)
class Timing:
    """A speedup as it was recorded.

    ratio, low, high: the teacher's time over the variant's, and its 95 % interval; equal where none was
    recorded. log_ratio: its log with its error; None where none was recorded. covers_states: the error covers
    the states that the machine is known to have. busy: other programs used too much of the machine.
    """

    ratio: float
    low: float
    high: float
    log_ratio: LogRatio | None = None
    covers_states: bool = False
    busy: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.ratio <= self.high < math.inf:
            raise ValueError(f"a speedup of {self.ratio} must lie in [{self.low}, {self.high}], above 0")


@dataclass(frozen=True)
class Point:
    """What was recorded of a variant at a commit.

    score: the primary metric. drop: teacher minus variant, as a fraction. drop_interval: 95 %, where it was
    recorded. size_bytes: external data included. timings: by shape. program: what else a speedup depends on,
    by name; empty where it was not recorded. rows: a hash of the evaluation rows, empty where it was not
    recorded. record: of the baseline, with its predictions. uncommitted: the code that ran was not the
    commit's.
    """

    commit: Commit
    score: float | None
    drop: float
    size_bytes: int
    timings: Mapping[str, Timing] = field(default_factory=dict)
    drop_interval: tuple[float, float] | None = None
    program: Mapping[str, str] = field(default_factory=dict)
    rows: str = ""
    record: GateRecord | None = field(default=None, repr=False)
    uncommitted: bool = False

    def __post_init__(self) -> None:
        values = (self.drop, *(() if self.score is None else (self.score,)))
        if not all(map(math.isfinite, values)) or self.size_bytes < 1:
            raise ValueError("a finite drop and a size are needed")


@dataclass(frozen=True)
class Series:
    """The points of one variant, the oldest first.

    Attributes:
        file: the baseline or results file, by its name today; of saved runs their directory.
        task: empty where it was not recorded.
        machine: that all points were measured on.
    """

    source: Source
    file: str
    task: str
    variant: str
    machine: Machine
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError(f"{self.variant}: a series needs a point")

    @property
    def shapes(self) -> list[str]:
        """The shapes at which it was timed, in order of first appearance."""
        return list(dict.fromkeys(shape for point in self.points for shape in point.timings))
