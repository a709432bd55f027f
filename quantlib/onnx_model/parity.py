"""Do two models give the same logits?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feed
from quantlib.support.errors import InputError

Logits = Callable[[Feed], npt.NDArray[Any]]
"""What a model gives for a feed: float32, (rows, labels)."""


class ParityError(RuntimeError):
    """A model gives other logits than the one it was made from."""


def largest_difference(
    want: Logits, got: Logits, feeds: Iterable[Feed], tolerance: float, what: str
) -> float:
    """Compare two models, feed by feed.

    Args:
        want: the original. got: what was made of it.
        feeds: arrays (rows, tokens).
        tolerance: how much a logit may differ.
        what: the beginning of the error, "model.onnx: logits differ".

    Returns:
        The largest absolute difference of a logit.

    Raises:
        ParityError: it is above the tolerance, or a logit is NaN; the message names the first such feed.
        InputError: a logit of the original is NaN or infinite.
    """
    worst = 0.0
    for feed in feeds:
        wanted = want(feed)
        if not np.isfinite(wanted).all():
            rows, tokens = feed["input_ids"].shape
            raise InputError(
                f"{what}: the model's own logits are NaN or infinite at batch {rows}, length {tokens}"
            )
        difference = float(np.max(np.abs(wanted - got(feed))))
        if not difference <= tolerance:  # also catches NaN
            rows, tokens = feed["input_ids"].shape
            raise ParityError(
                f"{what} by {difference:.2g} at batch {rows}, length {tokens}; "
                f"at most {tolerance:g} is allowed"
            )
        worst = max(worst, difference)
    return worst
