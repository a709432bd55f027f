"""What `pytest bench` is made of: options, session fixtures that build every model once, benchmark hooks."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from quantlib import gate
from quantlib.compression.recipes import get_recipes, split_names
from quantlib.data import features
from quantlib.experiment import gating
from quantlib.experiment.build import Built, build, variant_names
from quantlib.experiment.measure import check, evaluate
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.work import Variant
from quantlib.machine import hardware, sessions
from quantlib.measuring import accuracy
from quantlib.measuring.checks import Checks
from quantlib.measuring.latency import LatencyStats, Sampling
from quantlib.measuring.latency.others import MAX_OTHERS
from quantlib.measuring.latency.stats import WAKE_SECONDS, wake
from quantlib.support.cache import versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import write_text
from quantlib.support.progress import Steps

ROOT = Path(__file__).parent
LIMITS = ROOT / "bench" / "limits.toml"
BASELINES = ROOT / "bench" / "baseline"
NO_GATE, DEFAULT_BASELINE = None, ""

Shape = tuple[int, int]

_options_key = pytest.StashKey[ExperimentOptions]()
_timings_key = pytest.StashKey[list[tuple[str, str, LatencyStats]]]()
_verdict_key = pytest.StashKey[gate.Verdict]()
_gated_key = pytest.StashKey[set[str]]()
_current_key = pytest.StashKey[gate.GateRecord]()
_last_words_key = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command's own words, and those of the gate."""
    group = parser.getgroup("quantlib", "quantized models (the words of quantization_experiments.py)")
    group.addoption("--task", default="BBC-News", help="task; default: the embedded BBC-News")
    group.addoption("--data-dir", type=Path, help="directory with the task's GLUE files")
    group.addoption("--teacher", help="fine-tuned checkpoint, DIR or HUB_ID")
    group.addoption("--student", action="append", default=[], help="distilled checkpoint; may be repeated")
    group.addoption(
        "--student-config", default="half", help="the student that is distilled where none is given"
    )
    for name, words in (
        ("transformer_epochs", "epochs in which it learns from the teacher's layers"),
        ("prediction_epochs", "epochs in which it learns from logits and labels"),
        ("augment", "copies of each row, words replaced, that it learns from too"),
    ):
        option = f"--{name.replace('_', '-')}"
        group.addoption(option, type=int, default=getattr(ExperimentOptions, name), help=words)
    group.addoption("--no-student", action="store_true", help="leave the student out")
    group.addoption("--recipes", help="comma-separated recipe names, or all")
    group.addoption("--seq-len", type=int, default=128, help="longest sequence in tokens")
    group.addoption("--opset", type=int, default=17, help="ONNX operator set of the export")
    group.addoption("--threads", type=int, help="threads of a session; default: the physical cores")
    group.addoption("--calibration-samples", type=int, default=512, help="rows that ranges are taken from")
    group.addoption("--train-rows", type=int, help="train on the first N rows only")
    group.addoption("--warmup-runs", type=int, default=5, help="untimed runs before the timed ones")
    group.addoption("--num-runs", type=int, default=30, help="timed runs")
    group.addoption("--seed", type=int, default=42, help="seed of the training")
    group.addoption("--cache-dir", type=Path, help="where built models are kept")
    group.addoption("--no-compile", action="store_true", help="take the graphs as they are exported")
    group.addoption(
        "--stock-sessions", action="store_true", help="open sessions as ONNX Runtime does by default"
    )
    group.addoption("--shapes", default="1x128", help="comma-separated BATCHxLENGTH to time; default 1x128")
    group.addoption("--limits", type=Path, default=LIMITS, help="TOML file of limits")
    gating_group = parser.getgroup("gate", "the gate: fail on a real regression, and on nothing else")
    gating_group.addoption(
        "--gate",
        nargs="?",
        const=DEFAULT_BASELINE,
        default=NO_GATE,
        metavar="BASELINE",
        help="compare with a baseline; default: bench/baseline/TASK.json",
    )
    gating_group.addoption("--gate-update", action="store_true", help="write the baseline if all limits hold")
    gating_group.addoption("--gate-across-machines", action="store_true", help="compare latency anyway")
    gating_group.addoption("--gate-strict", action="store_true", help="let an undecided comparison fail")
    gating_group.addoption("--gate-seconds", type=float, default=60.0, help="time budget for each shape")
    gating_group.addoption(
        "--gate-max-others",
        type=float,
        default=MAX_OTHERS,
        help="share of the machine that other programs may use while it is measured; default 0.1",
    )
    gating_group.addoption(
        "--gate-launches", type=int, default=12, help="most launches of each process; default 12"
    )
    gating_group.addoption("--gate-markdown", type=Path, metavar="FILE", help="write the verdict as Markdown")


