from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlib.calibration import (
    Ranges,
    activations,
    calibrate_min_max,
    load_with_shapes,
    read_ranges,
    write_ranges,
)
from quantlib.errors import InputError
from quantlib.features import CalibrationReader, Feature, Feed


def independent_ranges(path: Path, feeds: list[Feed]) -> dict[str, tuple[float, float]]:
    """All values of all float tensors, as outputs of the plain model; their extremes by NumPy."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    computed = {name for node in model.graph.node for name in node.output}
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    floats = [name for name, kind in types.items() if kind == TensorProto.FLOAT and name in computed]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in floats)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [*floats, "logits"]
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for feed in feeds:
        for name, value in zip(names, session.run(names, dict(feed)), strict=True):
            values[name].append(value.ravel())
    everything = {name: np.concatenate(parts) for name, parts in values.items()}
    return {name: (float(v.min()), float(v.max())) for name, v in everything.items()}


@pytest.mark.parametrize("pad_to", [None, 40], ids=["real_tokens", "padded"])
@pytest.mark.parametrize("size", [1, 5])
def test_ranges_are_those_of_all_values(
    tiny_onnx: Path, tiny_rows: list[Feature], pad_to: int | None, size: int
) -> None:
    reader = CalibrationReader(tiny_rows, size, pad_to)
    found = calibrate_min_max(tiny_onnx, reader).of
    want = independent_ranges(tiny_onnx, list(reader))
    assert set(found) == set(want)
    assert len(found) > 50
    for name, pair in want.items():
        np.testing.assert_allclose(found[name], pair, rtol=1e-5, atol=1e-5, err_msg=name)


def test_padding_widens_ranges(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    real, padded = (
        calibrate_min_max(tiny_onnx, CalibrationReader(tiny_rows, 8, pad_to)).of for pad_to in (None, 40)
    )
    wider = [name for name in real if padded[name][0] < real[name][0] or padded[name][1] > real[name][1]]
    assert len(wider) > 10
    assert "bert.encoder.layer.0.attention.self/Softmax:0" in wider


def test_progress_counts_rows(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    counts: list[int] = []
    calibrate_min_max(tiny_onnx, CalibrationReader(tiny_rows, 8, 40), threads=1, progress=counts.append)
    assert counts == [8] * 6


def test_activations_are_in_the_order_of_the_graph(tiny_onnx: Path) -> None:
    model = load_with_shapes(tiny_onnx)
    names = activations(model)
    assert names[-1] == "logits"
    assert names.index("bert.embeddings/Add:0") < names.index("bert.encoder.layer.0.intermediate.dense/Add:0")
    assert "input_ids" not in names
    assert not any("Shape" in name for name in names), "integers are none"


# Activations that are no numbers


def root_model(path: Path) -> Path:
    """sqrt(ids - 10) and 1 / ids: NaN for ids below 10, infinite for 0. Outputs: sums, which stay finite."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "ten"], ["less"]),
        helper.make_node("Sqrt", ["less"], ["root"]),
        helper.make_node("Reciprocal", ["float"], ["inverse"]),
        helper.make_node("Add", ["root", "inverse"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "root",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence"])],
        [numpy_helper.from_array(np.float32(10), "ten")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def feeds_of(*rows: list[int]) -> list[Feed]:
    return [{"input_ids": np.array([row], dtype=np.int64)} for row in rows]


@pytest.mark.parametrize("place", [0, 1, 16, 39])
def test_nan_is_found_wherever_it_is(tmp_path: Path, place: int) -> None:
    path = root_model(tmp_path / "model.onnx")
    row = [20] * 40
    row[place] = 5
    with pytest.raises(InputError) as caught:
        calibrate_min_max(path, feeds_of([20] * 40, row))
    assert str(caught.value) == f"{path}: activation root is NaN or infinite at calibration row 1"


def test_infinity_is_found(tmp_path: Path) -> None:
    path = root_model(tmp_path / "model.onnx")
    proto = onnx.load(path)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(-10), "ten"))
    onnx.save(proto, path)
    with pytest.raises(InputError, match="activation inverse is NaN or infinite at calibration row 0"):
        calibrate_min_max(path, feeds_of([3, 0, 3]))


def test_the_largest_finite_values_are_no_infinity(tmp_path: Path) -> None:
    """An additive attention mask holds the lowest float32, and the sum of two of those is infinite."""
    path = root_model(tmp_path / "model.onnx")
    proto = onnx.load(path)
    low = float(np.finfo(np.float32).min)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(-low), "ten"))
    del proto.graph.node[2:]
    proto.graph.node.append(helper.make_node("Identity", ["less"], ["logits"]))
    onnx.save(proto, path)
    assert calibrate_min_max(path, feeds_of([1, 2, 3])).of["less"] == (low, low)


# What cannot be calibrated


def test_no_rows(tiny_onnx: Path) -> None:
    with pytest.raises(InputError, match="no calibration rows: the calibration set is empty"):
        calibrate_min_max(tiny_onnx, [])


def test_a_feed_the_model_cannot_run(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    (feed,) = CalibrationReader(tiny_rows[:1], 1, pad_to=65)
    with pytest.raises(InputError) as caught:
        calibrate_min_max(tiny_onnx, [feed])
    assert str(caught.value).startswith(f"{tiny_onnx}: cannot be run on (1, 65): ")
    assert "\n" not in str(caught.value)
    del feed["token_type_ids"]
    with pytest.raises(InputError, match="the model has an input 'token_type_ids'"):
        calibrate_min_max(tiny_onnx, [feed])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "no such ONNX model"),
        (b"", "not an ONNX file"),
        (b"garbage" * 30, "not an ONNX file"),
        (5000, "not an ONNX file"),
    ],
    ids=["missing", "empty", "garbage", "cut_off"],
)
def test_a_corrupt_model_is_one_line(
    tiny_onnx: Path, tmp_path: Path, data: bytes | int | None, words: str
) -> None:
    path = tmp_path / "bad.onnx"
    if data is not None:
        path.write_bytes(tiny_onnx.read_bytes()[:data] if isinstance(data, int) else data)
    with pytest.raises(InputError) as caught:
        calibrate_min_max(path, [])
    assert str(caught.value).startswith(f"{path}: {words}")
    assert "\n" not in str(caught.value)


# Ranges


@pytest.mark.parametrize("pair", [(1.0, 0.5), (float("nan"), 1.0), (0.0, float("inf"))], ids=str)
def test_what_is_no_range(pair: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"range of x: .* is not a range"):
        Ranges({"x": pair})


def test_ranges_are_read_as_written(tmp_path: Path) -> None:
    ranges = Ranges({"b": (-0.1, 1 / 3), "a": (0.0, 0.0), "mask": (float(np.finfo(np.float32).min), 0.0)})
    write_ranges(tmp_path / "ranges.json", ranges)
    found = read_ranges(tmp_path / "ranges.json")
    assert found == ranges
    assert list(found.of) == ["b", "a", "mask"]
    assert json.loads((tmp_path / "ranges.json").read_text())["a"] == [0.0, 0.0]
