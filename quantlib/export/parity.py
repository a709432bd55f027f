"""Does the exported graph compute what PyTorch computes?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from quantlib.features import Feed

PARITY_TOLERANCE = 1e-4
# Batch sizes and lengths that are run, cut to the longest length that will be fed. The exporter traces at
# 2x16, so 1 and other lengths show a shape that was frozen by mistake.
_PARITY_SHAPES = ((1, 8), (2, 16), (3, 37), (4, 128))


class ParityError(RuntimeError):
    """The exported graph gives other logits than the PyTorch model."""


def check_parity(model: Any, onnx_path: Path, seq_len: int) -> float:
    """Compare an ONNX file with its PyTorch model on random rows, alone, in batches, and padded.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        ParityError: it is above 1e-4.
    """
    import torch

    from quantlib.runtime import feed_for, open_session
    from quantlib.training import accepted

    session = open_session(onnx_path)
    worst = 0.0
    for batch, length in sorted({(b, min(n, seq_len)) for b, n in (*_PARITY_SHAPES, (1, seq_len))}):
        feed = _random_feed(batch, length, int(model.config.vocab_size), _token_types(model.config))
        got = session.run(None, feed_for(session, feed))[0]
        with torch.no_grad():
            tensors = {k: torch.from_numpy(v) for k, v in feed.items()}
            want = model(**accepted(model, tensors)).logits.numpy()
        difference = float(np.max(np.abs(got - want)))
        if not difference <= PARITY_TOLERANCE:  # also catches NaN
            raise ParityError(
                f"{onnx_path.name}: logits differ from PyTorch by {difference:.2g} at batch {batch}, "
                f"length {length}; at most {PARITY_TOLERANCE:g} is allowed"
            )
        worst = max(worst, difference)
    return worst


def _token_types(config: Any) -> int:
    """How many token types a model tells apart: 1 where it has no use for them."""
    return int(getattr(config, "type_vocab_size", 1))


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
