from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from rich.console import Console

import quantization_experiments
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data.features import Feature, fixed_shape_feeds
from quantlib.experiment import ExperimentOptions, run
from quantlib.experiment.running import RunResult
from quantlib.machine.sessions import SessionConfig, feed_for, open_session
from quantlib.measuring.profile import (
    Node,
    Operations,
    Peak,
    Profile,
    Trace,
    file_name,
    measure_peak,
    operator_table,
    profile_onnx,
    read_profile,
    role_table,
    show,
    trace,
    write_profile,
)
from quantlib.measuring.profile.operations import Tensor, count
from quantlib.measuring.profile.operators import read_trace
from quantlib.support.errors import InputError

ONE = SessionConfig(1)
PEAK = Peak(float_gops=100.0, integer_gops=1000.0, threads=1)
MICROSOFT = "com.microsoft"


def floats(*shape: int) -> Tensor:
    return Tensor("float", shape)


def run_here(path: Path, feed: dict[str, np.ndarray], directory: Path, runs: int = 1) -> Trace:
    """The trace of a session in this process: what `trace` reads, without a process for each example."""
    session = open_session(path, threads=1, profile_prefix=directory / "here")
    for _ in range(runs):
        session.run(None, feed_for(session, feed))
    file = Path(session.end_profiling())
    trace_read = read_trace(file, runs)
    file.unlink()
    return trace_read


def total(trace_or_profile: Trace | Profile) -> Operations:
    return sum((node.operations for node in trace_or_profile.nodes), Operations())


# Operations


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs", "float_ops", "integer_ops"),
    [
        ("MatMul", [floats(2, 3, 4), floats(4, 5)], [floats(2, 3, 5)], 2 * 2 * 3 * 4 * 5, 0),
        ("MatMul", [floats(2, 3, 4)], [floats(2, 3, 5)], 240, 0),  # the weight was packed
        ("MatMul", [floats(2, 6, 3, 4), floats(2, 6, 4, 3)], [floats(2, 6, 3, 3)], 2 * 12 * 3 * 4 * 3, 0),
        ("MatMul", [floats(3, 4), floats(7, 4, 5)], [floats(7, 3, 5)], 2 * 7 * 3 * 4 * 5, 0),
        ("MatMul", [floats(4), floats(4, 5)], [floats(5)], 2 * 4 * 5, 0),
        ("MatMul", [floats(3, 4), floats(4)], [floats(3)], 2 * 3 * 4, 0),
        ("Gemm", [floats(3, 4), floats(5)], [floats(3, 5)], 120, 0),
        ("Gemm", [floats(4, 3), floats(4, 5), floats(5)], [floats(3, 5)], 120, 0),  # transA
        ("FusedGemm", [floats(3, 4), floats(5)], [floats(3, 5)], 120, 0),
        ("FusedMatMul", [floats(2, 3, 4), floats(2, 5, 4)], [floats(2, 3, 5)], 240, 0),
        ("FusedMatMul", [floats(2, 4, 3), floats(2, 4, 5)], [floats(2, 3, 5)], 240, 0),  # transA
        ("FusedMatMul", [floats(3, 4), floats(7, 4, 5)], [floats(7, 3, 5)], 2 * 7 * 3 * 4 * 5, 0),
        ("MatMulNBits", [floats(3, 4), floats(5)], [floats(3, 5)], 120, 0),
        ("MatMulInteger", [Tensor("uint8", (2, 3, 4))], [Tensor("int32", (2, 3, 5))], 0, 240),
        ("MatMulIntegerToFloat", [Tensor("uint8", (3, 4)), floats(), floats(5)], [floats(3, 5)], 0, 120),
        ("DynamicQuantizeMatMul", [floats(3, 4), floats(5), floats(5)], [floats(3, 5)], 0, 120),
        ("QLinearMatMul", [Tensor("uint8", (3, 4)), floats()], [Tensor("uint8", (3, 5))], 0, 120),
        ("QGemm", [Tensor("uint8", (3, 4)), floats()], [Tensor("uint8", (3, 5))], 0, 120),
        # 2 rows of 3 tokens, 4 in, 6 wide: 2·6·4·18 for queries, keys, values; 2·2·3·3·6 twice for heads
        ("Attention", [floats(2, 3, 4), floats(18), Tensor("int32", (2, 3))], [floats(2, 3, 6)], 1296, 0),
        ("Attention", [floats(2, 3, 4), floats(4, 18), floats(18)], [floats(2, 3, 6)], 864 + 432, 0),
        ("Attention", [floats(2, 3, 4), Tensor("int32", (2, 3))], [floats(2, 3, 6)], 864 + 432, 0),
        # queries and keys 8 wide, values 6: 2·6·4·22, then 2·2·3·3·8 and 2·2·3·3·6
        ("Attention", [floats(2, 3, 4), floats(22)], [floats(2, 3, 6)], 1056 + 288 + 216, 0),
        ("QAttention", [Tensor("uint8", (2, 3, 4)), floats(18), floats()], [floats(2, 3, 6)], 432, 864),
        (
            "QAttention",
            [Tensor("uint8", (2, 3, 4)), Tensor("int8", (4, 18)), floats(18), floats()],
            [floats(2, 3, 6)],
            432,
            864,
        ),
        # one query, three keys: 2·2·1·3·6 for each of scores and context
        ("MultiHeadAttention", [floats(2, 1, 6), *[floats(2, 3, 6)] * 2], [floats(2, 1, 6)], 144, 0),
        (
            "MultiHeadAttention",
            [floats(2, 1, 6), floats(2, 2, 3, 3), floats(2, 2, 3, 3)],
            [floats(2, 1, 6)],
            144,
            0,
        ),
        ("Attention", [floats(2, 1, 6), *[floats(2, 3, 6)] * 2], [floats(2, 1, 6)], 144, 0),
        ("Softmax", [floats(2, 3, 3)], [floats(2, 3, 3)], 0, 0),
        ("Add", [floats(3, 4), floats(3, 4)], [floats(3, 4)], 0, 0),
    ],
)  # fmt: skip
def test_operations_by_hand(
    operator: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], float_ops: int, integer_ops: int
) -> None:
    assert count(operator, inputs, outputs) == Operations(float_ops, integer_ops)


