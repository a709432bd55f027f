from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

import quantization_experiments
from quantlib.compression.calibration import Ranges, Statistics, collect, derive, observe
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data.features import CalibrationReader, Feature, Feed
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.experiment.running import RunResult
from quantlib.measuring.explain import (
    NAMES,
    LayerNoise,
    explain,
    linear_inputs,
    plot,
    read_explanation,
    table,
    write_explanation,
)
from quantlib.measuring.explain import noise as formulas
from quantlib.measuring.explain.noise import Input, decibels, share, weight_noise
from quantlib.support.errors import InputError
from quantlib.support.progress import Steps

RNG = np.random.default_rng(11)
BELL = RNG.normal(size=(40, 1000)).astype(np.float32)
WEIGHT = RNG.normal(size=(8, 6)).astype(np.float32)
EXAMPLE = LayerNoise(
    name="bert.encoder.layer.4.output.dense/MatMul",
    label="layer 4 FFN output",
    group="layer.4.ffn_out",
    weight_bits=8,
    weight_sqnr_db=40.0,
    weight_per_tensor_sqnr_db=20.0,
    input="x",
    input_bits=8,
    input_sqnr_db=11.205,
    low=-31.0,
    high=18.0,
    inner_low=-4.0,
    inner_high=5.0,
    advice="smooth",
)


def quantized(values: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> np.ndarray:
    """To the grid and back, as ONNX's QuantizeLinear and DequantizeLinear do."""
    values = values.astype(np.float64)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = max(-low, high) / top
        return np.clip(np.rint(values / scale), -top, top) * scale
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale


def sqnr_db(values: np.ndarray, rounded: np.ndarray) -> float:
    values = values.astype(np.float64)
    return float(10 * np.log10((values**2).sum() / ((values - rounded) ** 2).sum()))


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def product(path: Path, weight: np.ndarray = WEIGHT, table: np.ndarray | None = None) -> Path:
    """A model of one product "x · weight", "product" by name, and of a lookup if there is a table."""
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", len(weight)])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(weight, "weight")]
    if table is not None:
        nodes.append(helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"))
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"]))
        outputs.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, None))
        weights.append(numpy_helper.from_array(table, "table"))
    graph = helper.make_graph(nodes, "product", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


def explain_product(
    directory: Path, values: np.ndarray, weight: np.ndarray = WEIGHT, method: str = "MinMax", **options: Any
) -> LayerNoise:
    statistics = Statistics({"x": observe(np.atleast_2d(values).astype(np.float32))})
    ranges = derive(statistics, method, symmetric=options.get("symmetric", False))
    (layer,) = explain(product(directory / "model.onnx", weight), statistics, ranges, **options)
    return layer


# Weights


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 8)),
        elements=st.one_of(st.just(0.0), st.floats(-1e6, 1e6, width=32)),
    ),
    st.integers(2, 16),
    st.booleans(),
)
@settings(deadline=None)
def test_noise_of_weights_is_that_of_the_formula(channels: np.ndarray, bits: int, per_channel: bool) -> None:
    top = 2 ** (bits - 1) - 1
    noise = signal = 0.0
    for channel in channels.tolist():
        largest = max(abs(w) for w in (channel if per_channel else channels.ravel().tolist()))
        for w in channel:
            rounded = round(w * top / largest) * largest / top if largest else 0.0
            noise, signal = noise + (w - rounded) ** 2, signal + w**2
    computed = weight_noise(channels, bits, per_channel=per_channel)
    if not signal:
        assert computed == 0
        return
    # A value half-way between two levels may go to either: the error is the same but for rounding.
    assert computed == pytest.approx(noise / signal, rel=1e-6, abs=1e-14)
    assert 0 <= computed <= 0.25 * channels.size / top**2 if not per_channel else 0 <= computed < 1


def test_weights_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    table = RNG.normal(size=(11, 7)).astype(np.float32) * RNG.gamma(1, 1, size=(11, 1)).astype(np.float32)
    for per_channel in (True, False):
        monkeypatch.undo()
        expected = weight_noise(table, 8, per_channel=per_channel)
        for block in (1, 20, 76):
            monkeypatch.setattr(formulas, "_BLOCK", block)
            assert weight_noise(table, 8, per_channel=per_channel) == pytest.approx(expected, rel=1e-12)


