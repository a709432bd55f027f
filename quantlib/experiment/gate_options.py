"""What the gate compares and how much it times, beside the options of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.measuring.latency.shapes import Shape, parse_shape
from quantlib.support.errors import InputError
from quantlib.support.options import PYTEST, check_ranges, option

if TYPE_CHECKING:
    from quantlib.measuring.latency import Sampling


@dataclass(frozen=True)
class GateOptions:
    """What `pytest bench` times, and how it and `quantlib gate` compare.

    gate: a baseline; empty for the one of the task, None without the gate. The command takes it as an
    argument.

    Raises:
        InputError: a shape or a number that cannot be.
    """

    shapes: tuple[str, ...] = option(
        ("1x128",), "Comma-separated BATCHxLENGTH to time.", comma=True, section="gate"
    )
    limits: Path | None = option(
        None,
        "TOML file of limits; default: bench/limits.toml for `pytest bench`, usual limits for the command.",
        section="gate",
    )
    gate: str | None = option(
        None,
        "Compare with a baseline; default: bench/baseline/TASK.json.",
        bare="",
        metavar="BASELINE",
        is_place=True,
        offered=(PYTEST,),
        section="gate",
    )
    gate_update: bool = option(False, "Write the baseline if all limits hold.", section="gate")
    gate_remeasure: bool = option(
        False,
        "Time also what is unchanged since the baseline.",
        section="gate",
        advanced=True,
    )
    gate_store: Path | None = option(
        None,
        "Directory of models by hash, from which the baseline's are taken; default: a place in the cache.",
        metavar="DIR",
        section="gate",
        advanced=True,
    )
    gate_across_machines: bool = option(
        False,
        "Where the old model cannot be had, compare the ratio to the teacher also with a baseline of another "
        "machine.",
        section="gate",
        advanced=True,
    )
    gate_state_spread: float | None = option(
        None,
        "By how much the ratio to the teacher may differ, on the log scale, because a machine has states; "
        "0 for a machine known to have one. Default: what the main job has seen on this machine, 0.4 where "
        "it has not seen two. Where old and new model take turns it is not needed.",
        least=0.0,
        section="gate",
        advanced=True,
    )
    gate_strict: bool = option(False, "Let an undecided comparison fail.", section="gate")
    gate_seconds: float = option(
        60.0,
        "Time budget for each comparison, in seconds.",
        section="gate",
        advanced=True,
    )
    gate_max_others: float = option(
        0.1,
        "Share of the machine that other programs may use during a turn that counts.",
        section="gate",
        advanced=True,
    )
    gate_launches: int = option(
        12,
        "Launches of each process, at most.",
        section="gate",
        advanced=True,
    )
    gate_markdown: Path | None = option(
        None, "Write the verdict as Markdown.", metavar="FILE", section="gate"
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        _ = self.parsed_shapes
        if self.gating:
            _ = self.sampling

    @property
    def gating(self) -> bool:
        """Whether this run is a gate run."""
        return self.gate is not None or self.gate_update

    @property
    def parsed_shapes(self) -> tuple[Shape, ...]:
        """(batch size, length) of each shape."""
        return tuple(parse_shape(text, "--shapes") for text in self.shapes)

    @property
    def sampling(self) -> Sampling:
        """How much the gate measures."""
        from quantlib.measuring.latency import Sampling

        return Sampling(
            min_launches=min(3, self.gate_launches),
            max_launches=self.gate_launches,
            seconds=self.gate_seconds,
            max_others=self.gate_max_others,
        )

    def check_lengths(self, seq_len: int) -> None:
        """Raise `InputError` if a shape is longer than the longest sequence."""
        for text, (_, length) in zip(self.shapes, self.parsed_shapes, strict=True):
            if length > seq_len:
                raise InputError(f"--shapes {text}: longer than --seq-len {seq_len}")
