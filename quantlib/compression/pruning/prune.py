"""A model without some neurons of its feed-forward blocks, the weights behind them refitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantlib.compression.calibration import Gram, add_grams, collect_grams
from quantlib.compression.pruning.ffn import FeedForward, find_ffns, sharing
from quantlib.compression.pruning.surgeon import DAMPING, Elimination, FloatArray, IntArray, eliminate, refit
from quantlib.data.features import Feed
from quantlib.onnx_model.layers import Linear, constant, initializer, load_ir
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file

if TYPE_CHECKING:
    import onnx_ir as ir

MULTIPLE = 32
"""Numbers of neurons are multiples of this, as kernels like them."""

Widths = Mapping[str, int]
"""How many neurons each block keeps, by its name ("layer.3.ffn")."""


@dataclass(frozen=True)
class Block:
    """A feed-forward block to choose a width for: its name and its number of neurons.

    Blocks that share their weights are one, with the name of the first.
    """

    name: str
    neurons: int


def blocks_of(onnx_path: Path) -> list[Block]:
    """The feed-forward blocks of a float model.

    Raises:
        InputError: it has none that can be pruned.
    """
    groups = sharing(find_ffns(load_ir(onnx_path), onnx_path))
    return [Block(group[0].name, group[0].neurons) for group in groups]


def even_widths(blocks: Iterable[Block], share: float, multiple: int = MULTIPLE) -> dict[str, int]:
    """The widths when every block loses the same share, rounded to a multiple, at least one multiple.

    Raises:
        InputError: the share is not from 0 to below 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"a share of {share} to prune is out of range; it must be at least 0 and below 1")
    return {block.name: rounded((1 - share) * block.neurons, block.neurons, multiple) for block in blocks}


def rounded(width: float, neurons: int, multiple: int = MULTIPLE) -> int:
    """A width that kernels like, from one multiple to all neurons."""
    return min(neurons, max(multiple, round(width / multiple) * multiple))


def collect_ffn_grams(
    onnx_path: Path,
    feeds: Iterable[Feed],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Gram]:
    """The Gram matrix of the neurons of each of `blocks_of`, by the block's name.

    Args:
        onnx_path: the float model. feeds: calibration rows. threads, progress: as of `collect_grams`.

    Raises:
        InputError: as `find_ffns` and `collect_grams`.
    """
    ffns = find_ffns(load_ir(onnx_path), onnx_path)
    tensors = [ffn.activation for ffn in ffns]
    grams = collect_grams(onnx_path, feeds, tensors, threads=threads, progress=progress)
    return {group[0].name: add_grams([grams[ffn.activation] for ffn in group]) for group in sharing(ffns)}


def eliminations(
    onnx_path: Path,
    grams: Mapping[str, Gram],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Elimination]:
    """The order in which the neurons of each block go, by the block's name.

    Args:
        onnx_path: the float model. grams: from `collect_ffn_grams` of it.
        threads: of the linear algebra. progress: called after each block with 1.

    Raises:
        InputError: the Gram matrices are another model's, or not finite (the block is named).
    """
    from threadpoolctl import threadpool_limits

    ffns = find_ffns(load_ir(onnx_path), onnx_path)
    found: dict[str, Elimination] = {}
    with threadpool_limits(threads):
        for group in sharing(ffns):
            first = group[0]
            with _naming(onnx_path, first):
                found[first.name] = eliminate(_gram_of(grams, first), first.output.weight)
            if progress:
                progress(1)
    return found


def prune_onnx(
    onnx_path: Path,
    out_path: Path,
    widths: Widths,
    grams: Mapping[str, Gram],
    orders: Mapping[str, Elimination],
    *,
    damping: float = DAMPING,
) -> Path:
    """Write a float model whose blocks keep `widths` neurons; the model itself is left alone.

    Args:
        onnx_path: the float model, before it is compiled.
        out_path: the file to write.
        widths: neurons to keep, by block; blocks that are not named, or keep all of theirs, stay as they are.
        grams: from `collect_ffn_grams`. orders: from `eliminations`.
        damping: of the refit.

    Returns:
        out_path.

    Raises:
        InputError: a block that the model does not have, a width below 1 or above the number of neurons,
            other widths for blocks that share their weights, or Gram matrices of another model.
    """
    import onnx_ir as ir

    model = load_ir(onnx_path)
    ffns = find_ffns(model, onnx_path)
    _check_widths(ffns, widths, onnx_path)
    for group in sharing(ffns):
        first = group[0]
        width = next((widths[ffn.name] for ffn in group if ffn.name in widths), first.neurons)
        if width < first.neurons:
            with _naming(onnx_path, first):
                gram = _gram_of(grams, first)
                kept = orders[first.name].kept(width)
                weight, bias = refit(gram, first.output.weight, _bias(first), kept, damping=damping)
            _shrink(model.graph, group, kept, weight, bias)
    with atomic_file(out_path) as scratch:
        ir.save(model, scratch)
    return out_path


