"""The names of calibration methods, as a recipe writes them."""

from __future__ import annotations

from dataclasses import dataclass

from quantlib.support.errors import InputError

PLAIN = ("MinMax", "MovingAverage", "Entropy", "MSE")
KNOWN = "MinMax, MovingAverage, Percentile:P (P from above 0 to 100), Entropy, MSE"


@dataclass(frozen=True)
class CalibrationMethod:
    """How a range is derived from statistics.

    kind: "MinMax", "MovingAverage", "Percentile", "Entropy" or "MSE".
    percentile: the share of values to keep, in percent; for "Percentile" only.
    """

    kind: str
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (*PLAIN, "Percentile"):
            raise InputError(f"calibration method {self.kind!r} is unknown; known: {KNOWN}")
        if self.kind == "Percentile" and not (self.percentile is not None and 0 < self.percentile <= 100):
            raise InputError(f"percentile {self.percentile} is out of range; above 0 and at most 100")
        if self.kind != "Percentile" and self.percentile is not None:
            raise InputError(f"calibration method {self.kind} takes no percentile")

    @property
    def needs_histograms(self) -> bool:
        """Whether extremes alone do not tell the range."""
        return self.kind not in ("MinMax", "MovingAverage")


def parse_method(text: str) -> CalibrationMethod:
    """ "MinMax", "MovingAverage", "Percentile:99.99" (any percentile), "Entropy" or "MSE".

    Raises:
        InputError: it is none of these.
    """
    if text in PLAIN:
        return CalibrationMethod(text)
    kind, colon, number = text.partition(":")
    if kind == "Percentile" and colon:
        try:
            return CalibrationMethod(kind, float(number))
        except (ValueError, InputError):
            pass  # the same words for both
    raise InputError(f"calibration method {text!r} is unknown; known: {KNOWN}")
