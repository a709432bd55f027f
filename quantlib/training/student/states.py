"""What a classifier computes for a batch: logits, hidden states and attention scores, by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from quantlib.training.architectures import of_model
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
    """Logits, hidden states, and (query, key), each (rows, tokens, width), of every layer.

    Queries and keys are the outputs of their linear layers, so it does not matter how attention is computed
    from them: many implementations never store its scores.
    """
    with _captured(model) as outputs:
        output = model(**feed, output_hidden_states=True)
    return (
        output.logits,
        tuple(output.hidden_states),
        list(zip(outputs["query"], outputs["key"], strict=True)),
    )


@contextmanager
def _captured(model: Any) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect the outputs of the query and key layers within the block, in the order of the layers."""
    outputs: dict[str, list[torch.Tensor]] = {"query": [], "key": []}

    def keep(kind: str) -> Any:
        return lambda _module, _inputs, output: outputs[kind].append(output)

    architecture = of_model(model)
    hooks = [
        layer.get_submodule(getattr(architecture, kind)).register_forward_hook(keep(kind))
        for layer in model.get_submodule(architecture.layers)
        for kind in outputs
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def scores(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention scores before softmax, q·kᵀ/√d: (rows, heads, tokens, tokens), d = width / heads.

    Args:
        query: (rows, tokens, width).
        key: the same shape.
        heads: the number of heads.
    """
    rows, tokens, width = query.shape
    size = width // heads
    q, k = (array.view(rows, tokens, heads, size).transpose(1, 2) for array in (query, key))
    result: torch.Tensor = q @ k.transpose(-1, -2) / size**0.5
    return result
