"""The verdict on what was built: measured against the baseline's models, judged by the limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantlib import gate
from quantlib.experiment.build import Built
from quantlib.experiment.gate_options import GateOptions
from quantlib.experiment.gate_timing import GateTiming
from quantlib.experiment.old_models import STORE, OldModels
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.timing import known_state_spread
from quantlib.support.cache import open_cache
from quantlib.support.errors import InputError, Unavailable
from quantlib.support.files import write_text
from quantlib.support.progress import Steps
from quantlib.support.store import FileStore

# By how much a log ratio to the teacher differs between the states of the one machine on which that was
# measured: 2.50x in one and 1.76x in the other. For machines of which nothing is known.
STATE_SPREAD = 0.4


@dataclass(frozen=True)
class Judged:
    """A verdict, the record of the run that it is on, and where models are kept for later runs."""

    verdict: gate.Verdict
    current: gate.GateRecord
    built: Built
    store: FileStore

    @property
    def disturbed(self) -> bool:
        """Whether other programs used too much of the machine for this run to become a baseline."""
        return any(r.disturbed for shapes in self.current.latency.values() for r in shapes.values())

    def write_baseline(self, path: Path) -> None:
        """Make this run the baseline; its models are kept.

        Raises:
            InputError: other programs used too much of the machine, or it cannot be written.
        """
        if self.disturbed:
            raise InputError("baseline NOT written: other programs used too much of the machine")
        keep_models(self.store, self.built, self.current)
        gate.write_record(path, self.current)


def keep_models(store: FileStore, built: Built, baseline: gate.GateRecord) -> None:
    """Put into the store what a baseline names and this run has made."""
    for variant in built.variants:
        record = baseline.variants.get(variant.name)
        if record is None or record.sha256 != variant.model.sha256:
            continue
        try:
            store.get(record.sha256)
        except Unavailable:  # or damaged, which nobody else would notice while the model can be made
            store.put(variant.path, record.sha256)


def judge_run(
    built: Built,
    record: gate.GateRecord,
    experiment: ExperimentOptions,
    options: GateOptions,
    limits: gate.LimitTable,
    baseline: gate.GateRecord | None,
    steps: Steps,
) -> Judged:
    """Time what has to be timed, and judge it all.

    Args:
        built: every model of the run.
        record: their accuracy and size.
        experiment: how they were made.
        options: how much is measured.
        limits: what a variant may lose.
        baseline: what to compare with; None for a run that answers to the limits alone.
        steps: where steps are shown.

    Raises:
        InputError: the baseline is of another task or of other rows, or a file cannot be written.
    """
    cache = open_cache(experiment.cache_dir)
    store = FileStore(options.gate_store or cache.root / STORE, ".onnx")
    old_models = None
    if baseline is not None:
        old_models = OldModels(baseline, experiment, cache, store, steps)
        keep_models(store, built, baseline)
    timing = GateTiming(
        built,
        experiment,
        limits,
        options.sampling,
        steps,
        baseline=baseline,
        old_models=old_models,
        remeasure=options.gate_remeasure,
        across_machines=options.gate_across_machines,
        spread=_state_spread(record, baseline, experiment, options),
    )
    current, compared = timing.measure(record, options.parsed_shapes)
    verdict = gate.judge(
        current, baseline, limits, compared=compared, across_machines=options.gate_across_machines
    )
    if options.gate_markdown:
        write_text(options.gate_markdown, gate.markdown(verdict, current, baseline, compared))
    return Judged(verdict, current, built, store)


def _state_spread(
    record: gate.GateRecord,
    baseline: gate.GateRecord | None,
    experiment: ExperimentOptions,
    options: GateOptions,
) -> float:
    """What the user says, else what is known of this machine, if the baseline is from one of its kind."""
    if options.gate_state_spread is not None:
        return options.gate_state_spread
    if baseline is None or gate.machine_differences(record, baseline):
        return STATE_SPREAD
    known = known_state_spread(experiment)
    return STATE_SPREAD if known is None else known
