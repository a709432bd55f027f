"""Pruning: the surgeon against dense computations, and models without some of their neurons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from quantlib.compression import pruning
from quantlib.compression.calibration import Gram
from quantlib.compression.pruning.costs import Cost
from quantlib.compression.pruning.ffn import find_ffns
from quantlib.compression.pruning.parts import grouped
from quantlib.data.features import CalibrationReader, Feature
from quantlib.machine.sessions import open_session
from quantlib.onnx_model.layers import constant, load_ir
from quantlib.support.errors import InputError

TINY = 1e-9

Statistics = tuple[dict[str, Gram], dict[str, pruning.Elimination]]


def gram_of(values: np.ndarray) -> Gram:
    wide = values.astype(np.float64)
    return Gram(len(wide), wide.sum(axis=0), wide.T @ wide)


def problem(
    positions: int = 60, channels: int = 6, outputs: int = 4, rank: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An activation with correlated channels and a mean, a weight and a bias."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(positions, rank or channels)) @ rng.normal(size=(rank or channels, channels))
    values += rng.normal(size=channels)
    weight, bias = rng.normal(size=(channels, outputs)), rng.normal(size=outputs)
    return values, weight.astype(np.float32), bias.astype(np.float32)


def least_squares(values: np.ndarray, weight: np.ndarray, kept: list[int]) -> float:
    """The squared error that is left when X·W is computed from some channels and a constant."""
    from scipy.linalg import lstsq

    known = np.column_stack([values[:, kept], np.ones(len(values))])
    target = values @ weight.astype(np.float64)
    solution = lstsq(known, target)[0]
    return float(np.square(known @ solution - target).sum())


# The surgeon


def test_the_cost_of_each_neuron_is_that_of_least_squares() -> None:
    values, weight, _ = problem()
    elimination = pruning.eliminate(gram_of(values), weight, damping=TINY)
    costs = [least_squares(values, weight, [j for j in range(6) if j != out]) for out in range(6)]
    assert elimination.order[0] == np.argmin(costs)
    assert elimination.errors[1] == pytest.approx(min(costs), rel=1e-5)


def test_every_error_on_the_way_is_that_of_least_squares() -> None:
    values, weight, _ = problem()
    elimination = pruning.eliminate(gram_of(values), weight, damping=TINY)
    for groups in range(6):
        kept = elimination.kept(groups).tolist()
        expected = least_squares(values, weight, kept)
        assert elimination.error(groups) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert sorted(elimination.order) == list(range(6))


@pytest.mark.parametrize("size", [1, 2])
def test_errors_of_many_groups_are_those_of_least_squares(size: int) -> None:
    """More than go at once, so that those that are left are told of them, and moved together."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(500, 130 * size)) + rng.normal(size=(500, 1)) + 1
    weight = rng.normal(size=(130 * size, 4)).astype(np.float32)
    elimination = pruning.eliminate(gram_of(values), weight, group_size=size, damping=TINY)
    assert sorted(elimination.order) == list(range(130))
    for groups in (129, 98, 97, 90, 40, 5):
        expected = least_squares(values, weight, elimination.kept(groups).tolist())
        assert elimination.error(groups) == pytest.approx(expected, rel=1e-4)


def test_greedy_order_is_close_to_the_best_choice() -> None:
    """Of all ways to keep three of six channels, the greedy one is among the better half."""
    values, weight, _ = problem(seed=2)
    elimination = pruning.eliminate(gram_of(values), weight, damping=TINY)
    every = [least_squares(values, weight, list(kept)) for kept in combinations(range(6), 3)]
    assert elimination.error(3) <= np.median(every)


def test_a_refit_is_least_squares() -> None:
    values, weight, bias = problem()
    kept = np.array([0, 2, 3, 5])
    new, shifted = pruning.refit(gram_of(values), weight, bias, kept, damping=TINY)
    error = np.square(values[:, kept] @ new + shifted - values @ weight - bias).sum()
    assert error == pytest.approx(least_squares(values, weight, kept.tolist()), rel=1e-4)
    means = (values[:, kept] @ new + shifted - values @ weight - bias).mean(axis=0)
    np.testing.assert_allclose(means, 0, atol=1e-5)


def test_with_every_channel_kept_nothing_changes() -> None:
    values, weight, bias = problem()
    new, shifted = pruning.refit(gram_of(values), weight, bias, np.arange(6))
    assert new is weight
    assert shifted is bias


