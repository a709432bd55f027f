"""The time of one block of a model at several widths, quantized by a recipe: a small table for this machine.

A block is rebuilt with random weights, so that it can have any width; several stand side by side in a model,
so that their weights do not stay in the nearest cache. Models of all widths take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.compression.calibration import Ranges, collect, derive
from quantlib.compression.pruning import ATTENTION, Cost, Form
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import Recipe
from quantlib.machine.sessions import SessionConfig
from quantlib.measuring.latency import TimedProcess
from quantlib.measuring.latency.interleaved import TurnOptions, paired_times, take_turns_until_precise
from quantlib.measuring.latency.paired import Start
from quantlib.measuring.latency.shapes import Shape
from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx

COPIES = 4
"""Blocks in a model that is timed; the time of one is a share of it."""

# Of all units, besides the fewest that are left.
_FRACTIONS = (0.25, 0.5, 0.75, 1.0)


def widths_to_time(form: Form) -> tuple[int, ...]:
    """The widths of a block that are timed, ascending; between them time is taken to grow evenly."""
    multiple = form.multiple
    fewest = min(multiple, form.units)
    if form.one_row:
        return tuple(sorted({fewest, form.units}))
    fractions = {max(fewest, round(each * form.units / multiple) * multiple) for each in _FRACTIONS}
    return tuple(sorted({fewest, form.units, *(each for each in fractions if each < form.units)}))


def time_blocks(
    forms: Collection[Form],
    recipe: Recipe,
    shape: Shape,
    session: SessionConfig,
    options: TurnOptions,
    scratch: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[Form, Cost]:
    """The milliseconds of a block of each form, by its width.

    Args:
        forms: of the blocks; at least one.
        recipe: by which they are quantized; what it prunes, smooths, or rounds by statistics does not count.
        shape: of the batches.
        session: in which they run.
        options: how much is timed.
        scratch: a directory for the models.
        progress: called after each turn with 1.

    Raises:
        InputError: other programs used so much of the machine that nothing is sure.
    """
    plain = replace(
        recipe,
        smooth=False,
        rounding="nearest",
        storage="as_computed",
        prune=0.0,
        widths=(),
        heads=(),
        nodes=(),
    )
    places = {
        f"{number} {width}": (form, width)
        for number, form in enumerate(dict.fromkeys(forms))
        for width in widths_to_time(form)
    }
    starts: dict[str, Start] = {}
    for name, (form, width) in places.items():
        feed = _feed(form, shape)
        path = _quantized(scratch / f"{name.replace(' ', '_')}.onnx", form, width, plain, feed)
        starts[name] = _start(path, feed, session)
    reference = next(iter(starts))
    turns = take_turns_until_precise(reference, starts, options, progress=progress)
    times = {name: paired_times(name, reference, turns, options) for name in starts}
    if any(each.disturbed for each in times.values()):
        raise InputError(
            "the time of a model's blocks is not sure while other programs use this machine; run it again "
            "when they have ended, or weigh blocks by operations (--no-time-blocks)"
        )
    reference_ms = float(np.median(times[reference].latency.times_ms)) / COPIES
    ms = {
        place: reference_ms * float(np.exp(-np.mean(list(times[name].log_ratios.values()))))
        for name, place in places.items()
    }
    return {form: _table({width: ms[form, width] for each, width in ms if each == form}) for form in forms}


def _table(ms: Mapping[int, float]) -> Cost:
    return Cost(tuple(sorted(ms)), tuple(ms[width] for width in sorted(ms)))


def _start(path: Path, feed: Mapping[str, Any], session: SessionConfig) -> Start:
    return lambda: TimedProcess(path, [feed], session)


def _feed(form: Form, shape: Shape) -> dict[str, Any]:
    """A random batch without padding."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(*shape, form.channels[0])).astype(np.float32)
    return {"x": x, "mask": np.ones(shape, np.int32)}


def _quantized(path: Path, form: Form, width: int, recipe: Recipe, feed: dict[str, Any]) -> Path:
    """Write a model of blocks, quantized."""
    import onnx

    plain = path.with_suffix(".float.onnx")
    onnx.save(block_model(form, width), plain)
    ranges: Ranges | None = None
    if recipe.mode == "static":
        tensors = tensors_to_calibrate(Model(plain), recipe)
        ranges = derive(collect(plain, [feed], tensors), recipe.calibration_method or "")
    return quantize_onnx(Model(plain), path, recipe, ranges)


