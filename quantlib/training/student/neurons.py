"""The neurons of a classifier's feed-forward blocks: their moments on real tokens, and a model with fewer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, batches
from quantlib.training.architectures import accepted, of_model
from quantlib.training.checkpoints import quiet_transformers
from quantlib.training.forward import layers_of

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_ROWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of the neurons of one block, X (tokens, neurons), over real tokens.

    count: the tokens. total: the sum of X, (neurons,). products: Xᵀ·X, (neurons, neurons).
    """

    count: int
    total: Float64
    products: Float64


@dataclass(frozen=True, eq=False)
class Remaining:
    """What is left of one block.

    kept: its neurons, ascending. weight, bias: behind them, (kept, width) and (width,).
    """

    kept: npt.NDArray[np.intp]
    weight: FloatArray
    bias: FloatArray


def neuron_moments(
    model: Any, rows: Sequence[Feature], progress: Callable[[int], None] = lambda _: None
) -> list[Moments]:
    """The moments of the neurons of each layer, in the layers' order.

    Products of a batch are computed in float32 and summed in float64.

    Args:
        model: a loaded classifier of transformers, in evaluation mode.
        rows: tokenized for it; at least one.
        progress: called after each batch with the number of its rows.
    """
    import torch

    parts: list[Moments] = []
    for index, feed in batches(rows, _ROWS_AT_ONCE):
        tensors = {name: torch.from_numpy(array).to(model.device) for name, array in feed.items()}
        real = tensors["attention_mask"].bool()
        with torch.no_grad(), _inputs_of(_outputs(model)) as inputs:
            model(**accepted(model, tensors))
        for number, neurons in enumerate(inputs):
            sums = _sums(neurons[real])
            if number == len(parts):
                parts.append(sums)
            else:
                parts[number] = _added(parts[number], sums)
        progress(len(index))
    return parts


def _sums(values: torch.Tensor) -> Moments:
    """The moments of one batch, (tokens, neurons)."""
    total, products = values.double().sum(dim=0), values.T @ values
    return Moments(len(values), total.cpu().numpy(), products.cpu().double().numpy())


def _added(before: Moments, new: Moments) -> Moments:
    """Moments with further tokens; the sums that came before are changed in place."""
    np.add(before.total, new.total, out=before.total)
    np.add(before.products, new.products, out=before.products)
    return Moments(before.count + new.count, before.total, before.products)


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
