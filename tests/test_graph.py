from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import quantlib.onnx_model.compile.attention
from quantlib.compression.calibration import activations, collect, load_with_shapes
from quantlib.compression.calibration.graph import BATCH, SEQUENCE, axes
from quantlib.data.features import CalibrationReader, Feature, Feed
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model.compile import Compiled, compile_onnx, is_compiled
from quantlib.onnx_model.compile.folding import fold_products
from quantlib.onnx_model.compile.mask import NotPaddingError, padding_value
from quantlib.onnx_model.export import export_bert_to_onnx
from quantlib.onnx_model.export.opset import declare_opset
from quantlib.onnx_model.layers import constant, find_linears, group, load_ir, role
from quantlib.onnx_model.model import op_counts
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file

node = helper.make_node
FLOAT_MIN = float(np.finfo(np.float32).min)
OPSETS = (13, 17, 18)
FORMS: tuple[Literal["row", "whole"], ...] = ("row", "whole")
# Two layers of which the first is left whole, and three embeddings, position ids, pooler and classifier.
COUNTS = {
    "Add": 14, "Attention": 1, "Cast": 1, "Gather": 5, "Gelu": 2, "Gemm": 2, "LayerNormalization": 5,
    "MatMul": 8, "MultiHeadAttention": 1, "Shape": 1, "Slice": 1, "Split": 1, "Tanh": 1,
}  # fmt: skip
CHANGES = {
    "bert": {},
    "distilbert": {"Gather": -1, "Add": -1, "Tanh": -1, "Relu": 1},
    "electra": {"Gelu": 1, "Tanh": -1, "MatMul": 1, "Add": 1},
    "roberta": {"Slice": -1, "Shape": -1, "Add": 1, "Cast": 4, "CumSum": 1, "Equal": 1, "Mul": 1, "Not": 1},
}
ATTENTIONS = {
    "distilbert": "distilbert.transformer.layer.{}.attention.qkv/Attention",
    "bert": "bert.encoder.layer.{}.attention.self.qkv/Attention",
    "electra": "electra.encoder.layer.{}.attention.self.qkv/Attention",
    "roberta": "roberta.encoder.layer.{}.attention.self.qkv/Attention",
}


