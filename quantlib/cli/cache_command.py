"""`quantlib cache`: what the cache holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quantlib.cli.app import print_json, wide_console
from quantlib.cli.parameters import configuration, of_class
from quantlib.cli.words import Json


def command() -> Callable[..., None]:
    """The command."""
    return cache


def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove every entry that no living run uses.")
    ] = False,
    cache_dir: Annotated[Path | None, typer.Option(help="The cache; default: the user's.")] = None,
    json: Json = False,
) -> None:
    """Show what the cache holds: trained and built models, statistics, predictions. Or clear it.

    Example: quantlib cache --clear
    """
    from quantlib.experiment.task_options import MeasuringOptions
    from quantlib.support.cache import DEFAULT_GIB, SIZE_VARIABLE, default_cache_dir
    from quantlib.support.console import plain_table
    from quantlib.support.eviction import shrink, stored

    configured = of_class(configuration(None), MeasuringOptions).get("cache_dir")
    root = cache_dir or configured or default_cache_dir()
    removed = shrink(root, 0) if clear and root.is_dir() else 0
    entries = stored(root) if root.is_dir() else []
    sizes, counts = Counter[str](), Counter[str]()
    for entry in entries:
        kind = entry.path.parent.name
        sizes[kind] += entry.size_bytes
        counts[kind] += 1
    if json:
        kinds = {kind: {"entries": counts[kind], "size_bytes": sizes[kind]} for kind in sorted(sizes)}
        print_json({"directory": str(root), "removed_bytes": removed, "kinds": kinds})
        return
    table = plain_table()
    table.add_column("kind", no_wrap=True)
    table.add_column("entries", justify="right")
    table.add_column("MB", justify="right")
    for kind, size in sizes.most_common():
        table.add_row(kind, str(counts[kind]), f"{size / 2**20:.1f}")
    table.add_row("all", str(len(entries)), f"{sum(sizes.values()) / 2**20:.1f}")
    out = wide_console()
    out.print(table)
    if clear:
        out.print(f"Removed {removed / 2**20:.1f} MB.", highlight=False)
    out.print(
        f"{root}; the oldest entries go beyond {SIZE_VARIABLE} GiB, {DEFAULT_GIB} by default.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