def _check_widths(ffns: list[FeedForward], widths: Widths, onnx_path: Path) -> None:
    known = {ffn.name: ffn.neurons for ffn in ffns}
    for name, width in widths.items():
        if name not in known:
            raise InputError(
                f"{onnx_path}: the model has no block {name!r} to prune; it has {', '.join(known)}"
            )
        if not 1 <= width <= known[name]:
            raise InputError(f"{onnx_path}: {name} is to keep {width} neurons; it must be 1 to {known[name]}")
    for group in sharing(ffns):
        wanted = {ffn.name: widths[ffn.name] for ffn in group if ffn.name in widths}
        if len(set(wanted.values())) > 1:
            several = ", ".join(f"{name} {width}" for name, width in wanted.items())
            raise InputError(
                f"{onnx_path}: blocks that share their weights need the same width, not {several}"
            )


def _gram_of(grams: Mapping[str, Gram], ffn: FeedForward) -> Gram:
    if ffn.name not in grams or grams[ffn.name].channels != ffn.neurons:
        raise InputError(f"no Gram matrix of {ffn.neurons} neurons; they are those of another model")
    return grams[ffn.name]


@contextmanager
def _naming(onnx_path: Path, ffn: FeedForward) -> Iterator[None]:
    """Say in errors of the linear algebra which model and block they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{onnx_path}: {ffn.name}: {error}") from error


def _bias(ffn: FeedForward) -> FloatArray:
    bias = constant(ffn.output.bias)
    assert bias is not None  # find_ffns refuses a block without one
    return bias


def _shrink(
    graph: ir.Graph, group: list[FeedForward], kept: IntArray, weight: FloatArray, bias: FloatArray
) -> None:
    """Leave blocks that share their weights these neurons, with this weight and bias behind them."""
    into, out_of = group[0].input, group[0].output
    into_weight, into_bias = into.weight[:, kept], constant(into.bias)
    transposed = (into.transposed, out_of.transposed)
    _set(graph, [(f.input.node, 1) for f in group], into_weight.T if transposed[0] else into_weight)
    if into_bias is not None:
        _set(graph, [_place(f.input) for f in group], into_bias[kept])
    _set(graph, [(f.output.node, 1) for f in group], weight.T if transposed[1] else weight)
    _set(graph, [_place(f.output) for f in group], bias)
    for ffn in group:
        for node in {ffn.input.node, ffn.input.last, *ffn.between}:
            for value in node.outputs:
                _narrow(value, len(kept))


def _place(layer: Linear) -> tuple[ir.Node, int]:
    """The node that adds a layer's bias, and which of its inputs the bias is."""
    return layer.last, list(layer.last.inputs).index(layer.bias)


def _set(graph: ir.Graph, places: list[tuple[ir.Node, int]], array: FloatArray) -> None:
    """Give inputs that share a constant a new one; other nodes that read the old one keep it."""
    import onnx_ir as ir

    node, place = places[0]
    value = node.inputs[place]
    assert value is not None
    array = np.ascontiguousarray(array)
    if len(list(value.uses())) == len(places):
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        return
    new = initializer(graph, f"{value.name}/{node.name}", array)
    for each, place in places:
        each.replace_input_with(place, new)


def _narrow(value: ir.Value, neurons: int) -> None:
    """Declare the new size of a tensor's last axis."""
    import onnx_ir as ir

    if value.shape is not None and len(value.shape):
        value.shape = ir.Shape([*list(value.shape)[:-1], neurons])
