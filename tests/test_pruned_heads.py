"""Attention heads and gated blocks pruned: against dense computations, compiled, in 8 bits, and refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from scipy.linalg import lstsq

from quantlib.compression import pruning
from quantlib.compression.calibration import Gram
from quantlib.compression.pruning.costs import Cost
from quantlib.compression.pruning.ffn import find_ffns
from quantlib.compression.pruning.heads import find_attentions
from quantlib.compression.pruning.prune import find_groups
from quantlib.data.features import CalibrationReader, Feature
from quantlib.machine.sessions import SessionConfig, feed_for, open_session
from quantlib.measuring.neurons import block_sensitivities
from quantlib.measuring.profile import trace
from quantlib.onnx_model.compile import compile_onnx
from quantlib.onnx_model.layers import load_ir
from quantlib.support.errors import InputError

UNDAMPED = 1e-9


def gram_of(values: np.ndarray) -> Gram:
    wide = values.astype(np.float64)
    return Gram(len(wide), wide.sum(axis=0), wide.T @ wide)


def activation(onnx_path: Path, rows: Sequence[Feature], tensor: str) -> np.ndarray:
    """A tensor at the real positions of each row by itself, (positions, channels)."""
    import onnxruntime

    model = onnx.load(onnx_path)
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [session.run([tensor], feed_for(session, feed))[0] for feed in CalibrationReader(rows, 1)]
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in values])


# The surgeon


@given(
    positions=st.integers(1, 40),
    heads=st.integers(1, 12),
    size=st.integers(2, 8),
    rank=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_any_rank_of_groups_gives_growing_errors_and_finite_weights(
    positions: int, heads: int, size: int, rank: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(positions, rank)) @ rng.normal(size=(rank, heads * size))
    weight, bias = rng.normal(size=(heads * size, 3)).astype(np.float32), np.zeros(3, np.float32)
    elimination = pruning.eliminate(gram_of(values), weight, group_size=size)
    assert sorted(elimination.order) == list(range(heads))
    assert (np.diff(elimination.errors) >= 0).all()
    kept = elimination.kept(max(1, heads // 2))
    assert len(kept) == size * max(1, heads // 2)
    new, shifted = pruning.refit(gram_of(values), weight, bias, kept)
    assert np.isfinite(new).all()
    assert np.isfinite(shifted).all()


def test_heads_that_are_zero_go_first() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 24)) + 1
    weight = rng.normal(size=(24, 5)).astype(np.float32)
    weight[4:8] = 0  # nothing reads head 1
    values[:, 16:20] = 0.5  # head 4 says the same of every token: the bias says it as well
    elimination = pruning.eliminate(gram_of(values), weight, group_size=4)
    assert set(elimination.order[:2].tolist()) == {1, 4}
    assert elimination.errors[2] < 1e-3 * elimination.errors[3]


def test_a_head_less_is_least_squares_on_what_the_others_say(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    """Which head goes, and the output without it, by a dense computation that knows no Gram matrix."""
    group = next(
        each for each in find_groups(load_ir(tiny_onnx), tiny_onnx) if each.name == "layer.0.attention"
    )
    part = group.first
    grams = pruning.collect_block_grams(tiny_onnx, CalibrationReader(tiny_rows, 4))
    gram = grams[group.name]
    weight, bias = part.output.weight, part.bias
    assert bias is not None
    context = activation(tiny_onnx, tiny_rows, part.activation).astype(np.float64)
    exact = context @ weight + bias
    fits = []
    for gone in range(part.units):
        kept = [i for i in range(part.units * part.size) if i // part.size != gone]
        known = np.column_stack([context[:, kept], np.ones(len(context))])
        fits.append(known @ lstsq(known, exact)[0])
    errors = [float(np.square(fit - exact).sum()) for fit in fits]
    order = pruning.eliminate(gram, weight, group_size=part.size, damping=UNDAMPED)
    assert order.order[0] == np.argmin(errors)
    assert order.errors[1] == pytest.approx(min(errors), rel=1e-2)
    out = tmp_path / "model.onnx"
    pruning.prune_onnx(tiny_onnx, out, {group.name: 1}, grams, {group.name: order}, damping=UNDAMPED)
    got = activation(out, tiny_rows, str(part.output.last.outputs[0].name))
    np.testing.assert_allclose(got, fits[int(np.argmin(errors))], atol=2e-3)


# Models


def with_dead_units(onnx_path: Path, out: Path) -> dict[str, int]:
    """Write a model that reads neither its first head nor every second neuron; the widths without them."""
    import onnx_ir as ir

    model, widths = load_ir(onnx_path), {}
    for group in find_groups(model, onnx_path):
        part = group.first
        value = part.output.node.inputs[1]
        assert value is not None
        weight = part.output.weight.copy()
        if part.size == 1:
            weight[::2] = 0
        else:
            weight[: part.size] = 0
        value.const_value = ir.tensor(weight.T.copy() if part.output.transposed else weight, name=value.name)
        widths[group.name] = part.units // 2
    ir.save(model, out)
    return widths


def check_dead_units(model: tiny.Exported, tmp_path: Path) -> None:
    """Without units that nothing reads, logits are the same, and so they are when it is compiled."""
    dead, out, compiled = (tmp_path / f"{name}.onnx" for name in ("dead", "out", "compiled"))
    widths = with_dead_units(model.model, dead)
    grams = pruning.collect_block_grams(dead, CalibrationReader(model.rows, 4))
    orders = pruning.eliminations(dead, grams)
    pruning.prune_onnx(dead, out, widths, grams, orders)
    onnx.checker.check_model(onnx.load(out), full_check=True)
    left = {block.name: block.units for block in pruning.blocks_of(out)}
    assert left == {name: width for name, width in widths.items() if "ffn" in name}  # one head has to stay
    # Compiling checks parity: alone and in batches, with padding at the end, inside, or nowhere.
    whole = compile_onnx(model.model, tmp_path / "whole.onnx", threads=1)
    done = compile_onnx(out, compiled, threads=1)
    same = ("attention", "gelu", "row_attention")
    assert [done.done[name] for name in same] == [whole.done[name] for name in same]
    assert done.done["row"] >= whole.done["row"]  # where there was no bias, the refit adds one
    assert done.left == whole.left
    sessions = [open_session(each, threads=1) for each in (dead, out, compiled)]
    for feed in CalibrationReader(model.rows, 5):
        exact, *logits = (session.run(None, feed_for(session, feed))[0] for session in sessions)
        for each in logits:
            np.testing.assert_allclose(each, exact, atol=2e-5)


def test_units_that_nothing_reads_go_for_nothing(exported: tiny.Exported, tmp_path: Path) -> None:
    check_dead_units(exported, tmp_path)


def test_a_block_of_which_half_does_nothing_is_tried_with_less(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits that do not change say nothing of the other half; it went for free."""
    monkeypatch.setattr("quantlib.compression.pruning.prune.NEURONS_MULTIPLE", 8)
    dead = tmp_path / "dead.onnx"
    with_dead_units(tiny_onnx, dead)
    grams = pruning.collect_block_grams(dead, CalibrationReader(tiny_rows, 4))
    orders = pruning.eliminations(dead, grams)
    tried = block_sensitivities(dead, lambda path: tiny.logits(path, tiny_rows), grams, orders)
    ffns = [each for each in tried if "ffn" in each.block]
    assert [each.width for each in ffns] == [8, 8]
    assert min(each.logit_error for each in ffns) > 1e-4
    blocks = [block for block in pruning.blocks_of(dead) if "ffn" in block.name]
    assert set(pruning.allocate(blocks, orders, ffns, 0.5).values()) == {32}