def test_weights_are_rounded_as_a_variant_holds_them(
    tiny_onnx: Path, layers: list[LayerNoise], ranges: Ranges, tmp_path: Path
) -> None:
    """The integers and scales in the file that `quant_2` becomes, against the matrices that it came from."""
    variant = quantize_onnx(tiny_onnx, tmp_path / "model.onnx", RECIPES["quant_2"], ranges)
    before, after = (weights_of(path) for path in (tiny_onnx, variant))
    fp32_nodes, variant_nodes = (
        {node.name: node for node in onnx.load(path).graph.node} for path in (tiny_onnx, variant)
    )
    for layer in layers:
        node, product = fp32_nodes[layer.name], variant_nodes[layer.name]
        if layer.input is None:
            weight, integers = before[node.input[0]], after[product.input[0]]
            scale = after[variant_nodes[f"{layer.name}/scale/Gather"].input[0]]
        else:
            weight, integers, scale = before[node.input[1]], after[product.input[1]], after[product.input[3]]
        weight = weight.T if node.op_type == "Gemm" else weight
        assert integers.dtype == np.int8
        expected = sqnr_db(weight, integers.astype(np.float64) * scale)
        assert layer.weight_sqnr_db == pytest.approx(expected, abs=1e-3), layer.label


# Activations


@pytest.fixture(scope="module")
def statistics(tiny_onnx: Path, tiny_rows: list[Feature]) -> Statistics:
    return collect(tiny_onnx, CalibrationReader(tiny_rows, 8), linear_inputs(tiny_onnx))


@pytest.fixture(scope="module")
def ranges(statistics: Statistics) -> Ranges:
    return derive(statistics, "MinMax")


@pytest.fixture(scope="module")
def layers(tiny_onnx: Path, statistics: Statistics, ranges: Ranges) -> list[LayerNoise]:
    return explain(tiny_onnx, statistics, ranges)


@pytest.fixture(scope="module")
def values(tiny_onnx: Path, tiny_rows: list[Feature]) -> dict[str, np.ndarray]:
    """Every input of a product over all rows, one row at a time: (positions, channels)."""
    model = onnx.load(tiny_onnx)
    names = linear_inputs(tiny_onnx)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds: list[Feed] = list(CalibrationReader(tiny_rows, 1))
    outputs_of_feeds = [session.run(names, dict(feed)) for feed in feeds]
    return {
        name: np.concatenate([outputs[i].reshape(-1, outputs[i].shape[-1]) for outputs in outputs_of_feeds])
        for i, name in enumerate(names)
    }


