"""Time the variants of a run in turns: latency at the fixed shape, and throughput on real lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantlib.data import features
from quantlib.experiment.task_options import MeasuringOptions
from quantlib.experiment.work import Variant
from quantlib.machine import hardware
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.measuring.latency import LatencyStats, TimedProcess
from quantlib.measuring.latency.estimate import estimate_log_ratio
from quantlib.measuring.latency.interleaved import (
    PairedTimes,
    Place,
    Turn,
    TurnOptions,
    paired_times,
    take_turns_until_precise,
)
from quantlib.measuring.latency.paired import PairedRatio, Start
from quantlib.measuring.latency.paired import Timed as Process
from quantlib.measuring.latency.probe import PROBE, probe_feed, write_probe
from quantlib.measuring.latency.process import Feeds
from quantlib.measuring.latency.shapes import Shape
from quantlib.measuring.latency.speedup import EQUAL, Speedup, probe_times, speedup_of
from quantlib.measuring.latency.states import read_history, write_history
from quantlib.measuring.throughput import Throughput, ThroughputBatches, throughput_batches
from quantlib.support.cache import Cache, open_cache, versions_key
from quantlib.support.directories import temporary_dir
from quantlib.support.files import make_dir, place_errors, sha256_json
from quantlib.support.locks import locked
from quantlib.support.progress import Steps

_FEEDS = 8  # different batches, which runs cycle through
_WARM_FEEDS = 2  # before a pass over the batches of throughput: the process has run for a while by then


@dataclass(frozen=True)
class Timing:
    """What was timed of a variant beside the teacher.

    latency: the runs of the fixed shape. speedup: the teacher's time over the variant's, paired. log_ratios:
    its logs, by launch and turn. throughput: on real lengths. throughput_ratio: the variant's rows per second
    over the teacher's, paired.
    """

    latency: LatencyStats
    speedup: Speedup
    log_ratios: Mapping[Place, float]
    throughput: Throughput
    throughput_ratio: PairedRatio


def time_variants(
    variants: Sequence[Variant], options: MeasuringOptions, steps: Steps, first_launch: int = 0
) -> dict[str, Timing]:
    """Time variants in turns, the first is what the others are compared with; by name, in their order.

    first_launch: the number of the first launch, so that launches of several calls have numbers of their own.
    """
    reference = variants[0].name
    batches = {v.name: throughput_batches(v.rows, options.seq_len) for v in variants}
    passes: dict[str, list[list[float]]] = {v.name: [] for v in variants}
    shape = Shape(options.batch_size, options.seq_len)
    turns = _take_turns(variants, shape, options, steps, lambda processes: _pass(processes, batches, passes))
    turns = [replace(turn, place=(turn.place[0] + first_launch, turn.place[1])) for turn in turns]
    times = {v.name: paired_times(v.name, reference, turns, turn_options_of(options)) for v in variants}
    ratios = _speedups(variants, shape, turns, times, options)
    return {
        name: Timing(
            latency=times[name].latency,
            speedup=ratios[name],
            log_ratios=times[name].log_ratios,
            throughput=batches[name].throughput(passes[name]),
            throughput_ratio=_throughput_ratio(name, reference, batches, passes),
        )
        for name in times
    }


@dataclass(frozen=True)
class Timed:
    """A model's runs at one shape, and how much faster it is than the first of the models."""

    latency: LatencyStats
    speedup: Speedup


def time_shape(
    variants: Sequence[Variant], shape: Shape, options: MeasuringOptions, steps: Steps
) -> dict[str, Timed]:
    """Latency and speedup over the first of the variants at a shape (batch, length), by name."""
    turns = _take_turns(variants, shape, options, steps)
    reference = variants[0].name
    times = {v.name: paired_times(v.name, reference, turns, turn_options_of(options)) for v in variants}
    speedups = _speedups(variants, shape, turns, times, options)
    return {name: Timed(times[name].latency, speedups[name]) for name in times}


def time_speedups(
    variants: Sequence[Variant], shape: Shape, options: MeasuringOptions, steps: Steps
) -> dict[str, Speedup]:
    """The speedup of each variant over the first at a shape (batch, length), by name."""
    return {name: timed.speedup for name, timed in time_shape(variants, shape, options, steps).items()}


def _take_turns(
    variants: Sequence[Variant],
    shape: Shape,
    options: MeasuringOptions,
    steps: Steps,
    then: Callable[[Mapping[str, Process]], None] | None = None,
) -> list[Turn]:
    turn_options = turn_options_of(options)
    names = f"{len(variants) - 1} variants" if len(variants) != 2 else variants[1].name
    with (
        temporary_dir() as scratch,
        steps.step(f"time {names} in turns", total=turn_options.launches * turn_options.turns) as step,
    ):
        starts = {v.name: start(v, shape, options) for v in variants}
        beside = [PROBE] if options.threads > 1 else []  # one thread waits for no other
        if beside:
            starts[PROBE] = _start_probe(scratch, options)
        turns = take_turns_until_precise(
            variants[0].name, starts, turn_options, beside=beside, then=then, progress=step.advance
        )
        others = float(np.median([turn.others for turn in turns]))
        step.note = (
            f"{len(turns)} turns in {1 + turns[-1].place[0]} launches; "
            f"other programs used {100 * others:.0f} %"
        )
    return turns


