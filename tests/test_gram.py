"""Gram matrices of activations: equal to a dense computation, without padding, in constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper

from quantlib.compression import pruning
from quantlib.compression.calibration import add_grams, collect_grams, read_grams, write_grams
from quantlib.data.features import CalibrationReader, Feature
from quantlib.onnx_model.layers import find_linears, load_ir
from quantlib.support.errors import InputError


def ffn_input(onnx_path: Path) -> str:
    return next(
        str(layer.input.name) for layer in find_linears(load_ir(onnx_path)) if "output.dense" in layer.name
    )


def dense(onnx_path: Path, rows: list[Feature], tensor: str) -> np.ndarray:
    """The activation at the real positions of each row by itself, (positions, channels)."""
    import onnxruntime

    model = onnx.load(onnx_path)
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    found = []
    for feed in CalibrationReader(rows, 1):
        (values,) = session.run(None, {name: array for name, array in feed.items() if name in names})
        found.append(values.reshape(-1, values.shape[-1]))
    return np.concatenate(found).astype(np.float64)


@pytest.mark.parametrize("rows_at_once", [1, 5])
def test_it_is_that_of_a_dense_computation(
    rows_at_once: int, tiny_onnx: Path, tiny_rows: list[Feature]
) -> None:
    tensor = ffn_input(tiny_onnx)
    gram = collect_grams(tiny_onnx, CalibrationReader(tiny_rows, rows_at_once), [tensor])[tensor]
    values = dense(tiny_onnx, tiny_rows, tensor)
    assert gram.count == len(values), "padded positions do not count"
    np.testing.assert_allclose(gram.products, values.T @ values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gram.mean, values.mean(axis=0), rtol=1e-4, atol=1e-6)
    about_mean = (values - values.mean(axis=0)).T @ (values - values.mean(axis=0))
    np.testing.assert_allclose(gram.centered, about_mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("noise", [1e-3, 0.0])
def test_a_variance_beside_a_large_mean_is_kept(noise: float, tmp_path: Path) -> None:
    """Of products of the values themselves, rounding errors would leave little of it; and it can be zero."""
    draw = np.random.default_rng(0)
    values = (1.7 + draw.normal(scale=noise, size=(3, 700, 6))).astype(np.float32)
    path = tiny.save_graph(tmp_path / "same.onnx", [helper.make_node("Identity", ["x"], ["y"])], width=6)
    gram = collect_grams(path, [{"x": row[None]} for row in values], ["y"])["y"]
    wide = values.reshape(-1, 6).astype(np.float64)
    about_mean = (wide - wide.mean(axis=0)).T @ (wide - wide.mean(axis=0))
    np.testing.assert_allclose(gram.centered, about_mean, atol=1e-4 * len(wide) * noise**2 + 1e-9)
    np.testing.assert_allclose(gram.products, wide.T @ wide, rtol=1e-6)
    np.testing.assert_array_equal(gram.products, gram.products.T)
    order = pruning.eliminate(gram, draw.normal(size=(6, 2)).astype(np.float32))
    assert np.isfinite(order.errors).all()


def test_products_too_large_for_float32_are_not_finite(tmp_path: Path) -> None:
    """In silence: whoever uses the matrix refuses it in one line."""
    path = tiny.save_graph(tmp_path / "same.onnx", [helper.make_node("Identity", ["x"], ["y"])], width=6)
    large = np.random.default_rng(0).normal(scale=1e30, size=(1, 20, 6)).astype(np.float32)
    gram = collect_grams(path, [{"x": large}], ["y"])["y"]
    with pytest.raises(InputError, match="its Gram matrix is not finite at channel 0"):
        pruning.eliminate(gram, np.ones((6, 2), np.float32))


def test_parts_add_up_and_come_back_from_a_file(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    tensor = ffn_input(tiny_onnx)
    parts = [
        collect_grams(tiny_onnx, CalibrationReader(rows, 4), [tensor])
        for rows in (tiny_rows[:8], tiny_rows[8:])
    ]
    whole = collect_grams(tiny_onnx, CalibrationReader(tiny_rows, 4), [tensor])[tensor]
    both = add_grams([part[tensor] for part in parts])
    # Sums in float32: what cancels keeps the rounding of what it is made of.
    largest = float(np.abs(whole.products).max())
    np.testing.assert_allclose(both.products, whole.products, rtol=1e-5, atol=1e-6 * largest)
    assert both.count == whole.count
    write_grams(tmp_path / "grams.npz", {tensor: whole})
    again = read_grams(tmp_path / "grams.npz")[tensor]
    assert (again.count, again.channels) == (whole.count, whole.channels)
    np.testing.assert_array_equal(again.products, whole.products)
    np.testing.assert_array_equal(again.total, whole.total)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "grams.npz").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match=r"grams\.npz: not a file of Gram matrices"):
        read_grams(tmp_path / "grams.npz")


def test_nan_names_the_activation_and_the_row(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["input_ids"], ["wide"], to=TensorProto.FLOAT),
         helper.make_node("Log", ["wide"], ["logs"]),
         helper.make_node("Unsqueeze", ["logs", "axis"], ["out"])],
        "logs",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", "sequence", 1])],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [2])],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "logs.onnx")
    feeds = [{"input_ids": np.array([[1, 2]])}, {"input_ids": np.array([[3, 1], [2, -1]])}]
    with pytest.raises(InputError, match="activation out is NaN or infinite at calibration row 2"):
        collect_grams(tmp_path / "logs.onnx", feeds, ["out"])
