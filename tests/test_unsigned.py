"""S8 activations as U8: the same numbers, whatever stands around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from exact import saturates
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data.features import Feature
from quantlib.machine import unsigned
from quantlib.machine.sessions import open_session
from quantlib.machine.unsigned import count_signed, to_unsigned, unsigned_model
from quantlib.support.errors import InputError

Array = np.ndarray[Any, Any]
Nodes = list[onnx.NodeProto]

SCALE, ZERO = np.float32(0.1), np.int8(3)


def quantize(source: str = "x", zero: str = "z", output: str = "q", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("QuantizeLinear", [source, "s", zero], [output], **attributes)


def dequantize(source: str = "q", zero: str = "z", output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [source, "s", zero], [output], **attributes)


def saved(
    directory: Path, nodes: Nodes | None = None, outputs: tuple[str, ...] = ("y",), **constants: Any
) -> onnx.ModelProto:
    """A model of these nodes, by default x, quantized and dequantized; s and z are there always."""
    nodes = [quantize(), dequantize()] if nodes is None else nodes
    all_constants = {"s": SCALE, "z": ZERO} | constants
    return onnx.load(tiny.save_graph(directory / "model.onnx", nodes, all_constants, outputs=outputs))


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    """The outputs, from the graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"x": x}))


def activations() -> Array:
    """(1, 6, 4), some of which a scale of 0.1 clips at either end."""
    x = np.random.default_rng(0).normal(0, 8, (1, 6, 4)).astype(np.float32)
    x[0, 0] = (-1e9, 1e9, 12.4, -13.1)
    return x


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The type of the zero point of each QuantizeLinear and DequantizeLinear, by the node's output."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type.endswith("quantizeLinear")]
    nodes += [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return {node.output[0]: kinds[node.input[2]] for node in nodes}


# The numbers


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.float32, np.int8, Array]:
    """A scale, a zero point, and numbers up to twice as far out as the grid reaches."""
    scale = np.float32(draw(st.floats(2.0**-20, 2.0**20, width=32)))
    steps = draw(st.lists(st.floats(-512, 512, width=32), min_size=4, max_size=24))
    x = np.array(steps[: len(steps) // 4 * 4], np.float32) * scale
    return scale, np.int8(draw(st.integers(-128, 127))), x.reshape(1, -1, 4)


@settings(deadline=None, max_examples=60)
@given(grids())
def test_any_grid_gives_the_same_numbers(
    tmp_path_factory: pytest.TempPathFactory, grid: tuple[np.float32, np.int8, Array]
) -> None:
    scale, zero, x = grid
    model = saved(tmp_path_factory.getbasetemp(), s=scale, z=zero)
    (expected,) = run(model, x)
    assert to_unsigned(model) == 1
    assert types_of(model) == {"q": TensorProto.UINT8, "y": TensorProto.UINT8}
    (computed,) = run(model, x)
    np.testing.assert_array_equal(computed, expected)
    steps = np.clip(np.rint(x / scale), -128 - float(zero), 127 - float(zero))
    np.testing.assert_array_equal(expected, (steps * scale).astype(np.float32))


# What stands around them


def two_readers(directory: Path) -> onnx.ModelProto:
    return saved(directory, [quantize(), dequantize(), dequantize(output="w")], ("y", "w"))


def read_by_another(directory: Path) -> onnx.ModelProto:
    cast = helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT)
    return saved(directory, [quantize(), dequantize(), cast], ("y", "w"))


def graph_output(directory: Path) -> onnx.ModelProto:
    model = saved(directory, outputs=("y", "q"))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.INT8
    return model


def read_by_nothing(directory: Path) -> onnx.ModelProto:
    model = saved(directory)
    model.graph.node.insert(0, quantize(output="unused"))
    return model


def body_of_an_if(directory: Path) -> onnx.ModelProto:
    def body(node: onnx.NodeProto) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        return helper.make_graph([node], "body", [], [output])

    cast = helper.make_node("Cast", ["q"], ["cast"], to=TensorProto.FLOAT)
    branches = {"then_branch": body(cast), "else_branch": body(dequantize(output="else"))}
    nodes = [quantize(), dequantize(), helper.make_node("If", ["c"], ["w"], **branches)]
    return saved(directory, nodes, ("y", "w"), c=np.array(True))


def another_zero_point(directory: Path) -> onnx.ModelProto:
    nodes = [quantize(), dequantize(), dequantize(zero="z2", output="w")]
    return saved(directory, nodes, ("y", "w"), z2=np.int8(-7))


def shared_with_a_weight(directory: Path) -> onnx.ModelProto:
    nodes = [
        quantize(),
        dequantize(output="a"),
        dequantize("weight", output="b"),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    return saved(directory, nodes, weight=np.arange(-8, 8, dtype=np.int8).reshape(4, 4))


def shared_by_activations(directory: Path) -> onnx.ModelProto:
    nodes = [quantize(), dequantize(output="a"), quantize("a", output="p"), dequantize("p")]
    return saved(directory, nodes)


def per_channel(directory: Path) -> onnx.ModelProto:
    scale, zero = np.array([0.1, 0.2, 0.05, 1], np.float32), np.array([-128, 0, 5, 127], np.int8)
    return saved(directory, [quantize(axis=2), dequantize(axis=2)], s=scale, z=zero)


def no_zero_point(directory: Path) -> onnx.ModelProto:
    """That is U8, by the standard."""
    model = saved(directory)
    for node in model.graph.node:
        del node.input[2]
    return model


def read_without_a_zero_point(directory: Path) -> onnx.ModelProto:
    model = saved(directory, z=np.int8(0))
    del model.graph.node[1].input[2]
    return model


def unsigned_already(directory: Path) -> onnx.ModelProto:
    return saved(directory, z=np.uint8(131))


def computed_zero_point(directory: Path) -> onnx.ModelProto:
    identity = helper.make_node("Identity", ["z"], ["z2"])
    return saved(directory, [identity, quantize(zero="z2"), dequantize(zero="z2")])


def zero_point_that_may_be_given(directory: Path) -> onnx.ModelProto:
    model = saved(directory)
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.INT8, []))
    return model


