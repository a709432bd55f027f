from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression.calibration import calibrate_min_max
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import RECIPES
from quantlib.data.features import CalibrationReader, Feature
from quantlib.data.tasks import TASKS
from quantlib.machine import hardware
from quantlib.machine.engines import load_model
from quantlib.machine.sessions import open_session
from quantlib.measuring.checks import (
    CHECKED_ROWS,
    Check,
    Checks,
    Invariance,
    Saturation,
    Subject,
    check_invariance,
    check_saturation,
    run_checks,
    saturation,
)
from quantlib.measuring.checks.invariance import choose_rows
from quantlib.measuring.checks.logits import labels_changed, largest_change
from quantlib.onnx_model.coverage import KEPT, Coverage, NotQuantized
from quantlib.support.columns import Column
from quantlib.support.errors import InputError

node = helper.make_node
SST2, STSB = TASKS["SST-2"], TASKS["STS-B"]


def feature(*ids: int) -> Feature:
    return Feature(np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.int64), 0)


def rows_of(*lengths: int) -> list[Feature]:
    """Rows of these lengths; the first token is the row's number, and the last one is 7."""
    return [feature(i, *[1] * (length - 2), 7) for i, length in enumerate(lengths)]


def save(path: Path, nodes: Sequence[onnx.NodeProto], labels: int = 2, **constants: Any) -> Path:
    """A model from input_ids and attention_mask, int64 (rows, tokens), to logits, float32 (rows, labels)."""
    inputs = ("input_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", labels])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


# What changes between logits


def test_changes_of_logits_and_labels() -> None:
    reference = np.array([[0.0, 1.0], [2.0, 1.0], [0.5, 0.0]], dtype=np.float32)
    same, one, another = reference.copy(), reference.copy(), reference.copy()
    one[0] = [1.5, 1.0]
    another[0], another[2] = [3.0, 1.0], [0.5, 0.75]
    assert largest_change(reference, same) == 0.0
    assert labels_changed(SST2, reference, same) == 0
    assert largest_change(reference, one, same) == 1.5
    assert labels_changed(SST2, reference, one) == 1
    assert largest_change(reference, one, another) == 3.0
    assert labels_changed(SST2, reference, one, another) == 2, "a row counts once"
    assert labels_changed(STSB, reference[:, :1], one[:, :1]) is None


def test_logits_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits of shape \(3, 2\)"):
        largest_change(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((1, 2)))


# Saturation


def integer_model(path: Path, first: int, second: int) -> Path:
    """u8·s8: logits[i] = the row's first token, 64 times, by a weight that is `first` or `second`."""
    nodes = [
        node("Gather", ["input_ids", "place"], ["token"], axis=1),
        node("Cast", ["token"], ["number"], to=TensorProto.FLOAT),
        node("Mul", ["number", "ones"], ["numbers"]),
        node("QuantizeLinear", ["numbers", "scale", "zero"], ["integers"]),
        node(
            "MatMulIntegerToFloat",
            ["integers", "weight", "scale", "scales", "zero"],
            ["logits"],
            domain="com.microsoft",
        ),
    ]
    return save(
        path,
        nodes,
        place=np.array([0]),
        ones=np.ones((1, 64), np.float32),
        scale=np.float32(1),
        zero=np.uint8(0),
        weight=np.tile(np.array([first, second], np.int8), (64, 1)),
        scales=np.array([1.0, 1.5], np.float32),
    )


x86 = pytest.mark.skipif(not hardware.is_x86(hardware.describe()), reason="this CPU is not x86")


@x86
def test_products_saturate_on_a_cpu_without_vnni(tmp_path: Path) -> None:
    # 2 · 255 · 127 is beyond 16 bits: clipped there, the first label is no longer ahead of 1.5 · 64.
    result = check_saturation(integer_model(tmp_path / "m.onnx", 127, 64), [feature(255, 1)] * 3, SST2)
    exact, clipped = 255 * 127 * 64, 32 * 32767
    expected = (0.0, 0) if hardware.has_vnni(hardware.describe()) else (exact - clipped, 3)
    assert (result.max_diff, result.labels_changed, result.rows, result.why_not) == (*expected, 3, "")


def shared_model(path: Path) -> Path:
    """Two products, of the first token and of the one after it, that share a weight and its zero point."""
    model = onnx.load(integer_model(path, 127, -127))
    product = model.graph.node.pop()
    product.input.append("zeros")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.int8), "zeros"))
    for name in ("one", "other"):
        copy = model.graph.node.add()
        copy.CopyFrom(product)
        copy.output[0] = name
    model.graph.node.append(node("Sub", ["one", "other"], ["none"]))
    model.graph.node.append(node("Add", ["none", "one"], ["logits"]))
    onnx.save(model, path)
    return path


