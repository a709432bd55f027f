from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from onnx import helper

from quantlib.onnx_model import layers
from quantlib.onnx_model.layers import ROLES, find_embeddings, find_linears, load_ir
from quantlib.support.errors import InputError

node = helper.make_node
PARTS = ("query", "key", "value", "attention output", "FFN input", "FFN output")
LAYERS = [f"layer {n} {part}" for n in (0, 1) for part in PARTS]
GROUPS = [f"layer.{n}.{role}" for n in (0, 1) for role in ("qkv", "attention_output", "ffn_in", "ffn_out")]


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


# Every architecture


def test_the_products_of_every_architecture(exported: tiny.Exported) -> None:
    """Module names differ between architectures; their labels in tables and recipes do not."""
    names = [layer.name for layer in find_linears(load_ir(exported.model))]
    first_labels = ["embeddings projection"] if exported.kind == "electra" else []
    assert [layers.label(name) for name in names] == [*first_labels, *LAYERS, "pooler", "classifier"]
    roles = Counter(layers.role(name) for name in names)
    assert roles == Counter(qkv=6, attention_output=2, ffn_in=2, ffn_out=2, pooler=1, classifier=1) + Counter(
        projection=len(first_labels)
    )
    assert set(roles) <= set(ROLES)
    assert list(layers.groups(names)) == [
        *(["projection"] if first_labels else []),
        *GROUPS,
        "pooler",
        "classifier",
    ]
    assert [name for group in layers.groups(names).values() for name in group] == names


def test_the_tables_of_every_architecture(exported: tiny.Exported) -> None:
    model = load_ir(exported.model)
    tables = find_embeddings(model)
    kinds = ["word", "position"] if exported.kind == "distilbert" else ["word", "token type", "position"]
    assert [layers.label(e.name) for e in tables] == [f"{kind} embeddings" for kind in kinds]
    assert {layers.group(e.name) for e in tables} == {layers.role(e.name) for e in tables} == {"embeddings"}
    assert layers.names(model)[: len(tables)] == [e.name for e in tables]
    assert layers.names(model)[len(tables) :] == [layer.name for layer in find_linears(model)]


def test_weights_and_biases_are_those_of_the_checkpoint(exported: tiny.Exported) -> None:
    from safetensors.numpy import load_file

    saved = load_file(exported.checkpoint / "model.safetensors")
    model = load_ir(exported.model)
    for layer in find_linears(model):
        module = layer.name.rpartition("/")[0]
        np.testing.assert_array_equal(layer.weight, saved[f"{module}.weight"].T)
        np.testing.assert_array_equal(layers.constant(layer.bias), saved[f"{module}.bias"])
        stored = layers.constant(model.graph.initializers[layer.weight_name])
        np.testing.assert_array_equal(stored, layer.weight.T if layer.transposed else layer.weight)
        assert layer.input is layer.node.inputs[0]
        assert layer.transposed == (layer.node.op_type == "Gemm")
    for table in find_embeddings(model):
        np.testing.assert_array_equal(table.table, saved[f"{table.name.rpartition('/')[0]}.weight"])


def test_a_fused_attention_is_a_layer(tmp_path: Path) -> None:
    attention = node("Attention", ["x", "w", "b"], ["y"], name="q", num_heads=2, domain="com.microsoft")
    path = tiny.save_graph(tmp_path / "model.onnx", [attention], {"w": weight(4, 12), "b": weight(12)})
    (layer,) = find_linears(load_ir(path))
    assert (layer.name, layer.weight_name, layer.transposed) == ("q", "w", False)
    assert layer.node is layer.last
    assert layer.input.name == "x"
    np.testing.assert_array_equal(layer.weight, weight(4, 12))
    np.testing.assert_array_equal(layers.constant(layer.bias), weight(12))


# What a name tells