def at_opset(model: Path, opset: int, path: Path) -> Path:
    """An exported model of opset 17 at another one, as the export writes it."""
    proto = onnx.load(model)
    declare_opset(proto, opset)
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def sources(exported: tiny.Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By opset: one architecture, exported."""
    directory = tmp_path_factory.mktemp("opsets")
    return {opset: at_opset(exported.model, opset, directory / f"{opset}.onnx") for opset in OPSETS}


@pytest.fixture(scope="module")
def compiled(
    sources: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, str], Compiled]:
    """By opset and form of the last attention."""
    directory = tmp_path_factory.mktemp("compiled")
    return {
        (opset, form): compile_onnx(source, directory / f"{opset}_{form}.onnx", last_attention=form)
        for opset, source in sources.items()
        for form in FORMS
    }


def nodes(path: Path, *op_types: str) -> list[onnx.NodeProto]:
    return [n for n in onnx.load(path).graph.node if n.op_type in op_types]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def run(path: Path, feed: Feed) -> np.ndarray:
    session = open_session(path, threads=1)
    return np.asarray(session.run(None, feed_for(session, feed))[0])


def random_feed(mask: np.ndarray, seed: int = 0, token_types: int = 1) -> Feed:
    draw = np.random.default_rng(seed)
    ids, types = draw.integers(0, 90, mask.shape), draw.integers(0, token_types, mask.shape)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


# The same logits


@pytest.fixture(scope="module")
def sessions(
    exported: tiny.Exported, compiled: dict[tuple[int, str], Compiled]
) -> list[onnxruntime.InferenceSession]:
    """The original, and what was made of it at each opset and in each form."""
    return [open_session(path, threads=1) for path in (exported.model, *(c.path for c in compiled.values()))]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """(rows, tokens): padding behind, in front or anywhere, rows with one real token and rows with none."""
    rows, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 48))
    mask = np.zeros((rows, tokens), np.int64)
    for row in mask:
        kind = draw(st.sampled_from(["behind", "in front", "anywhere", "one", "none"]))
        count = draw(st.integers(1, tokens))
        if kind == "behind":
            row[:count] = 1
        elif kind == "in front":
            row[-count:] = 1
        elif kind == "anywhere":
            row[:] = draw(st.lists(st.integers(0, 1), min_size=tokens, max_size=tokens))
        elif kind == "one":
            row[count - 1] = 1
    return mask


@settings(max_examples=60, deadline=None)
@given(mask=masks(), seed=st.integers(0, 1000))
def test_logits_stay(
    exported: tiny.Exported, sessions: list[onnxruntime.InferenceSession], mask: np.ndarray, seed: int
) -> None:
    feed = random_feed(mask, seed, token_types=1 if exported.kind == "roberta" else 2)
    expected, *computed = (np.asarray(s.run(None, feed_for(s, feed))[0]) for s in sessions)
    assert len(computed) == 6
    assert expected.shape == (len(mask), 2)
    for logits in computed:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_logits_of_text_stay(
    exported: tiny.Exported, compiled: dict[tuple[int, str], Compiled], batch_size: int
) -> None:
    expected = tiny.logits(exported.model, exported.rows)
    assert np.ptp(expected) > 0.1, "a model that tells rows apart"
    for result in compiled.values():
        computed = tiny.logits(result.path, exported.rows, batch_size)
        np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-4)
        assert result.difference <= 1e-5


# What becomes of the graph


@pytest.mark.parametrize("opset", OPSETS)
def test_operators(exported: tiny.Exported, compiled: dict[tuple[int, str], Compiled], opset: int) -> None:
    written_out = Counter({"Slice": 1}) if opset < 15 and exported.kind != "roberta" else Counter()
    expected = Counter(COUNTS)
    expected.update(CHANGES[exported.kind])
    first_row, all_rows = compiled[opset, "row"], compiled[opset, "whole"]
    assert op_counts(first_row.path) == +expected + written_out
    expected.update(
        {"Attention": 1, "MultiHeadAttention": -1, "Split": -1, "MatMul": -2, "Add": -2, "Gather": 1}
    )
    assert op_counts(all_rows.path) == +expected + written_out
    for result in (first_row, all_rows):
        assert result.nodes_after == len(onnx.load(result.path).graph.node) < result.nodes_before / 2


def test_the_report(
    exported: tiny.Exported, sources: dict[int, Path], compiled: dict[tuple[int, str], Compiled]
) -> None:
    for (opset, form), result in compiled.items():
        counts = {
            name: result.done[name]
            for name in result.done
            if name not in ("merged_constants", "folded_products")
        }
        assert counts == {
            "layer_normalization": 5 if opset < 17 else 0,
            "gelu": 3 if exported.kind == "electra" else 2,
            "attention": 2,
            "row": 11,
            "row_attention": int(form == "row"),
        }
        assert result.left == ()
        assert result.nodes_before == len(onnx.load(sources[opset]).graph.node)
        assert is_compiled(load_ir(result.path))
        assert not is_compiled(load_ir(sources[opset]))


def test_the_interface_stays(sources: dict[int, Path], compiled: dict[tuple[int, str], Compiled]) -> None:
    for (opset, _), result in compiled.items():
        model, fp32 = onnx.load(result.path), onnx.load(sources[opset])
        for ends in ("input", "output"):
            pairs = [[(v.name, v.type) for v in getattr(m.graph, ends)] for m in (model, fp32)]
            assert pairs[0] == pairs[1]
        versions = {entry.domain: entry.version for entry in model.opset_import}
        assert versions == {"": max(opset, 17), "com.microsoft": 1}
        onnx.checker.check_model(model)
        notes = [*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph]
        assert not any(part.doc_string or part.metadata_props for part in notes)


def test_nodes_are_named_after_their_modules(
    exported: tiny.Exported, compiled: dict[tuple[int, str], Compiled]
) -> None:
    names = {}
    for key, result in compiled.items():
        names[key] = {n.name: n.op_type for n in onnx.load(result.path).graph.node}
        assert len(names[key]) == result.nodes_after, "each name once"
        fused = [n for n, op in names[key].items() if op == "Attention"]
        assert fused == [ATTENTIONS[exported.kind].format(n) for n in range(1 if key[1] == "row" else 2)]
        assert [(role(n), group(n)) for n in fused] == [("qkv", f"layer.{i}.qkv") for i in range(len(fused))]
        assert all(n.endswith(f"/{op}") for n, op in names[key].items() if op in ("Gelu", "Split"))
        layers = [layer.name for layer in find_linears(load_ir(result.path))]
        groups = [f"layer.{n}.{r}" for n in (0, 1) for r in ("qkv", "attention_output", "ffn_in", "ffn_out")]
        assert list(dict.fromkeys(group(n) for n in layers if "layer." in group(n))) == groups
    assert names[17, "row"] == names[18, "row"]
    norms = [{n for n, op in op_types.items() if op == "LayerNormalization"} for op_types in names.values()]
    assert norms == norms[:1] * 6, "as in the export, also where the formula was written out"


def test_weights_of_attention_are_those_of_the_checkpoint(
    exported: tiny.Exported, compiled: dict[tuple[int, str], Compiled]
) -> None:
    from safetensors.numpy import load_file

    saved = load_file(exported.checkpoint / "model.safetensors")
    parts = ("q_lin", "k_lin", "v_lin") if exported.kind == "distilbert" else ("query", "key", "value")
    model = load_ir(compiled[17, "row"].path)
    layers = {layer.name: layer for layer in find_linears(model)}
    modules = [ATTENTIONS[exported.kind].format(n).removesuffix(".qkv/Attention") for n in (0, 1)]
    for names, layer in {
        parts: layers[f"{modules[0]}.qkv/Attention"],
        parts[:1]: layers[f"{modules[1]}.query/MatMul"],
        parts[1:]: layers[f"{modules[1]}.key_value/MatMul"],
    }.items():
        at = layer.name.rpartition("/")[0].rpartition(".")[0]
        weights = [saved[f"{at}.{name}.weight"].T for name in names]
        np.testing.assert_array_equal(layer.weight, np.concatenate(weights, axis=1))
        biases = [saved[f"{at}.{name}.bias"] for name in names]
        np.testing.assert_array_equal(constant(layer.bias), np.concatenate(biases))
        assert layer.weight_name == f"{layer.name.rpartition('/')[0]}.weight"
    assert [layer.last.op_type for layer in layers.values()][1 if exported.kind == "electra" else 0] == (
        "Attention"
    )


def test_attention_takes_the_mask_as_integers(compiled: dict[tuple[int, str], Compiled]) -> None:
    for result in compiled.values():
        fused = nodes(result.path, "Attention", "MultiHeadAttention")
        assert len(fused) == 2
        for n in fused:
            assert attributes(n) == {"num_heads": 2, "mask_filter_value": FLOAT_MIN}
            assert n.input[3 if n.op_type == "Attention" else 4] == "attention_mask/Cast:0"
        (cast,) = (n for n in nodes(result.path, "Cast") if n.input[0] == "attention_mask")
        assert attributes(cast) == {"to": TensorProto.INT32}
        users = [n for n in onnx.load(result.path).graph.node if "attention_mask" in n.input]
        assert users == [cast], "nothing else is made of the mask"


def axis_of(name: str, form: str) -> str:
    """The name of a tensor's axis after the batch; empty in the last layer, which computes a single row."""
    all_tokens = ".key_value/" in name or (form == "whole" and name.endswith("/Reshape_4:0"))
    return "" if re.search(r"\.layer\.1[./]|/row/", name) and not all_tokens else SEQUENCE


def test_every_activation_has_a_type_and_named_axes(compiled: dict[tuple[int, str], Compiled]) -> None:
    for (_, form), result in compiled.items():
        model = load_with_shapes(result.path)
        typed = {value.name for value in (*model.graph.value_info, *model.graph.output)}
        assert {name for n in model.graph.node for name in n.output} <= typed
        axes_of = axes(model, activations(model))
        assert len(axes_of) > 30
        assert {axis_of(name, form) for name in axes_of} == {"", SEQUENCE}
        for name, kinds in axes_of.items():
            if len(kinds) == 2:
                assert kinds == (BATCH, ""), name
            else:
                first = kinds[0] if "position_embeddings" in name else BATCH  # one for all rows in a BERT
                assert kinds == (first, axis_of(name, form), ""), name
        assert sum(len(kinds) == 2 for kinds in axes_of.values()) >= 4


def test_statistics_of_every_layers_input(
    exported: tiny.Exported, compiled: dict[tuple[int, str], Compiled]
) -> None:
    """Tensors that keep their name keep their values, in the last layer for one row of each text."""
    for form in FORMS:
        result = compiled[17, form]
        inputs = list(dict.fromkeys(str(layer.input.name) for layer in find_linears(load_ir(result.path))))
        statistics = collect(result.path, CalibrationReader(exported.rows, 8), inputs, threads=1).of
        assert list(statistics) == inputs
        shared = [name for name in inputs if name in activations(load_with_shapes(exported.model))]
        fp32_statistics = collect(exported.model, CalibrationReader(exported.rows, 8), shared, threads=1).of
        cut = [name for name in shared if ".layer.1" in name and not axis_of(name, form)]
        assert len(cut) == 2, "behind LayerNormalization and behind GELU"
        assert len(shared) - len(cut) >= 6
        for name in shared:
            low, high = statistics[name].low, statistics[name].high
            if name in cut:
                assert fp32_statistics[name].low - 1e-4 <= low <= high <= fp32_statistics[name].high + 1e-4
                assert statistics[name].count < fp32_statistics[name].count
            else:
                assert (low, high) == pytest.approx(
                    (fp32_statistics[name].low, fp32_statistics[name].high), abs=1e-4
                )
                assert statistics[name].count == fp32_statistics[name].count


# What is not recognised


@pytest.mark.parametrize(
    ("kind", "changes", "activation", "depth"),
    [
        ("bert", {"hidden_act": "gelu_fast", "num_hidden_layers": 1}, "Mul", 1),
        ("distilbert", {"activation": "relu", "n_layers": 3}, "Relu", 3),
    ],
    ids=["gelu_fast", "relu"],
)
def test_other_activations_and_depths(
    tmp_path: Path, kind: str, changes: dict[str, Any], activation: str, depth: int
) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "checkpoint", kind, **changes)
    model = export_bert_to_onnx(checkpoint, tmp_path / "model.onnx", seq_len=48)
    for form in FORMS:
        result = compile_onnx(model, tmp_path / "compiled.onnx", last_attention=form)
        assert (result.done["attention"], result.done["gelu"]) == (depth, 0)
        assert result.done["row"] > 0, "other activations are computed row by row too"
        module = (
            "transformer.layer.{}.ffn.lin1" if kind == "distilbert" else "encoder.layer.{}.intermediate.dense"
        )
        assert result.left == tuple(
            f"{kind}.{module.format(n)}/MatMul: {activation} behind it is not GELU: not fused"
            for n in range(depth)
        )
        mask = np.array([[1] * 20, [1] * 7 + [0] * 13, [1] + [0] * 19])
        feed = random_feed(mask)
        np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


