"""What a BERT classifier computes for a batch: logits, hidden states and attention scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from quantlib.training.forward import embed, layers_of, run_layer, split_heads, visible
from quantlib.training.student.losses import States

if TYPE_CHECKING:
    import torch


def run_with_states(model: Any, feed: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, States]:
    """A classifier's logits (rows, labels) for a padded batch, and the states that led to them."""
    logits, hidden, products = run_with_products(model, feed)
    heads = model.config.num_attention_heads
    return logits, States(hidden, tuple(scores(query, key, heads) for query, key in products))


def run_with_products(
    model: Any, feed: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Logits, hidden states, and (query, key), each (rows, tokens, width), of every layer."""
    mask, hidden, products = visible(feed["attention_mask"]), [embed(model, feed)], []
    for layer in layers_of(model):
        output, *product = run_layer(layer, hidden[-1], mask)
        hidden.append(output)
        products.append((product[0], product[1]))
    logits: torch.Tensor = model.classifier(model.dropout(model.bert.pooler(hidden[-1])))
    return logits, tuple(hidden), products


def scores(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention scores before softmax, q·kᵀ/√d: (rows, heads, tokens, tokens), d = width / heads.

    Args:
        query: (rows, tokens, width).
        key: the same shape.
        heads: the number of heads.
    """
    q, k = split_heads(query, heads), split_heads(key, heads)
    result: torch.Tensor = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return result
