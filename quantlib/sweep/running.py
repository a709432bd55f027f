"""A whole sweep: its cells as jobs, these through a pool, and one table of what they gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.machine.hardware import physical_cores
from quantlib.support.cache import open_cache
from quantlib.support.errors import InputError
from quantlib.support.files import make_dir, sha256_file
from quantlib.sweep import environment
from quantlib.sweep.cells import Block, Cell
from quantlib.sweep.configuration import SweepFile
from quantlib.sweep.driving import Failure, Pool, Result, drive
from quantlib.sweep.estimate import Estimate, estimate
from quantlib.sweep.graph import Job, graph_of
from quantlib.sweep.options import LOCALHOST, SweepOptions
from quantlib.sweep.page import write_page
from quantlib.sweep.shards import merge, share
from quantlib.sweep.state import Done
from quantlib.sweep.table import SCHEMA_VERSION, SweepTable, rows_of, write_table
from quantlib.sweep.work import Outcome

if TYPE_CHECKING:
    from rich.console import Console

# Where the main job leaves its results by default, with the durations of its steps.
_RUNS = Path("runs")


@dataclass(frozen=True)
class Sweep:
    """A sweep that is ready to run: its cells and jobs, and what is known of them.

    blocks: of the whole sweep. cells: those of this shard. refused: those of them whose files cannot be read,
    and why. done: by the key of a job.
    """

    file: SweepFile
    options: SweepOptions
    blocks: tuple[Block, ...]
    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...]
    refused: Mapping[Cell, str]
    done: Mapping[str, Outcome]

    @property
    def at_once(self) -> int:
        """How many jobs run at once on this machine."""
        return self.options.jobs or max(1, physical_cores() // self.options.worker_threads)


def plan(file: SweepFile, options: SweepOptions) -> Sweep:
    """Read all that is named, and find what an earlier run left.

    Raises:
        InputError: latency is to be measured on a machine that has no part in it.
    """
    if options.scheduler is None:
        for machine in options.machines:
            if machine not in (LOCALHOST, environment.host()):
                raise InputError(
                    f"--machines {machine}: without --scheduler a sweep runs on this machine alone, "
                    f"{environment.host()}, or {LOCALHOST}"
                )
    blocks, cells = share(file.blocks, options.parsed_shard)
    graph = graph_of(blocks, options.worker_threads, options.machines, environment.code())
    kept = Done(options.output_dir)
    outcomes = ((job.key, kept.read(job)) for job in graph.jobs)
    done = {key: outcome for key, outcome in outcomes if outcome is not None}
    return Sweep(file, options, file.blocks, tuple(cells), graph.jobs, graph.refused, done)


def look(sweep: Sweep) -> Estimate:
    """What a sweep would do; nothing is made.

    Raises:
        InputError: something that the user gave cannot be used, or no scheduler answers.
    """
    at_once = sweep.at_once
    if sweep.options.scheduler is not None:
        from quantlib.sweep.cluster import threads_of

        at_once = max(1, threads_of(sweep.options.scheduler))
    return estimate(sweep.cells, sweep.jobs, sweep.refused, sweep.done, sweep.file.cache_dir, at_once, _RUNS)


def run(sweep: Sweep, console: Console | None = None, pool: Pool | None = None) -> SweepTable:
    """Run what is not done, and write the table of all cells and their page.

    Args:
        sweep: from `plan`.
        console: where each job that ends is told.
        pool: what runs the jobs; by default what the options say.

    Raises:
        InputError: a place cannot be written, or no scheduler answers. What a cell lacks is in its row.
    """
    directory = make_dir(sweep.options.output_dir)
    done = _with_artifacts(sweep)
    kept, said = Done(directory), _Report(console, len(sweep.jobs), len(done))

    def ended(job: Job, result: Result) -> None:
        if isinstance(result, Outcome):
            kept.write(job, result)
        said.tell(job, result)

    if len(done) == len(sweep.jobs):
        results: Mapping[str, Result] = done
    elif pool is not None:
        results = drive(sweep.jobs, pool, done, ended)
    else:
        with _pool(sweep) as made:
            results = drive(sweep.jobs, made, done, ended)
    rows = rows_of(sweep.cells, sweep.jobs, sweep.refused, results, sweep.options.machines)
    plan = tuple(cell for block in sweep.blocks for cell in block.cells)
    table = SweepTable(SCHEMA_VERSION, _provenance(sweep), plan, tuple(rows))
    write_table(directory, table)
    write_page(directory, table)
    return table


def merged(directories: Sequence[Path], output_dir: Path) -> tuple[SweepTable, list[str]]:
    """Make one table of those of shards, and write it; also what is remarkable about it.

    Raises:
        InputError: they are not of one sweep, or a place cannot be written.
    """
    table, remarks = merge(directories)
    write_table(make_dir(output_dir), table)
    write_page(output_dir, table)
    return table, remarks


def _pool(sweep: Sweep) -> Any:
    options, cache_dir = sweep.options, sweep.file.cache_dir
    if options.scheduler is not None:
        from quantlib.sweep.cluster import ClusterPool

        return ClusterPool(options.scheduler, options.attempts, open_cache(cache_dir), options.machines)
    from quantlib.sweep.local import LocalPool

    open_cache(cache_dir)  # said at once, if it cannot be written
    return LocalPool(sweep.at_once, options.worker_threads, options.attempts, cache_dir)


def _with_artifacts(sweep: Sweep) -> dict[str, Outcome]:
    """What is done, without jobs whose models others are to be sent and that this machine has no more."""
    if sweep.options.scheduler is None:
        return dict(sweep.done)
    root = open_cache(sweep.file.cache_dir).root
    wanted = {key for job in sweep.jobs if job.key not in sweep.done for key in job.waits_for}
    return {
        key: outcome
        for key, outcome in sweep.done.items()
        if key not in wanted or all(artifact.is_in(root) for artifact in outcome.artifacts)
    }


def _provenance(sweep: Sweep) -> dict[str, Any]:
    arguments = {
        name: [str(item) for item in value] if isinstance(value, tuple) else value
        for name, value in asdict(sweep.options).items()
    }
    return {
        "file": str(sweep.file.path),
        "file_sha256": sha256_file(sweep.file.path),
        "shard": str(sweep.options.parsed_shard),
        "code": environment.code(),
        "started_on": environment.here(),
        "arguments": arguments | {"output_dir": str(sweep.options.output_dir)},
    }


@dataclass
class _Report:
    """A line for each job that ends."""

    console: Console | None
    total: int
    count: int

    def tell(self, job: Job, result: Result) -> None:
        """Say that a job has ended, and how."""
        self.count += 1
        if self.console is None:
            return
        end = f"failed: {result.error}" if isinstance(result, Failure) else f"{result.seconds:.1f} s"
        line = f"[{self.count}/{self.total}] {job.name}  {end}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
