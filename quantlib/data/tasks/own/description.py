"""A user's rows as the options describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantlib.data.metrics import METRICS, OutputMode
from quantlib.data.scoring import DEFAULT_THRESHOLD
from quantlib.data.tables import Table, read_table
from quantlib.data.tables.table import listed
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

KINDS: tuple[OutputMode, ...] = ("classification", "multi_label", "regression", "embedding")
QUOTES = {"auto": None, "yes": True, "no": False}


@dataclass(frozen=True)
class OwnTask:
    """A description of a user's rows, as the options give it.

    evaluation, train, calibration: files, see `quantlib.data.tables.read_table`; the last two may be missing.
    text: one column, or two for a pair; empty where the usual names are looked for. label: its column; None
    for rows without labels. kind: one of `KINDS`, None to infer it. metrics: the first decides; empty for the
    kind's usual ones. labels: {label in the rows: name in the checkpoint}, where these differ. threshold: of
    the probability of a label, for multi-label tasks. separator: of the labels in one cell. quotes: whether
    cells of CSV and TSV files may be quoted; "auto" goes by what the files show.

    Raises:
        InputError: an unknown kind or metric, or a name that cannot name a directory.
    """

    name: str
    evaluation: str
    train: str | None = None
    calibration: str | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    kind: str | None = None
    metrics: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    threshold: float = DEFAULT_THRESHOLD
    separator: str | None = None
    quotes: str = "auto"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise InputError(
                f"task name {quoted(self.name)}: it names a directory, so it must begin with a letter or "
                "digit and have letters, digits, dots, hyphens and underscores only"
            )
        if self.kind is not None and self.kind not in KINDS:
            raise InputError(f"kind {quoted(self.kind)} is unknown; known: {', '.join(KINDS)}")
        if len(self.text) > 2:
            raise InputError(f"text columns {listed(self.text)}: one column, or two for a pair")
        known = dict.fromkeys(name for metrics in METRICS.values() for name in metrics)
        unknown = [name for name in self.metrics if name not in known]
        if unknown:
            raise InputError(f"metric {quoted(unknown[0])} is unknown; known: {', '.join(known)}")
        if not 0 < self.threshold < 1:
            raise InputError(
                f"threshold {self.threshold} is out of range; it is a probability between 0 and 1"
            )
        if self.quotes not in QUOTES:
            raise InputError(f"quotes {quoted(self.quotes)} is unknown; known: {', '.join(QUOTES)}")
        if self.separator == "":
            raise InputError("the separator of labels is empty; a character such as | parts them")

    def read(self, source: str) -> Table:
        """The table of one of its files.

        Raises:
            InputError: it cannot be read.
        """
        return read_table(
            source, quotes=QUOTES[self.quotes] if Path(source).suffix.lower() in (".csv", ".tsv") else None
        )
