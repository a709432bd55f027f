"""How latency and throughput grow with batch, length and threads: a table, a plot, and what they come from.

    python bench/scaling.py OUT_DIR                              # the main job's teacher, student and int8
    python bench/scaling.py OUT_DIR --model NAME=MODEL.onnx ...  # these files

Each model has a process of its own for each number of threads, and for each shape they take turns, so that a
machine that drifts slows all of them alike. Small shapes come first; what the time budget does not reach is
named. Rows are random tokens without padding: what a token is does not change the time.

Writes scaling.json, scaling.csv and scaling.png.
"""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Argument, Option

from quantlib.cli.app import new_app, run_app
from quantlib.data.tasks import TASKS
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.machine.hardware import describe
from quantlib.machine.sessions import SessionConfig, default_threads
from quantlib.measuring.latency import TimedProcess, take_turns
from quantlib.measuring.latency.others import MAX_OTHERS, watch_others
from quantlib.measuring.latency.stats import WAKE_SECONDS, Clock
from quantlib.support.console import plain_table
from quantlib.support.directories import atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import make_dir, write_json, write_text
from quantlib.support.options import split_names
from quantlib.support.plotting import new_figure
from quantlib.support.progress import Step, Steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (16, 32, 64, 128, 256, 512)
RECIPES = "static_u8s8_smooth,dynamic_u8s8"
SECONDS = 300.0
# Eight processes with 4096 tokens each need some 2 GB for a MiniLM.
MAX_TOKENS = 4096
TURNS = 4
_BLOCK_SECONDS = 0.03
_MOST_RUNS = 8
_TABLE_WIDTH = 160

# Any vocabulary has so many tokens.
_TOKENS = 90

# Okabe and Ito's colours, told apart with any colour vision; markers say the same without colour.
_STYLES = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"), ("#CC79A7", "v"))
_LINES = ("-", "--", "-.", ":")
_INCHES = (11.0, 8.0)
_DOTS_PER_INCH = 130
_PANELS = 3

Series = tuple[str, int]
"""A model's name and its number of threads."""


@dataclass(frozen=True)
class Point:
    """The time of one run of a model.

    ms: the fastest turn, since other programs only ever slow a run. median_ms, max_ms: of all turns.
    """

    model: str
    threads: int
    batch: int
    length: int
    ms: float
    median_ms: float
    max_ms: float

    @property
    def series(self) -> Series:
        """The model and its threads."""
        return self.model, self.threads

    @property
    def tokens_per_s(self) -> float:
        """Tokens in a second."""
        return 1e3 * self.batch * self.length / self.ms