@pytest.mark.parametrize(
    ("name", "role", "group", "label"),
    [
        (
            "roberta.encoder.layer.11.output.dense/MatMul",
            "ffn_out",
            "layer.11.ffn_out",
            "layer 11 FFN output",
        ),
        ("bert.encoder.layer.3.attention.self/MatMul_1", "other", None, None),
        ("bert.encoder.layer.3.attention.self.qkv/MatMul", "qkv", "layer.3.qkv", "layer 3 QKV"),
        (
            "bert.encoder.layer.5.attention.self.key_value/MatMul",
            "qkv",
            "layer.5.qkv",
            "layer 5 key and value",
        ),
        ("distilbert.transformer.layer.2.attention.v_lin/MatMul", "qkv", "layer.2.qkv", "layer 2 value"),
        ("classifier.dense/Gemm", "pooler", "pooler", "pooler"),
        ("classifier.out_proj/Gemm", "classifier", "classifier", "classifier"),
        ("some_mlp/MatMul", "other", "some_mlp/MatMul", "some_mlp/MatMul"),
    ],
)
def test_names(name: str, role: str, group: str | None, label: str | None) -> None:
    assert layers.role(name) == role
    assert layers.group(name) == (group or name)
    assert layers.label(name) == (label or f"layer 3 {name}")


def test_groups_keep_the_order_given() -> None:
    names = ["b.layer.1.attention.q_lin/MatMul", "pooler/Gemm", "x", "b.layer.1.attention.k_lin/MatMul", "y"]
    assert layers.groups(names) == {
        "layer.1.qkv": [names[0], names[3]],
        "pooler": ["pooler/Gemm"],
        "x": ["x"],
        "y": ["y"],
    }


# Which nodes are layers


def found(tmp_path: Path, nodes: list[Any], constants: dict[str, Any]) -> list[layers.Linear]:
    return find_linears(load_ir(tiny.save_graph(tmp_path / "model.onnx", nodes, constants)))


def test_a_bias_may_stand_on_either_side(tmp_path: Path) -> None:
    for inputs in (["p", "b"], ["b", "p"]):
        nodes = [node("MatMul", ["x", "w"], ["p"], name="product"), node("Add", inputs, ["y"], name="sum")]
        (layer,) = found(tmp_path, nodes, {"w": weight(4, 3), "b": weight(3)})
        assert layer.bias is not None
        assert (layer.name, layer.bias.name, layer.last.name) == ("product", "b", "sum")
        assert (layer.input.name, layer.weight_name, layer.weight.shape) == ("x", "w", (4, 3))


def test_layers_that_take_the_same_activation(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["query"], name="first"),
        node("MatMul", ["query", "w"], ["z"], name="second"),
        node("MatMul", ["x", "w"], ["y"], name="third"),
    ]
    first, second, third = found(tmp_path, nodes, {"w": weight(4, 4)})
    by_input = layers.layers_by_input([first, second, third])
    assert list(by_input.items()) == [
        ("x", [first, third]),
        ("query", [second]),
    ]


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1,), "one number for all channels"),
        ((1, 3), "a matrix"),
        ((), "a scalar"),
        ((2, 5, 3), "as the product"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sum_that_is_no_bias_stays_apart(tmp_path: Path, shape: tuple[int, ...], why: str) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    (layer,) = found(tmp_path, nodes, {"w": weight(4, 3), "b": weight(*shape)})
    assert layer.bias is None, why
    assert layer.last is layer.node


def test_a_vector_that_widens_a_product_is_no_bias(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["y"])]
    (layer,) = found(tmp_path, nodes, {"w": weight(4, 1), "b": weight(3)})
    assert layer.bias is None


@pytest.mark.parametrize("outputs", [("y",), ("y", "p")], ids=["used_twice", "an_output"])
def test_a_product_that_is_wanted_without_its_bias(tmp_path: Path, outputs: tuple[str, ...]) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("Add", ["p", "b"], ["s"])]
    nodes.append(node("Mul", ["s", "p"] if len(outputs) == 1 else ["s", "s"], ["y"]))
    path = tiny.save_graph(tmp_path / "m.onnx", nodes, {"w": weight(4, 4), "b": weight(4)}, outputs=outputs)
    (layer,) = find_linears(load_ir(path))
    assert layer.bias is None


GEMM = {"w": weight(4, 3), "wt": weight(3, 4), "b": weight(3)}
FLAT = node("Reshape", ["x", "flat"], ["f"])


