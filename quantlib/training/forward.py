"""A BERT's forward pass in parts, so that only what a loss reads is computed.

Only for architectures that run in parts (`Architecture.runs_in_parts`). The logits are those of the whole
model, up to rounding: of the last layer they need the first row, [CLS], alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quantlib.training.architectures import of_model

if TYPE_CHECKING:
    import torch


def logits_of(model: Any, feed: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A classifier's logits, (rows, labels), for a padded batch."""
    return logits_from(model, 0, embed(model, feed), visible(feed["attention_mask"]))


def logits_from(model: Any, below: int, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The logits, (rows, labels), from the states that layer `below` gives; 0 are the embeddings.

    Args:
        model: a classifier of transformers.
        below: the number of layers that are done.
        hidden: (rows, tokens, width).
        mask: see `visible`.
    """
    *layers, last = layers_of(model)[below:]
    for layer in layers:
        hidden = run_layer(layer, hidden, mask)[0]
    hidden = run_layer(last, hidden, mask, first_only=True)[0]
    logits: torch.Tensor = model.classifier(model.dropout(model.bert.pooler(hidden)))
    return logits


def embed(model: Any, feed: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The embeddings of a padded batch, (rows, tokens, width)."""
    types = feed.get("token_type_ids")
    hidden: torch.Tensor = model.bert.embeddings(input_ids=feed["input_ids"], token_type_ids=types)
    return hidden


def layers_of(model: Any) -> Sequence[Any]:
    """The encoder's layers, the lowest first."""
    layers: Sequence[Any] = model.get_submodule(of_model(model).layers)
    return layers


def visible(attention_mask: torch.Tensor) -> torch.Tensor | None:
    """Which tokens attention may look at, bool (rows, 1, 1, tokens); None where there is no padding.

    Args:
        attention_mask: (rows, tokens), 1 for a real token and 0 for padding.
    """
    return None if bool(attention_mask.all()) else attention_mask.bool()[:, None, None, :]


def run_layer(
    layer: Any, hidden: torch.Tensor, mask: torch.Tensor | None, *, first_only: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A layer's output, query and key, each (rows, tokens, width); output and query of one token if asked.

    Args:
        layer: a BertLayer of transformers; dropout is as its mode says.
        hidden: (rows, tokens, width).
        mask: see `visible`.
        first_only: compute the output and the query of the first token alone.
    """
    from torch.nn import functional

    attention, queried = layer.attention.self, hidden[:, :1] if first_only else hidden
    query, key, value = attention.query(queried), attention.key(hidden), attention.value(hidden)
    heads = attention.num_attention_heads
    q, k, v = (split_heads(tensor, heads) for tensor in (query, key, value))
    dropout = attention.dropout.p if layer.training else 0.0
    context = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    merged = context.transpose(1, 2).reshape(query.shape)
    attended = layer.attention.output(merged, queried)
    return layer.output(layer.intermediate(attended), attended), query, key


def split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """(rows, tokens, width) to (rows, heads, tokens, width / heads)."""
    rows, tokens, width = tensor.shape
    return tensor.view(rows, tokens, heads, width // heads).transpose(1, 2)
