"""A model file as a value: it is read once, and a caller's edits are seen by no other caller."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlib.onnx_model import model as model_module
from quantlib.onnx_model.layers import load_ir, names, skeleton_ir
from quantlib.onnx_model.model import Model, op_counts, size_bytes
from quantlib.support.errors import InputError

WIDTH = 256  # a weight of 256 KiB is one whose numbers are dropped


def weight_model() -> onnx.ModelProto:
    """(rows, 256) x weight, with the shape of a Reshape behind it."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"], name="product"),
        helper.make_node("Reshape", ["product", "shape"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "weight",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.ones((WIDTH, WIDTH), np.float32), "weight"),
            numpy_helper.from_array(np.array([-1, 2]), "shape"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(weight_model(), path)
    return path


def test_a_file_is_hashed_and_parsed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *args, **kwargs: (calls.append(name), function(*args, **kwargs))[1]

    monkeypatch.setattr(onnx, "load", counted("parsed", onnx.load))
    monkeypatch.setattr(model_module, "sha256_file", counted("hashed", model_module.sha256_file))
    model = Model(file)
    for _ in range(2):
        assert model.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert model.size_bytes == file.stat().st_size
        assert model.op_counts == {"MatMul": 1, "Reshape": 1}
        assert names(skeleton_ir(model)) == ["product"]
        assert Model.of(model) is model
    assert sorted(calls) == ["hashed", "parsed"]
    assert Model(file, known_sha256="told").sha256 == "told"
    assert Model.of(file) == Model(file)


def test_what_is_kept_has_no_weights(file: Path) -> None:
    skeleton = Model(file).skeleton
    assert skeleton.ByteSize() < 1000 < file.stat().st_size
    weight, shape = skeleton.graph.initializer
    assert (weight.name, list(weight.dims), weight.data_type) == ("weight", [WIDTH, WIDTH], TensorProto.FLOAT)
    assert numpy_helper.to_array(shape).tolist() == [-1, 2]
    assert names(skeleton_ir(Model(file))) == names(load_ir(file))


def test_who_changes_a_graph_reads_it_anew(file: Path) -> None:
    model = Model(file)
    before = model.skeleton.SerializeToString()
    changed = load_ir(file)
    changed.graph.node(0).name = "other"
    changed.graph.initializers["weight"].name = "renamed"
    assert model.skeleton.SerializeToString() == before
    assert names(skeleton_ir(model)) == ["product"]


def test_operators_are_counted(file: Path) -> None:
    assert op_counts(file) == {"MatMul": 1, "Reshape": 1}


def test_size_of_one_file(file: Path) -> None:
    assert size_bytes(file) == file.stat().st_size


def test_size_counts_each_external_file_once(tmp_path: Path) -> None:
    proto = weight_model()
    second = numpy_helper.from_array(np.ones((3, 3), dtype=np.float32), "second")
    proto.graph.initializer.append(second)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "unrelated.bin").write_bytes(b"0" * 1000)
    assert size_bytes(path) == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size


def test_size_finds_external_data_of_subgraphs(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.ones(4, dtype=np.float32), "v")
    onnx.external_data_helper.set_external_data(value, "branch.bin", 0, 16)
    value.ClearField("raw_data")
    out = helper.make_tensor_value_info("v_out", TensorProto.FLOAT, [4])
    branch = helper.make_graph([helper.make_node("Constant", [], ["v_out"], value=value)], "b", [], [out])
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        "if",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    path = tmp_path / "if.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "branch.bin").write_bytes(b"0" * 16)
    assert size_bytes(path) == path.stat().st_size + 16


def test_size_of_what_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match="no such ONNX model"):
        size_bytes(path)
    path.write_bytes(b"garbage" * 30)
    with pytest.raises(InputError, match="not an ONNX file"):
        size_bytes(path)
    onnx.save(weight_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match=r"external data file 'w.bin' is missing"):
        size_bytes(path)