def test_units_of_further_architectures_that_nothing_reads(
    more_exported: tiny.Exported, tmp_path: Path
) -> None:
    check_dead_units(more_exported, tmp_path)
    if more_exported.kind == "deberta-v2":
        words = r"the heads of layer\.0\.attention cannot be pruned: it has 5 products into and 1 out"
        with pytest.raises(InputError, match=words):
            pruning.prune_onnx(more_exported.model, tmp_path / "x.onnx", {"layer.0.attention": 1}, {}, {})


@pytest.mark.parametrize("left", [0, 1])
def test_a_mask_that_is_repeated_for_each_head_is_cut_with_them(
    left: int, tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    model = onnx.load(tiny_onnx)
    scores = next(n for n in model.graph.node if n.name == "bert.encoder.layer.0.attention.self/Add")
    expand = helper.make_node("Expand", [scores.input[1], "repeats"], ["wide_mask"], "wide_mask")
    scores.input[1] = "wide_mask"
    model.graph.node.insert(list(model.graph.node).index(scores), expand)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 1, 1]), "repeats"))
    sizes: list[str | int | None] = ["batch", 2, "sequence", "sequence"]
    model.graph.value_info.append(helper.make_tensor_value_info("wide_mask", onnx.TensorProto.FLOAT, sizes))
    onnx.save(model, tmp_path / "wide.onnx")
    grams = pruning.collect_block_grams(tiny_onnx, CalibrationReader(tiny_rows, 4))
    orders = {"layer.0.attention": pruning.Elimination(np.array([1 - left, left]), np.zeros(3), 16)}
    plain, wide = (
        pruning.prune_onnx(source, tmp_path / f"out_{i}.onnx", {"layer.0.attention": 1}, grams, orders)
        for i, source in enumerate((tiny_onnx, tmp_path / "wide.onnx"))
    )
    np.testing.assert_array_equal(tiny.logits(wide, tiny_rows), tiny.logits(plain, tiny_rows))