@pytest.mark.parametrize(
    ("inputs", "attributes", "fits"),
    [
        (["f", "w", "b"], {}, True),
        (["f", "wt", "b"], {"transB": 1}, True),
        (["f", "w"], {}, True),
        (["f", "w", ""], {}, True),
        (["f", "w", "b"], {"alpha": 2.0}, False),
        (["f", "w", "b"], {"beta": 0.5}, False),
        (["f", "w"], {"transA": 1}, False),
        (["f", "w", "matrix"], {}, False),
        (["f", "w", "one"], {}, False),
        (["f", "w", "f"], {}, False),
    ],
    ids=["plain", "transB", "no_bias", "empty_bias", "alpha", "beta", "transA", "matrix", "one", "computed"],
)
def test_which_gemms_are_layers(
    tmp_path: Path, inputs: list[str], attributes: dict[str, Any], fits: bool
) -> None:
    constants = GEMM | {"flat": np.array([-1, 4]), "matrix": weight(1, 3), "one": weight(1)}
    layers = found(tmp_path, [FLAT, node("Gemm", inputs, ["y"], **attributes)], constants)
    assert len(layers) == fits
    for layer in layers:
        assert layer.weight.shape == (4, 3)
        assert layer.transposed == ("transB" in attributes)
        assert (layer.bias is not None) == (inputs[2:] == ["b"])
        assert layer.last is layer.node


@pytest.mark.parametrize(
    ("inputs", "constants"),
    [
        (["x", "x2"], {}),
        (["w", "x"], {"w": weight(4, 4)}),
        (["x", "w"], {"w": weight(2, 4, 4)}),
        (["x", "w"], {"w": weight(4)}),
        (["x", "w"], {"w": weight(4, 4).astype(np.float64)}),
        (["v", "w"], {"v": weight(2, 4), "w": weight(4, 4)}),
    ],
    ids=["two_activations", "weight_on_the_left", "3_axes", "1_axis", "float64", "two_constants"],
)
def test_products_that_are_no_layers(tmp_path: Path, inputs: list[str], constants: dict[str, Any]) -> None:
    nodes = [node("Transpose", ["x"], ["x2"], perm=[0, 2, 1]), node("MatMul", inputs, ["y"])]
    assert found(tmp_path, nodes, constants) == []


def test_nodes_without_a_name_get_that_of_their_output(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], ["p"]), node("MatMul", ["p", "w"], ["y"])]
    assert [layer.name for layer in found(tmp_path, nodes, {"w": weight(4, 4)})] == ["p", "y"]


@pytest.mark.parametrize(
    ("attributes", "table", "fits"),
    [
        ({}, weight(7, 3), True),
        ({"axis": 0}, weight(7, 3), True),
        ({"axis": 1}, weight(7, 3), False),
        ({}, weight(7), False),
        ({}, np.arange(21).reshape(7, 3), False),
    ],
    ids=["rows", "axis_0", "columns", "vector", "integers"],
)
def test_which_lookups_are_embeddings(
    tmp_path: Path, attributes: dict[str, int], table: np.ndarray, fits: bool
) -> None:
    nodes = [node("Cast", ["x"], ["i"], to=7), node("Gather", ["table", "i"], ["y"], **attributes)]
    path = tiny.save_graph(tmp_path / "model.onnx", nodes, {"table": table})
    embeddings = find_embeddings(load_ir(path))
    assert [(e.name, e.table_name, e.table.shape) for e in embeddings] == [("y", "table", (7, 3))] * fits


def test_a_lookup_in_an_activation_is_none(tmp_path: Path) -> None:
    path = tiny.save_graph(tmp_path / "m.onnx", [node("Gather", ["x", "i"], ["y"])], {"i": np.array([0])})
    assert find_embeddings(load_ir(path)) == []


# Files and constants


@pytest.mark.parametrize("data", [None, b"", b"garbage" * 30], ids=["missing", "empty", "garbage"])
def test_a_file_that_is_no_model_is_one_line(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_ir(path)
    assert str(caught.value).startswith(f"{path}: no")
    assert "\n" not in str(caught.value)


def test_a_new_constant_can_be_read_back(tmp_path: Path) -> None:
    model = load_ir(tiny.save_graph(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])]))
    for name, array in (("matrix", weight(2, 3)), ("scalar", np.float32(0.5)), ("zero", np.uint8(7))):
        value = layers.initializer(model.graph, name, array)
        assert model.graph.initializers[name] is value
        back = layers.constant(value)
        assert back is not None
        assert (back.dtype, back.shape) == (np.asarray(array).dtype, np.asarray(array).shape)
        np.testing.assert_array_equal(back, array)
        assert value.shape == back.shape
    assert layers.constant(None) is None
    assert layers.constant(model.graph.inputs[0]) is None