def block_model(form: Form, width: int, copies: int = COPIES) -> onnx.ModelProto:
    """A float model of blocks of a width side by side, with random weights, as they are compiled.

    Its inputs are x, float32 (batch, sequence, channels), and mask, int32 (batch, sequence), which attention
    reads; its output is the blocks' sum.
    """
    from onnx import TensorProto, helper

    writer = _Writer(np.random.default_rng(0), [], [])
    read = writer.node("Identity", ["x"], "read")  # only what a node gives can be calibrated
    row = writer.node("Gather", [read, writer.constant("place", np.array([0]))], "row", axis=1)
    outputs = []
    for number in range(copies):
        name = f"layer.{number}"
        if form.kind == ATTENTION:
            outputs.append(_attention(writer, form, width, name, read, row))
        else:
            outputs.append(_ffn(writer, form, width, name, row if form.one_row else read))
    writer.node("Sum", outputs, "sum")
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", form.channels[0]]),
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "sequence"]),
    ]
    output = helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", "rows", form.channels[1]])
    # ONNX does not know what operators of another domain give.
    types = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for node in writer.nodes
        for name in node.output
        if node.domain
    ]
    graph = helper.make_graph(writer.nodes, "blocks", inputs, [output], writer.constants, value_info=types)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _ffn(writer: _Writer, form: Form, width: int, name: str, x: str) -> str:
    into, out = form.channels
    hidden = writer.linear(x, f"{name}.intermediate.dense", into, form.copies * width)
    if form.copies == 1:
        active = writer.node("Gelu", [hidden], f"{name}/Gelu", domain=_MICROSOFT)
    else:
        half, gate = writer.nodes_of("Split", [hidden], [f"{name}/half", f"{name}/gate"], axis=2)
        gelu = writer.node("Gelu", [half], f"{name}/Gelu", domain=_MICROSOFT)
        active = writer.node("Mul", [gelu, gate], f"{name}/Mul")
    return writer.linear(active, f"{name}.output.dense", width, out)


def _attention(writer: _Writer, form: Form, heads: int, name: str, x: str, row: str) -> str:
    (into, out), width = form.channels, heads * form.size
    place = f"{name}.attention.self"
    if form.one_row:
        query = writer.linear(row, f"{place}.query", into, width)
        pair = writer.linear(x, f"{place}.key_value", into, 2 * width)
        key, value = writer.nodes_of("Split", [pair], [f"{name}/key", f"{name}/value"], axis=2)
        inputs = [query, key, value, "", "mask"]
        operator = "MultiHeadAttention"
    else:
        weight, bias = writer.weights(f"{place}.qkv", into, 3 * width)
        inputs, operator = [x, weight, bias, "mask"], "Attention"
    joined = writer.node(operator, inputs, f"{place}.qkv/{operator}", domain=_MICROSOFT, num_heads=heads)
    return writer.linear(joined, f"{name}.attention.output.dense", width, out)


_MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class _Writer:
    """Adds nodes and random constants to lists of them; methods give the names of outputs."""

    draw: np.random.Generator
    nodes: list[onnx.NodeProto]
    constants: list[onnx.TensorProto]

    def constant(self, name: str, array: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, name: str, into: int, out: int) -> tuple[str, str]:
        """A weight (into, out) and a bias (out,)."""
        weight = self.draw.normal(0, into**-0.5, (into, out)).astype(np.float32)
        bias = self.draw.normal(0, 0.1, out).astype(np.float32)
        return self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)

    def linear(self, x: str, name: str, into: int, out: int) -> str:
        weight, bias = self.weights(name, into, out)
        product = self.node("MatMul", [x, weight], f"{name}/MatMul")
        return self.node("Add", [product, bias], f"{name}/Add")

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        return self.nodes_of(operator, inputs, [name], **attributes)[0]

    def nodes_of(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> Sequence[str]:
        from onnx import helper

        self.nodes.append(
            helper.make_node(operator, list(inputs), list(outputs), name=outputs[0], **attributes)
        )
        return outputs
