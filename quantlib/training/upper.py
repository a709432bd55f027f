"""Train the upper layers of a classifier: the outputs of those below are computed once for all epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, by_length, pad
from quantlib.support.errors import InputError
from quantlib.training.architectures import accepted, of_model
from quantlib.training.forward import embed, layers_of, logits_from, run_layer, visible

if TYPE_CHECKING:
    import torch

    Index = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 32
_MAX_STATE_BYTES = 2**30


@dataclass(frozen=True)
class TrainedPart:
    """The trained part of a model, as a module, and the model's logits of some rows, (rows, labels)."""

    module: Any
    logits: Callable[[Index], torch.Tensor]


def whole_model(model: Any, features: Sequence[Feature]) -> TrainedPart:
    """All of a model, embeddings included."""

    def logits(index: Index) -> torch.Tensor:
        result: torch.Tensor = model(**accepted(model, _feed(features, index))).logits
        return result

    return TrainedPart(model, logits)


def upper_layers(model: Any, features: Sequence[Feature], count: int) -> TrainedPart:
    """The upper `count` layers, pooler and classifier; the rest stays in evaluation mode.

    The outputs of the layers below are kept in memory. If they would take more than 1 GiB, they are computed
    anew in each epoch.

    Raises:
        InputError: the model's architecture does not run in parts, or it has fewer layers.
    """
    import torch

    layers, architecture = layers_of(model), of_model(model)
    if not architecture.runs_in_parts:
        raise InputError(
            f"trained layers {count}: a {architecture.model_type} can only be trained as a whole (None)"
        )
    if count > len(layers):
        raise InputError(f"trained layers {count} is out of range; the model has {len(layers)}")
    model.eval()
    below = len(layers) - count
    module = torch.nn.ModuleList([*layers[below:], model.bert.pooler, model.dropout, model.classifier])
    tokens = sum(map(len, features))
    if tokens * model.config.hidden_size * 4 > _MAX_STATE_BYTES:

        def recomputed_logits(index: Index) -> torch.Tensor:
            return logits_from(model, below, *_states(model, below, _feed(features, index)))

        return TrainedPart(module, recomputed_logits)
    states = _lower_states(model, below, features)

    def logits(index: Index) -> torch.Tensor:
        rows = [states[row] for row in index]
        hidden = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        return logits_from(model, below, hidden, visible(mask))

    return TrainedPart(module, logits)


def _lower_states(model: Any, below: int, features: Sequence[Feature]) -> list[torch.Tensor]:
    """The states of each row's tokens after `below` layers, (tokens, width)."""
    import torch

    states = [torch.empty(0)] * len(features)
    for index in by_length([len(feature) for feature in features], _ROWS_AT_ONCE):
        hidden, _ = _states(model, below, _feed(features, index))
        for number, row in enumerate(index):
            states[row] = hidden[number, : len(features[row])].clone()
    return states


def _states(
    model: Any, below: int, feed: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The states of a batch after `below` layers, without a gradient, and its mask (`visible`)."""
    import torch

    mask = visible(feed["attention_mask"])
    with torch.no_grad():
        hidden = embed(model, feed)
        for layer in layers_of(model)[:below]:
            hidden = run_layer(layer, hidden, mask)[0]
    return hidden, mask


def _feed(features: Sequence[Feature], index: Index) -> dict[str, torch.Tensor]:
    import torch

    rows = [features[i] for i in index]
    return {k: torch.from_numpy(v) for k, v in pad(rows, max(map(len, rows))).items()}
