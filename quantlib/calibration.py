"""Stream activations once and keep their ranges.

The model is given outputs that reduce each activation to its smallest and largest value, so a batch leaves a
few numbers for each tensor and the memory in use does not grow with the number of rows.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.errors import InputError
from quantlib.features import Feed
from quantlib.files import place_errors, write_json

if TYPE_CHECKING:
    import onnx

# The sum of magnitudes finds NaN: ReduceMin and ReduceMax skip it wherever it does not come first.
_REDUCTIONS = {"min": "ReduceMin", "max": "ReduceMax", "magnitude": "ReduceL1"}


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
    from quantlib.runtime import feed_for, open_session, runtime_errors, shorten

    model = load_with_shapes(onnx_path)
    tensors = activations(model)
    lows: Any = None
    highs: Any = None
    with tempfile.TemporaryDirectory() as scratch:
        augmented = Path(scratch) / "augmented.onnx"
        with place_errors(augmented):
            save(_with_extrema(model, tensors), augmented)
        session = open_session(augmented, threads=threads)
        names = [f"{kind}/{tensor}" for kind in _REDUCTIONS for tensor in tensors]
        for number, feed in enumerate(feeds):
            try:
                reduced = session.run(names, feed_for(session, feed))
            except runtime_errors() as error:
                raise InputError(
                    f"{onnx_path}: cannot be run on {feed['input_ids'].shape}: {shorten(str(error))}"
                ) from error
            low, high, total = np.array(reduced, dtype=np.float32).reshape(len(_REDUCTIONS), -1)
            bad = ~np.isfinite(low) | ~np.isfinite(high) | np.isnan(total)
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

    from quantlib.runtime import shorten

    if not onnx_path.is_file():
        raise InputError(f"{onnx_path}: no such ONNX model")
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(onnx_path))
    except (DecodeError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise InputError(f"{onnx_path}: not an ONNX file: {shorten(str(error))}") from error
    if not model.graph.node:
        raise InputError(f"{onnx_path}: not an ONNX file: it holds no graph")
    return model


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
    del augmented.graph.node[:]
    wanted = set(tensors)
    for node in model.graph.node:
        augmented.graph.node.append(node)
        # Right behind the node, so that the activation can be freed when its users are done.
        for tensor in wanted.intersection(node.output):
            for kind, op_type in _REDUCTIONS.items():
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
