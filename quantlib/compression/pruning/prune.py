"""A model without some neurons and attention heads, the weights behind them refitted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantlib.compression.calibration import Gram, add_grams, collect_grams
from quantlib.compression.pruning.cut import cut
from quantlib.compression.pruning.ffn import find_ffns
from quantlib.compression.pruning.heads import find_attentions
from quantlib.compression.pruning.parts import ATTENTION, FFN, UNITS, Group, grouped
from quantlib.compression.pruning.surgeon import DAMPING, Elimination, eliminate, refit
from quantlib.data.features import Feed
from quantlib.onnx_model.layers import load_ir, skeleton_ir
from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError, naming
from quantlib.support.files import atomic_file
from quantlib.support.widths import NEURONS_MULTIPLE, rounded

if TYPE_CHECKING:
    import onnx_ir as ir

Widths = Mapping[str, int]
"""How many neurons or heads each block keeps, by its name ("layer.3.ffn", "layer.3.attention")."""

KINDS = (FFN, ATTENTION)


@dataclass(frozen=True)
class Block:
    """What a width is chosen for: the neurons of a feed-forward block, or the heads of an attention.

    Blocks that share their weights are one, with the name of the first. units: how many it has. multiple:
    how many go together, as kernels like them.
    """

    name: str
    units: int
    multiple: int = NEURONS_MULTIPLE

    @property
    def unit(self) -> str:
        """What it is made of: "neuron" or "head"."""
        return UNITS[self.name.split(".")[-1].partition("_")[0]]

    @property
    def half(self) -> int:
        """About half of the units."""
        return rounded(self.units / 2, self.units, self.multiple)


def blocks_of(onnx_path: Path, kinds: Collection[str] = KINDS) -> list[Block]:
    """What can be pruned of a float model: feed-forward blocks, and attentions whose heads are told apart.

    Raises:
        InputError: it has no feed-forward blocks that can be pruned.
    """
    graph = skeleton_ir(Model(onnx_path))
    return [block_of(group) for group in find_groups(graph, onnx_path, kinds)]


def block_of(group: Group) -> Block:
    """The block that parts with the same weights are."""
    return Block(group.name, group.first.units, NEURONS_MULTIPLE if group.first.kind == FFN else 1)


def find_groups(model: ir.Model, onnx_path: Path, kinds: Collection[str] = KINDS) -> list[Group]:
    """The parts of a graph that can be pruned, by their weights: feed-forward blocks first.

    Raises:
        InputError: as `blocks_of`.
    """
    parts = find_ffns(model, onnx_path) if FFN in kinds else []
    return grouped([*parts, *(find_attentions(model)[0] if ATTENTION in kinds else [])])


def collect_block_grams(
    onnx_path: Path,
    feeds: Iterable[Feed],
    kinds: Collection[str] = KINDS,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Gram]:
    """The Gram matrix of the neurons, or of the heads' channels, of each of `blocks_of`, by its name.

    Args:
        onnx_path: the float model. feeds: calibration rows. threads, progress: as of `collect_grams`.

    Raises:
        InputError: as `blocks_of` and `collect_grams`.
    """
    groups = find_groups(skeleton_ir(Model(onnx_path)), onnx_path, kinds)
    tensors = [part.activation for group in groups for part in group.parts]
    grams = collect_grams(onnx_path, feeds, tensors, threads=threads, progress=progress)
    return {group.name: add_grams([grams[part.activation] for part in group.parts]) for group in groups}


def eliminations(
    onnx_path: Path,
    grams: Mapping[str, Gram],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Elimination]:
    """The order in which the units of each block go, by the block's name.

    Args:
        onnx_path: the float model; of one that is `mapped`, weights are read one at a time. grams: from
            `collect_block_grams` of it.
        threads: of the linear algebra. progress: called after each block with 1.

    Raises:
        InputError: the Gram matrices are another model's, or not finite (the block is named).
    """
    from threadpoolctl import threadpool_limits

    orders: dict[str, Elimination] = {}
    groups = find_groups(load_ir(onnx_path, mapped=True), onnx_path)
    unknown = grams.keys() - {group.name for group in groups}
    if unknown:
        raise InputError(f"{onnx_path}: Gram matrices of {min(unknown)}: they are those of another model")
    with threadpool_limits(threads):
        for group in (each for each in groups if each.name in grams):
            first = group.first
            with naming(f"{onnx_path}: {group.name}"):
                gram = _gram_of(grams, group)
                orders[group.name] = eliminate(gram, first.output.weight, group_size=first.size)
            if progress:
                progress(1)
    return orders


def prune_onnx(
    onnx_path: Path,
    out_path: Path,
    widths: Widths,
    grams: Mapping[str, Gram],
    orders: Mapping[str, Elimination],
    *,
    damping: float = DAMPING,
    beside: bool = False,
) -> Path:
    """Write a float model whose blocks keep `widths` units; the model itself is left alone.

    Args:
        onnx_path: the float model, before it is compiled.
        out_path: the file to write.
        widths: units to keep, by block; blocks that are not named, or keep all of theirs, stay as they are.
        grams: from `collect_block_grams`. orders: from `eliminations`.
        damping: of the refit.
        beside: whether out_path lies in the directory of a model that is `mapped`, and may share its weights:
            then only those that change are written.

    Returns:
        out_path.

    Raises:
        InputError: a block that the model does not have, a width below 1 or above the number of units, or
            Gram matrices of another model.
    """
    import onnx_ir as ir

    model = load_ir(onnx_path, mapped=beside)
    groups = find_groups(model, onnx_path)
    problem = _width_problem(model, groups, widths)
    if problem:
        raise InputError(f"{onnx_path}: {problem}")
    changed = False
    for group in groups:
        first = group.first
        width = widths.get(group.name, first.units)
        if width == first.units:
            continue
        with naming(f"{onnx_path}: {group.name}"):
            gram, channels = _gram_of(grams, group), orders[group.name].kept(width)
            before = np.zeros(first.output.width, np.float32) if first.bias is None else first.bias
            weight, bias = refit(gram, first.output.weight, before, channels, damping=damping)
        cut(model.graph, group, channels[:: first.size] // first.size, weight, bias)
        changed = True
    if changed:
        _remove_unused(model)
    with atomic_file(out_path) as scratch:
        ir.save(model, scratch)
    return out_path


def _remove_unused(model: ir.Model) -> None:
    """Remove what computed the shapes that are constant now."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)


