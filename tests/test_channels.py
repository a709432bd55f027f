from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper

from quantlib.compression.calibration import Channels, collect_channels
from quantlib.compression.calibration.graph import load_with_shapes, save, with_outputs
from quantlib.data.features import CalibrationReader, Feature, Feed, pad
from quantlib.machine.sessions import feed_for, open_session
from quantlib.support.errors import InputError

NAMES = [
    "bert.embeddings.LayerNorm/LayerNormalization:0",
    "bert.encoder.layer.1.intermediate.intermediate_act_fn/Mul_2:0",
    "bert.pooler/Gather:0",
]


@pytest.fixture(scope="module")
def values(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Every value of three activations, row after row without padding: {name: (positions, channels)}."""
    path = tmp_path_factory.mktemp("channels") / "outputs.onnx"
    save(with_outputs(load_with_shapes(tiny_onnx), NAMES), path)
    session = open_session(path, threads=1, optimize=False)
    arrays_of: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for row in tiny_rows:
        for name, array in zip(
            NAMES, session.run(NAMES, feed_for(session, pad([row], len(row)))), strict=True
        ):
            arrays_of[name].append(array.reshape(-1, array.shape[-1]))
    return {name: np.concatenate(arrays) for name, arrays in arrays_of.items()}


def identity(tmp_path: Path, width: int = 2) -> Path:
    """x, as the activation y."""
    return tiny.save_graph(
        tmp_path / "model.onnx",
        [helper.make_node("Mul", ["x", "one"], ["y"])],
        {"one": np.ones(1, np.float32)},
        width=width,
    )


def x(*arrays: np.ndarray) -> list[Feed]:
    return [{"x": np.asarray(array, np.float32)} for array in arrays]  # type: ignore[dict-item]


def is_drawn_from(sample: np.ndarray, rows: np.ndarray, atol: float = 1e-5) -> bool:
    """Whether each row of a sample is one of the rows."""
    return all(np.abs(rows - row).max(axis=1).min() <= atol for row in sample)


# Extremes


def test_extremes_are_those_of_all_values_at_once(
    tiny_onnx: Path, tiny_rows: list[Feature], values: dict[str, np.ndarray]
) -> None:
    channels = collect_channels(tiny_onnx, CalibrationReader(tiny_rows, 4), NAMES, threads=1)
    assert list(channels) == NAMES
    for name, array in values.items():
        assert channels[name].low.dtype == channels[name].high.dtype == np.float32
        np.testing.assert_allclose(channels[name].low, array.min(axis=0), atol=1e-5)
        np.testing.assert_allclose(channels[name].high, array.max(axis=0), atol=1e-5)


@pytest.mark.parametrize("length", [18, 32, 64])
def test_padding_does_not_count(
    tiny_onnx: Path, tiny_rows: list[Feature], values: dict[str, np.ndarray], length: int
) -> None:
    """At 32 tokens the first token's vector, (rows, 32), has the shape of the mask, and stays whole."""
    padded = [pad(tiny_rows[i : i + 5], length) for i in range(0, len(tiny_rows), 5)]
    channels = collect_channels(tiny_onnx, padded, NAMES, samples=4096, threads=1)
    for name, array in values.items():
        np.testing.assert_allclose(channels[name].low, array.min(axis=0), atol=1e-5)
        np.testing.assert_allclose(channels[name].high, array.max(axis=0), atol=1e-5)
        assert channels[name].sample.shape == array.shape, "all fit, each once"
        np.testing.assert_allclose(np.sort(channels[name].sample, axis=0), np.sort(array, axis=0), atol=1e-5)


def test_extremes_by_hand(tmp_path: Path) -> None:
    feeds = x(np.array([[[1, -5], [2, 0]]]), np.array([[[0, 3]]]))
    channels = collect_channels(identity(tmp_path), feeds, ["y"])["y"]
    assert (channels.low.tolist(), channels.high.tolist()) == ([0, -5], [2, 3])
    assert sorted(channels.sample.tolist()) == [[0, 3], [1, -5], [2, 0]]


# The sample


def test_a_sample_is_bounded_and_drawn_from_real_positions(
    tiny_onnx: Path, tiny_rows: list[Feature], values: dict[str, np.ndarray]
) -> None:
    padded = [pad(tiny_rows[i : i + 7], 40) for i in range(0, len(tiny_rows), 7)]
    channels = collect_channels(tiny_onnx, padded, NAMES, samples=20, threads=1)
    for name, array in values.items():
        sample = channels[name].sample
        assert sample.shape == (20, array.shape[1])
        assert is_drawn_from(sample, array)


def test_the_same_sample_again_and_another_for_another_seed(
    tiny_onnx: Path, tiny_rows: list[Feature]
) -> None:
    def samples(seed: int) -> list[Channels]:
        reader = CalibrationReader(tiny_rows, 4)
        return list(collect_channels(tiny_onnx, reader, NAMES, samples=20, seed=seed, threads=1).values())

    first, again, other = (samples(seed) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.sample, b.sample)
        assert not np.array_equal(np.sort(a.sample, axis=0), np.sort(c.sample, axis=0))


def test_every_position_is_as_likely_as_another(tmp_path: Path) -> None:
    """Over 300 seeds each of 60 positions, early or late, is drawn about 100 times: 20 of 60 each time."""
    model = identity(tmp_path)
    positions = np.arange(60, dtype=np.float32)
    feeds = x(*(np.stack([part, part], axis=-1)[None] for part in np.split(positions, [5, 45])))
    drawn = np.zeros(60, int)
    for seed in range(300):
        sample = collect_channels(model, feeds, ["y"], samples=20, seed=seed, threads=1)["y"].sample
        assert len(np.unique(sample[:, 0])) == 20, "none twice"
        drawn[sample[:, 0].astype(int)] += 1
    assert drawn.sum() == 20 * 300
    deviation = np.sqrt(300 * (1 / 3) * (2 / 3))
    assert np.abs(drawn - 100).max() < 5 * deviation
    assert abs(drawn[:5].mean() - drawn[45:].mean()) < 3 * deviation / np.sqrt(5)


def test_batches_of_any_size_and_progress(tmp_path: Path) -> None:
    """A batch of more tokens than fit into memory at once is parted; rows are counted all the same."""
    rows = np.random.default_rng(0).normal(size=(70, 30, 2)).astype(np.float32)
    progress: list[int] = []
    channels = collect_channels(identity(tmp_path), x(rows), ["y"], progress=progress.append)["y"]
    assert sum(progress) == 70
    assert len(progress) > 1
    np.testing.assert_array_equal(channels.low, rows.reshape(-1, 2).min(axis=0))
    assert channels.sample.shape == (512, 2)


# What cannot be calibrated on


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_one_line(tmp_path: Path, bad: float) -> None:
    rows = np.ones((3, 4, 2), np.float32)
    broken = rows.copy()
    broken[1, 2, 0] = bad
    model = identity(tmp_path)
    message = f"{model}: activation y is NaN or infinite at calibration row 4"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        collect_channels(model, x(rows, broken), ["y"])


def test_the_row_is_named_behind_padding_too(
    tmp_path: Path, tiny_onnx: Path, tiny_rows: list[Feature]
) -> None:
    model = onnx.load(tiny_onnx)
    (table,) = [t for t in model.graph.initializer if t.name == "bert.embeddings.word_embeddings.weight"]
    array = onnx.numpy_helper.to_array(table).copy()
    rows = sorted(tiny_rows, key=len)[:6]
    alone = [set(row.input_ids) - {i for r in rows if r is not row for i in r.input_ids} for row in rows]
    row = next(i for i in range(5, 0, -1) if alone[i])
    array[min(alone[row])] = np.nan
    table.CopyFrom(onnx.numpy_helper.from_array(array, table.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(
        InputError, match=f"{re.escape(NAMES[0])} is NaN or infinite at calibration row {row}$"
    ):
        collect_channels(tmp_path / "nan.onnx", [pad(rows[:2], 20), pad(rows[2:], 20)], NAMES[:1])


def test_no_rows_at_all(tiny_onnx: Path) -> None:
    def none() -> Iterator[Feed]:
        yield from ()

    with pytest.raises(InputError, match=r"^no calibration rows: the calibration set is empty$"):
        collect_channels(tiny_onnx, none(), NAMES)


def test_a_row_that_is_all_padding_is_named(tiny_onnx: Path, tiny_rows: list[Feature]) -> None:
    feed = pad(tiny_rows[:3], 20)
    feed["attention_mask"][1] = 0
    with pytest.raises(InputError, match=r"^calibration row 4 is all padding$"):
        collect_channels(tiny_onnx, [pad(tiny_rows[:3], 20), feed], NAMES)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (["bert.nothing"], "the model has no float activation 'bert.nothing'"),
        (["input_ids"], "the model has no float activation 'input_ids'"),
        ([], "the model has no float activation to calibrate"),
    ],
    ids=["unknown", "an_input", "none"],
)
def test_activations_that_the_model_does_not_have(
    tiny_onnx: Path, tiny_rows: list[Feature], tensors: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(f'{tiny_onnx}: {words}')}$"):
        collect_channels(tiny_onnx, [pad(tiny_rows[:1], 20)], tensors)


def test_a_feed_that_cannot_be_run_and_a_file_that_is_no_model(tiny_onnx: Path, tmp_path: Path) -> None:
    feed = {name: np.ones((1, 999), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    with pytest.raises(InputError, match=r"model\.onnx: cannot be run on \(1, 999\): "):
        collect_channels(tiny_onnx, [feed], NAMES)
    with pytest.raises(InputError, match=r"nothing\.onnx: no such ONNX model$"):
        collect_channels(tmp_path / "nothing.onnx", [feed], NAMES)