Change = Callable[[onnx.GraphProto], None]


def edited(model: Path, path: Path, change: Change) -> Path:
    proto = onnx.load(model)
    change(proto.graph)
    onnx.save(proto, path)
    return path


def named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(n for n in graph.node if n.name == name)


def insert(graph: onnx.GraphProto, new: list[onnx.NodeProto], before: onnx.NodeProto) -> None:
    place = next(i for i, n in enumerate(graph.node) if n is before or n.name == before.name)
    for i, n in enumerate(new):
        graph.node.insert(place + i, n)


def masked(*new: onnx.NodeProto, **constants: np.ndarray) -> Change:
    """The bias of attention is computed by other nodes, the last of which gives out "bias"."""

    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
        insert(graph, list(new), named(graph, "bert.encoder.layer.0.attention.self.query/MatMul"))
        for n in graph.node:
            if n.op_type == "Add" and "bert/Where:0" in n.input:
                n.input[1] = "bias"

    return change


def numbers(name: str = "attention_mask") -> list[onnx.NodeProto]:
    """1 - an input, as float, (batch, 1, 1, sequence)."""
    return [
        node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["floats", "middle"], ["wide"]),
        node("Sub", ["one", "wide"], ["padding"]),
    ]


ONE: dict[str, np.ndarray] = {"one": np.array(1, np.float32), "middle": np.array([1, 2])}
TIMES = node("Mul", ["padding", "number"], ["bias"])
RAMP = [node("CumSum", ["padding", "last"], ["ramp"]), node("Mul", ["ramp", "padding"], ["bias"])]
# Keys behind the query are hidden too.
CAUSAL = [
    node("Shape", ["attention_mask"], ["size"]),
    node("Gather", ["size", "second"], ["length"]),
    node("Range", ["zero", "length", "second"], ["places"]),
    node("Unsqueeze", ["places", "column"], ["queries"]),
    node("Sub", ["places", "queries"], ["distance"]),
    node("Cast", ["distance"], ["ahead"], to=TensorProto.FLOAT),
    node("Sign", ["ahead"], ["side"]),
    node("Max", ["padding", "side"], ["hidden"]),
    node("Mul", ["hidden", "number"], ["bias"]),
]
PLACES = {"second": np.array(1), "zero": np.array(0), "column": np.array([1])}
NOT_PADDING: dict[str, tuple[Change, str]] = {
    "other_input": (
        masked(*numbers("token_type_ids"), TIMES, number=np.array(-1e4, np.float32), **ONE),
        "its mask depends on token_type_ids",
    ),
    "turned_round": (
        masked(
            *numbers(),
            node("Sub", ["one", "padding"], ["real"]),
            node("Mul", ["real", "number"], ["bias"]),
            number=np.array(-1e4, np.float32),
            **ONE,
        ),
        "its mask changes the scores of real tokens",
    ),
    "causal": (
        masked(*numbers(), *CAUSAL, number=np.array(-1e4, np.float32), **ONE, **PLACES),
        "its mask changes the scores of real tokens",
    ),
    "several_numbers": (
        masked(*numbers(), *RAMP, last=np.array(3), **ONE),
        "its mask adds 16 different numbers to the scores of padding",
    ),
    "no_batch": (
        masked(
            *numbers(),
            node("ReduceMax", ["padding"], ["any"], axes=[0]),
            node("Mul", ["any", "number"], ["bias"]),
            number=np.array(-1e4, np.float32),
            **ONE,
        ),
        "its mask has the shape (1, 1, 1, 16) for 2 rows of 16 tokens",
    ),
}


