"""The losses against NumPy, their gradients, and that padding never matters."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.data.features import pad
from quantlib.training.checkpoints import load_classifier
from quantlib.training.student.losses import (
    NO_LABEL,
    States,
    attention_loss,
    hidden_loss,
    mixed_cross_entropy,
    score_loss,
    soft_cross_entropy,
    transformer_loss,
)
from quantlib.training.student.states import run_with_states, scores

Array = np.ndarray[Any, Any]

ROWS, HEADS, TOKENS, NARROW, WIDE = 3, 2, 5, 4, 6
LENGTHS = (5, 3, 1)
MAPPING = (0, 2, 4)


def mask_of(lengths: tuple[int, ...] = LENGTHS) -> Array:
    return np.array([[1] * n + [0] * (TOKENS - n) for n in lengths])


def drawn(draw: np.random.Generator, layers: int, width: int) -> tuple[list[Array], list[Array]]:
    hidden = [draw.normal(size=(ROWS, TOKENS, width)) for _ in range(layers + 1)]
    return hidden, [draw.normal(size=(ROWS, HEADS, TOKENS, TOKENS)) for _ in range(layers)]


def as_states(arrays: tuple[list[Array], list[Array]]) -> States:
    import torch

    hidden, attention = (tuple(torch.from_numpy(array) for array in part) for part in arrays)
    return States(hidden, attention)


def by_rows(student: Array, teacher: Array, lengths: tuple[int, ...], pairs: bool) -> float:
    """The mean squared error, one row after the other, cut to its real tokens: nothing is masked."""
    squares: list[float] = []
    for row, length in enumerate(lengths):
        cut = (row, slice(None), slice(length), slice(length)) if pairs else (row, slice(length))
        squares += ((student[cut] - teacher[cut]) ** 2).ravel().tolist()
    return float(np.mean(squares))


def test_the_transformer_loss_against_numpy() -> None:
    import torch

    draw = np.random.default_rng(0)
    student, teacher = drawn(draw, 2, NARROW), drawn(draw, 4, WIDE)
    weight, bias = draw.normal(size=(WIDE, NARROW)), draw.normal(size=WIDE)
    project = torch.nn.Linear(NARROW, WIDE, dtype=torch.float64)
    project.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    expected = 0.0
    for layer, source in enumerate(MAPPING):
        projected = student[0][layer] @ weight.T + bias
        expected += by_rows(projected, teacher[0][source], LENGTHS, pairs=False)
        if layer:
            expected += by_rows(student[1][layer - 1], teacher[1][source - 1], LENGTHS, pairs=True)
    mask = torch.from_numpy(mask_of())
    loss = transformer_loss(as_states(student), as_states(teacher).of_layers(MAPPING), mask, project)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)


def test_the_prediction_losses_against_numpy() -> None:
    import torch

    draw = np.random.default_rng(0)
    student, teacher = draw.normal(size=(2, 7, 3))

    def softmax(logits: Array) -> Array:
        powers = np.exp(logits)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    for temperature in (1.0, 3.0):
        expected = (
            -(softmax(teacher / temperature) * np.log(softmax(student / temperature))).sum(axis=1).mean()
        )
        loss = soft_cross_entropy(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
        assert float(loss) == pytest.approx(expected, rel=1e-12)
    labels = np.array([0, 2, NO_LABEL, 1, NO_LABEL, 0, 1])
    for temperature, weight in itertools.product((1.0, 3.0), (0.0, 0.3, 1.0)):
        soft = -(softmax(teacher / temperature) * np.log(softmax(student / temperature))).sum(axis=1)
        hard = -np.log(softmax(student)[np.arange(len(labels)), np.maximum(labels, 0)])
        share = np.where(labels == NO_LABEL, 0.0, weight)
        expected = ((1 - share) * temperature**2 * soft + share * hard).mean()
        tensors = (torch.from_numpy(array) for array in (student, teacher, labels))
        assert float(mixed_cross_entropy(*tensors, weight, temperature)) == pytest.approx(expected, rel=1e-12)
    loss = score_loss(torch.from_numpy(student[:, :1]), torch.from_numpy(teacher[:, :1]))
    assert float(loss) == pytest.approx(np.mean((student[:, 0] - teacher[:, 0]) ** 2), rel=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    import torch

    draw = np.random.default_rng(1)
    mask = torch.from_numpy(mask_of())
    student, teacher = drawn(draw, 2, NARROW), as_states(drawn(draw, 4, WIDE)).of_layers(MAPPING)
    inputs = [torch.from_numpy(array).requires_grad_() for part in student for array in part]
    weight = torch.from_numpy(draw.normal(size=(WIDE, NARROW))).requires_grad_()

    def loss(weight: Any, *tensors: Any) -> Any:
        states = States(tensors[:3], tensors[3:])
        return transformer_loss(states, teacher, mask, lambda hidden: hidden @ weight.T)

    assert torch.autograd.gradcheck(loss, (weight, *inputs))
    logits = torch.from_numpy(draw.normal(size=(4, 3))).requires_grad_()
    teacher_logits = torch.from_numpy(draw.normal(size=(4, 3)))
    assert torch.autograd.gradcheck(lambda own: soft_cross_entropy(own, teacher_logits, 2.0), (logits,))
    assert torch.autograd.gradcheck(lambda own: score_loss(own, teacher_logits), (logits,))
    labels = torch.tensor([0, NO_LABEL, 2, 1])
    assert torch.autograd.gradcheck(
        lambda own: mixed_cross_entropy(own, teacher_logits, labels, 0.4, 2.0), (logits,)
    )


@given(
    lengths=st.lists(st.integers(1, TOKENS), min_size=ROWS, max_size=ROWS).map(tuple),
    junk=st.sampled_from([0.0, -1e30, float("inf"), float("nan")]),
    seed=st.integers(0, 2**16),
)
def test_what_stands_at_padding_never_matters(lengths: tuple[int, ...], junk: float, seed: int) -> None:
    import torch

    draw = np.random.default_rng(seed)
    student, teacher = drawn(draw, 2, WIDE), drawn(draw, 2, WIDE)
    mask = mask_of(lengths)
    real, pairs = mask.astype(bool), (mask[:, :, None] * mask[:, None, :]).astype(bool)

    def result(fill: float | None) -> tuple[float, list[Array]]:
        parts = []
        for hidden, attention in (student, teacher):
            if fill is not None:
                hidden = [np.where(real[:, :, None], array, fill) for array in hidden]
                attention = [np.where(pairs[:, None], array, fill) for array in attention]
            parts.append(as_states((hidden, attention)))
        tensors = [*parts[0].hidden, *parts[0].scores]
        for tensor in tensors:
            tensor.requires_grad_()
        loss = transformer_loss(parts[0], parts[1], torch.from_numpy(mask))
        loss.backward()
        return float(loss.detach()), [tensor.grad.numpy() for tensor in tensors]

    plain, changed = result(None), result(junk)
    assert plain[0] == pytest.approx(changed[0], rel=1e-6)
    for before, after in zip(plain[1], changed[1], strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", [attention_loss, hidden_loss])
def test_a_row_counts_by_its_tokens_alone(loss: Callable[..., Any]) -> None:
    """Padding a batch further changes nothing."""
    import torch

    draw = np.random.default_rng(2)
    rank = 4 if loss is attention_loss else 3
    shape = (ROWS, HEADS, TOKENS, TOKENS) if rank == 4 else (ROWS, TOKENS, WIDE)
    student, teacher = draw.normal(size=(2, *shape))
    room = [(0, 0), (0, 0), (0, 3), (0, 3)] if rank == 4 else [(0, 0), (0, 3), (0, 0)]
    mask = mask_of()
    short = loss(*map(torch.from_numpy, (student, teacher, mask)))
    longer = (np.pad(student, room), np.pad(teacher, room, constant_values=9), np.pad(mask, [(0, 0), (0, 3)]))
    assert float(loss(*map(torch.from_numpy, longer))) == pytest.approx(float(short), rel=1e-12)


def test_layers_must_agree() -> None:
    import torch

    student, teacher = (as_states(drawn(np.random.default_rng(0), layers, WIDE)) for layers in (2, 4))
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        transformer_loss(student, teacher, torch.from_numpy(mask_of()))


# States of a real model


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_scores_are_those_of_the_model(tiny_teacher: Path, implementation: str) -> None:
    import torch

    model = load_classifier(tiny_teacher)
    rows = [
        row for row in tiny.features(tiny_teacher, 24) if len(row) == len(tiny.features(tiny_teacher, 1)[0])
    ]
    feed = {k: torch.from_numpy(v) for k, v in pad(rows, len(rows[0])).items()}
    with torch.no_grad():
        expected = model(**feed, output_attentions=True, output_hidden_states=True)
        model.set_attn_implementation(implementation)
        logits, states = run_with_states(model, feed)
    torch.testing.assert_close(logits, expected.logits)
    assert (len(states.hidden), len(states.scores)) == (3, 2)
    for computed, attention in zip(states.scores, expected.attentions, strict=True):
        torch.testing.assert_close(computed.softmax(-1), attention)
    for computed, hidden in zip(states.hidden, expected.hidden_states, strict=True):
        torch.testing.assert_close(computed, hidden)


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 100))
def test_scores_against_numpy(heads: int, tokens: int, size: int, seed: int) -> None:
    import torch

    query, key = np.random.default_rng(seed).normal(size=(2, 2, tokens, heads * size))
    computed = scores(torch.from_numpy(query), torch.from_numpy(key), heads).numpy()
    for row in range(2):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            expected = query[row][:, part] @ key[row][:, part].T / np.sqrt(size)
            np.testing.assert_allclose(computed[row, head], expected, rtol=1e-9, atol=1e-12)