def declared_type(directory: Path) -> onnx.ModelProto:
    model = saved(directory)
    shape = ["rows", "tokens", 4]
    model.graph.value_info.append(helper.make_tensor_value_info("q", TensorProto.INT8, shape))
    return model


def name_that_is_taken(directory: Path) -> onnx.ModelProto:
    other = "z_unsigned"
    nodes = [quantize(), dequantize(), quantize(zero=other, output="p"), dequantize("p", other, "w")]
    return saved(directory, nodes, ("y", "w"), z_unsigned=np.int8(-50))


def name_of_a_tensor(directory: Path) -> onnx.ModelProto:
    negated = helper.make_node("Neg", ["y"], ["z_unsigned"])
    return saved(directory, [quantize(), dequantize(), negated], ("y", "z_unsigned"))


def nothing_is_quantized(directory: Path) -> onnx.ModelProto:
    return saved(directory, [helper.make_node("Neg", ["x"], ["y"])])


COUNTS: dict[Callable[[Path], onnx.ModelProto], int] = {
    two_readers: 1,
    read_by_another: 0,
    graph_output: 0,
    read_by_nothing: 1,
    body_of_an_if: 0,
    another_zero_point: 1,
    shared_with_a_weight: 1,
    shared_by_activations: 2,
    per_channel: 1,
    no_zero_point: 0,
    read_without_a_zero_point: 0,
    unsigned_already: 0,
    computed_zero_point: 0,
    zero_point_that_may_be_given: 0,
    declared_type: 1,
    name_that_is_taken: 2,
    name_of_a_tensor: 1,
    nothing_is_quantized: 0,
}


@pytest.mark.parametrize(("make", "count"), COUNTS.items(), ids=[make.__name__ for make in COUNTS])
def test_what_stands_around_them(tmp_path: Path, make: Callable[[Path], onnx.ModelProto], count: int) -> None:
    model = make(tmp_path)
    onnx.save(model, tmp_path / "model.onnx")
    expected = run(model, activations())
    before = model.SerializeToString()
    assert to_unsigned(model) == count
    assert (model.SerializeToString() == before) == (count == 0)
    for output, expected_output in zip(run(model, activations()), expected, strict=True):
        np.testing.assert_array_equal(output, expected_output)
    assert to_unsigned(model) == 0, "once is enough"
    assert count_signed(tmp_path / "model.onnx") == count
    assert (unsigned_model(tmp_path / "model.onnx") is None) == (count == 0)


def test_a_weight_keeps_its_zero_point(tmp_path: Path) -> None:
    model = shared_with_a_weight(tmp_path)
    to_unsigned(model)
    kinds = {"q": TensorProto.UINT8, "a": TensorProto.UINT8, "b": TensorProto.INT8}
    assert types_of(model) == kinds
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "weight"]
    assert weight.data_type == TensorProto.INT8


def test_a_type_said_by_the_node_follows(tmp_path: Path) -> None:
    """Opset 21. ONNX Runtime 1.32 itself cannot load the model as it is: its own rewrite leaves the type."""
    model = saved(tmp_path)
    model.opset_import[0].version = 21
    expected = run(model, activations())
    model.graph.node[0].attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    assert to_unsigned(model) == 1
    assert helper.get_attribute_value(model.graph.node[0].attribute[0]) == TensorProto.UINT8
    np.testing.assert_array_equal(run(model, activations()), expected)


