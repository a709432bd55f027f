"""Parity of the compiled graph with the exported one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantlib.data.features import Feed
from quantlib.machine.sessions import feed_for, open_session, run_session
from quantlib.onnx_model.interface import logits_name
from quantlib.onnx_model.layers import constant, find_embeddings
from quantlib.onnx_model.parity import Logits, largest_difference

if TYPE_CHECKING:
    import onnx_ir as ir

TOLERANCE = 1e-4
# (rows, tokens); the exporter traces at 2x16, so other shapes reveal a size that was frozen by mistake.
_SHAPES = ((1, 1), (1, 9), (2, 16), (3, 37), (2, 128))


def check_parity(model: ir.Model, original: Path, compiled: Path, threads: int | None = None) -> float:
    """Compare two files on random rows, alone and in batches, with padding at the end, inside, or nowhere.

    Args:
        model: either of the two, for the sizes of its embedding tables.
        original, compiled: the files.
        threads: of their sessions; the physical cores by default.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        ParityError: it is above 1e-4.
        InputError: the original cannot be run, or has an input that BERT does not have.
    """
    entries, longest = _limits(model)
    shapes = sorted({(rows, min(tokens, longest)) for rows, tokens in _SHAPES})
    feeds = [_random_feed(rows, tokens, entries) for rows, tokens in shapes]
    # One session after the other: both at once are the weights of two models in memory.
    want, got = (_logits(path, original, feeds, threads) for path in (original, compiled))
    return largest_difference(want, got, feeds, TOLERANCE, f"{original}: compiled, its logits differ")


def _logits(path: Path, original: Path, feeds: Sequence[Feed], threads: int | None) -> Logits:
    """What a file gives for each feed, computed at once; `original` is its name in errors."""
    session = open_session(path, threads=threads, spinning=False)
    wanted = [logits_name(original, {output.name: output.shape for output in session.get_outputs()})]
    outputs = [run_session(session, original, feed_for(session, feed), wanted)[0] for feed in feeds]
    by_shape = {feed["input_ids"].shape: np.asarray(each) for feed, each in zip(feeds, outputs, strict=True)}
    return lambda feed: by_shape[feed["input_ids"].shape]


def _limits(model: ir.Model) -> tuple[dict[str, int], int]:
    """{input: how many ids its table has}, and a length in tokens that every model allows.

    A table that no input indexes holds positions. The limit is half of its size, since RoBERTa's positions
    start after the id of its padding.
    """
    entries: dict[str, int] = {}
    longest = max(tokens for _, tokens in _SHAPES)
    for embedding in find_embeddings(model):
        index, size = _before_casts(embedding.node.inputs[1]), embedding.table.shape[0]
        if index is None or constant(index) is not None:
            continue
        if index.is_graph_input():
            entries[str(index.name)] = min(size, entries.get(str(index.name), size))
        else:
            longest = min(longest, max(1, size // 2))
    return entries, longest


def _before_casts(value: ir.Value | None) -> ir.Value | None:
    """What a value is but for its type: ids of 32 bits may be cast before they are looked up."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Cast":
        value = node.inputs[0]
    return value


def _random_feed(rows: int, tokens: int, entries: dict[str, int]) -> Feed:
    """Random ids; the first row has no padding, the last has one token, those between have gaps."""
    draw = np.random.default_rng(rows * 1000 + tokens)
    mask = draw.integers(0, 2, (rows, tokens))
    mask[:, 0] = 1
    mask[-1, 1:] = 0
    mask[0] = 1
    return {
        "input_ids": draw.integers(0, entries.get("input_ids", 1), (rows, tokens)),
        "attention_mask": mask,
        "token_type_ids": draw.integers(0, entries.get("token_type_ids", 1), (rows, tokens)),
    }