def test_every_layer_is_there_once_and_the_worst_first(tiny_onnx: Path, layers: list[LayerNoise]) -> None:
    graph = onnx.load(tiny_onnx).graph
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    nodes = (node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Gather"))
    expected = {node.name for node in nodes if set(node.input[:2]) & weights}
    assert {layer.name for layer in layers} == expected
    assert len(layers) == len(expected) == 17
    assert {layer.label for layer in layers} >= {"layer 1 FFN output", "layer 0 query", "word embeddings"}
    assert [layer.noise for layer in layers] == sorted((layer.noise for layer in layers), reverse=True)
    assert {layer.label for layer in layers if layer.input is None} == {
        "word embeddings", "position embeddings", "token type embeddings",
    }  # fmt: skip


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("method", ["MinMax", "Percentile:99"])
def test_noise_of_activations_is_that_of_the_values(
    tiny_onnx: Path,
    statistics: Statistics,
    values: dict[str, np.ndarray],
    method: str,
    bits: int,
    symmetric: bool,
) -> None:
    """All real activations at once, rounded one by one."""
    ranges = derive(statistics, method, symmetric=symmetric)
    explained = explain(tiny_onnx, statistics, ranges, input_bits=bits, symmetric=symmetric)
    checked = 0
    for layer in explained:
        if layer.input is None:
            continue
        low, high = ranges.of[layer.input]
        assert (layer.low, layer.high, layer.input_bits) == (low, high, bits)
        expected = sqnr_db(values[layer.input], quantized(values[layer.input], low, high, bits, symmetric))
        assert layer.input_sqnr_db == pytest.approx(expected, abs=0.5), layer.label
        checked += 1
    assert checked == 14


def test_inner_ranges_are_those_of_the_values(
    layers: list[LayerNoise], values: dict[str, np.ndarray], statistics: Statistics
) -> None:
    for layer in layers:
        if layer.input is None:
            continue
        tail = 0.00005
        low, high = np.quantile(values[layer.input], [tail, 1 - tail], method="inverted_cdf")
        histogram = statistics.of[layer.input].histogram
        assert histogram is not None
        assert (layer.inner_low, layer.inner_high) == pytest.approx(
            (min(low, 0), max(high, 0)), abs=2 * histogram.width
        )


def test_noise_powers_add(tiny_onnx: Path, layers: list[LayerNoise], values: dict[str, np.ndarray]) -> None:
    """The error of each product with both factors rounded; the weights of the tiny BERT are random."""
    graph = onnx.load(tiny_onnx).graph
    weights = weights_of(tiny_onnx)
    nodes = {node.name: node for node in graph.node}
    differences = []
    for layer in layers:
        if layer.input is None or layer.label == "classifier":  # its two columns are too few to be even
            continue
        node, x = nodes[layer.name], values[layer.input].astype(np.float64)
        weight = weights[node.input[1]]
        weight = weight.T if node.op_type == "Gemm" else weight
        rounded = np.stack([quantized(w, -abs(w).max(), abs(w).max(), 8, True) for w in weight.T], axis=1)
        inputs = quantized(x, layer.low, layer.high, 8, False)
        differences.append(sqnr_db(x @ weight, inputs @ rounded) - layer.sqnr_db)
    assert len(differences) == 13
    assert np.abs(differences).max() < 1


def test_ratios_and_shares() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert share(20.0) == pytest.approx(0.01)
    assert decibels(0.0) is None
    assert decibels(share(110.0)) == pytest.approx(110)
    assert decibels(share(125.0)) is None, "less than float32 itself rounds"
    assert share(None) == 0
    equal_noise = replace(EXAMPLE, weight_sqnr_db=20.0, input_sqnr_db=20.0)
    assert equal_noise.sqnr_db == pytest.approx(20 - 10 * math.log10(2))


def test_the_example_in_words() -> None:
    assert EXAMPLE.summary == "layer 4 FFN output: 11.2 dB, range -31..18, 99.99 % within -4..5"
    table = LayerNoise("n", "word embeddings", "embeddings", 8, 40.04, 20.0)
    assert table.summary == "word embeddings: 40.0 dB"
    assert replace(table, weight_sqnr_db=None).summary == "word embeddings: no noise"


# Values that are all the same


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("value", [0.0, 3.0, -0.25, 1e-40])
def test_a_constant_input_has_no_noise(tmp_path: Path, value: float, symmetric: bool) -> None:
    layer = explain_product(tmp_path, np.full((2, 30), value), symmetric=symmetric)
    assert layer.input_sqnr_db is None
    assert layer.sqnr_db == layer.weight_sqnr_db
    assert layer.advice == "input is constant"
    write_explanation(tmp_path, [layer])
    assert read_explanation(tmp_path / "explain.json") == [layer]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_weights_have_no_noise(tmp_path: Path, value: float) -> None:
    layer = explain_product(tmp_path, BELL, np.full((8, 6), value, np.float32))
    assert (layer.weight_sqnr_db, layer.weight_per_tensor_sqnr_db) == (None, None)
    assert layer.sqnr_db == layer.input_sqnr_db
    assert layer.advice == "weights are constant"


def test_all_is_constant(tmp_path: Path) -> None:
    layer = explain_product(tmp_path, np.zeros((1, 4)), np.zeros((8, 6), np.float32))
    assert (layer.noise, layer.sqnr_db) == (0, None)
    assert layer.advice == "input is constant; weights are constant"
    assert "no noise" in layer.summary
    write_explanation(tmp_path, [layer])
    assert text_of([layer]).count("exact") == 4


def test_a_channel_of_zeros_is_exact() -> None:
    with_zeros = np.concatenate([WEIGHT, np.zeros_like(WEIGHT)])
    assert weight_noise(with_zeros, 8, per_channel=True) == weight_noise(WEIGHT, 8, per_channel=True)


@pytest.mark.parametrize("pair", [(0.0, 0.0), (-1e-30, 0.0), (0.0, 1e-30)])
def test_a_range_that_clips_everything(pair: tuple[float, float]) -> None:
    assert Input(observe(BELL), *pair, 8, symmetric=False).noise() == pytest.approx(1, abs=1e-5)


def test_a_symmetric_grid_widens_its_range(tmp_path: Path) -> None:
    rows = BELL - 2
    statistics = Statistics({"x": observe(rows)})
    ranges = derive(statistics, "MinMax")
    low, high = ranges.of["x"]
    assert -low > 1.5 * high > 0
    (layer,) = explain(product(tmp_path / "model.onnx"), statistics, ranges, symmetric=True)
    assert (layer.low, layer.high) == (low, -low)
    assert layer.input_sqnr_db == pytest.approx(sqnr_db(rows, quantized(rows, low, -low, 8, True)), abs=0.2)


@given(
    hnp.arrays(
        np.float32, st.tuples(st.just(1), st.integers(1, 30)), elements=st.floats(-1e4, 1e4, width=32)
    ),
    st.sampled_from(["MinMax", "Percentile:90", "MSE"]),
    st.integers(2, 16),
    st.booleans(),
)
@settings(deadline=None)
def test_noise_is_a_share(rows: np.ndarray, method: str, bits: int, symmetric: bool) -> None:
    statistics = Statistics({"x": observe(rows)})
    low, high = derive(statistics, method, symmetric=symmetric).of["x"]
    assert 0 <= Input(statistics.of["x"], low, high, bits, symmetric).noise() <= 1


# Advice


def test_a_bell_needs_no_advice(tmp_path: Path) -> None:
    layer = explain_product(tmp_path, BELL)
    assert layer.advice == ""
    assert 38 < layer.input_sqnr_db < 45


def test_clipping_is_proposed_where_it_wins(tmp_path: Path) -> None:
    """One value of 40,000 doubles the steps of all others, and holds little of the power."""
    rows = BELL.copy()
    rows[3, 5] = 12
    layer = explain_product(tmp_path, rows, input_bits=5)
    advice = re.fullmatch(r"range is 2\.1x the middle: clip \((.+)\), \+(.+) dB", layer.advice)
    assert advice
    assert advice[1] in ("MSE", "Percentile:99.99")
    low, high = derive(Statistics({"x": observe(rows)}), advice[1]).of["x"]
    before, after = (
        sqnr_db(rows, quantized(rows, *pair, 5, False)) for pair in ((layer.low, layer.high), (low, high))
    )
    assert float(advice[2]) == pytest.approx(after - before, abs=0.5)
    assert after - before > 3
    assert explain_product(tmp_path, rows, method=advice[1], input_bits=5).advice.endswith("smooth or int16")


def test_a_range_that_clips_too_much_is_told(tmp_path: Path) -> None:
    layer = explain_product(tmp_path, BELL, method="Percentile:90")
    advice = re.fullmatch(r"range clips too much: (.+), \+(.+) dB", layer.advice)
    assert advice
    gain = explain_product(tmp_path, BELL, method=advice[1]).input_sqnr_db - layer.input_sqnr_db
    assert float(advice[2]) == pytest.approx(gain, abs=0.06)


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize(("far", "words"), [(2, "range is"), (40, "peak is")], ids=["few", "more"])
def test_clipping_is_not_proposed_where_outliers_are_the_signal(
    tmp_path: Path, far: int, words: str, symmetric: bool
) -> None:
    rows = BELL.copy()
    values = rows.reshape(-1)
    values[:far] = np.linspace(42, 60, far)
    values[:far:2] *= -1
    layer = explain_product(tmp_path, rows, symmetric=symmetric)
    if words == "range is":
        low, high = layer.inner_low, layer.inner_high
        reach = 60 / max(-low, high) if symmetric else 102 / (high - low)
        assert layer.advice == f"range is {reach:.1f}x the middle: smooth or int16"
    else:
        peak = 60 / np.sqrt(np.mean(values.astype(float) ** 2))
        assert layer.advice == f"peak is {peak:.0f}x the rms: smooth or int16"
    assert layer.input_sqnr_db < 30
    for method in ("MSE", "Percentile:99.99"):
        low, high = derive(Statistics({"x": observe(rows)}), method, symmetric=symmetric).of["x"]
        assert sqnr_db(rows, quantized(rows, low, high, 8, symmetric)) < layer.input_sqnr_db + 3


def test_advice_on_weights(tmp_path: Path) -> None:
    assert explain_product(tmp_path, BELL, weight_bits=4).advice == "weights: weight_only"
    table = RNG.normal(size=(200, 30)).astype(np.float32)
    table[3, 4] = 30
    path = product(tmp_path / "table.onnx", table=table)
    statistics = Statistics({"x": observe(BELL)})
    ranges = derive(statistics, "MinMax")
    (lookup,) = (x for x in explain(path, statistics, ranges) if x.input is None)
    assert lookup.advice == "needs a scale for each row"
    assert (lookup.name, lookup.input_bits, lookup.range, lookup.inner) == ("lookup", None, "", "")
    rounded_table = np.stack([quantized(row, -abs(row).max(), abs(row).max(), 8, True) for row in table])
    assert lookup.weight_sqnr_db == pytest.approx(sqnr_db(table, rounded_table))
    top = abs(table).max()
    assert lookup.weight_per_tensor_sqnr_db == pytest.approx(
        sqnr_db(table, quantized(table, -top, top, 8, True))
    )
    (lookup,) = (x for x in explain(path, statistics, ranges, weight_bits=4) if x.input is None)
    assert lookup.advice == "keep in float"
    path = product(tmp_path / "table.onnx", table=np.zeros_like(table))
    (lookup,) = (x for x in explain(path, statistics, ranges) if x.input is None)
    assert (lookup.advice, lookup.sqnr_db) == ("weights are constant", None)


# What is wrong


def test_wrong_use(tmp_path: Path, tiny_onnx: Path, statistics: Statistics, ranges: Ranges) -> None:
    first = linear_inputs(tiny_onnx)[0]
    with pytest.raises(InputError, match=f"the statistics lack {first}; they are those of another model"):
        explain(tiny_onnx, Statistics({}), ranges)
    with pytest.raises(InputError, match=f"the ranges lack {first}; they are those of another model"):
        explain(tiny_onnx, statistics, Ranges({}))
    bare = Statistics({name: replace(tensor, histogram=None) for name, tensor in statistics.of.items()})
    with pytest.raises(InputError, match=f"{first}: .* needs a histogram"):
        explain(tiny_onnx, bare, ranges)
    with pytest.raises(InputError, match=r"weight_bits 1 is out of range; it must be within 2\.\.16"):
        explain(tiny_onnx, statistics, ranges, weight_bits=1)
    with pytest.raises(InputError, match="input_bits 17 is out of range"):
        explain(tiny_onnx, statistics, ranges, input_bits=17)
    for wrong in (explain, lambda path, *_: linear_inputs(path)):
        with pytest.raises(InputError, match="no such ONNX model"):
            wrong(tmp_path / "none.onnx", statistics, ranges)


# Files and the console


def text_of(layers: list[LayerNoise], rows: int | None = None, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    console.print(table(layers, rows), crop=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_files_hold_every_layer(layers: list[LayerNoise], tmp_path: Path) -> None:
    write_explanation(tmp_path, layers)
    assert {path.name for path in tmp_path.iterdir()} == set(NAMES)
    assert read_explanation(tmp_path / "explain.json") == layers
    written = json.loads((tmp_path / "explain.json").read_text(encoding="utf-8"))["layers"]
    with (tmp_path / "explain.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(written) == len(layers)
    for layer, kept, row in zip(layers, written, rows, strict=True):
        assert kept == {"sqnr_db": layer.sqnr_db} | asdict(layer)
        assert row == {key: "" if value is None else str(value) for key, value in kept.items()}


def test_the_plot_is_a_picture(layers: list[LayerNoise], tmp_path: Path) -> None:
    plot.draw(tmp_path / "explain.png", layers)
    data = (tmp_path / "explain.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width > height > 500
    plot.draw(tmp_path / "fewer.png", [layer for layer in layers if layer.input is None])
    assert (tmp_path / "fewer.png").read_bytes() != data


@pytest.mark.parametrize(
    "layers",
    [
        [],
        [replace(EXAMPLE, input_sqnr_db=None, weight_sqnr_db=None)],
        [replace(EXAMPLE, name="n", label="n")],
    ],
    ids=["none", "exact", "unknown"],
)
def test_a_plot_of_little(layers: list[LayerNoise], tmp_path: Path) -> None:
    write_explanation(tmp_path, layers)
    assert read_explanation(tmp_path / "explain.json") == layers
    assert (tmp_path / "explain.png").stat().st_size > 1000


def test_places_follow_the_network(layers: list[LayerNoise]) -> None:
    ordered = sorted(layers, key=plot._order)
    places = list(dict.fromkeys(plot._place(layer)[0] for layer in ordered))
    assert places == [
        "position embeddings", "token type embeddings", "word embeddings", "0", "1", "pooler", "classifier",
    ]  # fmt: skip
    inputs, weights = plot._inputs(ordered, places), plot._weights(ordered, places)
    assert list(inputs) == ["key, query, value", "attention output", "FFN input", "FFN output", ""]
    assert [place for place, _ in inputs["FFN output"]] == [3, 4]
    assert [place for place, _ in weights[""]] == [0, 1, 2, 5, 6]
    (ffn,) = (layer for layer in layers if layer.label == "layer 1 FFN output")
    assert inputs["FFN output"][1] == (4, ffn.input_sqnr_db)
    assert weights["FFN output"][1] == (4, ffn.weight_sqnr_db)


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from quantlib.measuring.explain import write_explanation; "
        "assert 'matplotlib' not in sys.modules; write_explanation(Path(sys.argv[1]), []); "
        "assert 'matplotlib' in sys.modules; print('matplotlib.pyplot' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (process.stdout, process.returncode) == ("False\n", 0), process.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "not an explain.json"),
        ("[]", "not an explain.json"),
        ('{"schema_version": 2, "layers": []}', "version 2, not 1"),
        ('{"schema_version": 1, "layers": [{"name": "n"}]}', "missing .* required"),
        ('{"schema_version": 1, "layers": [3]}', "not an explain.json"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "explain.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_explanation(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_table_is_a_line_a_layer_however_narrow(layers: list[LayerNoise]) -> None:
    with_advice = [replace(layer, advice=f"advice number {i}") for i, layer in enumerate(layers)]
    text = text_of(with_advice, width=40)
    assert text == text_of(with_advice, width=200)
    for i, layer in enumerate(with_advice):
        (line,) = (line for line in text.splitlines() if line.rstrip().endswith(f"number {i}"))
        assert line.startswith(f" {layer.label} ")
        assert f" {layer.sqnr_db:.1f} " in line
        assert (f"{layer.low:.3g}..{layer.high:.3g}" in line) if layer.input else ".." not in line
    assert "more in" not in text


def test_the_table_says_how_many_more_there_are(layers: list[LayerNoise]) -> None:
    text = text_of(layers, rows=3)
    assert "14 more in explain.json and explain.csv" in text
    assert [layer.label in text for layer in layers[:4]] == [True, True, True, False]
    assert "more in" not in text_of(layers, rows=17)
    assert "17 more in" in text_of(layers, rows=0)


# In a run


@pytest.fixture(scope="module")
def options(tiny_options: ExperimentOptions) -> ExperimentOptions:
    return replace(tiny_options, recipes=(), no_student=True, explain=True)


def test_a_run_explains_the_teacher_once(options: ExperimentOptions) -> None:
    built = build(options)
    assert set(built.files) == set(NAMES)
    explained = read_explanation(built.files["explain.json"])
    # 3 embeddings and 11 products: query, key and value are one, in the last layer two.
    assert len(explained) == 14
    steps = Steps()
    assert build(options, steps).files == built.files
    assert {"calibrate with histograms", "explain the teacher's error"} <= steps.cached
    assert build(replace(options, explain=False)).files == {}


def test_the_command_prints_every_layer(
    layers: list[LayerNoise],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(options: ExperimentOptions, *_: Any) -> RunResult:
        assert options.explain
        (tmp_path / "SST-2").mkdir()
        write_explanation(tmp_path / "SST-2", layers)
        return RunResult([], [])

    monkeypatch.setattr("quantlib.experiment.run", run)
    arguments = ["--task", "SST-2", "--output-dir", str(tmp_path)]
    assert quantization_experiments.cli([*arguments, "--explain"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert set(lines) >= {line.rstrip() for line in text_of(layers).splitlines()}
    monkeypatch.setattr("quantlib.experiment.run", lambda *_: RunResult([], []))
    assert quantization_experiments.cli(arguments) == 0
    assert "dB" not in capsys.readouterr().out


def test_a_run_explains_with_ranges_of_its_calibration_rows(options: ExperimentOptions) -> None:
    """More rows, wider ranges."""
    spans = []
    for samples in (2, 16):
        built = build(replace(options, calibration_samples=samples))
        explained = read_explanation(built.files["explain.json"])
        spans.append({layer.name: layer.high - layer.low for layer in explained if layer.input})
    assert all(spans[0][name] <= spans[1][name] for name in spans[1])
    assert sum(spans[0][name] < spans[1][name] for name in spans[1]) > 10
