"""explain.json, explain.csv and explain.png, and the console's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.measuring.explain.advice import FINE_DB
from quantlib.measuring.explain.layers import INNER_PERCENT, LayerNoise
from quantlib.measuring.explain.plot import draw
from quantlib.support.console import plain_table, red
from quantlib.support.files import reading_json, write_csv, write_json
from quantlib.support.plotting import can_plot

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1
NAMES = JSON, CSV, PNG = "explain.json", "explain.csv", "explain.png"


def write_explanation(directory: Path, layers: Sequence[LayerNoise]) -> None:
    """Write explain.json, explain.csv and explain.png into `directory`, the layers in the order given.

    A layer has the fields of `LayerNoise` and its `sqnr_db`; null, or an empty cell, is None.

    Raises:
        InputError: the directory cannot be written.
    """
    rows: list[dict[str, Any]] = [{"sqnr_db": layer.sqnr_db, **asdict(layer)} for layer in layers]
    write_json(directory / JSON, {"schema_version": SCHEMA_VERSION, "layers": rows})
    write_csv(directory / CSV, rows)
    if can_plot():
        draw(directory / PNG, layers)


def read_explanation(path: Path) -> list[LayerNoise]:
    """The layers in an explain.json, in its order.

    Raises:
        InputError: the file is missing, damaged, or of another version.
    """
    with reading_json(path, SCHEMA_VERSION, f"an {JSON}") as value:
        rows = [{key: field for key, field in row.items() if key != "sqnr_db"} for row in value["layers"]]
        return [LayerNoise(**row) for row in rows]


def table(layers: Sequence[LayerNoise], rows: int | None = None) -> Table:
    """The layers for a person to read, in the order given; ratios in dB, of both factors and of each.

    Colour repeats what the numbers say: red is below 30 dB. A layer is one line, however narrow the console:
    print it with `crop=False`.

    Args:
        rows: show so many, and say how many more there are; None shows all.
    """
    from rich.console import Console
    from rich.markup import escape

    left = 0 if rows is None else max(0, len(layers) - rows)
    noise_table = plain_table(caption=f"{left} more in {JSON} and {CSV}" if left else None)
    noise_table.add_column("layer", no_wrap=True)
    for column in ("SQNR\ndB", "input\ndB", "weights\ndB", "per\ntensor"):
        noise_table.add_column(column, justify="right", no_wrap=True)
    for column in ("range of\nthe input", f"its middle\n{INNER_PERCENT} %"):
        noise_table.add_column(column, justify="right", no_wrap=True)
    noise_table.add_column("advice", no_wrap=True)
    for layer in layers[: len(layers) - left]:
        ratios = (layer.sqnr_db, layer.input_sqnr_db, layer.weight_sqnr_db, layer.weight_per_tensor_sqnr_db)
        cells = [_ratio(ratio) for ratio in ratios]
        if layer.input is None:
            cells[1] = ""
        noise_table.add_row(escape(layer.label), *cells, layer.range, layer.inner, layer.advice)
    noise_table.width = Console(width=1000).measure(noise_table).maximum  # wider than any table
    return noise_table


def _ratio(sqnr_db: float | None) -> str:
    if sqnr_db is None:
        return "exact"
    text = f"{sqnr_db:.1f}"
    return red(text, float(text) < FINE_DB)
