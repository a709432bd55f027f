"""Shares of a sweep for machines that know nothing of each other, and their tables made one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from quantlib.support.errors import InputError
from quantlib.sweep.cells import Block, Cell
from quantlib.sweep.options import Shard
from quantlib.sweep.table import JSON, SCHEMA_VERSION, Row, SweepTable, read_table

MISSING = "no shard that was merged has it"


def share(blocks: Sequence[Block], shard: Shard) -> tuple[list[Block], list[Cell]]:
    """The blocks of a shard, and its cells.

    Cells go in their order into shards of about the same number. Those of a block stay together, since they
    share the float model, as long as there are blocks enough.
    """
    sizes = [len(list(block.cells)) for block in blocks]
    total, whole = sum(sizes), len(blocks) >= shard.count
    chosen: list[Block] = []
    cells: list[Cell] = []
    start = 0
    for block, size in zip(blocks, sizes, strict=True):
        middle = [start + size / 2] * size if whole else [start + number + 0.5 for number in range(size)]
        own = [
            cell
            for cell, place in zip(block.cells, middle, strict=True)
            if int(shard.count * place / total) == shard.index - 1
        ]
        start += size
        if own:
            variants = {cell.variant for cell in own}
            left_out = {q.variant for q in block.quantized} - variants
            chosen.append(replace(block, left_out=block.left_out | left_out))
            cells += own
    return chosen, cells


def merge(directories: Sequence[Path]) -> tuple[SweepTable, list[str]]:
    """The tables of shards as one, with the rows in the order of the whole; and what is remarkable.

    A cell that no shard has is a row with an error.

    Raises:
        InputError: they are not of one sweep, or one has no table.
    """
    tables = [read_table(directory / JSON) for directory in directories]
    first = tables[0]
    for directory, table in zip(directories, tables, strict=True):
        for what in ("file_sha256", "code"):
            if table.provenance.get(what) != first.provenance.get(what):
                name = "sweep.toml" if what == "file_sha256" else "code or packages"
                raise InputError(
                    f"{directory}: of another {name} than {directories[0]}; shards of one sweep merge"
                )
        if table.plan != first.plan:
            raise InputError(f"{directory}: its sweep has other cells than that of {directories[0]}")
    by_cell: dict[Cell, dict[str | None, Row]] = {}
    for table in tables:
        for row in table.rows:
            known = by_cell.setdefault(row.cell, {}).get(row.machine)
            if known is None or known.error is not None:
                by_cell[row.cell][row.machine] = row
    rows: list[Row] = []
    for cell in first.plan:
        missing = Row(cell.task, cell.teacher, cell.student, cell.variant, error=MISSING)
        rows += by_cell[cell].values() if cell in by_cell else [missing]
    provenance = {name: value for name, value in first.provenance.items() if name != "shard"}
    return SweepTable(SCHEMA_VERSION, provenance, first.plan, tuple(rows)), _remarks(rows)


def _remarks(rows: Sequence[Row]) -> list[str]:
    """Teachers that shards trained each for itself, so that their variants are not of one model."""
    trained: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        digest = row.provenance.get("checkpoints", {}).get("teacher")
        if digest is not None:
            trained.setdefault((row.task, row.teacher), set()).add(digest)
    return [
        f"{task} / {teacher}: {len(digests)} shards trained a teacher each, which are not the same"
        for (task, teacher), digests in trained.items()
        if len(digests) > 1
    ]
