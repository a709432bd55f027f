"""All layers of an encoder from the trace of three: tracing is what an export spends its time on."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantlib.training.architectures import of_model

if TYPE_CHECKING:
    import onnx

# The first layer also computes the shapes that all share; the step from the second to the third is that of
# every later one.
TRACED = 3


@dataclass(frozen=True)
class Stack:
    """The encoder layers of a model: the module that holds them ("bert.encoder.layer"), and they."""

    name: str
    layers: Any

    def layer_of(self, name: str) -> int | None:
        """The layer that a node, tensor or weight belongs to; None outside the layers."""
        found = re.match(rf"{re.escape(self.name)}\.(\d+)[./]", name)
        return int(found[1]) if found else None

    def moved(self, name: str, by: int) -> str:
        """The name of the same thing `by` layers later; a name outside the layers stays."""
        layer = self.layer_of(name)
        rest = name[len(f"{self.name}.{layer}") :]
        return name if layer is None else f"{self.name}.{layer + by}{rest}"


def find_stack(model: Any) -> Stack | None:
    """The layers of a model where there are more than three, each used once, and they are built alike."""
    architecture = of_model(model)
    stack = Stack(architecture.layers, model.get_submodule(architecture.layers))
    if architecture.layers_are_shared or len(stack.layers) <= TRACED:
        return None
    forms = {(repr(layer), _shapes(layer), len(list(layer.buffers()))) for layer in stack.layers}
    return stack if len(forms) == 1 and next(iter(forms))[2] == 0 else None


def _shapes(layer: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


@contextmanager
def shortened(model: Any, stack: Stack) -> Iterator[Stack]:
    """Within the block, the model has three layers: copies of its first, with weights drawn at random.

    All weights then differ, so that the exporter, which merges equal ones, keeps each under its own name.

    Yields:
        The three layers.
    """
    import torch

    holder, _, name = stack.name.rpartition(".")
    parent = model.get_submodule(holder)
    sample = Stack(stack.name, copy.deepcopy(stack.layers[:TRACED]))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sample.layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    setattr(parent, name, sample.layers)
    try:
        yield sample
    finally:
        setattr(parent, name, stack.layers)


def repeat_layer(proto: onnx.ModelProto, stack: Stack, sample: Stack) -> bool:
    """Make the trace of a shortened model that of the whole: every layer is there with its weights; in place.

    The layers that the trace lacks are copies of the third.

    Where the second layer reads x and the third does too, every layer reads x (a shape, the mask); where one
    reads its own or the previous layer's x, so does every layer. `name_nodes` has named everything after its
    module.

    Args:
        proto: the trace.
        stack: the layers of the whole model.
        sample: those that were traced.

    Returns:
        False, and nothing is changed, where the third layer is not the second one step later, or the weights
        of a layer are not those of its module.
    """
    graph = proto.graph
    runs = [layer for layer, _ in itertools.groupby(graph.node, lambda node: stack.layer_of(node.name))]
    if [layer for layer in runs if layer is not None] != list(range(TRACED)):
        return False
    second, third = ([n for n in graph.node if stack.layer_of(n.name) == layer] for layer in (1, 2))
    transposed = _transposed(graph, sample)
    if transposed is None or len(second) != len(third):
        return False
    if not all(_follows(before, node, stack) for before, node in zip(second, third, strict=True)):
        return False
    steps = {
        node.name: [old != new for old, new in zip(before.input, node.input, strict=True)]
        for before, node in zip(second, third, strict=True)
    }

    def renamed(value: Any, by: int) -> Any:
        twin = type(value)()
        twin.CopyFrom(value)
        twin.name = stack.moved(value.name, by)
        return twin

    def copied_node(node: Any, by: int) -> Any:
        twin = renamed(node, by)
        twin.output[:] = [stack.moved(name, by) for name in node.output]
        pairs = zip(node.input, steps[node.name], strict=True)
        twin.input[:] = [stack.moved(name, by) if moves else name for name, moves in pairs]
        return twin

    for node in graph.node:
        if stack.layer_of(node.name) is None:  # what follows the layers reads the last one
            for i, name in enumerate(node.input):
                if stack.layer_of(name) == TRACED - 1:
                    node.input[i] = stack.moved(name, len(stack.layers) - TRACED)
    _repeat(graph.node, stack, copied_node)
    _repeat(graph.value_info, stack, renamed)
    for tensor in graph.initializer:
        if tensor.name in transposed:
            tensor.raw_data = b""  # filled below, so that no weights are copied with the messages
    _repeat(graph.initializer, stack, renamed)
    _fill(graph, stack, transposed)
    return True


def _fill(graph: onnx.GraphProto, stack: Stack, transposed: dict[str, bool]) -> None:
    """Give each weight of the layers its values; those of a traced layer tell which are transposed."""
    for tensor in graph.initializer:
        layer = stack.layer_of(tensor.name)
        if layer is not None:
            like = stack.moved(tensor.name, min(layer, TRACED - 1) - layer)
            tensor.raw_data = _raw(stack, tensor.name, transpose=transposed[like])


def _follows(before: onnx.NodeProto, node: onnx.NodeProto, stack: Stack) -> bool:
    """Is `node` what `before` is one layer later?"""
    return (
        (node.op_type, node.domain, list(node.attribute))
        == (before.op_type, before.domain, list(before.attribute))
        and [node.name, *node.output] == [stack.moved(name, 1) for name in (before.name, *before.output)]
        and len(node.input) == len(before.input)
        and all(new in (old, stack.moved(old, 1)) for old, new in zip(before.input, node.input, strict=True))
    )


def _transposed(graph: onnx.GraphProto, sample: Stack) -> dict[str, bool] | None:
    """Which weights of the traced layers are transposed in the graph; None if one is missing or unknown."""
    found = {}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for layer, module in enumerate(sample.layers):
        weights = {f"{sample.name}.{layer}.{name}": p.ndim for name, p in module.named_parameters()}
        if weights.keys() != {name for name in tensors if sample.layer_of(name) == layer}:
            return None
        for name, rank in weights.items():
            raw = tensors[name].raw_data
            turns = (False, True) if rank == 2 else (False,)
            same = [turn for turn in turns if _raw(sample, name, transpose=turn) == raw]
            if len(same) != 1:
                return None
            found[name] = same[0]
    return found


def _raw(stack: Stack, name: str, *, transpose: bool) -> bytes:
    """The bytes of a weight as the graph holds them."""
    value = stack.layers.get_parameter(name.removeprefix(f"{stack.name}.")).detach()
    return bytes((value.t() if transpose else value).contiguous().numpy().tobytes())


def _repeat(items: Any, stack: Stack, copied: Callable[[Any, int], Any]) -> None:
    """After each run of things of the third layer, the same of the layers that follow it."""
    whole: list[Any] = []
    for layer, run in itertools.groupby(items, lambda item: stack.layer_of(item.name)):
        third = list(run)
        whole += third
        if layer == TRACED - 1:
            later: Iterable[int] = range(1, len(stack.layers) - TRACED + 1)
            whole += [copied(item, by) for by in later for item in third]
    del items[:]
    items.extend(whole)
