"""How a sweep runs; what its cells are stands in sweep.toml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from quantlib.support.errors import InputError
from quantlib.support.options import COMMAND, check_ranges, option

LOCALHOST = "localhost"
"""The name of the machine on which the sweep is started, whatever it is called."""

_SHARD = re.compile(r"(?P<index>[0-9]+)/(?P<count>[0-9]+)")


@dataclass(frozen=True)
class Shard:
    """The share of a sweep's cells that is run: the index-th of count, from 1."""

    index: int = 1
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep runs.

    Raises:
        InputError: a value out of range, or no shard.
    """

    output_dir: Path = option(
        Path("sweep"),
        "Where sweep.json, sweep.csv and the cells are written; a sweep that was interrupted goes on there.",
        offered=(COMMAND,),
        section="sweep",
    )
    jobs: int | None = option(
        None,
        "Jobs at once on this machine; default: as many as fit, with --worker-threads for each.",
        least=1,
        most=512,
        offered=(COMMAND,),
        section="sweep",
    )
    worker_threads: int = option(
        1,
        "Threads of a job that trains, builds or scores; others make models that differ in the last digits.",
        least=1,
        most=512,
        offered=(COMMAND,),
        section="sweep",
    )
    scheduler: str | None = option(
        None,
        "Address of a Dask scheduler, such as tcp://HOST:8786: jobs run on its workers, not on this machine.",
        metavar="ADDRESS",
        offered=(COMMAND,),
        section="sweep",
    )
    shard: str | None = option(
        None,
        "Run one of N shares of the cells; `quantlib sweep merge` makes one table of them.",
        metavar="I/N",
        offered=(COMMAND,),
        section="sweep",
    )
    attempts: int = option(
        3,
        "How often a job is tried whose worker dies.",
        least=1,
        most=1000,
        offered=(COMMAND,),
        section="sweep",
        advanced=True,
    )
    machines: tuple[str, ...] = option(
        (),
        f"Machines on which latency is measured, one cell at a time: host names, or {LOCALHOST}; default: it "
        "is not.",
        metavar="HOST[,HOST]",
        comma=True,
        offered=(COMMAND,),
        section="latency",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        _ = self.parsed_shard

    @property
    def parsed_shard(self) -> Shard:
        """Which share of the cells is run; the whole if none is named."""
        if self.shard is None:
            return Shard()
        match = _SHARD.fullmatch(self.shard)
        if match is None or not 1 <= int(match["index"]) <= int(match["count"]):
            raise InputError(f"--shard {self.shard!r} is not I/N, such as 1/4, the first of four")
        return Shard(int(match["index"]), int(match["count"]))
