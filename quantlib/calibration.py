"""Stream activations once and keep their ranges.

The model is given outputs that reduce each activation to its smallest and largest value, so a row leaves two
numbers for each tensor and the memory in use does not grow with the number of rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.errors import InputError
from quantlib.features import Feed
from quantlib.files import write_json

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Ranges:
    """The range of each activation: {tensor name: (lowest, highest)}, float32 values."""

    of: dict[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.of.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise InputError(f"range of {name}: {low}..{high} is not a range")


def calibrate_min_max(
    onnx_path: Path,
    feeds: Iterable[Feed],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """The smallest and largest value that each float activation takes over all feeds.

    Args:
        onnx_path: the FP32 model.
        feeds: what to run, once each.
        threads: of the session; the physical cores by default.
        progress: called after each feed with the number of its rows.

    Raises:
        InputError: there is no feed, or an activation is NaN or infinite (which tensor, at which feed).
    """
    import tempfile

    from quantlib.runtime import feed_for, open_session

    model = load_with_shapes(onnx_path)
    tensors = activations(model)
    lows: Any = None
    highs: Any = None
    with tempfile.TemporaryDirectory() as scratch:
        augmented = Path(scratch) / "augmented.onnx"
        save(_with_extrema(model, tensors), augmented)
        session = open_session(augmented, threads=threads)
        names = [f"{kind}/{tensor}" for kind in ("min", "max") for tensor in tensors]
        for number, feed in enumerate(feeds):
            extrema = np.array(session.run(names, feed_for(session, feed)), dtype=np.float32)
            low, high = extrema[: len(tensors)], extrema[len(tensors) :]
            bad = ~np.isfinite(low) | ~np.isfinite(high)
            if bad.any():
                raise InputError(
                    f"{onnx_path}: activation {tensors[int(np.argmax(bad))]} is NaN or infinite "
                    f"at calibration batch {number}"
                )
            lows = low if lows is None else np.minimum(lows, low)
            highs = high if highs is None else np.maximum(highs, high)
            if progress:
                progress(len(feed["input_ids"]))
    if lows is None:
        raise InputError("no calibration rows: the calibration set is empty")
    return Ranges({t: (float(a), float(b)) for t, a, b in zip(tensors, lows, highs, strict=True)})


def load_with_shapes(onnx_path: Path) -> onnx.ModelProto:
    """A model with the types of its intermediate tensors filled in.

    Raises:
        InputError: the file is missing or not an ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not onnx_path.is_file():
        raise InputError(f"{onnx_path}: no such ONNX model")
    try:
        return onnx.shape_inference.infer_shapes(onnx.load(onnx_path))
    except DecodeError as error:
        raise InputError(f"{onnx_path}: not an ONNX file: {error}") from error


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model in one file (a protobuf ends at 2 GiB, beyond BERT-large)."""
    import onnx

    onnx.save(model, path)


def activations(model: onnx.ModelProto) -> list[str]:
    """The float tensors that nodes compute, in graph order."""
    import onnx

    known = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    outputs = [name for node in model.graph.node for name in node.output]
    return [name for name in outputs if known.get(name) == onnx.TensorProto.FLOAT]


def _with_extrema(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    import onnx
    from onnx.helper import make_node, make_tensor_value_info

    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    for kind, op_type in (("min", "ReduceMin"), ("max", "ReduceMax")):
        for tensor in tensors:
            name = f"{kind}/{tensor}"
            augmented.graph.node.append(make_node(op_type, [tensor], [name], name=name, keepdims=0))
            augmented.graph.output.append(make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
    return augmented


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges as JSON, whole or not at all."""
    write_json(path, {name: list(pair) for name, pair in ranges.of.items()})


def read_ranges(path: Path) -> Ranges:
    """Read what `write_ranges` wrote."""
    pairs = json.loads(path.read_text(encoding="utf-8"))
    return Ranges({name: (low, high) for name, (low, high) in pairs.items()})