@contextlib.contextmanager
def wrong_use() -> Iterator[None]:
    """What the user got wrong ends the run with its one line and exit code 2."""
    try:
        yield
    except InputError as error:
        pytest.exit(f"error: {error}", returncode=2)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options before anything is collected."""
    config.stash[_timings_key] = []
    config.stash[_gated_key] = set()
    with wrong_use():
        config.stash[_options_key] = _experiment_options(config)
        _shapes(config)
        if gating_on(config):
            _check_gate(config)


def _experiment_options(config: pytest.Config) -> ExperimentOptions:
    get = config.getoption
    given: dict[str, Any] = {}
    if get("threads") is not None:
        given["threads"] = get("threads")
    if get("recipes") is not None:
        given["recipes"] = split_names(get("recipes"))
    return ExperimentOptions(
        task=get("task"),
        data_dir=get("data_dir"),
        teacher=get("teacher"),
        students=tuple(get("student")),
        no_student=get("no_student"),
        student_config=get("student_config"),
        transformer_epochs=get("transformer_epochs"),
        prediction_epochs=get("prediction_epochs"),
        augment=get("augment"),
        seq_len=get("seq_len"),
        opset=get("opset"),
        calibration_samples=get("calibration_samples"),
        train_rows=get("train_rows"),
        warmup_runs=get("warmup_runs"),
        num_runs=get("num_runs"),
        cache_dir=get("cache_dir"),
        seed=get("seed"),
        compile=not get("no_compile"),
        stock_sessions=get("stock_sessions"),
        **given,
    )


def _shapes(config: pytest.Config) -> list[Shape]:
    shapes = []
    for text in config.getoption("shapes").split(","):
        batch, found, length = text.strip().partition("x")
        if not (found and batch.isdecimal() and length.isdecimal() and int(batch) and int(length)):
            raise InputError(f"--shapes {text!r} is not BATCHxLENGTH, for example 8x128")
        if int(length) > config.getoption("seq_len"):
            raise InputError(f"--shapes {text}: longer than --seq-len {config.getoption('seq_len')}")
        shapes.append((int(batch), int(length)))
    return shapes


def gating_on(config: pytest.Config) -> bool:
    """Whether this run is a gate run."""
    return config.getoption("gate") is not NO_GATE or config.getoption("gate_update")


def _baseline_path(config: pytest.Config) -> Path:
    named = config.getoption("gate")
    return Path(named) if named else BASELINES / f"{config.getoption('task')}.json"


def _read_limits(config: pytest.Config) -> gate.LimitTable:
    recipes = get_recipes(config.stash[_options_key].recipes)
    return gate.read_limits(config.getoption("limits"), recipes)


def _check_gate(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        raise InputError("--gate cannot run under pytest-xdist: timing is off there; leave -n out")
    if config.getoption("benchmark_only", False):
        raise InputError("--gate and --benchmark-only exclude each other: the gate's tests are no benchmarks")
    if not config.getoption("gate_update"):
        gate.read_record(_baseline_path(config))
    _read_limits(config)
    _sampling(config)


def _sampling(config: pytest.Config) -> Sampling:
    most = config.getoption("gate_launches")
    return Sampling(
        min_launches=min(3, most),
        max_launches=most,
        seconds=config.getoption("gate_seconds"),
        max_others=config.getoption("gate_max_others"),
    )


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is built, on what, and whether timing is on."""
    options, machine = config.stash[_options_key], hardware.describe()
    lines = [
        f"quantlib: task {options.task}, variants {', '.join(variant_names(options))}, "
        f"{options.threads} threads, {machine.cpu_model}"
    ]
    if config.getoption("numprocesses", None):
        lines.append("quantlib: timing is OFF under pytest-xdist; only accuracy and size are checked")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each variant and shape; their names are the keys of baselines."""
    if not metafunc.definition.path.is_relative_to(ROOT / "bench"):
        return
    names = variant_names(metafunc.config.stash[_options_key])
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", names, indirect=True)
    if "quantized" in metafunc.fixturenames:
        metafunc.parametrize("quantized", names[1:], indirect=True)
    if "shape" in metafunc.fixturenames:
        shapes = _shapes(metafunc.config)
        metafunc.parametrize("shape", shapes, ids=[f"{b}x{n}" for b, n in shapes])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The gate's tests are there only in a gate run."""
    if not gating_on(config):
        gated = [item for item in items if item.get_closest_marker("gate")]
        items[:] = [item for item in items if item not in gated]
        if gated:
            config.hook.pytest_deselected(items=gated)


