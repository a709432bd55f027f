"""Does the exported graph compute what PyTorch computes?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import LOGITS, Feed
from quantlib.onnx_model.parity import largest_difference
from quantlib.training.architectures import accepted

Array = npt.NDArray[Any]

PARITY_TOLERANCE = 1e-4
# Batch sizes and lengths that are run, cut to the longest length that will be fed. The exporter traces at
# 2x16, so 1 and other lengths show a shape that was frozen by mistake.
_PARITY_SHAPES = ((1, 8), (2, 16), (3, 37), (2, 128))


def check_parity(
    model: Any, onnx_path: Path, seq_len: int, threads: int | None = None, output: str = LOGITS
) -> float:
    """Compare an ONNX file with its PyTorch model on random rows, alone, in batches, and padded.

    Args:
        model: of PyTorch. onnx_path: its export.
        seq_len: the longest sequence that is tried, in tokens.
        threads: of the session; the physical cores by default.
        output: the output that is compared.

    Returns:
        The largest absolute difference of a value of the output.

    Raises:
        ParityError: it is above 1e-4.
    """
    import torch

    from quantlib.machine.sessions import feed_for, open_session

    session = open_session(onnx_path, threads=threads)

    def original(feed: Feed) -> Array:
        with torch.no_grad(), _one_thread():
            tensors = {k: torch.from_numpy(v) for k, v in feed.items()}
            return np.asarray(model(**accepted(model, tensors))[output].numpy())

    def exported(feed: Feed) -> Array:
        return np.asarray(session.run(None, feed_for(session, feed))[0])

    shapes = sorted({(b, min(n, seq_len)) for b, n in (*_PARITY_SHAPES, (1, seq_len))})
    vocabulary, types = int(model.config.vocab_size), _token_types(model.config)
    feeds = (_random_feed(batch, length, vocabulary, types) for batch, length in shapes)
    what = f"{onnx_path.name}: {output} differ from PyTorch"
    return largest_difference(original, exported, feeds, PARITY_TOLERANCE, what)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads of PyTorch wait for each other by spinning: on a busy machine two took three times as long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _token_types(config: Any) -> int:
    """How many token types a model tells apart: 1 where it has no use for them (DeBERTa-v3 says 0)."""
    return max(1, int(getattr(config, "type_vocab_size", 1)))


def _random_feed(batch: int, length: int, vocabulary: int, token_types: int) -> Feed:
    """Random ids and types; from the second row on, each row has less tokens and more padding."""
    draw = np.random.default_rng(batch * 1000 + length)
    mask = np.zeros((batch, length), dtype=np.int64)
    for row in range(batch):
        mask[row, : max(2, length - row * length // (2 * batch))] = 1
    ids = draw.integers(5, vocabulary, (batch, length))
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "token_type_ids": draw.integers(0, token_types, (batch, length)) * mask,
    }
