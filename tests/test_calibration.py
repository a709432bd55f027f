from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.calibration import (
    Ranges,
    TensorStatistics,
    activations,
    calibrate_min_max,
    collect,
    derive,
    load_with_shapes,
    merge,
    observe,
    read_ranges,
    stream,
    tensors_for,
    write_ranges,
)
from quantlib.compression.calibration.graph import axes, sources
from quantlib.data.features import CalibrationReader, Feature, Feed, pad
from quantlib.support.errors import InputError


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
    ranges = calibrate_min_max(tiny_onnx, reader).of
    expected = independent_ranges(tiny_onnx, list(reader))
    assert set(ranges) == set(expected)
    assert len(ranges) > 50
    for name, pair in expected.items():
        np.testing.assert_allclose(ranges[name], pair, rtol=1e-5, atol=1e-5, err_msg=name)


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


# Statistics in one pass


def close(a: TensorStatistics, b: TensorStatistics, exact: bool = False) -> None:
    """Equal; if not `exact`, up to what another batch changes in the last bits of a value."""
    rel = 0 if exact else 1e-4
    assert (a.rows, a.count) == (b.rows, b.count)
    for name in ("low", "high", "total", "squares"):
        size = a.squares if name in ("total", "squares") else 1
        expected = getattr(b, name)
        assert getattr(a, name) == pytest.approx(expected, rel=rel or 1e-12, abs=rel * (1 + size)), name
    assert a.histogram is not None
    assert b.histogram is not None
    if exact:
        assert (a.histogram.exponent, a.histogram.first) == (b.histogram.exponent, b.histogram.first)
        np.testing.assert_array_equal(a.histogram.counts, b.histogram.counts)


