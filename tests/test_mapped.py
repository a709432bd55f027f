"""Models whose weights are mapped from a file beside the graph: the same numbers, written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from quantlib.compression import pruning
from quantlib.compression.calibration import Gram, collect_grams
from quantlib.data.features import CalibrationReader, Feature
from quantlib.machine.sessions import feed_for, open_session
from quantlib.measuring.neurons import block_sensitivities
from quantlib.onnx_model import mapped as mapped_module
from quantlib.onnx_model.layers import find_linears, load_ir
from quantlib.onnx_model.mapped import WEIGHTS, mapped
from quantlib.support.errors import InputError

PAGE = 4096
SMALL = 1024  # bytes
WIDTHS = {"layer.0.ffn": 32, "layer.1.attention": 1}


@pytest.fixture(autouse=True)
def small_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrices of a tiny model count as weights, but for the last; its biases are small still."""
    monkeypatch.setattr(mapped_module, "LARGEST_KEPT", SMALL)


@pytest.fixture(scope="module")
def ranked(
    tiny_onnx: Path, tiny_rows: list[Feature]
) -> tuple[dict[str, Gram], dict[str, pruning.Elimination]]:
    grams = pruning.collect_block_grams(tiny_onnx, CalibrationReader(tiny_rows, 4))
    return grams, pruning.eliminations(tiny_onnx, grams)


def logits(path: Path, rows: list[Feature]) -> np.ndarray:
    return logits_of(open_session(path, threads=1), rows)


def logits_of(session: onnxruntime.InferenceSession, rows: list[Feature]) -> np.ndarray:
    feeds = CalibrationReader(rows, 8)
    return np.concatenate([session.run(None, feed_for(session, feed))[0] for feed in feeds])


def arrays(path: Path) -> dict[str, bytes]:
    """All weights of a file and its external data, by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer
    }


def test_the_copy_is_the_same_model(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    with mapped(tiny_onnx) as copy:
        assert arrays(copy) == arrays(tiny_onnx)
        np.testing.assert_array_equal(logits(copy, tiny_rows), logits(tiny_onnx, tiny_rows))
        proto = onnx.load(copy, load_external_data=False)
        external = [t for t in proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        assert {t.name for t in external} >= {layer.weight_name for layer in find_linears(load_ir(copy))[:-1]}
        assert all(t.raw_data == b"" and len(t.dims) == 2 for t in external)
        places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in external]
        assert {place["location"] for place in places} == {WEIGHTS}
        assert all(int(place["offset"]) % PAGE == 0 for place in places)
        assert copy.stat().st_size < tiny_onnx.stat().st_size / 2
        assert {file.name for file in copy.parent.iterdir()} == {copy.name, WEIGHTS}
    assert not copy.parent.exists()


def test_a_session_outlives_the_copy(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    with mapped(tiny_onnx) as copy:
        session = open_session(copy, threads=1)
    np.testing.assert_array_equal(logits_of(session, tiny_rows), logits(tiny_onnx, tiny_rows))


def test_a_model_with_external_data_of_its_own(tiny_onnx: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.onnx"
    proto = onnx.load(tiny_onnx)
    onnx.save(proto, own, save_as_external_data=True, location="theirs.bin", size_threshold=0)
    with mapped(own) as copy:
        assert arrays(copy) == arrays(tiny_onnx)
        assert {file.name for file in copy.parent.iterdir()} == {copy.name, WEIGHTS}


def test_numbers_are_read_when_they_are_asked_for(tiny_onnx: Path) -> None:
    with mapped(tiny_onnx) as copy:
        model = load_ir(copy, mapped=True)
        first, *others, _ = (model.graph.initializers[layer.weight_name] for layer in find_linears(model))
        want = load_ir(tiny_onnx).graph.initializers[str(first.name)].const_value
        assert isinstance(first.const_value, ir.ExternalTensor)
        assert want is not None
        np.testing.assert_array_equal(first.const_value.numpy(), want.numpy())
        assert first.const_value.raw is not None
        for other in others:
            assert isinstance(other.const_value, ir.ExternalTensor)
            assert other.const_value.raw is None


def test_a_pruned_model_beside_shares_the_weights_that_stay(
    tiny_onnx: Path,
    tiny_rows: list[Feature],
    ranked: tuple[dict[str, Gram], dict[str, pruning.Elimination]],
    tmp_path: Path,
) -> None:
    whole = pruning.prune_onnx(tiny_onnx, tmp_path / "whole.onnx", WIDTHS, *ranked)
    with mapped(tiny_onnx) as copy:
        before = (copy.parent / WEIGHTS).read_bytes()
        path = pruning.prune_onnx(copy, copy.with_name("pruned.onnx"), WIDTHS, *ranked, beside=True)
        assert arrays(path) == arrays(whole)
        np.testing.assert_array_equal(logits(path, tiny_rows), logits(whole, tiny_rows))
        assert (copy.parent / WEIGHTS).read_bytes() == before
        proto = onnx.load(path, load_external_data=False)
        own = [tensor.name for tensor in proto.graph.initializer if len(tensor.raw_data) > SMALL]
        assert len(own) == 2 + 4, "products of a block of neurons, and of an attention"


def test_orders_and_errors_are_those_of_the_whole_model(
    tiny_onnx: Path, tiny_rows: list[Feature], ranked: tuple[dict[str, Gram], dict[str, pruning.Elimination]]
) -> None:
    grams, orders = ranked
    with mapped(tiny_onnx) as copy:
        assert pruning.blocks_of(copy) == pruning.blocks_of(tiny_onnx)
        for name, order in pruning.eliminations(copy, grams).items():
            np.testing.assert_array_equal(order.order, orders[name].order)
            np.testing.assert_array_equal(order.errors, orders[name].errors)
    tried: list[int] = []

    def predict(path: Path) -> np.ndarray:
        tried.append(sum(file.stat().st_size for file in path.parent.iterdir()))
        return logits(path, tiny_rows)

    exact = logits(tiny_onnx, tiny_rows)
    for each in block_sensitivities(tiny_onnx, predict, grams, orders):
        with mapped(tiny_onnx) as copy:
            path = copy.with_name("alone.onnx")
            pruning.prune_onnx(tiny_onnx, path, {each.block: each.width}, grams, orders)
            error = np.square(np.subtract(logits(path, tiny_rows), exact, dtype=np.float64)).mean()
        assert each.logit_error == pytest.approx(float(error), rel=1e-9)
    assert len(tried) == 1 + len(orders)
    assert max(tried) < 2 * tiny_onnx.stat().st_size, "the weights are written once, not for each block"


def test_activations_are_those_of_the_model_in_one_file(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    tensor = str(find_linears(load_ir(tiny_onnx))[0].input.name)
    feeds = CalibrationReader(tiny_rows, 4)
    with mapped(tiny_onnx) as copy:
        from_copy = collect_grams(copy, feeds, [tensor], threads=1)[tensor]
    gram = collect_grams(tiny_onnx, feeds, [tensor], threads=1)[tensor]
    np.testing.assert_array_equal(from_copy.products, gram.products)


def test_errors_name_the_model_not_the_copy(tiny_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error, mapped(tiny_onnx) as copy:
        raise InputError(f"{copy}: layer.0.ffn: its weight is not finite")
    assert str(error.value) == f"{tiny_onnx}: layer.0.ffn: its weight is not finite"
    with pytest.raises(InputError, match="no such ONNX model"), mapped(tmp_path / "none.onnx"):
        pass
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match=r"text\.onnx: not an ONNX file"), mapped(tmp_path / "text.onnx"):
        pass