# Fixtures


@pytest.fixture(scope="session")
def experiment_options(pytestconfig: pytest.Config) -> ExperimentOptions:
    """The options of this run."""
    return pytestconfig.stash[_options_key]


@pytest.fixture(scope="session")
def steps() -> Steps:
    """Shows long steps on the terminal, also while pytest captures output."""
    from rich.console import Console

    return Steps(Console(stderr=True))


@contextlib.contextmanager
def uncaptured(config: pytest.Config) -> Iterator[None]:
    """Let what is printed reach the terminal."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def built(pytestconfig: pytest.Config, experiment_options: ExperimentOptions, steps: Steps) -> Built:
    """Every model, exported and quantized once, shared with the main job through its cache."""
    with wrong_use(), uncaptured(pytestconfig):
        return build(experiment_options, steps)


@pytest.fixture(scope="session")
def evaluations(
    pytestconfig: pytest.Config, built: Built, experiment_options: ExperimentOptions, steps: Steps
) -> dict[str, accuracy.Evaluation]:
    """The predictions of every variant."""
    with wrong_use(), uncaptured(pytestconfig):
        return evaluate(built, experiment_options, steps)


@pytest.fixture(scope="session")
def checks(
    pytestconfig: pytest.Config, built: Built, experiment_options: ExperimentOptions, steps: Steps
) -> dict[str, Checks]:
    """What was checked of every variant beyond its accuracy."""
    with wrong_use(), uncaptured(pytestconfig):
        return check(built, experiment_options, steps)


@pytest.fixture(scope="session")
def limits(pytestconfig: pytest.Config) -> gate.LimitTable:
    """The table of limits."""
    with wrong_use():
        return _read_limits(pytestconfig)


@pytest.fixture
def variant(request: pytest.FixtureRequest, built: Built) -> Variant:
    """A variant, the teacher included."""
    return next(v for v in built.variants if v.name == request.param)


@pytest.fixture
def quantized(request: pytest.FixtureRequest, built: Built) -> Variant:
    """A variant that is not the teacher."""
    return next(v for v in built.variants if v.name == request.param)


@pytest.fixture(scope="session")
def accuracy_and_size(
    built: Built,
    evaluations: dict[str, accuracy.Evaluation],
    experiment_options: ExperimentOptions,
) -> gate.GateRecord:
    """What is known of every variant before anything is timed."""
    return gating.record(built, evaluations, experiment_options)


@pytest.fixture
def time_variant(
    benchmark: Any, experiment_options: ExperimentOptions, pytestconfig: pytest.Config
) -> Callable[[Variant, Shape], None]:
    """Time a variant with `benchmark.pedantic`: real rows of the task, one session open at a time."""

    def timed(variant: Variant, shape: Shape) -> None:
        batch, length = shape
        session = sessions.open_configured(variant.path, experiment_options.session)
        rows = features.fixed_shape_feeds(variant.rows, batch, length, experiment_options.num_runs)
        feeds = [sessions.feed_for(session, feed) for feed in rows]
        if not benchmark.disabled:
            wake(lambda: session.run(None, feeds[0]), WAKE_SECONDS)
        turn = itertools.cycle(feeds)
        benchmark.pedantic(
            session.run,
            setup=lambda: ((None, next(turn)), {}),
            rounds=experiment_options.num_runs,
            warmup_rounds=experiment_options.warmup_runs,
            iterations=1,
        )
        if benchmark.stats is not None:
            times_ms = tuple(1000 * seconds for seconds in benchmark.stats.stats.data)
            stats = LatencyStats(times_ms, experiment_options.warmup_runs)
            benchmark.extra_info["standard_error_ms"] = stats.standard_error_ms
            benchmark.extra_info["noisy"] = stats.noisy
            pytestconfig.stash[_timings_key].append((variant.name, f"{batch}x{length}", stats))

    return timed


# The gate


@pytest.fixture(scope="session")
def baseline(pytestconfig: pytest.Config) -> gate.GateRecord | None:
    """The baseline of a gate run; None in an update, which answers to the limits alone."""
    if pytestconfig.getoption("gate_update"):
        return None
    with wrong_use():
        return gate.read_record(_baseline_path(pytestconfig))


@pytest.fixture(scope="session")
def verdict(
    pytestconfig: pytest.Config,
    built: Built,
    accuracy_and_size: gate.GateRecord,
    baseline: gate.GateRecord | None,
    limits: gate.LimitTable,
    experiment_options: ExperimentOptions,
    steps: Steps,
) -> gate.Verdict:
    """Every finding of this run; sampling the latencies is what takes its time."""
    across = pytestconfig.getoption("gate_across_machines")
    with wrong_use(), uncaptured(pytestconfig):
        current = gating.with_latency(
            accuracy_and_size,
            built,
            experiment_options,
            _shapes(pytestconfig),
            baseline=baseline,
            limits=limits,
            sampling=_sampling(pytestconfig),
            steps=steps,
        )
        found = gate.judge(current, baseline, limits, across_machines=across)
        if pytestconfig.getoption("gate_markdown"):
            write_text(pytestconfig.getoption("gate_markdown"), gate.markdown(found, current, baseline))
    pytestconfig.stash[_verdict_key] = found
    pytestconfig.stash[_current_key] = current
    return found


@pytest.fixture
def gated(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Notes that an area of the gate was reached; a gate run that left one out fails."""
    return pytestconfig.stash[_gated_key].add


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Close the holes: a gate that gated nothing fails; what failed is not saved as a future baseline."""
    config = session.config
    if gating_on(config) and not config.option.collectonly:
        _finish_gate(session)
    _refuse_to_save(session)
    return (yield)


def _finish_gate(session: pytest.Session) -> None:
    config = session.config
    if session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR):
        return  # it says so itself
    expected = {"accuracy", "size", "latency", "presence"}
    missing = expected - config.stash[_gated_key]
    if missing and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        config.stash[_last_words_key] = f"gate: {', '.join(sorted(missing))} not gated: tests were left out"
        return
    # The verdict is on every variant, also on those whose tests were left out.
    violations = config.stash[_verdict_key].violations if _verdict_key in config.stash else ()
    if violations and not session.testsfailed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        config.stash[_last_words_key] = f"gate: {len(violations)} violations, in tests that were left out"
        return
    if config.getoption("gate_update"):
        if session.testsfailed:
            config.stash[_last_words_key] = "gate: baseline NOT written: the run has failures"
            return
        current = config.stash[_current_key]
        if any(one.disturbed for shapes in current.latency.values() for one in shapes.values()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            config.stash[_last_words_key] = (
                "gate: baseline NOT written: other programs used too much of the machine"
            )
            return
        path = _baseline_path(config)
        with wrong_use():
            gate.write_record(path, current)
        config.stash[_last_words_key] = f"gate: baseline written to {path}"


def _refuse_to_save(session: pytest.Session) -> None:
    """pytest-benchmark saves before it checks, and whatever failed: the next run would compare with that."""
    benchmarks = getattr(session.config, "_benchmarksession", None)
    if benchmarks is None or not (benchmarks.save or benchmarks.autosave):
        return
    regressed = 0
    if benchmarks.compare_fail:
        list(benchmarks.prepare_benchmarks())
        regressed = len(benchmarks.performance_regressions)
        benchmarks.performance_regressions.clear()
    if session.testsfailed or regressed:
        benchmarks.save = benchmarks.autosave = None
        benchmarks.logger.warning(
            f"Not saving: {session.testsfailed} tests failed, {regressed} benchmarks regressed; "
            "a failed run must not become the next baseline."
        )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The standard errors of the timed runs, the gate's verdict, and where results went."""
    timings = config.stash[_timings_key]
    if timings:
        terminalreporter.section("latency: mean ± standard error, ms")
        for name, shape, stats in timings:
            warning = "  NOISY: the machine was busy; these runs tell little" if stats.noisy else ""
            terminalreporter.line(
                f"{name:<28} {shape:>7}  {stats.mean_ms:9.3f} ± {stats.standard_error_ms:.3f}{warning}"
            )
    if _verdict_key in config.stash:
        terminalreporter.section("gate")
        for line in gate.console_lines(config.stash[_verdict_key]):
            terminalreporter.line(line)
    if _last_words_key in config.stash:
        terminalreporter.line(config.stash[_last_words_key])


# pytest-benchmark


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The processor, threads and versions; no host name, and no clock that changes from run to run."""
    machine = hardware.describe()
    for key in ("node", "release", "python_build"):
        machine_info.pop(key, None)
    machine_info["cpu"] = {"brand_raw": machine.cpu_model, **asdict(machine)}
    machine_info["threads"] = config.stash[_options_key].threads
    machine_info["versions"] = versions_key("onnxruntime", "onnx", "numpy")