def test_only_what_is_asked_for(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    """The values of a tensor do not depend on which others are kept."""
    reader = CalibrationReader(tiny_rows[:8], 2)
    all_statistics = collect(tiny_onnx, reader)
    model = load_with_shapes(tiny_onnx)
    assert list(all_statistics.of) == activations(model) == tensors_for(model, None)
    names = tensors_for(model, ("Gather", "Gemm", "MatMul"))
    assert "bert.encoder.layer.0.intermediate.intermediate_act_fn/Erf:0" not in names
    statistics = collect(tiny_onnx, reader, names)
    assert list(statistics.of) == names
    for name in names:
        close(statistics.of[name], all_statistics.of[name], exact=True)
    without_histograms = collect(tiny_onnx, reader, names, histograms=False)
    assert all(tensor.histogram is None for tensor in without_histograms.of.values())
    assert derive(without_histograms, "MinMax") == derive(statistics, "MinMax")


def test_tensors_that_hold_the_same_values_share_statistics(
    tiny_onnx: Path, tiny_rows: list[Feature]
) -> None:
    model = load_with_shapes(tiny_onnx)
    name = "bert.encoder.layer.0.attention.self/Transpose:0"
    source = sources(model, [name])[name]
    assert source == "bert.encoder.layer.0.attention.self.query/Add:0"
    reader = CalibrationReader(tiny_rows[:8], 2)
    statistics = collect(tiny_onnx, reader, [name, source])
    assert statistics.of[name] is statistics.of[source]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_padding_does_not_count(tiny_onnx: Path, tiny_rows: list[Feature], size: int) -> None:
    """Padded batches have the statistics of rows fed one by one without padding, in every tensor."""
    rows = sorted(tiny_rows[:24], key=len)
    unpadded = collect(tiny_onnx, [pad([row], len(row)) for row in rows])
    padded = collect(tiny_onnx, [pad(rows[i : i + size], 40) for i in range(0, len(rows), size)])
    masks = {name for name in unpadded.of if "Where" in name or name.endswith("attention.self/Add:0")}
    for name, expected in unpadded.of.items():
        close(padded.of[name], expected)
    assert masks, "they would hold the lowest float32 at padded positions"
    assert all(padded.of[name].low > -1e4 for name in masks)
    for method in ("MinMax", "MovingAverage", "Percentile:99", "MSE"):
        unpadded_ranges, padded_ranges = derive(unpadded, method).of, derive(padded, method).of
        for name, pair in unpadded_ranges.items():
            np.testing.assert_allclose(
                padded_ranges[name], pair, rtol=0.02, atol=1e-3, err_msg=f"{method} {name}"
            )


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_masked_values_are_exactly_those_of_unpadded_rows(lengths: list[int], data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    kinds = {
        ("batch", "sequence", ""): lambda n: (n, 3),
        ("batch", "", "sequence", "sequence"): lambda n: (2, n, n),
        ("batch", ""): lambda n: (4,),
        ("sequence", "batch"): lambda n: (n,),
    }
    longest = max(lengths) + data.draw(st.integers(0, 2))
    mask = np.zeros((len(lengths), longest), bool)
    for i, n in enumerate(lengths):
        mask[i, rng.permutation(longest)[:n]] = True
    for kind, shape in kinds.items():
        padded = rng.normal(size=(len(lengths), *shape(longest))).astype(np.float32)
        expected = None
        for row, real in zip(padded, mask, strict=True):
            for axis in [i for i, word in enumerate(w for w in kind if w != "batch") if word == "sequence"]:
                row = row.take(np.flatnonzero(real), axis)
            new = observe(row.reshape(1, -1))
            expected = new if expected is None else merge(expected, new)
        assert expected is not None
        values = np.moveaxis(padded, 0, kind.index("batch"))
        statistics = observe(stream._rows(values, kind, mask.shape, mask))
        close(statistics, expected, exact=True)
        assert (statistics.moving_low, statistics.moving_high) == pytest.approx(
            (expected.moving_low, expected.moving_high)
        )


def test_what_has_no_batch_axis_counts_for_each_row(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    name = "bert.embeddings.position_embeddings/Gather:0"
    row = tiny_rows[0]
    assert axes(load_with_shapes(tiny_onnx), [name])[name] == ("", "sequence", "")
    together = collect(tiny_onnx, [pad([row] * 5, 30)], [name]).of[name]
    assert (together.rows, together.count) == (5, 5 * len(row) * 32)
    close(together, collect(tiny_onnx, [pad([row], len(row))] * 5, [name]).of[name], exact=True)


def test_axes_of_a_graph_that_names_none(tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    for info in (*model.graph.input, *model.graph.output):
        for dim, size in zip(info.type.tensor_type.shape.dim, (3, 20), strict=True):
            if dim.dim_param:
                dim.dim_value = size
    del model.graph.value_info[:]
    path = tmp_path / "fixed.onnx"
    onnx.save(model, path)
    feeds = [pad(tiny_rows[i : i + 3], 20) for i in range(0, 12, 3)]
    named, fixed = collect(tiny_onnx, feeds), collect(path, feeds)
    for name, tensor in fixed.of.items():
        close(tensor, named.of[name])


def test_a_feed_of_many_tokens_is_parted(
    tiny_onnx: Path, tiny_rows: list[Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(tiny_onnx, [pad(tiny_rows[:10], 20)])
    monkeypatch.setattr(stream, "MAX_TOKENS", 70)
    counts: list[int] = []
    parted = collect(tiny_onnx, [pad(tiny_rows[:10], 20)], progress=counts.append)
    assert counts == [3, 3, 3, 1]
    monkeypatch.setattr(stream, "MAX_TOKENS", 5)
    collect(tiny_onnx, [pad(tiny_rows[:2], 20)], progress=counts.append)
    assert counts[4:] == [1, 1], "a row is never parted"
    for name, tensor in whole.of.items():
        close(parted.of[name], tensor)


def test_memory_does_not_grow_with_the_rows(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    def peak(count: int) -> int:
        feeds = (pad([tiny_rows[i % 48]], 32) for i in range(count))
        tracemalloc.start()
        collect(tiny_onnx, feeds, threads=1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)  # imports
    few, many = peak(8), peak(64)
    assert many < 1.1 * few + 200_000


# What cannot be calibrated


def test_a_row_that_is_all_padding(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    feeds = [pad(tiny_rows[i : i + 3], 20) for i in (0, 3)]
    feeds[1]["attention_mask"][1] = 0
    with pytest.raises(InputError, match=r"^calibration row 4 is all padding$"):
        collect(tiny_onnx, feeds)


def test_a_tensor_the_model_does_not_have(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    with pytest.raises(InputError, match="the model has no float activation 'input_ids'"):
        collect(tiny_onnx, CalibrationReader(tiny_rows), ["logits", "input_ids"])
    with pytest.raises(InputError, match="the model has no float activation to calibrate"):
        collect(tiny_onnx, CalibrationReader(tiny_rows), [])


def test_nan_at_a_padded_position_does_not_count(tmp_path: Path) -> None:
    path = root_model(tmp_path / "model.onnx")
    (feed,) = feeds_of([20, 30, 0])
    feed["attention_mask"] = np.array([[1, 1, 0]])
    assert collect(path, [feed]).of["root"].count == 2
    with pytest.raises(InputError, match="activation root is NaN or infinite at calibration row 0"):
        collect(path, [feed], skip_padding=False)


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
    ranges_read = read_ranges(tmp_path / "ranges.json")
    assert ranges_read == ranges
    assert list(ranges_read.of) == ["b", "a", "mask"]
    assert json.loads((tmp_path / "ranges.json").read_text())["a"] == [0.0, 0.0]