@pytest.mark.parametrize("name", NOT_PADDING)
def test_a_mask_that_is_not_the_padding_is_left_alone(tiny_onnx: Path, tmp_path: Path, name: str) -> None:
    change, reason = NOT_PADDING[name]
    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    assert (result.done["attention"], result.done["row_attention"]) == (0, 0)
    assert result.left == tuple(
        f"bert.encoder.layer.{n}.attention.self: attention is not fused: {reason}" for n in (0, 1)
    )
    assert result.done["gelu"] == 2
    assert result.done["row"] == 11, "up to the attention, whether it is fused or not"
    assert op_counts(result.path)["Softmax"] == 2


def test_another_number_for_padding_is_kept(tiny_onnx: Path, tmp_path: Path) -> None:
    change = masked(*numbers(), TIMES, number=np.array(-1e4, np.float32), **ONE)
    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    assert result.left == ()
    (fused,) = nodes(result.path, "Attention")
    assert attributes(fused)["mask_filter_value"] == -1e4
    feed = random_feed(np.array([[1, 1, 0, 0, 1], [0, 1, 0, 0, 0]]))
    np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


def test_another_scale_is_kept(tiny_onnx: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        scale = named(graph, "bert.encoder.layer.1.attention.self/Mul").input[1]
        (tensor,) = (t for t in graph.initializer if t.name == scale)
        tensor.CopyFrom(numpy_helper.from_array(np.array(0.1, np.float32), scale))

    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    fused = nodes(result.path, "Attention", "MultiHeadAttention")
    assert [attributes(n)["scale"] for n in fused] == [pytest.approx(0.1)] * 2
    feed = random_feed(np.ones((2, 9), np.int64))
    np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


def array_of(graph: onnx.GraphProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in graph.initializer if t.name == name))


