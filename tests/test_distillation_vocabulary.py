"""A student that is trained with only the tokens that occur learns the same as with all of them."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantlib.data.features import Feature
from quantlib.training.checkpoints import load_classifier
from quantlib.training.student.device import feed_of
from quantlib.training.student.vocabulary import only_tokens_of

TABLE = "bert.embeddings.word_embeddings.weight"


def row(*ids: int) -> Feature:
    return Feature(np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.int64), 1)


ROWS = [row(2, 9, 5, 3), row(2, 17, 3), row(2, 5, 5, 5, 3), row(2, 3)]
OCCURRING = [0, 2, 3, 5, 9, 17]


def steps(model: Any, words: Any, weight_decay: float = 0.0) -> dict[str, Any]:
    """The weights after four steps on `ROWS`."""
    import torch

    with words:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=weight_decay)
        for _ in range(4):
            logits = model(**feed_of(ROWS, np.arange(4), torch.device("cpu"))).logits
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    weights: dict[str, Any] = model.state_dict()
    return weights


def test_the_same_is_learned(tiny_teacher: Path) -> None:
    import torch

    before = load_classifier(tiny_teacher).state_dict()
    full_model = load_classifier(tiny_teacher)
    expected = steps(full_model, nullcontext())
    reduced_model = load_classifier(tiny_teacher)
    weights = steps(reduced_model, only_tokens_of(reduced_model, ROWS))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    moved = (weights[TABLE] != before[TABLE]).any(dim=1).nonzero().flatten().tolist()
    assert moved == OCCURRING[1:], "all that occur but padding"


def test_words_that_do_not_occur_are_not_decayed(tiny_teacher: Path) -> None:
    import torch

    before = load_classifier(tiny_teacher).state_dict()[TABLE]
    model = load_classifier(tiny_teacher)
    after = steps(model, only_tokens_of(model, ROWS), weight_decay=0.5)[TABLE]
    others = [word for word in range(len(before)) if word not in OCCURRING]
    assert torch.equal(after[others], before[others])


loaded = functools.cache(load_classifier)


@given(st.lists(st.lists(st.integers(0, 63), min_size=1, max_size=6), min_size=1, max_size=4))
def test_it_computes_what_it_did(tiny_teacher: Path, ids: list[list[int]]) -> None:
    import torch

    rows = [row(*line) for line in ids]
    model = loaded(tiny_teacher)
    feed = feed_of(rows, np.arange(len(rows)), torch.device("cpu"))
    with torch.no_grad():
        expected = model(**feed).logits
        with only_tokens_of(model, rows):
            table = model.get_input_embeddings().weight
            assert len(table) == len({0, *(word for line in ids for word in line)})
            torch.testing.assert_close(model(**feed).logits, expected)
        torch.testing.assert_close(model(**feed).logits, expected)


def test_a_word_that_is_not_there_is_an_error(tiny_teacher: Path) -> None:
    import torch

    model = load_classifier(tiny_teacher)
    feed = feed_of([row(2, 8, 3)], np.arange(1), torch.device("cpu"))
    with only_tokens_of(model, ROWS), pytest.raises(IndexError, match="out of range"):
        model(**feed)
    model(**feed)


@pytest.mark.parametrize(("padding", "inside"), [(None, None), (0, 0), (5, 3), (8, None)])
def test_padding_gets_no_gradient(tiny_teacher: Path, padding: int | None, inside: int | None) -> None:
    model = load_classifier(tiny_teacher)
    model.get_input_embeddings().padding_idx = padding
    with only_tokens_of(model, ROWS):
        assert model.get_input_embeddings().padding_idx == inside
    assert model.get_input_embeddings().padding_idx == padding


def test_all_words_are_back_after_an_error(tiny_teacher: Path) -> None:
    model = load_classifier(tiny_teacher)
    full = model.get_input_embeddings()
    with pytest.raises(KeyboardInterrupt), only_tokens_of(model, ROWS):
        raise KeyboardInterrupt
    assert model.get_input_embeddings() is full
