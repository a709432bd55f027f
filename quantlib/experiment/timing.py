"""Time the variants of a run in turns: latency at the fixed shape, and throughput on real lengths."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import typing as npt

from quantlib.compression.variants import TEACHER
from quantlib.data import features
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.work import Variant
from quantlib.machine import hardware
from quantlib.measuring.latency import LatencyStats, TimedProcess
from quantlib.measuring.latency.estimate import estimate_log_ratio
from quantlib.measuring.latency.interleaved import (
    Place,
    Start,
    Turn,
    TurnOptions,
    paired_times,
    take_turns_until_precise,
)
from quantlib.measuring.latency.paired import PairedRatio, Timed
from quantlib.measuring.latency.probe import PROBE, probe_feed, write_probe
from quantlib.measuring.latency.speedup import EQUAL, Speedup, probe_times, speedup_of
from quantlib.measuring.latency.states import read_history, write_history
from quantlib.measuring.throughput import Throughput, ThroughputBatches, throughput_batches
from quantlib.support.cache import Cache, open_cache, versions_key
from quantlib.support.files import make_dir, place_errors, sha256_json
from quantlib.support.progress import Steps

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
    variants: Sequence[Variant], options: ExperimentOptions, steps: Steps, first_launch: int = 0
) -> dict[str, Timing]:
    """Time variants in turns, the teacher, which must be first, among them; by name, in their order.

    first_launch: the number of the first launch, so that launches of several calls have numbers of their own.
    """
    turn_options = turn_options_of(options)
    batches = {v.name: throughput_batches(v.rows, options.seq_len) for v in variants}
    passes: dict[str, list[list[float]]] = {v.name: [] for v in variants}
    minimum = turn_options.launches * turn_options.turns
    names = f"{len(variants) - 1} variants" if len(variants) != 2 else variants[1].name
    with ExitStack() as stack, steps.step(f"time {names} in turns", total=minimum) as step:
        stack.enter_context(place_errors(Path(tempfile.gettempdir())))  # feeds reach processes as files
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        starts = {v.name: start(v, options.batch_size, options.seq_len, options) for v in variants}
        beside = [PROBE] if options.threads > 1 else []  # one thread waits for no other
        if beside:
            starts[PROBE] = _start_probe(scratch, options)
        turns = take_turns_until_precise(
            TEACHER,
            starts,
            turn_options,
            beside=beside,
            then=lambda processes: _pass(processes, batches, passes),
            progress=step.advance,
        )
        turns = [
            Turn((turn.place[0] + first_launch, turn.place[1]), turn.others, turn.times_ms) for turn in turns
        ]
        launches = 1 + turns[-1].place[0] - first_launch
        others = float(np.median([turn.others for turn in turns]))
        step.note = f"{len(turns)} turns in {launches} launches; other programs used {100 * others:.0f} %"
    return _timings(variants, turns, turn_options, batches, passes, options)


def turn_options_of(options: ExperimentOptions) -> TurnOptions:
    """How much a run times."""
    return TurnOptions(runs=options.num_runs, warmup_runs=options.warmup_runs, seconds=options.timing_seconds)


def start(variant: Variant, batch: int, length: int, options: ExperimentOptions) -> Start:
    """How a variant's process is started, fed with real rows of exactly (batch, length)."""
    feeds = list(features.fixed_shape_feeds(variant.rows, batch, length, 8))
    return lambda: TimedProcess(variant.path, feeds, options.session)


def _start_probe(scratch: Path, options: ExperimentOptions) -> Start:
    path = write_probe(scratch / "probe.onnx")
    return lambda: TimedProcess(path, [probe_feed()], options.session)


def _pass(
    processes: Mapping[str, Timed],
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


def _timings(
    variants: Sequence[Variant],
    turns: Sequence[Turn],
    turn_options: TurnOptions,
    batches: Mapping[str, ThroughputBatches],
    passes: Mapping[str, list[list[float]]],
    options: ExperimentOptions,
) -> dict[str, Timing]:
    """What the turns say, beside what earlier runs on this machine left; this run is added to that."""
    place = _history_file(open_cache(options.cache_dir), options)
    history = read_history(place)
    times = {v.name: paired_times(v.name, TEACHER, turns, turn_options) for v in variants}
    undisturbed = [
        turn for turn in turns if turn.others <= turn_options.max_others and PROBE in turn.times_ms
    ]
    probe = probe_times({turn.place: turn.times_ms[PROBE] for turn in undisturbed})
    timings = {}
    for variant in variants:
        name, is_teacher = variant.name, variant.name == TEACHER
        timings[name] = Timing(
            latency=times[name].latency,
            speedup=EQUAL if is_teacher else speedup_of(times[name], probe, history, variant.model.sha256),
            log_ratios=times[name].log_ratios,
            throughput=batches[name].throughput(passes[name]),
            throughput_ratio=_throughput_ratio(name, batches, passes),
        )
    if probe:
        ratios = {v.model.sha256: times[v.name].log_ratios for v in variants if v.name != TEACHER}
        history.add(probe, ratios)
        write_history(place, history)
    return timings


def _throughput_ratio(
    name: str, batches: Mapping[str, ThroughputBatches], passes: Mapping[str, list[list[float]]]
) -> PairedRatio:
    """Of rows per second, from the passes in the same launches."""
    if name == TEACHER:
        return PairedRatio(1.0, 1.0, 1.0, turns=len(passes[name]), confidence=0.95)

    def log_rates(of: str) -> npt.NDArray[np.float64]:
        return np.log([batches[of].rows / batches[of].seconds(times_ms) for times_ms in passes[of]])

    return estimate_log_ratio([[value] for value in (log_rates(name) - log_rates(TEACHER)).tolist()]).ratio()


def _history_file(cache: Cache, options: ExperimentOptions) -> Path:
    """Where this machine's history lies: in the cache, by all that decides what the probe's times mean."""
    machine = hardware.describe()
    key = [machine.cpu_model, *machine.instruction_sets, options.threads, versions_key("onnxruntime")]
    return make_dir(cache.root / "machine") / f"{sha256_json(key)[:24]}.json"