def passed_on(place: int, *parts: str) -> Change:
    """Inputs of nodes of the first attention that are no constants any more."""

    def change(graph: onnx.GraphProto) -> None:
        for part in parts:
            user = named(graph, f"bert.encoder.layer.0.attention.self{part}")
            new = node("Identity", [user.input[place]], [f"{part}/passed"], name=f"{part}/Identity")
            user.input[place] = f"{part}/passed"
            insert(graph, [new], user)

    return change


def divided(graph: onnx.GraphProto) -> None:
    scale = named(graph, "bert.encoder.layer.0.attention.self/Mul")
    graph.initializer.append(numpy_helper.from_array(np.array(4, np.float32), "four"))
    scale.op_type, scale.input[1] = "Div", "four"


def one_head_of_values(graph: onnx.GraphProto) -> None:
    """Both heads of queries and keys share one of values."""
    module = "bert.encoder.layer.0.attention.self.value"
    for name in (f"{module}.weight", f"{module}.bias"):
        half = np.ascontiguousarray(array_of(graph, name)[..., :16])
        next(t for t in graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(half, name))
    parts = (f"{module}/", "bert.encoder.layer.0.attention.self/Reshape_3:0", "self/Transpose_2:0")
    for info in [info for info in graph.value_info if any(part in info.name for part in parts)]:
        graph.value_info.remove(info)


