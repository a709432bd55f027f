"""The loop that compares the logits of two models."""

from __future__ import annotations

import numpy as np
import pytest

from quantlib.data.features import Feed
from quantlib.onnx_model.parity import ParityError, largest_difference


def feed(rows: int, tokens: int) -> Feed:
    return {"input_ids": np.arange(rows * tokens).reshape(rows, tokens)}


def summed(feed: Feed) -> np.ndarray:
    return feed["input_ids"].sum(axis=1, keepdims=True).astype(np.float32)


def test_the_largest_difference_of_all_feeds() -> None:
    def longer_is_worse(feed: Feed) -> np.ndarray:
        return summed(feed) - feed["input_ids"].shape[1] / 16

    feeds = [feed(1, 2), feed(2, 4), feed(1, 3)]
    assert largest_difference(summed, longer_is_worse, feeds, 0.25, "m: logits differ") == 0.25
    with pytest.raises(ParityError) as caught:
        largest_difference(summed, longer_is_worse, feeds, 0.2, "m: logits differ")
    assert str(caught.value) == "m: logits differ by 0.25 at batch 2, length 4; at most 0.2 is allowed"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_no_parity(value: float) -> None:
    def broken(feed: Feed) -> np.ndarray:
        logits = summed(feed)
        logits[0, 0] = value
        return logits

    with pytest.raises(ParityError, match=r"at batch 2, length 3; at most 0\.1 is allowed$"):
        largest_difference(summed, broken, [feed(2, 3)], 0.1, "m: logits differ")