def test_heads_go_as_a_whole() -> None:
    values, weight, _ = problem(channels=8)
    elimination = pruning.eliminate(gram_of(values), weight, group_size=2, damping=TINY)
    costs = [least_squares(values, weight, [j for j in range(8) if j // 2 != out]) for out in range(4)]
    assert elimination.order[0] == np.argmin(costs)
    assert elimination.errors[1] == pytest.approx(min(costs), rel=1e-4)
    assert elimination.kept(1).tolist() == [2 * elimination.order[-1], 2 * elimination.order[-1] + 1]


@given(
    positions=st.integers(1, 30),
    channels=st.integers(1, 90),
    rank=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_any_rank_gives_growing_errors_and_finite_weights(
    positions: int, channels: int, rank: int, seed: int
) -> None:
    values, weight, bias = problem(positions, channels, 3, rank, seed)
    gram = gram_of(values)
    elimination = pruning.eliminate(gram, weight)
    assert sorted(elimination.order) == list(range(channels))
    assert elimination.errors[0] == 0
    assert (np.diff(elimination.errors) >= 0).all()
    kept = elimination.kept(max(1, channels // 2))
    new, shifted = pruning.refit(gram, weight, bias, kept)
    assert np.isfinite(new).all()
    assert np.isfinite(shifted).all()


def test_what_is_zero_goes_first() -> None:
    values, weight, _ = problem(channels=80, rank=80, positions=400)
    weight[[3, 70]] = 0  # nothing reads them
    values[:, [11, 40]] = 0  # nothing comes from them
    elimination = pruning.eliminate(gram_of(values), weight)
    assert set(elimination.order[:4].tolist()) == {3, 11, 40, 70}
    assert elimination.errors[4] < 1e-3 * elimination.errors[5]


def test_channels_that_do_not_vary_go_for_nothing() -> None:
    """The bias says what they say; rounding errors of float32 products may make their variance negative."""
    values = np.full((50, 12), 0.3) + np.arange(12)
    gram = gram_of(values)
    gram.products[:] *= 1 + np.random.default_rng(0).normal(scale=1e-8, size=(12, 12))
    _, weight, bias = problem(channels=12)
    elimination = pruning.eliminate(gram, weight)
    assert elimination.errors[-1] < 1e-6 * np.square(values @ weight).sum()
    new, shifted = pruning.refit(gram, weight, bias, elimination.kept(3))
    np.testing.assert_allclose(
        values[:, elimination.kept(3)] @ new + shifted, values @ weight + bias, rtol=1e-4
    )


def test_duplicates_go_for_nothing_and_one_stays() -> None:
    values, weight, bias = problem(channels=8)
    values[:, 5] = values[:, 1]
    elimination = pruning.eliminate(gram_of(values), weight, damping=1e-8)
    assert elimination.order[0] in (1, 5)
    assert {1, 5} - set(elimination.order[:1].tolist())
    new, shifted = pruning.refit(gram_of(values), weight, bias, elimination.kept(7), damping=1e-8)
    expected = values @ weight + bias
    np.testing.assert_allclose(values[:, elimination.kept(7)] @ new + shifted, expected, atol=1e-3)


def test_a_gram_matrix_that_is_not_finite_is_one_line() -> None:
    values, weight, _ = problem()
    gram = gram_of(values)
    gram.products[2, 2] = np.nan
    with pytest.raises(InputError, match="not finite at channel 2"):
        pruning.eliminate(gram, weight)


# Models


@pytest.fixture(scope="module")
def pruned(tiny_onnx: Path, tiny_rows: list[Feature]) -> Statistics:
    grams = pruning.collect_block_grams(tiny_onnx, CalibrationReader(tiny_rows, 4))
    return grams, pruning.eliminations(tiny_onnx, grams)


BLOCKS = {"layer.0.ffn": 64, "layer.1.ffn": 64, "layer.0.attention": 2, "layer.1.attention": 2}
# DeBERTa's heads share products with relative positions; ALBERT's layers are one.
OTHER_BLOCKS = {
    "deberta-v2": {name: units for name, units in BLOCKS.items() if "ffn" in name},
    "albert": {name: units for name, units in BLOCKS.items() if "layer.0" in name},
}


def test_the_blocks_of_every_architecture(exported: tiny.Exported) -> None:
    assert {block.name: block.units for block in pruning.blocks_of(exported.model)} == BLOCKS


def test_the_blocks_of_further_architectures(more_exported: tiny.Exported) -> None:
    blocks = {block.name: block.units for block in pruning.blocks_of(more_exported.model)}
    assert blocks == OTHER_BLOCKS.get(more_exported.kind, BLOCKS)
    # Two layers are computed, whether they share their weights or not.
    costs = pruning.operation_costs(more_exported.model, 24, (pruning.FFN,), compiled=False)
    products = 3 if more_exported.kind == "modernbert" else 2
    assert sum(cost.values[-1] for cost in costs.values()) == 2 * products * 2 * 24 * 32 * 64


def test_a_second_set_of_weights_in_a_layer_has_a_name_of_its_own(tiny_onnx: Path) -> None:
    """As an ALBERT with two layers in a group has."""
    first, second = find_ffns(load_ir(tiny_onnx), tiny_onnx)
    groups = grouped([first, replace(second, layer=0), first])
    assert [(group.name, len(group.parts)) for group in groups] == [("layer.0.ffn", 2), ("layer.0.ffn_2", 1)]
    assert pruning.Block(groups[1].name, 64).unit == "neuron"


@pytest.mark.parametrize("width", [32, 48])
def test_any_width_runs_at_any_shape(width: int, exported: tiny.Exported, tmp_path: Path) -> None:
    rows = exported.rows
    grams = pruning.collect_block_grams(exported.model, CalibrationReader(rows, 4))
    orders = pruning.eliminations(exported.model, grams)
    widths = {"layer.0.ffn": width, "layer.1.ffn": 40, "layer.1.attention": 1}
    path = pruning.prune_onnx(exported.model, tmp_path / "pruned.onnx", widths, grams, orders)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    # The last head is no block: it has to stay.
    assert [block.units for block in pruning.blocks_of(path)] == [width, 40, 2]
    session, whole = open_session(path, threads=1), open_session(exported.model, threads=1)
    names = {value.name for value in session.get_inputs()}
    for feed in CalibrationReader(rows, 3):
        feed = {name: array for name, array in feed.items() if name in names}
        (logits,), (exact,) = session.run(None, feed), whole.run(None, feed)
        assert logits.shape == exact.shape
        assert np.isfinite(logits).all()


def test_a_prune_of_nothing_leaves_every_weight(tiny_onnx: Path, pruned: Statistics, tmp_path: Path) -> None:
    widths = {block.name: block.units for block in pruning.blocks_of(tiny_onnx)}
    path = pruning.prune_onnx(tiny_onnx, tmp_path / "same.onnx", widths, *pruned)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(each).graph.initializer}
        for each in (tiny_onnx, path)
    )
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


def test_a_constant_that_other_products_share_stays_for_them(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    """Exporters keep equal constants once: biases of zeros, for example."""
    model = onnx.load(tiny_onnx)
    layers = [f"bert.encoder.layer.{i}" for i in (0, 1)]
    same = {f"{layers[1]}.intermediate.dense.bias": f"{layers[0]}.intermediate.dense.bias"}
    same |= {f"{layers[0]}.attention.self.key.bias": f"{layers[0]}.attention.self.query.bias"}
    for node in model.graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
    shared = tmp_path / "shared.onnx"
    onnx.save(model, shared)
    grams = pruning.collect_block_grams(shared, CalibrationReader(tiny_rows, 4))
    widths = {"layer.0.ffn": 32, "layer.0.attention": 1}
    out = pruning.prune_onnx(
        shared, tmp_path / "out.onnx", widths, grams, pruning.eliminations(shared, grams)
    )
    onnx.checker.check_model(onnx.load(out), full_check=True)
    whole, pruned = (load_ir(path) for path in (shared, out))
    unpruned, narrow = (find_ffns(each, out) for each in (whole, pruned))
    assert [ffn.units for ffn in narrow] == [32, 64]
    before, after = (constant(each[1].inputs[0].bias) for each in (unpruned, narrow))
    np.testing.assert_array_equal(after, before)
    assert np.isfinite(tiny.logits(out, tiny_rows)).all()


def test_neurons_that_nothing_reads_cost_nothing(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    """With half of the rows of a weight zero, the model without these neurons gives the same logits."""
    import onnx_ir as ir

    dead = tmp_path / "dead.onnx"
    model = load_ir(tiny_onnx)
    ffn = find_ffns(model, tiny_onnx)[1]
    value = ffn.output.node.inputs[1]
    assert value is not None
    weight = ffn.output.weight.copy()
    weight[::2] = 0
    value.const_value = ir.tensor(weight.T.copy() if ffn.output.transposed else weight, name=value.name)
    ir.save(model, dead)
    grams = pruning.collect_block_grams(dead, CalibrationReader(tiny_rows, 4))
    orders = pruning.eliminations(dead, grams)
    path = pruning.prune_onnx(dead, tmp_path / "out.onnx", {"layer.1.ffn": 32}, grams, orders)
    sessions = [open_session(each, threads=1) for each in (dead, path)]
    for feed in CalibrationReader(tiny_rows, 4):
        exact, logits = (session.run(None, dict(feed))[0] for session in sessions)
        np.testing.assert_allclose(logits, exact, atol=1e-5)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"layer.7.ffn": 32}, "no block 'layer.7.ffn' to prune; it has layer.0.ffn, layer.1.ffn"),
        ({"layer.0.ffn": 0}, "layer.0.ffn is to keep 0 neurons; it must be 1 to 64"),
        ({"layer.1.ffn": 65}, "layer.1.ffn is to keep 65 neurons; it must be 1 to 64"),
        ({"layer.1.attention": 0}, "layer.1.attention is to keep 0 heads; it must be 1 to 2"),
        ({"layer.1.attention": 3}, "layer.1.attention is to keep 3 heads; it must be 1 to 2"),
        ({"layer.2.attention": 1}, "no block 'layer.2.attention' to prune"),
    ],
)
def test_a_bad_width_is_one_line_and_nothing_is_written(
    widths: dict[str, int],
    message: str,
    tiny_onnx: Path,
    pruned: Statistics,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=message):
        pruning.prune_onnx(tiny_onnx, tmp_path / "out.onnx", widths, *pruned)
    assert not list(tmp_path.iterdir())


def test_shares_become_multiples() -> None:
    assert pruning.Block("layer.0.ffn", 1536).half == 768
    assert pruning.Block("layer.0.ffn", 48).half == 32
    assert pruning.Block("layer.0.attention", 5, multiple=1).half == 2


# Which block loses how many


def falling(neurons: int, scale: float, power: float) -> pruning.Elimination:
    """Errors that grow with the neurons that are gone, ever faster."""
    gone = np.arange(neurons + 1) / neurons
    return pruning.Elimination(np.arange(neurons), scale * gone**power)


@given(
    scales=st.lists(st.floats(0.01, 100), min_size=2, max_size=3),
    power=st.floats(1.0, 4.0),
    share=st.floats(0, 0.8),
)
def test_the_allocation_is_the_best_of_all(scales: list[float], power: float, share: float) -> None:
    blocks = [pruning.Block(f"layer.{i}.ffn", 160) for i in range(len(scales))]
    orders = {block.name: falling(160, scale, power) for block, scale in zip(blocks, scales, strict=True)}
    known = [pruning.Sensitivity(b.name, 64, orders[b.name].error(64)) for b in blocks]  # a factor of 1
    widths = pruning.allocate(blocks, orders, known, share)

    def error(chosen: Sequence[int]) -> float:
        return sum(orders[b.name].error(width) for b, width in zip(blocks, chosen, strict=True))

    options = product(range(32, 161, 32), repeat=len(blocks))
    allowed = [each for each in options if sum(each) <= (1 - share) * 160 * len(blocks) + 1e-6]
    assert sum(widths.values()) <= (1 - share) * 160 * len(blocks) + 1e-6
    assert error(list(widths.values())) == pytest.approx(min(map(error, allowed)), rel=1e-9, abs=1e-12)


def test_a_block_whose_neurons_cost_nothing_keeps_them() -> None:
    blocks = [pruning.Block("layer.0.ffn", 128), pruning.Block("layer.1.ffn", 128)]
    orders = {block.name: falling(128, 1.0, 2.0) for block in blocks}
    known = [pruning.Sensitivity(block.name, 64, 0.25) for block in blocks]
    costs = {"layer.0.ffn": Cost((0, 128), (0.0, 1.0)), "layer.1.ffn": Cost((0, 128), (0.0, 0.0))}
    assert pruning.allocate(blocks, orders, known, 0.5, costs=costs) == {
        "layer.0.ffn": 64,
        "layer.1.ffn": 128,
    }


def test_the_largest_share_can_be_pruned() -> None:
    """In floating point a tenth of 320 neurons is less than 32."""
    blocks = [pruning.Block("layer.0.ffn", 320)]
    assert (1 - 0.9) * 320 < 32
    known = [pruning.Sensitivity("layer.0.ffn", 160, 0.25)]
    assert pruning.allocate(blocks, {"layer.0.ffn": falling(320, 1.0, 2.0)}, known, 0.9) == {
        "layer.0.ffn": 32
    }


def test_too_much_is_one_line_that_says_what_can_be() -> None:
    blocks = [pruning.Block("layer.0.ffn", 128)]
    orders = {"layer.0.ffn": falling(128, 1.0, 2.0)}
    known = [pruning.Sensitivity("layer.0.ffn", 64, 0.25)]
    with pytest.raises(InputError, match=r"0\.9 cannot be pruned: with 32 neurons left .* 0\.750 are gone"):
        pruning.allocate(blocks, orders, known, 0.9)