SIZES = st.integers(1, 7)


@given(st.lists(SIZES, max_size=2), SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.sampled_from("mgf"))
@settings(max_examples=40, deadline=None)
def test_operations_of_a_real_product(
    tmp_path_factory: pytest.TempPathFactory,
    batch: list[int],
    m: int,
    k: int,
    n: int,
    transposed: bool,
    constant: bool,
    kind: str,
) -> None:
    """What ONNX Runtime's own shapes give, its weight packed or not."""
    directory = tmp_path_factory.mktemp("product")
    batch = [] if kind == "g" else batch
    transposed = transposed and kind != "m"
    first = np.ones((*batch, k, m) if transposed else (*batch, m, k), np.float32)
    second = np.ones((k, n) if constant or kind == "g" else (*batch, k, n), np.float32)
    node = {
        "m": helper.make_node("MatMul", ["a", "b"], ["y"]),
        "g": helper.make_node("Gemm", ["a", "b"], ["y"], transA=int(transposed)),
        "f": helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain=MICROSOFT, transA=int(transposed)),
    }[kind]
    path = save(directory, [node], {"b": second} if constant else {}, {"a": first, "b": second})
    trace_read = run_here(path, {"a": first, "b": second}, directory)
    assert total(trace_read) == Operations(float_ops=2 * math.prod(batch) * m * n * k)


def save(
    directory: Path,
    nodes: Sequence[Any],
    constants: dict[str, np.ndarray],
    arrays: dict[str, np.ndarray],
    output: str = "y",
) -> Path:
    """A model of nodes from the arrays that are no constants to `output`, of any float shape."""
    import onnx
    from onnx import TensorProto, numpy_helper

    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
            for name, array in arrays.items()
            if name not in constants
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), directory / "model.onnx")
    return directory / "model.onnx"


def textbook(batch: int, tokens: int, hidden: int = 32, ffn: int = 64, layers: int = 2) -> tuple[int, int]:
    """(products with a weight, products of activations) of the tiny BERT, pooler and classifier included."""
    linear = 2 * layers * tokens * (4 * hidden**2 + 2 * hidden * ffn) + 2 * hidden**2 + 2 * hidden * 2
    return batch * linear, batch * 4 * layers * tokens**2 * hidden


