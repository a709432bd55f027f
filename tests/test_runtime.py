from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from quantlib.machine.hardware import physical_cores
from quantlib.machine.sessions import (
    SessionConfig,
    default_threads,
    feed_for,
    open_configured,
    open_session,
    shorten,
)
from quantlib.support.errors import InputError


def two_input_model() -> onnx.ModelProto:
    """float(ids + mask) x weight, with an int64 and an int32 input, (batch, 4) each."""
    nodes = [
        helper.make_node("Cast", ["ids"], ["ids32"], to=TensorProto.INT32),
        helper.make_node("Add", ["ids32", "mask"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["float", "weight"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two_inputs",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 4]),
            helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", 4]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(two_input_model(), path)
    return path


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    ones = np.ones((2, 4), dtype=np.int64)
    return {"ids": ones, "mask": ones, "labels": np.zeros(2)}


def test_a_session_runs_and_its_feed_is_cast_and_filtered(model: Path) -> None:
    session = open_session(model)
    feed = feed_for(session, arrays())
    assert {name: array.dtype for name, array in feed.items()} == {"ids": np.int64, "mask": np.int32}
    (out,) = session.run(None, feed)
    np.testing.assert_array_equal(out, np.full((2, 4), 2.0) @ np.arange(12).reshape(4, 3))


def test_a_missing_input_is_named(model: Path) -> None:
    feed = arrays()
    del feed["mask"]
    with pytest.raises(InputError, match="input 'mask'; there are only: ids, labels"):
        feed_for(open_session(model), feed)


@pytest.mark.parametrize("spinning", [True, False])
def test_session_options(model: Path, spinning: bool) -> None:
    options = open_session(model, threads=3, spinning=spinning).get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))


@pytest.mark.parametrize(
    ("changes", "fused"),
    [
        ({}, False),
        ({"disabled_optimizers": ()}, True),
        ({"optimize": False, "disabled_optimizers": ()}, False),
    ],
    ids=["default", "all_optimizers", "none"],
)
def test_a_residual_sum_and_its_norm_stay_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], fused: bool
) -> None:
    """Seen in the graph that ONNX Runtime makes of it."""
    optimized_path = tmp_path / "optimized.onnx"

    def session(path: str, options: Any, **arguments: Any) -> Any:
        options.optimized_model_filepath = str(optimized_path)
        return original(path, options, **arguments)

    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y"]),
    ]
    constants = {"gamma": np.ones(4, np.float32), "beta": np.zeros(4, np.float32)}
    open_session(tiny.save_graph(tmp_path / "model.onnx", nodes, constants), **changes)
    op_types = {node.op_type for node in onnx.load(optimized_path).graph.node}
    assert ("SkipLayerNormalization" in op_types, "LayerNormalization" in op_types) == (fused, not fused)


def test_what_is_disabled_is_part_of_the_record() -> None:
    assert asdict(SessionConfig(threads=2))["disabled_optimizers"] == ("SkipLayerNormFusion",)
    assert SessionConfig(threads=2, disabled_optimizers=()) != SessionConfig(threads=2)


def test_a_stock_session_is_told_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in what ONNX Runtime is given."""
    calls: list[dict[str, Any]] = []

    def session(path: str, options: Any, **more: Any) -> Any:
        calls.append({"path": path, "threads": options.intra_op_num_threads, **more})
        return original(path, options, **more)

    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert SessionConfig.stock(2) == SessionConfig(2, disabled_optimizers=(), unsigned_activations=False)
    for config in (SessionConfig.stock(2), SessionConfig(3)):
        open_configured(model, config)
    stock, default = calls
    assert (stock["disabled_optimizers"], stock["threads"]) == ([], 2)
    assert (default["disabled_optimizers"], default["threads"]) == (["SkipLayerNormFusion"], 3)
    assert stock["path"] == default["path"] == str(model), "nothing in it is quantized"


@pytest.mark.parametrize("spinning", [True, False])
def test_a_configuration_is_all_that_a_session_is_told(model: Path, spinning: bool) -> None:
    options = open_configured(model, SessionConfig(2, spinning=spinning)).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
    with pytest.raises(InputError, match="unknown execution provider 'Nope'"):
        open_configured(model, SessionConfig(2, providers=("Nope",)))


def test_quant_precision_is_asked_for_by_its_key(model: Path) -> None:
    options = open_session(model, quant_precision=True).get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    with pytest.raises(RuntimeError, match=r"session\.x64quantprecision"):
        open_session(model).get_session_options().get_session_config_entry("session.x64quantprecision")


def test_threads_default_to_the_physical_cores(model: Path) -> None:
    assert default_threads() == physical_cores()
    assert open_session(model).get_session_options().intra_op_num_threads == physical_cores()


def damage(path: Path, how: str) -> Path:
    model = two_input_model()
    if how == "missing":
        return path
    if how == "directory":
        path.mkdir()
    elif how == "unknown_operator":
        model.graph.node[0].op_type = "Nonsense"
        onnx.save(model, path)
    elif how == "dangling_input":
        model.graph.node[3].input[1] = "nowhere"
        onnx.save(model, path)
    elif how == "future_opset":
        model.opset_import[0].version = 999
        onnx.save(model, path)
    else:
        data = model.SerializeToString()
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 30, "cut_off": data[:150]}[how])
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "no such ONNX model"),
        ("directory", "no such ONNX model"),
        ("empty", "No graph was found"),
        ("garbage", "Protobuf parsing failed"),
        ("cut_off", "Protobuf parsing failed"),
        ("unknown_operator", "Nonsense"),
        ("dangling_input", "'nowhere' is not a graph input"),
        ("future_opset", "loaded: ONNX Runtime only"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_line_naming_it(tmp_path: Path, how: str, words: str) -> None:
    path = damage(tmp_path / "bad.onnx", how)
    with pytest.raises(InputError, match=words) as caught:
        open_session(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.count(str(path)) == 1
    assert "ONNXRuntimeError" not in text


def test_an_unknown_provider_is_answered_with_those_available(model: Path) -> None:
    with pytest.raises(InputError, match=r"'NoSuchProvider'; available: .*CPUExecutionProvider"):
        open_session(model, providers=["NoSuchProvider"])


def test_session_config_is_checked() -> None:
    with pytest.raises(InputError, match="threads must be at least 1, not 0"):
        SessionConfig(threads=0)
    with pytest.raises(InputError, match="no execution provider"):
        SessionConfig(threads=1, providers=())


def test_open_session_does_not_take_zero_for_the_default(model: Path) -> None:
    with pytest.raises(InputError, match="threads"):
        open_session(model, threads=0)


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_input_model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match="does not exist"):
        open_session(path)


def test_shorten() -> None:
    coded = (
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Load model from /m.onnx failed:Wrong : still wrong\nmore"
    )
    assert shorten(coded) == "Wrong : still wrong"
    assert shorten("a" * 300, limit=10) == "aaaaaaa..."
    assert shorten("") == ""


def test_importing_is_light() -> None:
    heavy = {"torch", "transformers", "sklearn", "scipy", "onnxruntime", "onnx", "cpuinfo", "rich", "psutil"}
    modules = "quantlib.machine.sessions, quantlib.measuring.latency, quantlib.report.results"
    code = f"import sys, {modules}; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(process.stdout.split())