def test_heads_that_something_else_reads_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    output = next(
        n for n in model.graph.node if n.name == "bert.encoder.layer.0.attention.output.dense/MatMul"
    )
    model.graph.node.append(helper.make_node("Identity", [output.input[0]], ["seen"], "seen"))
    onnx.save(model, tmp_path / "read.onnx")
    attentions, reasons = find_attentions(load_ir(tmp_path / "read.onnx"))
    assert [part.layer for part in attentions] == [1]
    assert reasons == {0: "its heads are read by more than its output product"}


def test_heads_whose_attention_is_an_output_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    name = "bert.encoder.layer.1.attention.self/Softmax:0"
    model.graph.output.append(next(value for value in model.graph.value_info if value.name == name))
    onnx.save(model, tmp_path / "attention.onnx")
    attentions, reasons = find_attentions(load_ir(tmp_path / "attention.onnx"))
    assert [part.layer for part in attentions] == [0]
    assert reasons == {1: f"{name} is an output of the model"}


def test_a_mask_whose_heads_are_not_counted_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    scores = next(n for n in model.graph.node if n.name == "bert.encoder.layer.0.attention.self/Add")
    mask = next(value for value in model.graph.value_info if value.name == scores.input[1])
    mask.type.tensor_type.shape.dim[1].dim_param = "heads"
    onnx.save(model, tmp_path / "mask.onnx")
    _, reasons = find_attentions(load_ir(tmp_path / "mask.onnx"))
    assert reasons[0] == f"{scores.name} has an input of another number of heads"


def test_a_scale_for_each_neuron_is_refused(tmp_path: Path) -> None:
    """It would have to be cut too."""
    halves = [helper.make_node("Split", ["wide"], ["a", "b"], axis=2)]
    scaled = [helper.make_node("Mul", ["a", "scale"], ["c"]), helper.make_node("Mul", ["c", "b"], ["joined"])]
    path = gated(tmp_path, [*halves, *scaled])
    with pytest.raises(InputError, match="has a tensor between its products, so its neurons cannot be told"):
        find_ffns(load_ir(path), path)


def test_heads_of_a_compiled_model_are_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    compiled = compile_onnx(tiny_onnx, tmp_path / "compiled.onnx", threads=1).path
    words = (
        r"the heads of layer\.0\.attention cannot be pruned: it is one node already; prune the model before"
    )
    with pytest.raises(InputError, match=words):
        pruning.prune_onnx(compiled, tmp_path / "x.onnx", {"layer.0.attention": 1}, {}, {})


