"""Two engines that are no part of this package, beside its variants: CTranslate2, and torch's own int8.

    pip install ctranslate2 torchao       # and a C++ compiler for torch
    python bench/other_engines.py --task BBC-News --teacher DIR

CTranslate2 runs the encoder with int8 weights and dynamic activations; its pooled output goes through the
classifier in NumPy. Torch runs the model that PT2E made (torch.export, X86InductorQuantizer, 128 of the
calibration rows) as torch.compile makes it with frozen weights, one graph for each shape. All take turns,
each in a process of its own, on the same rows; and the logits of all are compared with the FP32 teacher's. An
engine that is not installed is left out, and a line says so.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Option

from quantlib.cli.app import new_app, run_app, wide_console
from quantlib.compression.recipes import PEERS, RECIPES
from quantlib.compression.variants import TEACHER
from quantlib.data import features, scores, tasks
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import Begun, begin, build
from quantlib.experiment.timing import feeds_of
from quantlib.experiment.work import Variant, tokenize
from quantlib.machine import hardware
from quantlib.machine.engines import ENGINES, Engine, Feed, get_engine
from quantlib.machine.engines.engine import LoadedModel, first_line
from quantlib.machine.sessions import default_threads
from quantlib.measuring.latency import PairedRatio, TimedProcess, ratio_interval, take_turns, worker
from quantlib.measuring.latency.process import Feeds
from quantlib.measuring.latency.shapes import Shape, parse_shape
from quantlib.support.console import plain_table
from quantlib.support.errors import InputError
from quantlib.support.files import make_dir, sha256_file, sha256_tree, write_json
from quantlib.support.options import split_names
from quantlib.support.progress import Steps

if TYPE_CHECKING:
    from rich.table import Table

OURS = ("static_u8s8_smooth", "prune50_static_u8s8_smooth", "stock_dynamic")
SERVE = "--serve"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# What a model for one of these engines is made of, in a directory.
_ENCODER, _HEAD, _PROGRAM = "encoder", "head.npz", "model.pt2"
_CALIBRATION_BATCH = 8
# Its histograms take seconds a batch.
_TORCH_ROWS = 128
_FEEDS = 8
# Threads of all engines but one sleep by then, and its own are awake.
_WAKE_SECONDS = 0.1


# CTranslate2


def prepare_ctranslate2(directory: Path, checkpoint: Path, rows: Sequence[features.Feature]) -> None:
    """Convert a checkpoint's encoder to int8, and keep its classifier beside it; rows are not needed.

    Raises:
        InputError: it is no BERT with a classifier over the pooled output.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    if model.config.model_type != "bert":
        raise InputError(f"{checkpoint}: a {model.config.model_type}; CTranslate2 is tried with a BERT alone")
    TransformersConverter(str(checkpoint)).convert(str(directory / _ENCODER), quantization="int8")
    head = {name: array.detach().numpy() for name, array in model.classifier.named_parameters()}
    np.savez(directory / _HEAD, allow_pickle=False, **head)


class CTranslate2Session:
    """An encoder and its classifier."""

    inputs: Mapping[str, np.dtype[Any] | None] = dict.fromkeys(INPUTS, np.dtype(np.int32))
    outputs: Mapping[str, Sequence[object]] = {"logits": ("batch", "labels")}

    def __init__(self, directory: Path, threads: int) -> None:
        import ctranslate2

        self._array = ctranslate2.StorageView.from_array
        self._encoder = ctranslate2.Encoder(
            str(directory / _ENCODER), compute_type="int8", inter_threads=1, intra_threads=threads
        )
        with np.load(directory / _HEAD) as head:
            self._weight, self._bias = head["weight"].T.copy(), head["bias"]

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[Any]:
        """The logits; padding stands at the end of rows, so that lengths say what the mask does."""
        ids, mask, types = (feed[name] for name in INPUTS)
        lengths = mask.sum(axis=1, dtype=np.int32)
        output = self._encoder.forward_batch(self._array(ids), self._array(lengths), types.tolist())
        return [np.asarray(output.pooler_output) @ self._weight + self._bias]


# Torch