@x86
def test_constants_that_are_used_twice_are_no_obstacle(tmp_path: Path) -> None:
    path = shared_model(tmp_path / "m.onnx")
    before = path.read_bytes()
    result = check_saturation(path, [feature(255, 1)] * 2, SST2)
    assert (result.rows, result.why_not) == (2, "")
    assert (result.max_diff == 0) == hardware.has_vnni(hardware.describe())
    assert path.read_bytes() == before


@x86
def test_quant_precision_is_exact_on_every_cpu(tmp_path: Path) -> None:
    session = open_session(integer_model(tmp_path / "m.onnx", 127, -127), threads=1, quant_precision=True)
    (logits,) = session.run(["logits"], {"input_ids": np.array([[255]]), "attention_mask": np.array([[1]])})
    assert logits.tolist() == [[255 * 127 * 64, -255 * 127 * 64 * 1.5]]


@pytest.fixture
def on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(hardware.describe(), architecture="x86_64", instruction_sets=("avx2",))
    monkeypatch.setattr(hardware, "describe", lambda: machine)


def test_both_kinds_of_session_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_x86: None
) -> None:
    usual = integer_model(tmp_path / "usual.onnx", 10, 10)
    exact = integer_model(tmp_path / "exact.onnx", 20, 10)

    def opened(path: Path, *, quant_precision: bool = False, **options: Any) -> Any:
        assert path == usual
        return load_model(exact if quant_precision else usual, **options)

    monkeypatch.setattr(saturation, "load_model", opened)
    rows = rows_of(*range(12, 112))
    progress: list[int] = []
    result = check_saturation(usual, rows, SST2, threads=1, progress=progress.append)
    # The first 64 rows; the label of row 0 is a tie in both.
    assert result == Saturation(vnni=False, rows=64, max_diff=63 * 64 * 10, labels_changed=63)
    assert sum(progress) == 64


def test_a_model_that_the_option_cannot_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_x86: None
) -> None:
    def opened(path: Path, *, quant_precision: bool = False, **options: Any) -> Any:
        if quant_precision:
            raise InputError("Attempt to replace the existing tensor")
        return load_model(path, **options)

    monkeypatch.setattr(saturation, "load_model", opened)
    result = check_saturation(integer_model(tmp_path / "m.onnx", 1, 2), rows_of(3), SST2)
    assert result == Saturation(vnni=False, why_not="ONNX Runtime cannot load it with quant_precision")


def test_saturation_is_no_question_for_a_float_model(
    tiny_onnx: Path, tiny_rows: list[Feature], on_x86: None
) -> None:
    result = check_saturation(tiny_onnx, tiny_rows, SST2)
    assert result == Saturation(vnni=False, why_not="no products of integers")


def test_saturation_is_no_question_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = replace(hardware.describe(), architecture="aarch64")
    monkeypatch.setattr(hardware, "describe", lambda: machine)
    result = check_saturation(integer_model(tmp_path / "m.onnx", 1, 2), rows_of(3), SST2)
    assert result.why_not == "aarch64 is not x86"