def unknown_heads(graph: onnx.GraphProto) -> None:
    name = "bert.encoder.layer.0.attention.self/Reshape:0"
    graph.value_info.remove(next(info for info in graph.value_info if info.name == name))


NOT_FUSED: dict[str, tuple[Change, str]] = {
    "divided": (divided, "it is not softmax(q·k * scale + mask)·v of one input"),
    "weight": (passed_on(1, ".key/MatMul"), "a weight of query, key or value is not constant"),
    "bias": (passed_on(1, ".value/Add"), "a bias of query, key or value is not constant"),
    "scale": (passed_on(1, "/Mul"), "its scale is not a constant number"),
    "widths": (one_head_of_values, "query, key and value differ in width"),
    "heads": (unknown_heads, "the number of its heads is not known"),
}


@pytest.mark.parametrize(("change", "reason"), NOT_FUSED.values(), ids=list(NOT_FUSED))
def test_an_attention_that_does_not_fit_is_left_alone(
    tiny_onnx: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    assert result.left == (f"bert.encoder.layer.0.attention.self: attention is not fused: {reason}",)
    assert (result.done["attention"], result.done["row_attention"]) == (1, 1), "the other one is"
    feed = random_feed(np.array([[1] * 9, [1] * 4 + [0] * 5]))
    np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


def test_another_formula_of_a_norm_is_left_alone(tiny_onnx: Path, tmp_path: Path) -> None:
    name = "bert.embeddings.LayerNorm/LayerNormalization"

    def change(graph: onnx.GraphProto) -> None:
        square = named(graph, f"{name}/squared")
        square.op_type, square.input[1] = "Mul", square.input[0]

    model = at_opset(tiny_onnx, 13, tmp_path / "13.onnx")
    result = compile_onnx(edited(model, tmp_path / "model.onnx", change), tmp_path / "compiled.onnx")
    assert result.left == (
        f"{name}/deviation: Sqrt is not part of a LayerNormalization as it is known: not fused",
    )
    assert result.done["layer_normalization"] == 4


def test_equal_constants_are_merged(tiny_onnx: Path, tmp_path: Path) -> None:
    names = [f"bert.encoder.layer.{n}.output.LayerNorm.weight" for n in (0, 1)]

    def change(graph: onnx.GraphProto) -> None:
        first = array_of(graph, names[0])
        next(t for t in graph.initializer if t.name == names[1]).CopyFrom(
            numpy_helper.from_array(first, names[1])
        )

    plain = compile_onnx(tiny_onnx, tmp_path / "plain.onnx")
    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    assert result.done["merged_constants"] == plain.done["merged_constants"] + 1
    initializers = [tensor.name for tensor in onnx.load(result.path).graph.initializer]
    assert [name for name in names if name in initializers] == names[:1]
    used = {name for n in onnx.load(result.path).graph.node for name in n.input}
    assert set(initializers) <= used, "nothing is held that no node takes"


def test_a_model_without_a_mask(tiny_onnx: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        (mask,) = (value for value in graph.input if value.name == "attention_mask")
        graph.input.remove(mask)
        value = helper.make_tensor("value", TensorProto.INT64, [1], [1])
        shape = node("Shape", ["input_ids"], ["size"], name="size")
        insert(graph, [node("ConstantOfShape", ["size"], ["attention_mask"], value=value)], graph.node[0])
        graph.node.insert(0, shape)

    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    assert [line.partition(": ")[2] for line in result.left] == [
        "attention is not fused: the model has no input attention_mask"
    ] * 2
    feed = random_feed(np.ones((2, 9), np.int64))
    np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


def mean_pooling(graph: onnx.GraphProto) -> None:
    named(graph, "bert.pooler/Gather").CopyFrom(
        node(
            "ReduceMean",
            ["bert.encoder.layer.1.output.LayerNorm/LayerNormalization:0"],
            ["bert.pooler/Gather:0"],
            name="bert.pooler/Mean",
            axes=[1],
            keepdims=0,
        )
    )


def second_reader(graph: onnx.GraphProto) -> None:
    """The classifier reads the sum of the first and the last row."""
    states = "bert.encoder.layer.1.output.LayerNorm/LayerNormalization:0"
    graph.initializer.append(numpy_helper.from_array(np.array(-1), "last"))
    pooler = named(graph, "bert.pooler.dense/Gemm")
    pooler.input[0] = "rows"
    new = [
        node("Gather", [states, "last"], ["other"], name="other", axis=1),
        node("Add", ["bert.pooler/Gather:0", "other"], ["rows"], name="rows"),
    ]
    insert(graph, new, pooler)


def states_wanted(graph: onnx.GraphProto) -> None:
    """The hidden states are an output too."""
    states = "bert.encoder.layer.1.output.LayerNorm/LayerNormalization:0"
    shape = ["batch", "sequence", 32]
    graph.output.append(helper.make_tensor_value_info(states, TensorProto.FLOAT, shape))
    for info in [info for info in graph.value_info if info.name == states]:
        graph.value_info.remove(info)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (mean_pooling, "no node reads a single row; a mean or maximum reads them all"),
        (second_reader, "2 nodes read a single row, not one"),
        (states_wanted, "what bert.pooler/Gather reads is not computed row by row"),
    ],
    ids=["mean_pooling", "two_rows", "hidden_states"],
)
def test_a_last_layer_that_is_wanted_whole(
    tiny_onnx: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    result = compile_onnx(model, tmp_path / "compiled.onnx")
    assert result.left == (f"the last layer is not cut: {reason}",)
    assert (result.done["attention"], result.done["row"], result.done["row_attention"]) == (2, 0, 0)
    feed = random_feed(np.array([[1] * 9, [1] * 4 + [0] * 5]))
    np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


def test_another_row_than_the_first(tiny_onnx: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(-1), "last"))
        named(graph, "bert.pooler/Gather").input[1] = "last"

    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    feed = random_feed(np.array([[1] * 9, [1] * 4 + [0] * 5]))
    assert np.abs(run(model, feed) - run(tiny_onnx, feed)).max() > 0.01
    for form in FORMS:
        result = compile_onnx(model, tmp_path / "compiled.onnx", last_attention=form)
        assert result.done["row"] == 11
        np.testing.assert_allclose(run(result.path, feed), run(model, feed), rtol=0, atol=1e-4)