def prepare_torch(directory: Path, checkpoint: Path, rows: Sequence[features.Feature]) -> None:
    """Put a checkpoint into 8 bits by PT2E: nodes that inductor turns into products of integers."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from transformers import AutoModelForSequenceClassification

    class Logits(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    dimensions = {0: torch.export.Dim("batch", max=512), 1: torch.export.Dim("length", min=2, max=512)}
    shapes = (dimensions,) * len(INPUTS)
    feeds = [feed for _, feed in features.batches(rows[:_TORCH_ROWS], _CALIBRATION_BATCH)]
    batches = [tuple(torch.from_numpy(feed[name]) for name in INPUTS) for feed in feeds]
    example = max(batches, key=lambda batch: batch[0].numel())
    # Torch's documentation asks for the smaller range where products saturate, on CPUs without VNNI.
    reduced = not hardware.has_vnni(hardware.describe())
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config(reduce_range=reduced)
    )
    with torch.no_grad():
        exported = torch.export.export(Logits(model), example, dynamic_shapes=shapes)
        prepared = prepare_pt2e(exported.module(), quantizer)
        for batch in batches:
            prepared(*batch)
        quantized = torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=shapes)
    torch.export.save(quantized, directory / _PROGRAM)


class TorchSession:
    """What `prepare_torch` made; a graph is compiled for each shape when it comes first."""

    inputs: Mapping[str, np.dtype[Any] | None] = dict.fromkeys(INPUTS, np.dtype(np.int64))
    outputs: Mapping[str, Sequence[object]] = {"logits": ("batch", "labels")}

    def __init__(self, directory: Path, threads: int) -> None:
        import torch
        import torch._inductor.config as inductor
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  # registers operators of the program

        torch.set_num_threads(threads)
        inductor.freezing = True
        self._torch = torch
        program = torch.export.load(directory / _PROGRAM).module()
        self._compiled: Any = torch.compile(program, dynamic=False)

    def run(self, names: Sequence[str] | None, feed: Feed) -> list[Any]:
        """The logits."""
        with self._torch.no_grad():
            return [self._compiled(*(self._torch.from_numpy(feed[name]) for name in INPUTS)).numpy()]


# Both as engines, so that the timing process of this package runs them


@dataclass(frozen=True)
class OtherConfig:
    """How a model is loaded."""

    threads: int


def _engine(name: str, label: str, package: str, opened: Any) -> Engine:
    return Engine(
        name,
        label,
        package,
        extra="",
        operators="standard",
        quantizers=(),
        config=lambda threads, _stock: OtherConfig(threads),
        open=opened,
        errors=lambda: (RuntimeError, ValueError),
        reason=first_line,
    )


OTHERS: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        _engine("ctranslate2_int8", "CTranslate2", "ctranslate2", CTranslate2Session),
        _engine("torch_pt2e_int8", "torch.compile", "torchao", TorchSession),
    )
}
_PREPARE = {"ctranslate2_int8": prepare_ctranslate2, "torch_pt2e_int8": prepare_torch}


def serve() -> None:
    """Be the timing process of an engine of `OTHERS`."""
    ENGINES.update(OTHERS)
    worker.main()


# The comparison


@dataclass(frozen=True)
class Model:
    """A variant, or the teacher as another engine takes it.

    path: a file, or a directory for one of `OTHERS`. process: that times it. feeds: real rows of each shape.
    """

    name: str
    path: Path
    engine: str
    process: TimedProcess
    feeds: Mapping[Shape, Feeds]


@dataclass(frozen=True)
class Result:
    """One model against the FP32 teacher.

    logit_error: mean absolute difference of the logits. agreement: share of rows with the teacher's label, or
    as the task has it. median_ms, speedup: by shape; the teacher's time over this one's.
    """

    name: str
    logit_error: float
    agreement: float
    median_ms: Mapping[str, float]
    speedup: Mapping[str, PairedRatio]


def compare_engines(
    options: ExperimentOptions,
    shapes: Sequence[Shape],
    rows: int,
    turns: int,
    block: int,
    threads: int,
    steps: Steps,
) -> tuple[list[Result], dict[str, str], dict[str, Any]]:
    """Build, run and time all: the results, the teacher's first; who is left out and why; provenance.

    Args:
        options: the task, the teacher and the recipes of ours.
        shapes: at which models are timed.
        rows: evaluation rows whose logits are compared, in batches of the last shape.
        turns, block: how often all take turns, and runs in a turn; no turns: nothing is timed.
        threads: of the sessions; models are made with those of the options, which decide last digits.
        steps: where steps are shown.

    Raises:
        InputError: something that the user gave cannot be used.
    """
    built = build(options, steps)
    begun = begin(options)
    variants = [v for v in built.variants if v.name == TEACHER or v.recipe is not None]
    calibration = tokenize(begun.work, "calibration", begun.teacher)
    evaluation = variants[0].rows
    models = [_ours(variant, shapes, replace(options, threads=threads)) for variant in variants]
    left_out: dict[str, str] = {}
    for name, engine in OTHERS.items():
        if not engine.installed:
            left_out[name] = f"the package {engine.package} is not installed"
            continue
        directory = _prepared(begun, engine, calibration, steps)
        models.append(_theirs(name, directory, evaluation, shapes, threads))
    with steps.step("logits"):
        logits = {m.name: _logits(m, evaluation[:rows], shapes[-1], threads) for m in models}
    medians, speedups = _times(models, shapes, turns, block, steps) if turns else ({}, {})
    results = [
        Result(
            model.name,
            scores.logit_error(logits[model.name], logits[TEACHER]),
            scores.agreement(built.task, logits[model.name], logits[TEACHER]),
            medians.get(model.name, {}),
            speedups.get(model.name, {}),
        )
        for model in models
    ]
    packages = {m.engine: OTHERS.get(m.engine) or get_engine(m.engine) for m in models}
    return (
        results,
        left_out,
        {
            "task": built.task.name,
            "rows": min(rows, len(evaluation)),
            "calibration_rows": len(calibration),
            "threads": threads,
            "cpu": hardware.describe().cpu_model,
            "vnni": hardware.has_vnni(hardware.describe()),
            "versions": {name: version(engine.package) for name, engine in packages.items()},
        },
    )


def _prepared(begun: Begun, engine: Engine, calibration: Sequence[features.Feature], steps: Steps) -> Path:
    """The teacher as an engine takes it, made once and kept in the cache."""
    prepare = _PREPARE[engine.name]
    key = {
        "code": sha256_file(Path(__file__)),
        "engine": engine.name,
        "versions": {name: version(name) for name in (engine.package, "torch", "transformers")},
        "checkpoint": sha256_tree(begun.teacher),
        "calibration": features.features_hash(calibration),
        "vnni": hardware.has_vnni(hardware.describe()),
    }

    with steps.step(f"convert for {engine.label}") as step:
        entry = begun.work.cache.get(
            "other_engines", key, lambda place: prepare(place, begun.teacher, calibration)
        )
        step.cached = entry.hit
    return entry.path


def _ours(variant: Variant, shapes: Sequence[Shape], options: ExperimentOptions) -> Model:
    session = options.session_on(variant.engine, stock=variant.stock_session)
    feeds = {shape: feeds_of(variant, shape) for shape in shapes}
    process = TimedProcess(variant.path, feeds[shapes[0]], session, engine=variant.engine)
    return Model(variant.name, variant.path, variant.engine, process, feeds)


def _theirs(
    name: str, directory: Path, rows: Sequence[features.Feature], shapes: Sequence[Shape], threads: int
) -> Model:
    feeds = {shape: list(features.fixed_shape_feeds(rows, *shape, _FEEDS)) for shape in shapes}
    command = (sys.executable, "-P", str(Path(__file__).resolve()), SERVE)
    process = TimedProcess(directory, feeds[shapes[0]], OtherConfig(threads), engine=name, worker=command)
    return Model(name, directory, name, process, feeds)


def _logits(
    model: Model, rows: Sequence[features.Feature], shape: Shape, threads: int
) -> npt.NDArray[np.float32]:
    """The logits for rows in batches of a shape, padded, on the model's own engine."""
    engine = OTHERS.get(model.engine) or get_engine(model.engine)
    loaded = LoadedModel(engine, model.path, engine.open(model.path, threads=threads))
    count = -(-len(rows) // shape.batch)
    feeds = features.fixed_shape_feeds(rows, *shape, count)
    return np.concatenate([loaded.run(loaded.feed(feed))[0] for feed in feeds])[: len(rows)]


def _times(
    models: Sequence[Model], shapes: Sequence[Shape], turns: int, block: int, steps: Steps
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, PairedRatio]]]:
    """Median milliseconds, and the teacher's time over each model's, by name and shape."""
    medians: dict[str, dict[str, float]] = {model.name: {} for model in models}
    speedups: dict[str, dict[str, PairedRatio]] = {model.name: {} for model in models}
    with ExitStack() as stack:
        with steps.step("start processes"):
            processes = [stack.enter_context(model.process) for model in models]
            for shape in shapes:
                _feed(models, processes, shape)
                for process in processes:
                    process.time(1)  # torch compiles now
        for shape in shapes:
            _feed(models, processes, shape)
            with steps.step(f"take turns at {shape}"):
                blocks = take_turns(processes, turns, block, wake_seconds=_WAKE_SECONDS)
            for model, times in zip(models, blocks, strict=True):
                medians[model.name][str(shape)] = float(np.median(times))
                speedups[model.name][str(shape)] = ratio_interval(blocks[0], times)
    return medians, speedups