@given(st.integers(1, 3), st.integers(2, 40))
@settings(max_examples=8, deadline=None)
def test_operations_of_a_bert_are_the_textbooks(
    tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory, batch: int, tokens: int
) -> None:
    ones = np.ones((batch, tokens), np.int64)
    feed = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ones)
    trace_read = run_here(tiny_onnx, feed, tmp_path_factory.mktemp("bert"))
    assert total(trace_read) == Operations(float_ops=sum(textbook(batch, tokens)))


@pytest.fixture(scope="module")
def dynamic(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dynamic") / "dynamic_u8s8.onnx"
    return quantize_onnx(tiny_onnx, path, RECIPES["dynamic_u8s8"])


@pytest.fixture(scope="module")
def feeds(tiny_rows: list[Feature]) -> list[Any]:
    return list(fixed_shape_feeds(tiny_rows, 2, 12, 4))


def test_operations_of_a_variant_are_as_many_in_integers(dynamic: Path, feeds: list[Any]) -> None:
    with_weights, of_activations = textbook(2, 12)
    traced = trace(dynamic, feeds, ONE, num_runs=2, wake_seconds=0)
    assert total(traced) == Operations(of_activations, with_weights)


# Traces


def test_a_trace_holds_every_node_of_the_graph_that_runs(tiny_onnx: Path, feeds: list[Any]) -> None:
    traced = trace(tiny_onnx, feeds, ONE, warmup_runs=1, num_runs=3, wake_seconds=0)
    operators = [node.operator for node in traced.nodes]
    assert operators.count("LayerNormalization") == 5
    assert "SkipLayerNormalization" not in operators, "the options are those of every variant"
    products = [node for node in traced.nodes if node.operations.total]
    assert {node.role for node in products} == {
        "qkv", "attention_output", "ffn_in", "ffn_out", "attention", "pooler", "classifier",
    }  # fmt: skip
    assert {node.layer for node in products} == {0, 1, None}
    assert len({node.name for node in traced.nodes}) == len(traced.nodes)
    assert all(node.ms >= 0 for node in traced.nodes)
    assert 0 <= traced.outside_ms <= traced.wall_ms


def test_optimizers_stay_off_that_are_off_elsewhere(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("Add", ["x", "t"], ["s"]),
        helper.make_node("LayerNormalization", ["s", "gamma", "beta"], ["y"]),
    ]
    constants = {"gamma": np.ones(4, np.float32), "beta": np.zeros(4, np.float32)}
    path = tiny.save_graph(tmp_path / "model.onnx", nodes, constants)
    feed = {"x": np.ones((1, 2, 4), np.float32)}
    traced = trace(path, [feed], ONE, num_runs=2, wake_seconds=0)
    assert [node.operator for node in traced.nodes] == ["Tanh", "Add", "LayerNormalization"]
    fused = trace(path, [feed], replace(ONE, disabled_optimizers=()), num_runs=2, wake_seconds=0)
    assert [node.operator for node in fused.nodes] == ["Tanh", "SkipLayerNormalization"]


def test_names_of_any_kind(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"], name='a "[b]"\\ ü_kernel_time'),
        helper.make_node("Exp", ["t"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="_kernel_time"),
    ]
    path = tiny.save_graph(tmp_path / "model.onnx", nodes, {"w": np.ones((4, 4), np.float32)})
    traced = trace(path, [{"x": np.ones((1, 2, 4), np.float32)}], ONE, num_runs=2, wake_seconds=0)
    assert [node.name for node in traced.nodes][0::2] == ['a "[b]"\\ ü_kernel_time', "_kernel_time"]
    assert traced.nodes[1].name
    assert {node.layer for node in traced.nodes} == {None}


def test_nothing_is_left_behind(
    tiny_onnx: Path, feeds: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    trace(tiny_onnx, feeds, ONE, num_runs=2, wake_seconds=0)
    with pytest.raises(InputError, match="input 'input_ids'"):
        trace(tiny_onnx, [{"nothing": np.ones(3)}], ONE, num_runs=2)
    open_session(tiny_onnx, threads=1)
    # The directory of scratch directories stays, and is empty.
    assert [path for folder in tmp_path.iterdir() for path in folder.iterdir()] == []


def kernel(index: int, start: int, duration: int, operator: str = "Add", name: str = "") -> dict[str, Any]:
    shapes = {"input_type_shape": [{"float": [3, 4]}], "output_type_shape": [{"float": [3, 5]}]}
    arguments = {"op_name": operator, "node_index": str(index), **shapes}
    name = f"{name or f'n{index}'}_kernel_time"
    return {"cat": "Node", "name": name, "ts": start, "dur": duration, "args": arguments}


def whole(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def test_a_trace_by_hand(tmp_path: Path) -> None:
    """Three runs behind a slow one; the If holds a product of its own, which is not counted twice."""
    events = [{"cat": "Session", "name": "model_loading_uri", "ts": 0, "dur": 90, "args": {}}]
    events += [kernel(0, 100, 900), kernel(1, 1000, 900, "MatMul"), whole(99, 2000)]
    for start, times, wall in ((3000, (10, 40), 60), (4000, (30, 20), 80), (5000, (20, 60), 90)):
        first, second = times
        events += [kernel(0, start, first, "If"), kernel(7, start + 1, first - 1, "MatMul", "inner")]
        events += [kernel(1, start + first, second, "MatMul"), whole(start, wall)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(events[::-1]), encoding="utf-8")
    traced = read_trace(path, 3)
    assert traced.nodes == (
        Node("n0", "If", 0.02, Operations()),
        Node("n1", "MatMul", 0.04, Operations(float_ops=120)),
    )
    assert (traced.wall_ms, traced.outside_ms) == (0.08, 0.01)  # the medians of 60, 80, 90 and of 10, 30, 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("[", "not a trace"),
        ("[3]", "not a trace"),
        ('[{"name": "x"}]', "not a trace"),
        ("[]", "0 runs, not the 2"),
        (json.dumps([whole(0, 9)]), "1 runs, not the 2"),
    ],
)
def test_a_trace_that_is_none(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "trace.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_trace(path, 2)
    assert str(path) in str(caught.value)


# The peak


def test_the_peak_is_measured() -> None:
    peak = measure_peak(ONE, seconds=0.001)
    assert peak.threads == 1
    assert peak.float_gops > 0.1
    assert peak.integer_gops > 0.1


def test_the_limit_adds_both_kinds() -> None:
    assert PEAK.limit_ms(Operations(float_ops=10**8, integer_ops=5 * 10**9)) == pytest.approx(1 + 5)
    assert PEAK.limit_ms(Operations()) == 0


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_a_peak_of_nothing(pair: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="a peak must be above 0"):
        Peak(*pair, threads=1)


# A profile

EXAMPLE = Profile(
    "quant_2",
    (1, 128),
    median_ms=4.6,
    profiled_ms=5.1,
    outside_ms=1.0,
    peak=PEAK,
    nodes=(
        Node("bert.embeddings/Gather", "Gather", 0.2, Operations()),
        Node("bert.encoder.layer.0.attention.self.query/MatMul", "QGemm", 1.5, Operations(0, 10**9)),
        Node("bert.encoder.layer.0.attention.self/MatMul", "MatMul", 0.5, Operations(10**7, 0)),
        Node("bert.encoder.layer.0.output.LayerNorm/Layer", "LayerNormalization", 0.9, Operations()),
        Node("bert.encoder.layer.1.attention.self.query/MatMul", "QGemm", 0.5, Operations(0, 10**9)),
        Node("[/odd]", "Add", 0.0, Operations()),
    ),
)
NO_PRODUCT = replace(EXAMPLE, nodes=(EXAMPLE.nodes[0], EXAMPLE.nodes[3]), profiled_ms=2.1, median_ms=2.0)


def test_the_example_in_numbers() -> None:
    assert EXAMPLE.limit_ms == pytest.approx(2.1)
    assert EXAMPLE.share == pytest.approx(2.1 / 4.6)
    assert EXAMPLE.product_ms == pytest.approx(2.5)
    lines = {line.name: line for line in EXAMPLE.by_operator()}
    assert list(lines) == ["QGemm", "LayerNormalization", "MatMul", "Gather", "Add"]
    assert (lines["QGemm"].count, lines["QGemm"].gops) == (2, pytest.approx(1000))
    assert lines["QGemm"].peak_share == pytest.approx(1)
    assert lines["MatMul"].peak_share == pytest.approx(0.2)
    assert (lines["Add"].gops, lines["Add"].peak_share) == (None, None)
    assert [line.name for line in EXAMPLE.by_role()] == [
        "qkv",
        "layernorm",
        "attention",
        "embeddings",
        "other",
    ]
    layers = {line.name: line.ms for line in EXAMPLE.by_layer()}
    assert layers == pytest.approx({"layer 0": 2.9, "layer 1": 0.5, "outside layers": 0.2})
    for grouped in (EXAMPLE.by_operator(), EXAMPLE.by_role(), EXAMPLE.by_layer()):
        assert sum(line.ms for line in grouped) + EXAMPLE.outside_ms == pytest.approx(EXAMPLE.parts_ms)
        assert sum(line.count for line in grouped) == len(EXAMPLE.nodes)
        assert sum((line.operations for line in grouped), Operations()) == EXAMPLE.operations
        assert sum(line.limit_ms for line in grouped) == pytest.approx(EXAMPLE.limit_ms)


def test_the_example_in_words() -> None:
    assert EXAMPLE.summary == (
        "products take 2.50 of 4.60 ms with tracing; a run takes 4.60 ms without it, and at this machine's "
        "peak its products would take 2.10 ms: 46 % of the limit is used"
    )
    assert "100 Gop/s in float32, 1000 Gop/s in 8 bits" in EXAMPLE.notes[0]
    assert len(EXAMPLE.notes) == 2
    assert NO_PRODUCT.summary == "no matrix product in 2.00 ms: the machine's peak sets no limit"
    assert (NO_PRODUCT.share, NO_PRODUCT.product_ms) == (0, 0)


def test_a_busy_machine_is_said() -> None:
    assert "The machine was busy" in replace(EXAMPLE, profiled_ms=9.0).notes[-1]


def test_a_real_profile(dynamic: Path, feeds: list[Any]) -> None:
    profile = profile_onnx(dynamic, feeds, PEAK, warmup_runs=0, num_runs=3)
    assert (profile.variant, profile.shape) == ("dynamic_u8s8", (2, 12))
    assert sum(profile.operations.__dict__.values()) == sum(textbook(2, 12))
    assert profile.limit_ms > 0
    assert profile.median_ms > 0


def lines_of(profile: Profile, width: int = 80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    show(profile, console)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_table_is_a_line_an_operator() -> None:
    lines = lines_of(EXAMPLE)
    assert any(
        line.split() == ["quant_2,", "1x128", "count", "ms", "%", "Gop", "Gop/s", "%"] for line in lines
    )
    (product,) = [line for line in lines if line.lstrip().startswith("QGemm")]
    assert product.split() == ["QGemm", "2", "2.000", "43.5", "2.000", "1000", "100"]
    assert any(line.split() == ["1", "other", "operators", "1", "0.000", "0.0"] for line in lines)
    assert any(line.split() == ["outside", "kernels", "1.000", "21.7"] for line in lines)
    assert any(line.split() == ["sum", "6", "4.600", "100.0", "2.010"] for line in lines)
    assert any(line.startswith("quant_2: products take 2.50 of 4.60 ms") for line in lines)


def test_columns_align() -> None:
    lines = lines_of(EXAMPLE)
    start = next(i for i, line in enumerate(lines) if "quant_2, 1x128" in line)
    end = lines[start].index("ms") + 2
    rows = [line for line in lines[start : start + 10] if "." in line]
    assert len(rows) == 7
    assert all(line[end - 4] == "." and line[end : end + 1] in ("", " ") for line in rows)


@pytest.mark.parametrize("profile", [NO_PRODUCT, replace(NO_PRODUCT, nodes=(), outside_ms=0.0)])
def test_a_table_without_products(profile: Profile) -> None:
    assert operator_table(profile).row_count == len(profile.nodes) + 2
    assert role_table(profile).row_count == len(profile.nodes)
    assert any("no matrix product" in line for line in lines_of(profile))


@pytest.mark.parametrize("profile", [EXAMPLE, NO_PRODUCT, replace(NO_PRODUCT, nodes=())])
def test_files_hold_everything(profile: Profile, tmp_path: Path) -> None:
    write_profile(tmp_path, profile)
    assert {path.name for path in tmp_path.iterdir()} == {
        file_name("quant_2", kind) for kind in ("json", "csv", "png")
    }
    assert read_profile(tmp_path / "profile_quant_2.json") == profile
    value = json.loads((tmp_path / "profile_quant_2.json").read_text(encoding="utf-8"))
    assert value["limit_ms"] == profile.limit_ms
    assert [line["name"] for line in value["operators"]] == [line.name for line in profile.by_operator()]
    with (tmp_path / "profile_quant_2.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [node.name for node in profile.nodes]
    assert [float(row["ms"]) for row in rows] == [node.ms for node in profile.nodes]
    assert (tmp_path / "profile_quant_2.png").read_bytes().startswith(b"\x89PNG")


def test_a_profile_of_many_operators_is_drawn(tmp_path: Path) -> None:
    nodes = tuple(Node(f"n{i}", f"Operator{i}", 1.0, Operations()) for i in range(40))
    write_profile(tmp_path, replace(EXAMPLE, variant="a$b$_c", nodes=nodes))
    assert (tmp_path / "profile_a$b$_c.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("{", "not the profile"),
        ("[]", "not the profile"),
        ('{"schema_version": 0}', "version 0, not 1"),
        ('{"schema_version": 1}', "'nodes'"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "profile_x.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)


# In a run


@pytest.fixture(scope="module")
def options(tiny_options: ExperimentOptions) -> ExperimentOptions:
    return replace(tiny_options, recipes=("dynamic_u8s8",), no_student=True)


def test_a_run_profiles_what_is_named(options: ExperimentOptions, tmp_path: Path) -> None:
    named = ("dynamic_u8s8", "teacher", "dynamic_u8s8")
    run(replace(options, profile=named, output_dir=tmp_path))
    directory = tmp_path / "SST-2"
    assert {path.name for path in directory.glob("profile_*")} == {
        file_name(name, kind) for name in named for kind in ("json", "csv", "png")
    }
    profiles = {name: read_profile(directory / file_name(name)) for name in named}
    assert {profile.shape for profile in profiles.values()} == {(1, options.seq_len)}
    assert profiles["teacher"].operations == Operations(float_ops=sum(textbook(1, 32)))
    # Of the last layer of two, 32 rows of keys and values are left, and one row of all else.
    dead = 2 * 31 * (2 * 32**2 + 2 * 32 * 64)
    assert profiles["dynamic_u8s8"].operations.integer_ops == textbook(1, 32)[0] - dead
    assert json.loads((directory / "run.json").read_text(encoding="utf-8"))["arguments"]["profile"] == list(
        named
    )


def test_an_unknown_variant_is_said_before_any_work(
    options: ExperimentOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"--profile nope: .* teacher, teacher_compiled, dynamic_u8s8$"):
        replace(options, profile=("teacher", "nope"))
    with pytest.raises(InputError, match="--profile student: unknown"):
        replace(options, profile=("student",))
    assert replace(options, profile=("max_drop",), max_drop=0.01).profile == ("max_drop",)
    arguments = ["--profile", "nope", "--recipes", "quant_2", "--output-dir", str(tmp_path / "runs")]
    assert quantization_experiments.cli(arguments) == 2
    error = capsys.readouterr().err
    assert error.splitlines() == [
        "error: --profile nope: unknown variant; this run makes: teacher, teacher_compiled, quant_2, "
        "student, student_compiled, student_quant_2"
    ]
    assert not (tmp_path / "runs").exists()


def test_the_command_prints_each_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(options: ExperimentOptions, *_: Any) -> RunResult:
        assert options.profile == ("quant_2", "teacher")
        (tmp_path / "SST-2").mkdir()
        for name in options.profile:
            write_profile(tmp_path / "SST-2", replace(EXAMPLE, variant=name))
        return RunResult([], [])

    monkeypatch.setattr("quantlib.experiment.run", run)
    arguments = ["--task", "SST-2", "--output-dir", str(tmp_path)]
    assert quantization_experiments.cli([*arguments, "--profile", "quant_2", "--profile", "teacher"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert set(lines) >= set(lines_of(EXAMPLE))
    assert f"teacher: {EXAMPLE.summary}." in lines
    monkeypatch.setattr("quantlib.experiment.run", lambda *_: RunResult([], []))
    assert quantization_experiments.cli(arguments) == 0
    assert "Gop" not in capsys.readouterr().out


def test_operations_are_plain() -> None:
    assert asdict(Operations(1, 2)) == {"float_ops": 1, "integer_ops": 2}
    assert Operations(1, 2) + Operations(3, 4) == Operations(4, 6)
    assert Operations(1, 2).total == 3