def width_problem(onnx_path: Path, widths: Widths) -> str:
    """Why a float model cannot keep such widths; empty if it can.

    Raises:
        InputError: as `blocks_of`.
    """
    model = skeleton_ir(Model(onnx_path))
    return _width_problem(model, find_groups(model, onnx_path), widths)


def _width_problem(model: ir.Model, groups: Sequence[Group], widths: Widths) -> str:
    known = {group.name: group.first for group in groups}
    for name, width in widths.items():
        part = known.get(name)
        if part is None:
            return _unknown(model, known, name)
        if not 1 <= width <= part.units:
            return f"{name} is to keep {width} {UNITS[part.kind]}s; it must be 1 to {part.units}"
    return ""


def _unknown(model: ir.Model, known: Collection[str], name: str) -> str:
    """Why a model has no block of a name."""
    layer, _, kind = name.removeprefix("layer.").partition(".")
    reasons = find_attentions(model)[1]
    if kind == ATTENTION and layer.isdigit() and int(layer) in reasons:
        return f"the heads of {name} cannot be pruned: {reasons[int(layer)]}"
    return f"the model has no block {name!r} to prune; it has {', '.join(known)}"


def _gram_of(grams: Mapping[str, Gram], group: Group) -> Gram:
    channels = group.first.units * group.first.size
    gram = grams.get(group.name)
    if gram is None or gram.channels != channels:
        raise InputError(f"no Gram matrix of {channels} channels; they are those of another model")
    return gram
