"""The compiled graph of a float model: the step between export and quantization."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from quantlib.compression.variants import COMPILED, VariantName
from quantlib.experiment.work import Variant, Work, cached
from quantlib.onnx_model import compile
from quantlib.support.cache import code_key, versions_key
from quantlib.support.files import sha256_file, write_json
from quantlib.support.progress import Step


def compiled(work: Work, fp32: Variant) -> tuple[Variant, compile.Compiled]:
    """What `compile_onnx` makes of a float model, to stand beside it, and what was done to it.

    Raises:
        RuntimeError: the compiled graph computes something else.
    """
    key = {
        "model": sha256_file(fp32.path),
        "versions": versions_key("onnx", "onnxruntime", "onnx-ir", "onnxscript", "numpy"),
        "code": code_key("onnx_model.compile", "onnx_model.layers", "onnx_model.roles", "machine.sessions"),
    }

    def make(directory: Path, step: Step) -> None:
        found = compile.compile_onnx(fp32.path, directory / "model.onnx")
        write_json(directory / "compiled.json", asdict(found) | {"path": None})

    directory = cached(work, f"compile {fp32.name}", "compiled", key, make)
    path = directory / "model.onnx"
    report = json.loads((directory / "compiled.json").read_text(encoding="utf-8"))
    report |= {"path": path, "left": tuple(report["left"])}
    name = replace(VariantName.parse(fp32.name), step=COMPILED)
    variant = replace(fp32, name=str(name), path=path, file=fp32.file.with_name(name.file_name))
    return variant, compile.Compiled(**report)
