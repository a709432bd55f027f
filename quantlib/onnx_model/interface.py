"""What a classifier's file takes and gives, read from its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.data.features import EMBEDDING, INPUT_NAMES, LOGITS
from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Interface:
    """What a classifier or an embedding model takes and gives.

    sha256: of the file. inputs: their names. logits: how many a row gets. output: what they are called.
    """

    sha256: str
    inputs: tuple[str, ...]
    logits: int
    output: str


def interface_of(onnx_path: Path) -> Interface:
    """The interface of a classifier of text.

    Raises:
        InputError: the file is no ONNX model, takes something else than token ids, mask and token types, has
            a fixed number of rows or tokens, or gives no logits of (rows, labels).
    """
    model = Model(onnx_path)
    graph = model.skeleton.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    names = tuple(value.name for value in inputs)
    unknown = [name for name in names if name not in INPUT_NAMES]
    if unknown or "input_ids" not in names:
        raise InputError(
            f"{onnx_path}: its inputs are {', '.join(names) or 'none'}; a classifier of text takes "
            f"{', '.join(INPUT_NAMES)}, the last two at will{_hint(unknown)}"
        )
    for value in inputs:
        dimensions = _dimensions(value)
        if dimensions is None or len(dimensions) != 2:
            raise InputError(f"{onnx_path}: input {value.name} has no shape (rows, tokens)")
        for count, what in zip(dimensions, ("rows", "tokens"), strict=True):
            if count is not None:
                raise InputError(
                    f"{onnx_path}: input {value.name} is fixed to {count} {what}; "
                    "export it with a free number of them"
                )
    output, logits = _logits(onnx_path, graph)
    return Interface(model.sha256, names, logits, output)


def _hint(unknown: Sequence[str]) -> str:
    """What to do about inputs of these names, if that is known."""
    if "position_ids" in unknown:
        return "; export it without position_ids, so that the graph counts the positions"
    if any("." in name for name in unknown):
        return "; torch.onnx.export names them by input_names"
    return f"; not {', '.join(unknown)}" if unknown else ""


def logits_name(onnx_path: Path, outputs: Mapping[str, Sequence[object] | None]) -> str:
    """The name of the output that holds the logits or the embedding: a known one, the only one, or its shape.

    Args:
        onnx_path: for the message.
        outputs: {name: its dimensions, those that are fixed as integers}; None where no shape is given.

    Raises:
        InputError: there is none, or it cannot be told; the message names the outputs.
    """
    for name in (LOGITS, EMBEDDING):
        if name in outputs:
            return name
    if len(outputs) == 1:
        return next(iter(outputs))
    fitting = [
        name
        for name, shape in outputs.items()
        if shape is not None and len(shape) == 2 and isinstance(shape[1], int)
    ]
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"{onnx_path}: its outputs are {', '.join(outputs) or 'none'}; a classifier gives logits of (rows, "
        "labels), the number of labels fixed: name them logits, or have one output of that shape"
    )


def _logits(onnx_path: Path, graph: onnx.GraphProto) -> tuple[str, int]:
    outputs = {value.name: _dimensions(value) for value in graph.output}
    name = logits_name(onnx_path, outputs)
    dimensions = outputs[name]
    if dimensions is None or len(dimensions) != 2 or dimensions[1] is None:
        raise InputError(
            f"{onnx_path}: a classifier gives logits of (rows, labels), the number of labels fixed; "
            f"its output {name} has another shape"
        )
    return name, dimensions[1]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None] | None:
    """The dimensions, None for those that are free; None where no shape is given."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
