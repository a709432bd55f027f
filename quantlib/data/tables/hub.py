"""Rows of any data set of the hub, by the package `datasets`."""

from __future__ import annotations

import re

from quantlib.data.hub import hub_package
from quantlib.data.tables.arrow import arrow_table, class_names
from quantlib.data.tables.table import Table, listed
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

PREFIX = "hf://"
FORM = f"{PREFIX}ORG/NAME[/CONFIG][@REVISION][:SPLIT]"
_SOURCE = re.compile(
    r"hf://(?P<id>\w[\w.-]*/\w[\w.-]*)(/(?P<config>[^/@:]+))?(@(?P<revision>[^@:]+))?(:(?P<split>[\w.-]+))?",
    re.ASCII,
)


def read_hub(source: str) -> Table:
    """The rows of a split; the split may be left out where there is only one.

    Args:
        source: see `FORM`; a revision is a branch, a tag or a commit.

    Raises:
        InputError: it is written otherwise, the package datasets is missing, or the hub does not give it.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise InputError(f"{quoted(source)}: no data set of the hub; expected {FORM}")
    datasets, refusals = hub_package(source, "or give a local file")
    refusals = (*refusals, RuntimeError)  # of a data set that is a script
    try:
        rows = datasets.load_dataset(
            match["id"], match["config"], revision=match["revision"], split=match["split"]
        )
    except refusals as error:
        # Unlike other messages, that of a missing configuration has the choices on its second line.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{source}: cannot be loaded from the hub ({reason[:300]})") from error
    if isinstance(rows, dict):
        if len(rows) != 1:
            raise InputError(f"{source}: has several splits; add :SPLIT, one of {listed(list(rows))}")
        (rows,) = rows.values()
    return arrow_table(rows.with_format("arrow")[:], source, class_names(rows.features.to_dict()))
