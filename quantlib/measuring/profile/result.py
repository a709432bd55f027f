"""A profile: the time of each operator, and how close its products come to the machine's peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantlib.machine import hardware
from quantlib.measuring.profile.operations import Operations, is_product
from quantlib.measuring.profile.operators import Node
from quantlib.measuring.profile.peak import Peak

OUTSIDE = "outside kernels"
NO_LAYER = "outside layers"
_BUSY = 1.2
# Operators below this share of the time get no line of their own, unless they are products.
_SMALL = 0.005


@dataclass(frozen=True)
class Line:
    """Nodes that share an operator, a role or a layer.

    count: of nodes. ms: the sum of their times. limit_ms: the time of their products at the machine's peak.
    """

    name: str
    count: int
    ms: float
    operations: Operations
    limit_ms: float

    @property
    def gops(self) -> float | None:
        """10^9 operations a second; None without a product, or if the time is too short to be known."""
        return self.operations.total / self.ms / 1e6 if self.operations.total and self.ms else None

    @property
    def peak_share(self) -> float | None:
        """The share of the machine's peak that is reached; None if `gops` is."""
        return self.limit_ms / self.ms if self.operations.total and self.ms else None


@dataclass(frozen=True)
class Profile:
    """Where a variant's time goes at one shape.

    variant: its name. shape: (batch, length). median_ms: of whole runs, timed without tracing.
    profiled_ms: of whole runs with tracing. outside_ms: the part of these outside of kernels, with a part of
    the cost of tracing. peak: of the machine, with the variant's number of threads. nodes: in the order of
    execution.
    """

    variant: str
    shape: tuple[int, int]
    median_ms: float
    profiled_ms: float
    outside_ms: float
    peak: Peak
    nodes: tuple[Node, ...]

    @property
    def operations(self) -> Operations:
        """The operations of all products."""
        return sum((node.operations for node in self.nodes), Operations())

    @property
    def limit_ms(self) -> float:
        """The machine's limit: the time of all products, and nothing else, at its peak."""
        return self.peak.limit_ms(self.operations)

    @property
    def share(self) -> float:
        """The part of the limit that is used, limit over median; 0 for a model without products."""
        return self.limit_ms / self.median_ms

    @property
    def product_ms(self) -> float:
        """The time of the operators that are, or contain, a product."""
        return sum(node.ms for node in self.nodes if is_product(node.operator))

    @property
    def parts_ms(self) -> float:
        """The sum of all lines and of the time outside of kernels: an undisturbed run."""
        return sum(node.ms for node in self.nodes) + self.outside_ms

    @property
    def disturbed(self) -> bool:
        """Whether runs took longer than the sum of their parts, whose medians exclude interruptions."""
        return self.profiled_ms > _BUSY * self.parts_ms

    def by_operator(self) -> list[Line]:
        """A line for each type of operator, the longest first."""
        return self._grouped(lambda node: node.operator)

    def shown(self) -> tuple[list[Line], list[Line]]:
        """`by_operator`, split into the lines to show and the small ones without a product."""
        lines = self.by_operator()
        small = [line for line in lines if not line.operations.total and line.ms < _SMALL * self.parts_ms]
        return [line for line in lines if line not in small], small

    def by_role(self) -> list[Line]:
        """A line for each role in the network, the longest first."""
        return self._grouped(lambda node: node.role)

    def by_layer(self) -> list[Line]:
        """A line for each layer, the longest first."""
        return self._grouped(lambda node: NO_LAYER if node.layer is None else f"layer {node.layer}")

    def line(self, name: str, nodes: Sequence[Node]) -> Line:
        """Nodes as one line."""
        operations = sum((node.operations for node in nodes), Operations())
        ms = sum(node.ms for node in nodes)
        return Line(name, len(nodes), ms, operations, self.peak.limit_ms(operations))

    def _grouped(self, key: Callable[[Node], str]) -> list[Line]:
        groups: dict[str, list[Node]] = {}
        for node in self.nodes:
            groups.setdefault(key(node), []).append(node)
        lines = [self.line(name, nodes) for name, nodes in groups.items()]
        return sorted(lines, key=lambda line: line.ms, reverse=True)

    @property
    def summary(self) -> str:
        """The finding in one sentence."""
        if not self.operations.total:
            return f"no matrix product in {self.median_ms:.2f} ms: the machine's peak sets no limit"
        return (
            f"products take {self.product_ms:.2f} of {self.parts_ms:.2f} ms with tracing; a run takes "
            f"{self.median_ms:.2f} ms without it, and at this machine's peak its products would take "
            f"{self.limit_ms:.2f} ms: {100 * self.share:.0f} % of the limit is used"
        )

    @property
    def notes(self) -> list[str]:
        """What the numbers mean, a sentence each."""
        machine = hardware.describe()
        sets = ", ".join(machine.instruction_sets) or "no instruction set of interest"
        sentences = [
            f"Peak with {self.peak.threads} threads: {self.peak.float_gops:.0f} Gop/s in float32, "
            f"{self.peak.integer_gops:.0f} Gop/s in 8 bits ({sets}).",
            f"Tracing makes it {self.profiled_ms:.2f} ms a run instead of {self.median_ms:.2f} ms. It "
            f"costs some microseconds a node, in its time and in “{OUTSIDE}”: small nodes look slower than "
            "they are.",
        ]
        if self.disturbed:
            sentences.append(
                f"The machine was busy: runs took {self.profiled_ms:.2f} ms where their parts take "
                f"{self.parts_ms:.2f} ms. Profile again when it is quiet."
            )
        return sentences