# Files


def test_what_branches_read_is_no_constant(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node("Identity", ["x"], [name])], name, [], [output])

    branches = {"then_branch": branch("one"), "else_branch": branch("other")}
    nodes = [
        node("If", ["condition"], ["chosen"], **branches),
        node("MatMul", ["chosen", "w"], ["z"]),
        node("Add", ["z", "w"], ["y"]),
    ]
    constants = {"condition": np.array(True), "w": np.eye(4, dtype=np.float32)}
    model = load_ir(tiny.save_graph(tmp_path / "model.onnx", nodes, constants))
    assert fold_products(model) == 0
    with pytest.raises(NotPaddingError, match="in branches, by If"):
        padding_value(model.graph.outputs[0], model.graph.inputs[0])


def test_a_compiled_model_is_not_compiled_again(
    compiled: dict[tuple[int, str], Compiled], tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"17_row\.onnx: this model is compiled already; a run takes it with"
    ):
        compile_onnx(compiled[17, "row"].path, tmp_path / "twice.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.onnx: no such ONNX model$"):
        compile_onnx(tmp_path / "none.onnx", tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_form_of_the_last_attention(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="last_attention must be 'row' or 'whole', not 'rows'"):
        compile_onnx(tiny_onnx, tmp_path / "out.onnx", last_attention="rows")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_run(tiny_onnx: Path, tmp_path: Path) -> None:
    """Its table of positions is shorter than it says."""

    def change(graph: onnx.GraphProto) -> None:
        name = "bert.embeddings.position_ids"
        ids = array_of(graph, name) + 64
        next(t for t in graph.initializer if t.name == name).CopyFrom(numpy_helper.from_array(ids, name))

    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    with pytest.raises(InputError, match=r"model\.onnx: cannot be run on \(1, 1\): .*out of data bounds"):
        compile_onnx(model, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == [model]


def test_other_logits_are_an_error(tiny_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is mistaken for another one is detected, and nothing is written."""
    monkeypatch.setattr(quantlib.onnx_model.compile.attention, "padding_value", lambda *_: 0.0)
    with pytest.raises(
        RuntimeError, match=r"model\.onnx: compiled, its logits differ by [\d.]+ at batch 2, "
    ):
        compile_onnx(tiny_onnx, tmp_path / "compiled.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_left_alone_and_the_bytes_are_the_same_again(tiny_onnx: Path, tmp_path: Path) -> None:
    before = sha256_file(tiny_onnx)
    paths = [compile_onnx(tiny_onnx, tmp_path / name).path for name in ("a.onnx", "b.onnx")]
    assert sha256_file(tiny_onnx) == before
    assert sha256_file(paths[0]) == sha256_file(paths[1])
    assert str(tmp_path).encode() not in paths[0].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths


def test_a_stack_trace_is_dropped(tiny_onnx: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for n in graph.node:
            n.doc_string = "File secret.py, line 1"
            n.metadata_props.add(key="trace", value="File secret.py, line 2")

    model = edited(tiny_onnx, tmp_path / "model.onnx", change)
    assert b"secret" not in compile_onnx(model, tmp_path / "compiled.onnx").path.read_bytes()


def test_no_torch_and_no_noise(tiny_onnx: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from quantlib.onnx_model.compile import compile_onnx
        compile_onnx(Path(sys.argv[1]), Path(sys.argv[2]))
        print(*sys.modules)
    """
    root = Path(quantlib.onnx_model.compile.__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code, str(tiny_onnx), str(tmp_path / "compiled.onnx")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert "onnxscript.rewriter" in process.stdout.split()
    assert not {"torch", "transformers", "pytest"} & set(process.stdout.split())


def test_rows_of_text(compiled: dict[tuple[int, str], Compiled], exported: tiny.Exported) -> None:
    """A session that fuses nothing computes the same: calibration runs in one."""
    rows: list[Feature] = exported.rows[:6]
    feed = next(iter(CalibrationReader(rows, 6)))
    result = compiled[17, "row"]
    session = open_session(result.path, threads=1, optimize=False)
    logits = session.run(None, feed_for(session, feed))[0]
    np.testing.assert_allclose(logits, run(result.path, feed), rtol=0, atol=1e-5)