def turn_options_of(options: MeasuringOptions) -> TurnOptions:
    """How much a run times."""
    return TurnOptions(runs=options.num_runs, warmup_runs=options.warmup_runs, seconds=options.timing_seconds)


def start(variant: Variant, shape: Shape, options: MeasuringOptions) -> Start:
    """How a variant's process is started, fed with real rows of exactly the shape."""
    feeds, path, engine = feeds_of(variant, shape), variant.path, variant.engine
    session = options.session_on(engine, stock=variant.stock_session)
    return lambda: TimedProcess(path, feeds, session, engine=engine)


def feeds_of(variant: Variant, shape: Shape) -> Feeds:
    """Real rows of exactly the shape, cut or filled up."""
    return list(features.fixed_shape_feeds(variant.rows, shape.batch, shape.length, _FEEDS))


def _start_probe(scratch: Path, options: MeasuringOptions) -> Start:
    path = write_probe(scratch / "probe.onnx")
    return lambda: TimedProcess(path, [probe_feed()], options.session)


def _pass(
    processes: Mapping[str, Process],
    batches: Mapping[str, ThroughputBatches],
    passes: Mapping[str, list[list[float]]],
) -> None:
    """One pass over the batches of throughput by each process that has some, one after the other."""
    for name, process in processes.items():
        if name in batches and isinstance(process, TimedProcess):
            feeds = batches[name].feeds
            process.set_feeds(feeds)
            process.time(min(_WARM_FEEDS, len(feeds)))
            process.set_feeds(feeds)  # from the first one again
            passes[name].append(process.time(len(feeds), wake_seconds=0.0))


def _speedups(
    variants: Sequence[Variant],
    shape: Shape,
    turns: Sequence[Turn],
    times: Mapping[str, PairedTimes],
    options: MeasuringOptions,
) -> dict[str, Speedup]:
    """What the turns say, beside what earlier runs on this machine left; this run is added to that."""
    reference, file = variants[0].name, _history_file(open_cache(options.cache_dir), options)
    base = variants[0].model.sha256
    keys = {v.name: f"{base} {v.model.sha256} {shape}{_way(v)}" for v in variants}
    limit = turn_options_of(options).max_others
    probe = probe_times(
        {t.place: t.times_ms[PROBE] for t in turns if t.others <= limit and PROBE in t.times_ms}
    )
    with place_errors(file), locked(file.with_suffix(".lock")):
        history = read_history(file)
        speedups = {
            name: EQUAL if name == reference else speedup_of(times[name], probe, history, keys[name])
            for name in times
        }
        if probe:
            history.add(probe, {keys[n]: times[n].log_ratios for n in times if n != reference})
            write_history(file, history)
    return speedups


def known_state_spread(options: MeasuringOptions) -> float | None:
    """By how much a model's log ratio to the teacher differs between this machine's two states, at most.

    None where earlier runs have not seen two. That they saw one does not make it the only one.
    """
    return read_history(_history_file(open_cache(options.cache_dir), options)).spread()


def _way(variant: Variant) -> str:
    """How a variant is run, where that is not as every other one."""
    words = ["stock"] if variant.stock_session else []
    if variant.engine != DEFAULT_ENGINE:
        words += [variant.engine, get_engine(variant.engine).version]
    return "".join(f" {word}" for word in words)


def _throughput_ratio(
    name: str,
    reference: str,
    batches: Mapping[str, ThroughputBatches],
    passes: Mapping[str, list[list[float]]],
) -> PairedRatio:
    """Of rows per second, from the passes in the same launches."""
    if name == reference:
        return PairedRatio(1.0, 1.0, 1.0, turns=len(passes[name]), confidence=0.95)

    def log_rates(of: str) -> npt.NDArray[np.float64]:
        return np.log([batches[of].rows / batches[of].seconds(times_ms) for times_ms in passes[of]])

    return estimate_log_ratio(
        [[value] for value in (log_rates(name) - log_rates(reference)).tolist()]
    ).ratio()


def _history_file(cache: Cache, options: MeasuringOptions) -> Path:
    """Where this machine's history lies: in the cache, by all that decides what the probe's times mean."""
    machine = hardware.describe()
    key = [machine.cpu_model, *machine.instruction_sets, options.threads, versions_key("onnxruntime")]
    return make_dir(cache.root / "machine") / f"{sha256_json(key)[:24]}.json"