@pytest.mark.parametrize(
    "values",
    [{}, {"rows": 3}, {"rows": 3, "max_diff": 0.0, "why_not": "x"}, {"max_diff": 0.0}],
    ids=["nothing", "no_difference", "both", "no_rows"],
)
def test_saturation_is_compared_or_has_a_reason(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either rows are compared or there is a reason"):
        Saturation(vnni=True, **values)


# Invariance

# Nodes that make `signal`, float (rows, 1), of `real` and `padding`, the numbers of such tokens in a row.
SIGNALS = {
    "nothing": [node("Mul", ["padding", "zero"], ["signal"])],
    "row": [node("Identity", ["real"], ["signal"])],
    "padding": [node("Identity", ["padding"], ["signal"])],
    "batch": [
        node("ReduceMax", ["real"], ["most"], axes=[0], keepdims=1),
        node("Sub", ["most", "real"], ["signal"]),
    ],
    "not_finite": [
        node("Min", ["padding", "one"], ["padded"]),
        node("Sub", ["one", "padded"], ["unpadded"]),
        node("Reciprocal", ["unpadded"], ["signal"]),
    ],
}


def mask_model(path: Path, signal: str, labels: int = 2) -> Path:
    """logits = (signal, 0.5), or signal alone: the label changes once the signal is 1."""
    nodes = [
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("ReduceSum", ["mask", "tokens_axis"], ["real"], keepdims=1),
        node("Sub", ["one", "mask"], ["gaps"]),
        node("ReduceSum", ["gaps", "tokens_axis"], ["padding"], keepdims=1),
        *SIGNALS[signal],
        node("Gemm", ["signal", "weight", "bias"], ["logits"]),
    ]
    return save(
        path,
        nodes,
        labels,
        tokens_axis=np.array([1]),
        one=np.float32(1),
        zero=np.float32(0),
        weight=np.array([[1, 0]], np.float32)[:, :labels],
        bias=np.array([0, 0.5], np.float32)[:labels],
    )


@pytest.mark.parametrize(
    ("signal", "in_batch", "padded", "changed"),
    [("nothing", 0, 0, 0), ("padding", 31, 31, 4), ("batch", 31, 0, 4)],
)
def test_what_depends_on_the_batch_is_caught(
    tmp_path: Path, signal: str, in_batch: int, padded: int, changed: int
) -> None:
    # Two short rows, which are drawn as they are; two long ones, which are cut to 20. All are padded to 40.
    rows = rows_of(9, 10, 39, 40)
    progress: list[int] = []
    model = mask_model(tmp_path / "m.onnx", signal)
    result = check_invariance(model, rows, SST2, threads=1, progress=progress.append)
    assert result == Invariance(rows=4, in_batch=in_batch, padded=padded, labels_changed=changed)
    assert result.max_diff == max(in_batch, padded)
    assert sum(progress) == 4


@pytest.mark.parametrize("seed", range(20))
def test_a_row_is_never_cut_to_its_company(tmp_path: Path, seed: int) -> None:
    # The longest row, cut to 50, may be in a batch with the other two of the longest tenth.
    model, rows = mask_model(tmp_path / "m.onnx", "row"), rows_of(100, 30, 30, *[10] * 27)
    assert check_invariance(model, rows, SST2, seed=seed, threads=1).max_diff == 0


def test_a_regression_has_no_labels_to_change(tmp_path: Path) -> None:
    result = check_invariance(mask_model(tmp_path / "m.onnx", "padding", labels=1), rows_of(4, 40), STSB)
    assert (result.in_batch, result.labels_changed) == (36, None)


def test_logits_that_padding_makes_infinite_are_an_error(tmp_path: Path) -> None:
    path = mask_model(tmp_path / "m.onnx", "not_finite")
    with pytest.raises(InputError, match=r"m.onnx: the logits of a batch of \(8, 40\) are not finite"):
        check_invariance(path, rows_of(9, 10, 39, 40), SST2)


def test_a_float_bert_does_not_depend_on_the_batch(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    result = check_invariance(tiny_onnx, tiny_rows, SST2)
    assert result.rows == 32
    assert result.max_diff < 1e-5
    assert result.labels_changed == 0


def test_dynamic_int8_depends_on_the_batch_and_static_does_not(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    dynamic = quantize_onnx(tiny_onnx, tmp_path / "dynamic.onnx", RECIPES["dynamic_u8s8"])
    ranges = calibrate_min_max(tiny_onnx, CalibrationReader(tiny_rows))
    static = quantize_onnx(tiny_onnx, tmp_path / "static.onnx", RECIPES["quant_2"], ranges)
    dynamic_check, static_check = (check_invariance(path, tiny_rows, SST2) for path in (dynamic, static))
    assert dynamic_check.in_batch > 0.01
    assert dynamic_check.padded > 0.01
    assert static_check.max_diff < dynamic_check.max_diff / 2


# Which rows


def test_short_rows_get_long_company() -> None:
    rows = rows_of(*range(3, 103))
    batches = choose_rows(rows)
    assert [(len(short), len(long)) for short, long in batches] == [(4, 4)] * 8
    short = [row for batch, _ in batches for row in batch]
    assert len({id(row) for row in short}) == 32, "each once"
    assert all(len(row) <= 51 and row in rows[:50] for row in short)
    assert all(row in rows[-10:] for _, batch in batches for row in batch)
    assert len({id(row) for _, batch in batches for row in batch}) > 4, "drawn anew for each batch"


def numbers(seed: int) -> list[list[int]]:
    rows = rows_of(*range(3, 103))
    return [[int(row.input_ids[0]) for row in (*short, *long)] for short, long in choose_rows(rows, seed)]


def test_a_seed_decides_which_rows() -> None:
    assert numbers(0) == numbers(0)
    assert numbers(0) != numbers(1)


@pytest.mark.parametrize("count", [1, 2, 5, 33, 50])
def test_rows_of_one_length_are_cut_so_that_there_is_padding(count: int) -> None:
    rows = rows_of(*[64] * count)
    batches = choose_rows(rows)
    short = [row for batch, _ in batches for row in batch]
    assert len(short) == min(count, 32)
    assert {len(row) for row in short} == {32}
    assert {int(row.input_ids[-1]) for row in short} == {7}, "the last token separates"
    assert len({int(row.input_ids[0]) for row in short}) == len(short)
    assert {len(row) for _, batch in batches for row in batch} == {64}
    assert {len(row) for row in rows} == {64}, "the rows themselves stay"


# All together


def test_all_checks_of_a_quantized_model(tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    path, kept = tmp_path / "m.onnx", "bert.encoder.layer.1.output.dense/MatMul"
    quantize_dynamic(tiny_onnx, path, nodes_to_exclude=[kept], extra_options={"MatMulConstBOnly": True})
    progress: list[int] = []
    subject = Subject(path, tiny_rows, SST2, quantized=True, kept={kept}, threads=1, progress=progress.append)
    checks = run_checks(subject)
    saturated, varying = checks.get(Saturation), checks.get(Invariance)
    assert saturated == check_saturation(path, tiny_rows, SST2)
    assert varying == check_invariance(path, tiny_rows, SST2)
    covered = checks.get(Coverage)
    assert covered is not None
    assert NotQuantized(kept, KEPT) in covered.not_quantized
    assert saturated is not None
    assert varying is not None
    assert checks.values() == {
        "quantized_share": 13 / 14,
        "saturation_max_diff": saturated.max_diff,
        "saturation_labels_changed": saturated.labels_changed,
        "invariance_max_diff": varying.max_diff,
        "invariance_labels_changed": varying.labels_changed,
    }
    assert Checks.from_json(json.loads(json.dumps(checks.to_json()))) == checks
    assert 0 < sum(progress) <= CHECKED_ROWS


def test_all_checks_of_a_float_model(tiny_onnx: Path, tiny_rows: list[Feature], on_x86: None) -> None:
    checks = run_checks(Subject(tiny_onnx, tiny_rows, SST2, quantized=False, threads=1))
    assert checks.get(Coverage) is None
    assert Checks.from_json(json.loads(json.dumps(checks.to_json()))) == checks
    assert [key for key, value in checks.values().items() if value is None] == [
        "quantized_share",
        "saturation_max_diff",
        "saturation_labels_changed",
    ]
    assert checks.note == "saturation: no products of integers"


def test_what_deserves_a_word() -> None:
    quiet = Checks((Saturation(True, 64, 0.0, 0), Invariance(32, 0.1, 0.2, 0), Coverage(2)))
    assert quiet.note == ""
    loud = Checks((Saturation(False, 64, 9.0, 5), Invariance(32, 0.1, 0.2, 1), Coverage(2)))
    assert loud.note == ("5 of 64 labels change by saturation, 1 of 32 labels change with the batch")
    score = Checks((Saturation(False, 64, 9.0, None), Invariance(32, 0.1, 0.2, None)))
    assert score.note == ""
    failed = [checks.failed(dynamic=dynamic) for checks in (quiet, loud, score) for dynamic in (True, False)]
    assert failed == [False, False, False, True, False, False], "ranges of a dynamic recipe follow the batch"


@dataclass(frozen=True)
class Rows:
    """The result of a check that counts rows."""

    count: int


def test_one_more_check_is_one_row(
    tiny_onnx: Path, tiny_rows: list[Feature], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Check(
        "counting",
        Rows,
        lambda subject: Rows(len(subject.rows)),
        (Column("rows", "how many", lambda result: result.count, heading="rows", cell=str),),
        remarks=lambda result: [f"{result.count} rows"],
        failed=lambda result, dynamic: result.count > 1,
    )
    monkeypatch.setattr("quantlib.measuring.checks.CHECKS", (counting,))
    checks = run_checks(Subject(tiny_onnx, tiny_rows[:2], SST2, quantized=False))
    assert checks.values() == {"rows": 2}
    assert checks.cells() == ["Rows(count=2)"]
    assert checks.note == "2 rows"
    assert checks.failed(dynamic=False)
    assert checks.to_json() == {"counting": {"count": 2}}
    assert Checks.from_json({"counting": {"count": 2}}) == checks


@pytest.mark.parametrize("check", [check_saturation, check_invariance])
def test_no_rows_is_one_line(check: Any, tmp_path: Path, on_x86: None) -> None:
    path = integer_model(tmp_path / "m.onnx", 1, 2)
    with pytest.raises(InputError, match=r"m.onnx: no rows to check it on; the evaluation split is empty"):
        check(path, [], SST2)


@pytest.mark.parametrize("check", [check_saturation, check_invariance])
def test_a_missing_model_is_one_line(check: Any, tmp_path: Path, on_x86: None) -> None:
    with pytest.raises(InputError, match=r"m.onnx: no such ONNX model"):
        check(tmp_path / "m.onnx", rows_of(3), SST2)