@dataclass(frozen=True)
class Grid:
    """The shapes and threads that are timed, and what may be spent on them."""

    batches: tuple[int, ...] = BATCHES
    lengths: tuple[int, ...] = LENGTHS
    threads: tuple[int, ...] = (1,)
    seconds: float = SECONDS
    max_tokens: int = MAX_TOKENS
    turns: int = TURNS

    def __post_init__(self) -> None:
        for name in ("batches", "lengths", "threads"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) != len(values):
                raise InputError(f"--{name} {values} must be different numbers, at least 1")
        if min(self.seconds, self.max_tokens, self.turns) <= 0:
            raise InputError("--seconds, --max-tokens and --turns must be positive")
        if not self.shapes:
            raise InputError(f"--max-tokens {self.max_tokens}: no shape is as small")

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(batch, length), fewest tokens first."""
        all_shapes = ((batch, length) for batch in self.batches for length in self.lengths)
        return sorted(
            (s for s in all_shapes if s[0] * s[1] <= self.max_tokens), key=lambda s: (s[0] * s[1], s)
        )


@dataclass(frozen=True)
class Sweep:
    """The times; left_out: {what was left out: the reason}. others: see `watch_others`."""

    points: tuple[Point, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    others: float = 0.0


# Timing


def sweep(
    models: Mapping[str, Path], grid: Grid, step: Step | None = None, clock: Clock = time.perf_counter
) -> Sweep:
    """Time every model with every number of threads on every shape, until the budget is spent."""
    points: list[Point] = []
    unfit: dict[str, Unfit] = {}
    beyond_budget: list[str] = []
    started, seconds_a_token = clock(), 0.0
    with ExitStack() as stack:
        running = {
            (name, threads): stack.enter_context(
                TimedProcess(path, [random_feed(1, min(grid.lengths))], SessionConfig(threads))
            )
            for name, path in models.items()
            for threads in grid.threads
        }
        others = watch_others(list(running.values()))
        for batch, length in grid.shapes:
            before = clock()
            if before - started + seconds_a_token * batch * length > grid.seconds:
                beyond_budget.append(f"{batch}x{length}")
                continue
            points += _time_shape(running, batch, length, grid.turns, unfit)
            seconds_a_token = (clock() - before) / (batch * length)
            if step is not None:
                step.advance()
        share = others()
    left_out = {f"{name} from {bad.length} tokens a row": bad.reason for name, bad in unfit.items()}
    left_out |= dict.fromkeys(beyond_budget, f"the time budget of {grid.seconds:.0f} s is spent")
    return Sweep(tuple(points), left_out, share)


@dataclass(frozen=True)
class Unfit:
    """The shortest rows that a model could not run, and why: most often its table of positions ends."""

    length: int
    reason: str


def _time_shape(
    running: Mapping[Series, TimedProcess], batch: int, length: int, turns: int, unfit: dict[str, Unfit]
) -> list[Point]:
    """Turns of all series on one shape; a model that cannot run it is noted in `unfit`, and left out."""
    first_s: dict[Series, float] = {}
    for series, process in running.items():
        name = series[0]
        if name in unfit and length >= unfit[name].length:
            continue
        process.set_feeds([random_feed(batch, length)])
        try:
            first_s[series] = process.time(1, wake_seconds=0)[0] / 1e3
        except RuntimeError as error:
            unfit[name] = Unfit(length, str(error))
    if not first_s:
        return []
    block = int(np.clip(_BLOCK_SECONDS / np.median(list(first_s.values())), 1, _MOST_RUNS))
    # A long run needs no waking: it takes as long itself.
    wake_seconds = WAKE_SECONDS / 2 if block > 1 else 0.0
    times = take_turns([running[series] for series in first_s], turns, block, wake_seconds=wake_seconds)
    return [
        Point(*series, batch, length, float(row.min()), float(np.median(row)), float(row.max()))
        for series, row in zip(first_s, times, strict=True)
    ]


def random_feed(batch: int, length: int) -> dict[str, npt.NDArray[np.int64]]:
    """Random tokens without padding, int64 (batch, length)."""
    ids = np.random.default_rng(0).integers(0, _TOKENS, (batch, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


# What the times come from


@dataclass(frozen=True)
class Cost:
    """ms = fixed_ms + token_us / 1e3 * tokens + pair_ns / 1e6 * tokens * length, nothing of it negative.

    tokens is batch * length. fixed_ms: what a call costs. token_us: linear layers, each token alone.
    pair_ns: attention, a token with each token of its row. error: the median of |fitted / measured - 1|.
    """

    fixed_ms: float
    token_us: float
    pair_ns: float
    error: float

    def ms(self, batch: int, length: int) -> float:
        """The time of one run."""
        tokens = batch * length
        return self.fixed_ms + self.token_us * tokens / 1e3 + self.pair_ns * tokens * length / 1e6

    def attention_share(self, length: int) -> float:
        """The share of attention in what a token costs."""
        pairs = self.pair_ns * length / 1e3
        return pairs / (self.token_us + pairs) if pairs else 0.0


def fit_cost(shapes: Sequence[tuple[int, int]], times_ms: Sequence[float]) -> Cost | None:
    """The cost by non-negative least squares of relative errors: small shapes count as large ones do.

    None where the shapes cannot tell the three terms apart.
    """
    from scipy.optimize import nnls

    batch, length = np.array(shapes, dtype=np.float64).reshape(-1, 2).T
    terms = np.stack([np.ones_like(batch), batch * length / 1e3, batch * length**2 / 1e6], axis=1)
    relative = terms / np.array(times_ms)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    if len(batch) < 3 or np.linalg.matrix_rank(relative / scale) < 3:
        return None
    coefficients = nnls(relative / scale, np.ones(len(batch)))[0] / scale
    error = np.median(np.abs(relative @ coefficients - 1))
    fixed_ms, token_us, pair_ns = map(float, coefficients)
    return Cost(fixed_ms, token_us, pair_ns, error=float(error))


def exponents(lengths: Sequence[int], times_ms: Sequence[float]) -> list[float]:
    """The growth exponent from each length to the next: d log ms / d log length; 1 is linear."""
    growth: list[float] = (np.diff(np.log(times_ms)) / np.diff(np.log(lengths))).tolist()
    return growth


def costs(points: Sequence[Point]) -> dict[Series, Cost]:
    """The fitted cost of each series for which there is one."""
    fits = {series: fit_cost(*_shapes_and_times(points, series)) for series in _all_series(points)}
    return {series: cost for series, cost in fits.items() if cost is not None}


def thread_speedups(points: Sequence[Point]) -> dict[Series, dict[str, float]]:
    """By series of more than the fewest threads: the time with the fewest over its own, by shape."""
    fewest = min(point.threads for point in points)
    base = {(p.model, p.batch, p.length): p.ms for p in points if p.threads == fewest}
    speedups: dict[Series, dict[str, float]] = {}
    for p in points:
        if p.threads > fewest and (p.model, p.batch, p.length) in base:
            speedup = base[p.model, p.batch, p.length] / p.ms
            speedups.setdefault(p.series, {})[f"{p.batch}x{p.length}"] = speedup
    return speedups


def _all_series(points: Sequence[Point]) -> list[Series]:
    return list(dict.fromkeys(point.series for point in points))


def _shapes_and_times(points: Sequence[Point], series: Series) -> tuple[list[tuple[int, int]], list[float]]:
    of_series = [point for point in points if point.series == series]
    return [(point.batch, point.length) for point in of_series], [point.ms for point in of_series]


def _lone_rows(points: Sequence[Point], series: Series) -> tuple[list[int], list[float]]:
    """Lengths and times of single rows, or of the smallest batch that was timed."""
    batch = min(point.batch for point in points)
    lengths_and_times = sorted((p.length, p.ms) for p in points if p.series == series and p.batch == batch)
    return [length for length, _ in lengths_and_times], [ms for _, ms in lengths_and_times]


# What is written and printed


def label(series: Series) -> str:
    """A series as it is called in tables and in the plot."""
    name, threads = series
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def as_json(result: Sweep, grid: Grid) -> dict[str, Any]:
    """All of it, with what the numbers depend on."""
    machine, points = describe(), result.points
    speedups = thread_speedups(points) if points else {}
    return {
        "cpu_model": machine.cpu_model,
        "instruction_sets": list(machine.instruction_sets),
        "packages": {name: version(name) for name in ("onnxruntime", "numpy", "scipy")},
        "grid": asdict(grid),
        "others": result.others,
        "left_out": dict(result.left_out),
        "series": [
            {
                "model": series[0],
                "threads": series[1],
                "cost": asdict(cost) if (cost := costs(points).get(series)) else None,
                "exponents": dict(zip(lengths[1:], exponents(lengths, times), strict=True)),
                "speedup_of_threads": speedups.get(series),
            }
            for series in _all_series(points)
            for lengths, times in [_lone_rows(points, series)]
        ],
        "points": [asdict(point) | {"tokens_per_s": point.tokens_per_s} for point in points],
    }


def as_csv(points: Sequence[Point]) -> str:
    """A row a point."""
    text = io.StringIO()
    rows = [asdict(point) | {"tokens_per_s": point.tokens_per_s} for point in points]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def latency_table(points: Sequence[Point]) -> Table:
    """Milliseconds of single rows by length, and behind them the growth exponent since the length before."""
    table = _table("ms (growth) at", [f"{length}" for length in sorted({p.length for p in points})])
    for series in _all_series(points):
        lengths, times = _lone_rows(points, series)
        growth = [math.nan, *exponents(lengths, times)]
        cells = [
            _digits(ms) + ("" if math.isnan(slope) else f" ({slope:.2f})")
            for ms, slope in zip(times, growth, strict=True)
        ]
        table.add_row(label(series), *cells)
    return table


def throughput_table(points: Sequence[Point]) -> Table:
    """Tokens a second, a row a shape, a column a model, all with the most threads."""
    threads = max(point.threads for point in points)
    names = list(dict.fromkeys(point.model for point in points))
    table = _table(f"tokens/s, {threads} threads", names)
    speeds = {(p.length, p.batch, p.model): p.tokens_per_s for p in points if p.threads == threads}
    for length, batch in sorted({key[:2] for key in speeds}):
        row = [speeds.get((length, batch, name)) for name in names]
        table.add_row(f"{batch}x{length}", *("" if speed is None else f"{speed:.0f}" for speed in row))
    return table


def cost_table(points: Sequence[Point]) -> Table:
    """The fitted cost of each series, and what more threads win."""
    fewest = min(point.threads for point in points)
    columns = ["call\nms", "token\nµs", "pair\nns", "attention\nat 512", "fit\nerror"]
    table = _table("cost", [*columns, f"speedup\nover {fewest}", "parallel\nefficiency"])
    fitted, speedups = costs(points), thread_speedups(points)
    for series in _all_series(points):
        cells = [""] * len(columns)
        if cost := fitted.get(series):
            cells = [_digits(value) for value in (cost.fixed_ms, cost.token_us, cost.pair_ns)]
            cells += [f"{cost.attention_share(512):.0%}", f"{cost.error:.1%}"]
        if by_shape := speedups.get(series):
            speedup = float(np.median(list(by_shape.values())))
            cells += [f"{speedup:.2f}x", f"{speedup * fewest / series[1]:.0%}"]
        table.add_row(label(series), *cells)
    return table


def _digits(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _table(first: str, columns: Sequence[str]) -> Table:
    table = plain_table()
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def draw(path: Path, points: Sequence[Point]) -> None:
    """Write a PNG: latency of single rows against length, and throughput against batch at three lengths."""
    figure = new_figure(_INCHES, _DOTS_PER_INCH)
    first, *others = figure.subplots(2, 2).flat
    lines = {series: _lone_rows(points, series) for series in _all_series(points)}
    batch = min(point.batch for point in points)
    _panel(first, lines, f"latency, batch {batch}", "tokens in a row", "ms")
    first.set_yscale("log")
    lengths = _spread(sorted({point.length for point in points}))
    for axes, length in zip(others, lengths, strict=False):
        _panel(
            axes, _speeds(points, length), f"throughput, {length} tokens a row", "rows in a batch", "tokens/s"
        )
        axes.set_ylim(bottom=0)
    for axes in others[len(lengths) :]:
        axes.set_visible(False)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, format="png")


def _spread(lengths: Sequence[int]) -> list[int]:
    """At most three of the lengths, from short to long."""
    places = np.linspace(0, len(lengths) - 1, min(_PANELS, len(lengths)) + 2)[1:-1]
    return [lengths[i] for i in dict.fromkeys(np.round(places).astype(int).tolist())]


def _speeds(points: Sequence[Point], length: int) -> dict[Series, tuple[list[int], list[float]]]:
    by_series: dict[Series, tuple[list[int], list[float]]] = {}
    for point in sorted((p for p in points if p.length == length), key=lambda p: p.batch):
        batches, speeds = by_series.setdefault(point.series, ([], []))
        batches.append(point.batch)
        speeds.append(point.tokens_per_s)
    return {series: by_series[series] for series in _all_series(points) if series in by_series}


def _panel(
    axes: Axes, lines: Mapping[Series, tuple[Sequence[int], Sequence[float]]], title: str, x: str, y: str
) -> None:
    models = list(dict.fromkeys(model for model, _ in lines))
    counts = sorted({threads for _, threads in lines}, reverse=True)
    for series, (places, values) in lines.items():
        colour, marker = _STYLES[models.index(series[0]) % len(_STYLES)]
        line = _LINES[counts.index(series[1]) % len(_LINES)]
        axes.plot(
            places, values, color=colour, marker=marker, markersize=4, linestyle=line, label=label(series)
        )
    axes.set_xscale("log", base=2)
    ticks = sorted({place for places, _ in lines.values() for place in places})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def write(out_dir: Path, result: Sweep, grid: Grid) -> None:
    """scaling.json, scaling.csv and scaling.png, all of them or none."""
    with atomic_files(out_dir) as scratch:
        write_json(scratch / "scaling.json", as_json(result, grid))
        write_text(scratch / "scaling.csv", as_csv(result.points))
        draw(scratch / "scaling.png", result.points)


# The command

app = new_app()


@app.command()
def main(
    out_dir: Annotated[Path, Argument(help="Where scaling.json, .csv and .png are written.")],
    model: Annotated[
        list[str] | None,
        Option(help="NAME=MODEL.onnx; may be repeated; default: build the main job's."),
    ] = None,
    batches: Annotated[str, Option(help="Rows in a batch, comma-separated.")] = ",".join(map(str, BATCHES)),
    lengths: Annotated[str, Option(help="Tokens in a row, comma-separated.")] = ",".join(map(str, LENGTHS)),
    threads: Annotated[
        str | None, Option(help="Numbers of threads; default: 1, doubled up to the physical cores.")
    ] = None,
    seconds: Annotated[float, Option(help="Time budget; the shapes of most tokens go first.")] = SECONDS,
    max_tokens: Annotated[int, Option(help="Leave out batches of more tokens.")] = MAX_TOKENS,
    turns: Annotated[int, Option(help="Turns on each shape; the fastest counts.")] = TURNS,
    task: Annotated[str, Option(help=f"One of {', '.join(TASKS)}.")] = "BBC-News",
    data_dir: Annotated[Path | None, Option(help="Directory with the task's GLUE files.")] = None,
    teacher: Annotated[str | None, Option(help="Fine-tuned checkpoint, DIR or HUB_ID.")] = None,
    student: Annotated[list[str] | None, Option(help="Distilled checkpoint; may be repeated.")] = None,
    recipes: Annotated[str, Option(help="Comma-separated names.")] = RECIPES,
    cache_dir: Annotated[Path | None, Option(help="Where built models are kept.")] = None,
) -> None:
    """Time models over batch, length and threads; print, plot and write how the cost grows."""
    from rich.console import Console

    grid = Grid(
        _numbers("--batches", batches),
        _numbers("--lengths", lengths),
        _thread_counts() if threads is None else _numbers("--threads", threads),
        seconds,
        max_tokens,
        turns,
    )
    make_dir(out_dir)
    out = Console()
    steps = Steps(out)
    if model:
        models = _named(model)
    else:
        options = ExperimentOptions(
            task=task,
            data_dir=data_dir,
            teacher=teacher,
            students=tuple(student or ()),
            recipes=split_names(recipes),
            cache_dir=cache_dir,
        )
        models = {variant.name: variant.path for variant in build(options, steps).variants}
    with steps.step("time shapes", total=len(grid.shapes)) as step:
        result = sweep(models, grid, step)
        step.note = f"{len(result.points)} points"
    if not result.points:
        raise InputError(f"nothing could be timed: {'; '.join(map(': '.join, result.left_out.items()))}")
    write(out_dir, result, grid)
    tables = Console(width=max(out.width, _TABLE_WIDTH))  # whole numbers, however narrow the place
    for table in (latency_table, throughput_table, cost_table):
        tables.print(table(result.points))
    if result.others > MAX_OTHERS:
        out.print(
            f"Other programs used {result.others:.0%} of the machine: times are too long, ratios rough."
        )
    for what, why in result.left_out.items():
        out.print(f"{what} is left out: {why}", highlight=False, markup=False, soft_wrap=True)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(f"{option} {text!r} is not a list of numbers, for example 1,2,4")
    return tuple(sorted(map(int, words)))


def _thread_counts() -> tuple[int, ...]:
    cores = default_threads()
    return tuple(sorted({*(2**i for i in range(cores.bit_length())), cores}))


def _named(models: Sequence[str]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for text in models:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError(f"--model {text!r} is not NAME=MODEL.onnx")
        if name in paths:
            raise InputError(f"--model {name}: the name is given twice")
        paths[name] = Path(path)
    return paths


def cli(arguments: list[str] | None = None) -> int:
    """Run the command; what the user got wrong is one line on stderr and exit code 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(cli())