def _feed(models: Sequence[Model], processes: Sequence[TimedProcess], shape: Shape) -> None:
    for model, process in zip(models, processes, strict=True):
        process.set_feeds(model.feeds[shape])


def as_table(results: Sequence[Result]) -> Table:
    """The results for a person to read."""
    table = plain_table()
    table.add_column("model", justify="left", no_wrap=True)
    shapes = list(results[0].median_ms)
    for heading in (
        "logit\nerror",
        "agree\n%",
        *(f"{s}\n{what}" for s in shapes for what in ("ms", "speed up")),
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        cells = [f"{result.logit_error:.4f}", f"{100 * result.agreement:.1f}"]
        for shape in shapes:
            cells += [f"{result.median_ms[shape]:.2f}", _ratio(result.speedup[shape])]
        table.add_row(result.name, *cells)
    return table


def _ratio(ratio: PairedRatio) -> str:
    """A ratio, and its interval where that is wider than it shows."""
    if ratio.high <= 1.05 * ratio.low:
        return f"{ratio.ratio:.2f}x"
    return f"{ratio.low:.1f}-{ratio.high:.1f}x"


# The command

app = new_app()


@app.command()
def main(
    teacher: Annotated[str, Option(help="Fine-tuned checkpoint of a BERT, DIR or HUB_ID.")],
    task: Annotated[str, Option(help=f"One of {', '.join(tasks.TASKS)}.")] = "BBC-News",
    data_dir: Annotated[Path | None, Option(help="Directory with the task's GLUE files.")] = None,
    recipes: Annotated[
        str, Option(help=f"Comma-separated names. Known: {', '.join(RECIPES | PEERS)}, and pruned ones.")
    ] = ",".join(OURS),
    shapes: Annotated[str, Option(help="BATCHxLENGTH, comma-separated.")] = "1x32,1x128,8x128",
    rows: Annotated[int, Option(min=1, help="Evaluation rows whose logits are compared.")] = 64,
    turns: Annotated[int, Option(min=0, help="How often all take turns; 0: nothing is timed.")] = 10,
    block: Annotated[int, Option(min=1, help="Runs of a model in a turn; their median counts.")] = 5,
    threads: Annotated[int | None, Option(min=1, help="Of a session; default: the physical cores.")] = None,
    calibration_samples: Annotated[int, Option(help="Rows that are calibrated on.")] = 512,
    cache_dir: Annotated[Path | None, Option(help="Where built models are kept.")] = None,
    json_file: Annotated[Path | None, Option("--json", help="Write the results to this file too.")] = None,
) -> None:
    """Compare variants with CTranslate2 and torch's int8: latency in turns, and the error of the logits."""
    if turns == 1:
        raise InputError("--turns 1: an interval needs 2 or more, and 0 times nothing")
    timed = [parse_shape(text, "--shapes") for text in split_names(shapes)]
    options = ExperimentOptions(
        task=task,
        data_dir=data_dir,
        teacher=teacher,
        no_student=True,
        recipes=split_names(recipes),
        seq_len=max(shape.length for shape in timed),
        calibration_samples=calibration_samples,
        cache_dir=cache_dir,
    )
    if json_file is not None:
        make_dir(json_file.parent)
    out = wide_console()
    results, left_out, provenance = compare_engines(
        options, timed, rows, turns, block, threads or default_threads(), Steps(out)
    )
    if json_file is not None:
        write_json(
            json_file, provenance | {"left_out": left_out, "results": [asdict(result) for result in results]}
        )
    out.print(as_table(results))
    for name, reason in left_out.items():
        out.print(f"{name} is left out: {reason}", highlight=False, markup=False, soft_wrap=True)


def cli(arguments: list[str] | None = None) -> int:
    """Run the command; what the user got wrong is one line on stderr and exit code 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    if sys.argv[1:] == [SERVE]:
        serve()
    else:
        sys.exit(cli())