def gated(tmp_path: Path, middle: Sequence[onnx.NodeProto]) -> Path:
    """A model of one gated block of 8 numbers into 4 neurons."""
    name, rng = "model.layers.0.mlp", np.random.default_rng(0)
    constants = {
        f"{name}.Wi.weight": rng.normal(size=(4, 8)).astype(np.float32),
        f"{name}.Wo.weight": rng.normal(size=(4, 4)).astype(np.float32),
        "from": np.array([0]), "half": np.array([4]), "to": np.array([8]), "last": np.array([2]),
        "sizes": np.array([3, 5]), "scale": np.ones(4, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", f"{name}.Wi.weight"], ["wide"], f"{name}.Wi/MatMul"),
        *middle,
        helper.make_node("MatMul", ["joined", f"{name}.Wo.weight"], ["y"], f"{name}.Wo/MatMul"),
    ]
    shapes = {"wide": ["rows", "tokens", 8]}
    return tiny.save_graph(tmp_path / "gated.onnx", nodes, constants, shapes=shapes)


def test_a_gate_that_is_not_recognised_is_one_line(tmp_path: Path) -> None:
    halves = [helper.make_node("Split", ["wide"], ["a", "b"], axis=2)]
    joined = [helper.make_node("Relu", ["a"], ["c"]), helper.make_node("Mul", ["c", "b"], ["joined"])]
    path = gated(tmp_path, [*halves, *joined])
    assert [part.units for part in find_ffns(load_ir(path), path)] == [4]
    sliced = [
        helper.make_node("Slice", ["wide", begin, end, "last"], [out])
        for out, begin, end in (("a", "from", "half"), ("b", "half", "to"))
    ]
    of_tokens = [helper.make_node("Split", ["wide"], ["a", "b"], axis=1)]
    unequal = [helper.make_node("Split", ["wide", "sizes"], ["a", "b"], axis=2)]
    for parts in (sliced, of_tokens, unequal):
        path = gated(tmp_path, [*parts, *joined])
        with pytest.raises(
            InputError, match=r"gated \(8 numbers into 4 neurons\) in a way that is not recognised"
        ):
            find_ffns(load_ir(path), path)


# What units cost


def operations(onnx_path: Path, rows: Sequence[Feature], length: int) -> int:
    """Of all products for one row of `length` tokens, by a trace of the runtime."""
    feed = {
        "input_ids": np.full((1, length), 5),
        "attention_mask": np.ones((1, length), np.int64),
        "token_type_ids": np.zeros((1, length), np.int64),
    }
    traced = trace(onnx_path, [feed], SessionConfig(1), warmup_runs=1, num_runs=2)
    return sum(node.operations.total for node in traced.nodes)


def test_operations_are_those_that_the_runtime_does(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    grams = pruning.collect_block_grams(tiny_onnx, CalibrationReader(tiny_rows, 4))
    orders = pruning.eliminations(tiny_onnx, grams)
    widths = {block.name: block.half for block in pruning.blocks_of(tiny_onnx)}
    pruned = pruning.prune_onnx(tiny_onnx, tmp_path / "pruned.onnx", widths, grams, orders)
    for compiled in (False, True):
        costs = pruning.operation_costs(tiny_onnx, 24, compiled=compiled)
        paths = [tiny_onnx, pruned]
        if compiled:
            paths = [compile_onnx(each, tmp_path / f"c{i}.onnx").path for i, each in enumerate(paths)]
        before, after = (operations(path, tiny_rows, 24) for path in paths)
        expected = sum(
            costs[block.name].at(block.units) - costs[block.name].at(block.half)
            for block in pruning.blocks_of(tiny_onnx)
        )
        assert before - after == pytest.approx(expected, rel=1e-6)


def growing(units: int, scale: float, power: float) -> pruning.Elimination:
    gone = np.arange(units + 1) / units
    return pruning.Elimination(np.arange(units), scale * gone**power)


@given(
    scales=st.tuples(*[st.floats(0.01, 100)] * 3),
    prices=st.tuples(*[st.integers(1, 9)] * 3),
    power=st.floats(1.0, 4.0),
    share=st.floats(0, 0.7),
)
def test_neurons_and_heads_are_weighed_against_each_other(
    scales: tuple[float, ...], prices: tuple[int, ...], power: float, share: float
) -> None:
    """The allocation is the best of all that cost no more, but for what rounding costs to 1/4000 does."""
    blocks = [
        pruning.Block("layer.0.ffn", 128),
        pruning.Block("layer.0.attention", 4, 1),
        pruning.Block("layer.1.attention", 4, 1),
    ]
    orders = {b.name: growing(b.units, s, power) for b, s in zip(blocks, scales, strict=True)}
    known = [pruning.Sensitivity(b.name, b.half, orders[b.name].error(b.half)) for b in blocks]
    costs = {
        b.name: Cost((0, b.units), (0.0, 100.0 * price)) for b, price in zip(blocks, prices, strict=True)
    }
    widths = pruning.allocate(blocks, orders, known, share, costs=costs)
    whole = 100.0 * sum(prices)

    def cost(chosen: Sequence[int]) -> float:
        return sum(costs[b.name].at(width) for b, width in zip(blocks, chosen, strict=True))

    def error(chosen: Sequence[int]) -> float:
        return sum(orders[b.name].error(width) for b, width in zip(blocks, chosen, strict=True))

    slack = whole / 1000
    assert cost(list(widths.values())) <= (1 - share) * whole + slack
    options = product((32, 64, 96, 128), (1, 2, 3, 4), (1, 2, 3, 4))
    allowed = [each for each in options if cost(each) <= (1 - share) * whole - slack]
    assert error(list(widths.values())) <= min(map(error, allowed)) * (1 + 1e-9) + 1e-12


def test_a_cost_lies_on_the_line_between_two_known_ones() -> None:
    cost = Cost((32, 64, 128), (1.0, 2.0, 2.5))
    assert [cost.at(width) for width in (32, 48, 64, 96, 128)] == [1.0, 1.5, 2.0, 2.25, 2.5]


def test_too_much_names_the_fewest_units_of_each_kind() -> None:
    blocks = [pruning.Block("layer.0.ffn", 128), pruning.Block("layer.0.attention", 4, 1)]
    orders = {block.name: growing(block.units, 1.0, 2.0) for block in blocks}
    known = [pruning.Sensitivity(block.name, block.half, 0.25) for block in blocks]
    costs = {block.name: Cost((0, block.units), (0.0, 1.0)) for block in blocks}
    with pytest.raises(InputError, match=r"with 1 head or 32 neurons left in each block 0\.750 are gone"):
        pruning.allocate(blocks, orders, known, 0.8, costs=costs)
    assert pruning.largest_share(blocks, costs) == pytest.approx(0.75)
