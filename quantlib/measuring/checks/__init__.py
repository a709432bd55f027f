"""Beyond accuracy: does the arithmetic saturate, do answers depend on the batch, what is left in float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from quantlib.measuring.checks.check import Check, Subject
from quantlib.measuring.checks.coverage import COVERAGE
from quantlib.measuring.checks.invariance import INVARIANCE, Invariance, check_invariance
from quantlib.measuring.checks.saturation import SATURATION, Saturation, check_saturation
from quantlib.support.columns import Value
from quantlib.support.typed import parse_values

__all__ = [
    "CHECKED_ROWS", "CHECKS", "Check", "Checks", "Invariance", "Saturation", "Subject",
    "check_invariance", "check_saturation", "run_checks",
]  # fmt: skip

R = TypeVar("R")

# In the order of their columns.
CHECKS: tuple[Check[Any], ...] = (COVERAGE, SATURATION, INVARIANCE)
# The rows that all checks together compare, at most.
CHECKED_ROWS = sum(check.rows for check in CHECKS)


@dataclass(frozen=True)
class Checks:
    """What was checked of one variant: the results of checks, one of a class; others did not arise."""

    results: tuple[Any, ...]

    def get(self, result: type[R]) -> R | None:
        """The result of that class: `checks.get(Saturation)`."""
        return next((each for each in self.results if isinstance(each, result)), None)

    def __iter__(self) -> Iterator[tuple[Check[Any], Any]]:
        """Every check with its result, or with None where the question does not arise."""
        return ((check, self.get(check.result)) for check in CHECKS)

    @property
    def note(self) -> str:
        """What deserves a word: labels that change, and why saturation was not checked."""
        return ", ".join(
            word for check, result in self if result is not None for word in check.remarks(result)
        )

    @property
    def changed_labels(self) -> list[str]:
        """Which labels change with the batch or the CPU, in words."""
        return [
            word
            for check, result in self
            if getattr(result, "labels_changed", None)
            for word in check.remarks(result)
        ]

    def failed(self, *, dynamic: bool) -> bool:
        """Whether the variant fails; `dynamic`: its activations get their ranges from the batch."""
        return any(check.failed(result, dynamic) for check, result in self if result is not None)

    def values(self) -> dict[str, Value]:
        """What results.json and results.csv hold of it; None where a question does not arise."""
        return {
            column.key: None if result is None else column.value(result)
            for check, result in self
            for column in check.columns
        }

    def cells(self) -> list[str]:
        """The row of the table of checks, empty where a question does not arise."""
        return [
            "" if result is None else column.shown(result)
            for check, result in self
            for column in check.columns
            if column.heading
        ]

    def to_json(self) -> dict[str, Any]:
        """All results by the name of the check, as JSON can hold them."""
        return {check.name: None if result is None else asdict(result) for check, result in self}

    @classmethod
    def from_json(cls, results: Mapping[str, Any]) -> Checks:
        """What `to_json` gave."""
        return cls(
            tuple(parse_values(c.result, results[c.name]) for c in CHECKS if results[c.name] is not None)
        )


def run_checks(subject: Subject) -> Checks:
    """Run every check on a model.

    Raises:
        InputError: no rows, a missing or corrupt model, one that cannot take the rows or has another number
            of logits than the task has labels, logits that are not finite, or a quantized model without
            weights to multiply by.
    """
    results = (check.run(subject) for check in CHECKS)
    return Checks(tuple(result for result in results if result is not None))