# Files


def test_the_file_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.onnx"
    before = path.read_bytes()
    model = unsigned_model(path)
    assert model is not None
    assert types_of(model)["q"] == TensorProto.UINT8
    open_session(path, threads=1)
    assert path.read_bytes() == before
    assert [other.name for other in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("part", range(16, 48))
def test_a_quantized_model_is_known_wherever_its_file_is_cut(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is searched part by part; the operator's name may lie across two of them."""
    monkeypatch.setattr(unsigned, "_PART", part)
    saved(tmp_path)
    assert count_signed(tmp_path / "model.onnx") == 1


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """Every constant is in a file of its own, the zero points too."""
    path = tmp_path / "external.onnx"
    onnx.save(
        shared_with_a_weight(tmp_path),
        path,
        save_as_external_data=True,
        location="external.bin",
        size_threshold=0,
    )
    assert (tmp_path / "external.bin").stat().st_size > 0
    return path


def test_a_model_with_external_data(external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    expected = run(shared_with_a_weight(tmp_path), activations())
    assert count_signed(external) == 1
    monkeypatch.chdir("/")
    computed = open_session(external, threads=1, optimize=False).run(None, {"x": activations()})
    np.testing.assert_array_equal(computed, expected)


def cut(path: Path) -> None:
    path.with_suffix(".bin").write_bytes(b"\0")


def remove(path: Path) -> None:
    path.with_suffix(".bin").unlink()


def not_a_model(path: Path) -> None:
    path.write_bytes(b"a text about QuantizeLinear\n")


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


@pytest.mark.parametrize("spoil", [cut, remove, not_a_model, half], ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_read_is_left_to_the_runtime_to_refuse(
    external: Path, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(external)
    lines = []
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        with pytest.raises(InputError, match=r"external\.onnx: cannot be loaded: ") as caught:
            open_session(external)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]


# Sessions


@pytest.fixture(scope="module")
def textbook(tiny_onnx: Path, tiny_rows: list[Feature], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """QDQ, S8S8, ranges from a few rows."""
    from quantlib.compression import calibration
    from quantlib.compression.quantize import tensors_to_calibrate
    from quantlib.data.features import CalibrationReader

    recipe = RECIPES["quant_1"]
    tensors = tensors_to_calibrate(tiny_onnx, recipe)
    statistics = calibration.collect(tiny_onnx, CalibrationReader(tiny_rows[:16], batch_size=4), tensors)
    ranges = calibration.derive(statistics, "MinMax")
    return quantize_onnx(tiny_onnx, tmp_path_factory.mktemp("textbook") / "model.onnx", recipe, ranges)


def test_both_sessions_say_the_same(
    textbook: Path, tiny_rows: list[Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed, products are computed in float; unsigned, they saturate at 16 bits on a CPU without VNNI."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert count_signed(textbook) == 10

    def logits(**options: Any) -> list[Array]:
        """Of the session with unsigned activations, and of the one with signed ones."""
        return [tiny.logits(textbook, tiny_rows, unsigned_activations=on, **options) for on in (True, False)]

    unsigned, signed = logits(exact=False, optimize=False)
    np.testing.assert_array_equal(unsigned, signed)
    unsigned, signed = logits(exact=True)
    np.testing.assert_allclose(unsigned, signed, atol=1e-5)
    unsigned, signed = logits(exact=False)
    assert (np.abs(unsigned - signed).max() > 0.01) == saturates()


@pytest.mark.parametrize(
    ("machine", "asked", "is_turned"),
    [
        ("x86_64", True, True),
        ("AMD64", True, True),
        ("x86_64", False, False),
        ("aarch64", True, False),
        ("arm64", True, False),
    ],
)
def test_they_are_turned_on_x86_if_asked_for(
    textbook: Path, monkeypatch: pytest.MonkeyPatch, machine: str, asked: bool, is_turned: bool
) -> None:
    """Seen in what ONNX Runtime is given: the file, or the model with other zero points."""
    models: list[str | bytes] = []

    def session(model: str | bytes, *arguments: Any, **options: Any) -> Any:
        models.append(model)
        return original(model, *arguments, **options)

    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr("platform.machine", lambda: machine)
    open_session(textbook, threads=1, unsigned_activations=asked)
    (model,) = models
    if not is_turned:
        assert model == str(textbook)
        return
    assert isinstance(model, bytes)
    loaded = onnx.load_from_string(model)
    quantizers = [node for node in loaded.graph.node if node.op_type == "QuantizeLinear"]
    zeros = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in loaded.graph.initializer}
    assert {zeros[node.input[2]] for node in quantizers} == {np.dtype(np.uint8)}
