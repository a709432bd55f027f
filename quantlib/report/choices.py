"""The first choice for each usual wish, and why, in a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from quantlib.compression.variants import TEACHER, VariantName
from quantlib.measuring.checks import Invariance
from quantlib.report.columns import VariantResult, speedup_words
from quantlib.report.front import CLEAR_SIZE, CLEAR_TIME, Field
from quantlib.support.errors import InputError

HALF_A_POINT = 0.005


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a variant; None where nothing is asked.

    max_drop: of the primary metric, as a fraction. min_speedup: over the teacher; it counts only where the
    interval lies above it. max_size_mb: MB of 2^20 bytes.

    Raises:
        InputError: a value out of range.
    """

    max_drop: float | None = None
    min_speedup: float | None = None
    max_size_mb: float | None = None

    def __post_init__(self) -> None:
        for flag, value in (("--min-speedup", self.min_speedup), ("--max-size", self.max_size_mb)):
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{flag} {value}: must be positive")

    def __bool__(self) -> bool:
        return (self.max_drop, self.min_speedup, self.max_size_mb) != (None, None, None)

    def met_by(self, result: VariantResult) -> bool:
        """Whether a variant is within all of them."""
        return (
            (self.max_drop is None or result.accuracy_drop <= self.max_drop + 1e-9)
            and (self.min_speedup is None or result.timing.low >= self.min_speedup)
            and (self.max_size_mb is None or result.model_size_mb <= self.max_size_mb)
        )


@dataclass(frozen=True)
class Choice:
    """A wish, and the variant to ship for it; None where none meets it."""

    wish: str
    variant: str | None
    why: str


def choices(results: Sequence[VariantResult], field: Field, wishes: Wishes) -> list[Choice]:
    """The first choice for each usual wish, then for the user's own.

    Args:
        results: of a run, the teacher first.
        field: the same variants, to be compared with each other.
        wishes: the user's own.
    """
    by_name = {result.name: result for result in results}
    field = replace(field, moving=frozenset(name for name in by_name if _moves(by_name[name])))
    everyone = [result.name for result in results if result.name != TEACHER and not result.report_only]
    quantized = [n for n in everyone if by_name[n].recipe is not None and not VariantName.parse(n).student]
    close = [name for name in everyone if by_name[name].accuracy_drop <= HALF_A_POINT + 1e-9]
    ways: list[tuple[str, list[str], Callable[[list[str]], str]]] = []
    if quantized:
        fast_enough = field.about_as_fast(quantized, far=CLEAR_TIME)
        ways.append(("most accurate at the speed of 8 bits", fast_enough, field.most_accurate))
    ways.append(("fastest within half a point", close, lambda n: fastest(field, n)))
    ways.append(("smallest within half a point", close, lambda n: smallest(field, n)))
    if wishes:
        meeting = [name for name in everyone if wishes.met_by(by_name[name])]
        only_drop = wishes.min_speedup is None and wishes.max_size_mb is None
        ways.append(
            (
                "within your limits",
                meeting,
                lambda n: fastest(field, n) if only_drop else field.most_accurate(n),
            )
        )
    made = []
    for wish, names, choose in ways:
        name = choose(names) if names else None
        if name:
            rival = _rival(name, names, by_name, choose)
            why = words(by_name[name]) + (_against(field, name, rival, by_name) if rival else "")
        else:
            why = "no variant of this run"
        made.append(Choice(wish, name, why))
    return made


def _moves(result: VariantResult) -> bool:
    """Whether labels were seen to change with the batch."""
    found = None if result.checks is None else result.checks.get(Invariance)
    return found is not None and bool(found.labels_changed)


def _rival(
    name: str, names: list[str], by_name: Mapping[str, VariantResult], choose: Callable[[list[str]], str]
) -> str | None:
    """What would be chosen on the other engines; None where there is none."""
    others = [other for other in names if by_name[other].engine != by_name[name].engine]
    return choose(others) if others else None


def _against(field: Field, name: str, rival: str, by_name: Mapping[str, VariantResult]) -> str:
    """How much faster the choice is than the best on other engines, with the interval."""
    speed = field.speed(name, rival).ratio()
    return (
        f"; {speed.ratio:.2f}x [{speed.low:.2f}, {speed.high:.2f}] the speed of {rival}, the choice on "
        f"{by_name[rival].engine}"
    )


def fastest(field: Field, names: list[str]) -> str:
    """The most accurate of those that are about as fast as the fastest."""
    return field.most_accurate(field.about_as_fast(names))


def smallest(field: Field, names: list[str]) -> str:
    """The most accurate of the about equally small, and of those that tie the fastest."""
    least = min(field.scores[name].size_bytes for name in names)
    small = [name for name in names if field.scores[name].size_bytes <= least * (1 + CLEAR_SIZE)]
    return field.most_accurate(field.about_as_fast(small)) if len(small) > 1 else small[0]


def words(result: VariantResult) -> str:
    """What a variant costs and wins: «3.0x faster [2.9, 3.1], 3.9x smaller, drop 0.1 points [-0.3, 0.5]».

    Labels that change with the batch or the CPU are part of the cost, where they were checked.
    """
    drop = f"drop {100 * result.accuracy_drop:z.1f} points"
    if result.evaluation is not None:
        low, high = result.drop_interval
        drop += f" [{100 * low:z.1f}, {100 * high:z.1f}]"
    gains = f"{speedup_words(result.timing)}, {result.compression_ratio:.1f}x smaller, {drop}"
    changed = [] if result.checks is None else result.checks.changed_labels
    return "; ".join([f"{gains}, agrees on {100 * result.agreement:.1f} %", *changed])


def as_json(made: Sequence[Choice]) -> list[Mapping[str, str | None]]:
    """For run.json."""
    return [{"wish": choice.wish, "variant": choice.variant, "why": choice.why} for choice in made]
