"""The neurons of a classifier's feed-forward blocks: their Gram matrices, and a model with fewer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, batches
from quantlib.support.gram import Gram, accumulated, moved
from quantlib.training.architectures import accepted, of_model
from quantlib.training.checkpoints import quiet_transformers
from quantlib.training.forward import layers_of

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float32]

_ROWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Remaining:
    """What is left of one block.

    kept: its neurons, ascending. weight, bias: behind them, (kept, width) and (width,).
    """

    kept: npt.NDArray[np.intp]
    weight: FloatArray
    bias: FloatArray


def neuron_grams(
    model: Any, rows: Sequence[Feature], progress: Callable[[int], None] = lambda _: None
) -> list[Gram]:
    """The Gram matrix of the neurons of each layer over real tokens, in the layers' order.

    Products of a batch, about the mean of the first one, are computed in float32 and summed in float64.

    Args:
        model: a loaded classifier of transformers, in evaluation mode.
        rows: tokenized for it; at least one.
        progress: called after each batch with the number of its rows.
    """
    import torch

    parts: dict[int, Gram] = {}
    points: dict[int, torch.Tensor] = {}
    for index, feed in batches(rows, _ROWS_AT_ONCE):
        tensors = {name: torch.from_numpy(array).to(model.device) for name, array in feed.items()}
        real = tensors["attention_mask"].bool()
        with torch.no_grad(), _inputs_of(_outputs(model)) as inputs:
            model(**accepted(model, tensors))
        for number, neurons in enumerate(inputs):
            values = neurons[real]
            point = points.setdefault(number, values.mean(dim=0))
            parts[number] = accumulated(parts.get(number), _sums(values - point))
        progress(len(index))
    return [moved(part, points[number].cpu().numpy()) for number, part in parts.items()]


def _sums(values: torch.Tensor) -> Gram:
    """The Gram matrix of one batch, (tokens, neurons)."""
    total, products = values.double().sum(dim=0), values.T @ values
    return Gram(len(values), total.cpu().numpy(), products.cpu().double().numpy())


@contextmanager
def _inputs_of(modules: Sequence[Any]) -> Iterator[list[torch.Tensor]]:
    """Within the block, what each module reads, in the order in which they run."""
    read: list[torch.Tensor] = []
    hooks = [module.register_forward_pre_hook(lambda _, given: read.append(given[0])) for module in modules]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def output_weights(model: Any) -> list[tuple[FloatArray, FloatArray]]:
    """The weight, (neurons, width), and the bias, (width,), behind the neurons of each layer."""
    return [
        (module.weight.detach().cpu().numpy().T, module.bias.detach().cpu().numpy())
        for module in _outputs(model)
    ]


def _outputs(model: Any) -> list[Any]:
    return [layer.get_submodule(of_model(model).ffn_out) for layer in layers_of(model)]


def with_neurons(model: Any, blocks: Sequence[Remaining]) -> Any:
    """A copy of a model with only some neurons in each layer; the model itself is left alone.

    Args:
        model: a loaded classifier of transformers.
        blocks: what is left of each layer; all keep as many, since config.json has one number for all.
    """
    import torch

    architecture = of_model(model)
    config = copy.deepcopy(model.config)
    setattr(config, architecture.shape_keys[2], len(blocks[0].kept))
    weights = model.state_dict()
    for number, block in enumerate(blocks):
        into, out_of = (
            f"{architecture.layers}.{number}.{name}" for name in (architecture.ffn_in, architecture.ffn_out)
        )
        kept = torch.from_numpy(block.kept)
        weights |= {f"{into}.{part}": weights[f"{into}.{part}"][kept] for part in ("weight", "bias")}
        weights[f"{out_of}.weight"] = torch.from_numpy(np.ascontiguousarray(block.weight.T))
        weights[f"{out_of}.bias"] = torch.from_numpy(block.bias)
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        smaller = type(model)(config)
    smaller.load_state_dict(weights)
    return smaller.eval()
