"""The whole run: build every variant, measure it, and write it all down."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.data.tasks import SPLIT_SEED
from quantlib.experiment.build import Built, stages
from quantlib.experiment.gating import engines_of
from quantlib.experiment.measure import Measured, check, compare, field_of, measure
from quantlib.experiment.options import ExperimentOptions, variant_names
from quantlib.experiment.profiling import profiles
from quantlib.machine import hardware
from quantlib.machine.engines import DEFAULT_ENGINE
from quantlib.machine.hardware import on_x86
from quantlib.machine.unsigned import to_unsigned
from quantlib.measuring.checks import Checks
from quantlib.measuring.profile import write_profile
from quantlib.onnx_model.compile import Compiled
from quantlib.onnx_model.coverage import Coverage
from quantlib.onnx_model.model import Model
from quantlib.report import changes, plots, results
from quantlib.report.choices import Choice, as_json, choices
from quantlib.report.columns import VariantResult
from quantlib.report.page import report
from quantlib.support.cache import installed_version
from quantlib.support.directories import atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import copy_file, make_dir, sha256_files
from quantlib.support.options import COMMAND, command_line
from quantlib.support.parsing import parse_json_text, read_utf8
from quantlib.support.plotting import NO_PLOTS, can_plot
from quantlib.support.presence import note_used
from quantlib.support.progress import Steps

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGES: tuple[str, ...] = ("torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime")
_PACKAGES += ("numpy", "scipy", "scikit-learn")


@dataclass(frozen=True)
class RunResult:
    """The results of all variants, the teacher first, and the first choice for each wish."""

    results: list[VariantResult]
    choices: list[Choice]


def run(
    options: ExperimentOptions,
    console: Console | None = None,
    show: Callable[[RunResult], None] = lambda _: None,
) -> RunResult:
    """Build and measure every variant, write it all under OUTPUT_DIR/TASK/, and return the results.

    Nothing is written there before everything has been measured, and then all of it at once. Files of an
    earlier run go, other files stay.

    Args:
        options: what is asked.
        console: where steps are shown.
        show: called with what is known of the teacher's variants, while there is no student yet.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    steps = Steps(console)
    directory = _place_of(options)
    measured: dict[str, Measured] = {}
    for built in stages(options, steps):
        measured = measure(built, options, steps, measured)
        compared = _compared(built, measured, options)
        if len(measured) < len(variant_names(options)):
            show(compared)
    # What nobody waits for comes last: the first table is not held up by them.
    checks = check(built, options, steps)
    compared = _compared(built, measured, options, checks)
    profiled = list(profiles(built, options, steps))
    with atomic_files(directory, _earlier_files) as scratch:
        with steps.step("write models and results") as step:
            for file, path in {variant.file: variant.path for variant in built.variants}.items():
                copy_file(path, scratch / file)
            for name, path in built.files.items():
                copy_file(path, scratch / name)
            for profile in profiled:
                write_profile(scratch, profile)
            results.write_results(scratch, compared.results)
            if can_plot():
                plots.draw(scratch / "results.png", compared.results)
            else:
                steps.say(NO_PLOTS)
            changed = changes.changes_of(compared.results, built.examples, options.report_rows)
            changes.write_changes(scratch, changed)
            step.note = str(directory)
        record = provenance(options, built, steps) | _checked(checks)
        record |= {"choices": as_json(compared.choices), "notes": _notes(compared.results)}
        report.write_report(scratch, options.task_name, record)
        results.write_run(scratch, record | {"files": sha256_files(scratch)})
    return compared


def _place_of(options: ExperimentOptions) -> Path:
    """The directory of the task, made if need be; a link in the output directory cannot move it elsewhere."""
    directory = make_dir(options.output_dir) / options.task_name
    if not directory.resolve().is_relative_to(options.output_dir.resolve()):
        raise InputError(
            f"{directory}: a link that leads out of {options.output_dir}; remove it or name another place"
        )
    note_used(options.output_dir, make_dir(directory))
    return directory


def _compared(
    built: Built,
    measured: Mapping[str, Measured],
    options: ExperimentOptions,
    checks: Mapping[str, Checks] | None = None,
) -> RunResult:
    found = compare(built, measured, checks)
    return RunResult(found, choices(found, field_of(built, measured), options.wishes))


def _earlier_files(directory: Path) -> dict[str, str]:
    """{name: SHA-256} of the files that an earlier run wrote there, as far as its run.json says so."""
    try:
        files = parse_json_text(read_utf8(directory / "run.json"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # missing, damaged or older: the files that are there are the user's


def provenance(options: ExperimentOptions, built: Built, steps: Steps) -> dict[str, Any]:
    """What run.json says: everything that the results depend on, and what the run took."""
    machine = hardware.describe()
    return {
        "arguments": {k: _plain(v) for k, v in asdict(options).items()},
        "command": shlex.join(["quantlib", "run", *command_line(options, COMMAND)]),
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "hardware": asdict(machine),
        "int8": hardware.int8_note(machine),
        "threads": options.threads,
        "sessions": _sessions(options, built),
        "engines": engines_of(options),
        "compiled": {name: _report(found) for name, found in built.compiled.items()},
        "seeds": {"training": options.seed, "split": SPLIT_SEED},
        "hub_commits": dict(built.commits),
        "student_precision": built.precision,
        "sha256": {
            **built.hashes,
            "models": {variant.name: variant.model.sha256 for variant in built.variants},
        },
        "recipes": {v.name: asdict(v.recipe) for v in built.variants if v.recipe is not None},
        "durations_s": steps.durations_s,
        "cached": sorted(steps.cached),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _notes(compared: Sequence[VariantResult]) -> dict[str, str]:
    """What is to be said of speedups, by variant: states of the machine."""
    return {result.name: result.timing.note for result in compared if result.timing.note}


def _sessions(options: ExperimentOptions, built: Built) -> dict[str, Any]:
    """How variants are timed, and how many S8 activations of each are turned to U8 for this CPU."""
    found: dict[str, Any] = {**asdict(options.session), "unsigned_activations": {}}
    if options.session.unsigned_activations and on_x86():
        here = [variant for variant in built.variants if variant.engine == DEFAULT_ENGINE]
        counts = {variant.name: _count_signed(variant.model) for variant in here}
        found["unsigned_activations"] = {name: count for name, count in counts.items() if count}
    return found


def _count_signed(model: Model) -> int:
    """How many S8 activations are turned to U8 when the model is loaded on x86."""
    copy = type(model.skeleton)()
    copy.CopyFrom(model.skeleton)
    return to_unsigned(copy)


def _report(compiled: Compiled) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(compiled).items() if name != "path"}


def _checked(checks: Mapping[str, Checks]) -> dict[str, Any]:
    """What run.json says of the checks, and of the matrix products that quantized variants leave in float."""
    coverage = {name: each.get(Coverage) for name, each in checks.items()}
    return {
        "checks": {
            name: {
                check.name: None if result is None else asdict(result)
                for check, result in each
                if check.in_run_json
            }
            for name, each in checks.items()
        },
        "not_quantized": {
            name: [asdict(product) for product in counted.not_quantized]
            for name, counted in coverage.items()
            if counted is not None
        },
    }


def peak_memory_bytes() -> int | None:
    """The largest resident memory of this process and of its largest child; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (own + child) * unit


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value if isinstance(value, int | float | str | bool | None) else str(value)
