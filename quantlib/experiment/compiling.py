"""The compiled graph of a float model: the step between export and quantization."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from quantlib.compression.variants import COMPILED, TEACHER, VariantName
from quantlib.experiment.work import Variant, Work, cached, cached_model, file_hash
from quantlib.machine.engines import DEFAULT_ENGINE, get_engine
from quantlib.onnx_model import compile
from quantlib.onnx_model.model import Model
from quantlib.onnx_model.parity import ParityError
from quantlib.support.cache import versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import write_json
from quantlib.support.progress import Step


def compiled(work: Work, fp32: Variant, engine: str = DEFAULT_ENGINE) -> tuple[Variant, compile.Compiled]:
    """What `compile_onnx` makes of a float model for an engine, to stand beside it, and what was done to it.

    Raises:
        InputError: a graph that the user gave computes something else when it is compiled.
        RuntimeError: one that was exported here does.
    """
    given = fp32.name == TEACHER and work.options.teacher_is_onnx
    operators = get_engine(engine).operators
    model, report = compiled_model(work, fp32.name, fp32.model, given=given, operators=operators)
    name = replace(VariantName.parse(fp32.name), step=COMPILED, engine=engine)
    file = fp32.file.with_name(name.file_name)
    return replace(fp32, name=str(name), model=model, file=file, engine=engine), report


def normalized(work: Work, fp32: Variant) -> Variant:
    """A float model in the form of quantlib's own export, which a graph of another exporter is brought into.

    Returns:
        The model itself where it has that form, or cannot be brought into it.

    Raises:
        InputError: its logits are others then.
    """

    def make(directory: Path, _: Step) -> None:
        try:
            changed = compile.normalize_onnx(
                fp32.path, directory / "model.onnx", threads=work.options.threads
            )
        except ParityError as error:
            raise InputError(f"{error}; it cannot be pruned") from error
        write_json(directory / "graph.json", {"changed": changed})

    if not (fp32.name == TEACHER and work.options.teacher_is_onnx):
        return fp32
    key = {"model": fp32.model.sha256, "versions": versions_key("onnx", "onnxruntime", "onnx-ir", "numpy")}
    path = cached(work, f"read the graph of {fp32.name}", "compiled", key, make) / "model.onnx"
    return replace(fp32, model=Model(path, known_sha256=file_hash(path))) if path.exists() else fp32


def compiled_model(
    work: Work,
    name: str,
    source: Model,
    *,
    given: bool = False,
    operators: compile.Operators = "microsoft",
) -> tuple[Model, compile.Compiled]:
    """The compiled graph of a float model, and what was done to it.

    name: of the model, in the steps of the run. given: whether the graph is the user's own. operators: as for
    `compile_onnx`.

    Raises:
        InputError, RuntimeError: as `compiled`.
    """
    key = {
        "model": source.sha256,
        "operators": operators,
        "versions": versions_key("onnx", "onnxruntime", "onnx-ir", "onnxscript", "numpy"),
    }
    threads = work.options.threads  # of the parity check: they do not decide the model

    def make(directory: Path, step: Step) -> None:
        try:
            report = compile.compile_onnx(
                source.path, directory / "model.onnx", operators=operators, threads=threads
            )
        except ParityError as error:
            if not given:
                raise
            # A graph of another origin may rest on rounding that compiling does not keep.
            raise InputError(f"{error}; --no-compile quantizes the graph as it is") from error
        write_json(directory / "compiled.json", asdict(report) | {"path": None})

    words = "" if operators == "microsoft" else f" to {operators} operators"
    model = cached_model(work, f"compile {name}{words}", "compiled", key, make)
    report = json.loads((model.path.parent / "compiled.json").read_text(encoding="utf-8"))
    report |= {"path": model.path, "left": tuple(report["left"])}
    return model, compile.Compiled(**report)
