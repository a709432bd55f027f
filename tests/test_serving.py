"""docs/serving.md: its code runs, and a shipped file needs nothing of quantlib to give its logits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import quantlib
from quantlib.compression.calibration import calibrate_min_max
from quantlib.compression.quantize import quantize_onnx
from quantlib.compression.recipes import DEFAULT_RECIPES, RECIPES
from quantlib.compression.smoothing import search_smoothing, smooth_onnx
from quantlib.data.features import CalibrationReader, Feature, batches
from quantlib.onnx_model.compile import compile_onnx

PAGE = Path(quantlib.__file__).parents[1] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def models(
    tiny_onnx: Path, tiny_rows: list[Feature], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The exported model, the compiled one, and each default recipe's, by name."""
    directory = tmp_path_factory.mktemp("served")
    compiled = compile_onnx(tiny_onnx, directory / "compiled.onnx").path
    reader = CalibrationReader(tiny_rows, 8)
    smooth = smooth_onnx(compiled, directory / "smooth.onnx", search_smoothing(compiled, reader, threads=1))
    ranges = {
        source: calibrate_min_max(source, CalibrationReader(tiny_rows, 8), threads=1)
        for source in (compiled, smooth)
    }
    paths = {"teacher": tiny_onnx, "teacher_compiled": compiled}
    for name in DEFAULT_RECIPES:
        recipe = RECIPES[name]
        source = smooth if recipe.smooth else compiled
        recipe_ranges = ranges[source] if recipe.mode == "static" else None
        paths[name] = quantize_onnx(source, directory / f"model_{name}.onnx", recipe, recipe_ranges)
    return paths


def logits_of(session: onnxruntime.InferenceSession, rows: list[Feature]) -> Any:
    feeds = (quantlib.feed_for(session, feed) for _, feed in batches(rows, 8))
    return np.concatenate([session.run(["logits"], feed)[0] for feed in feeds])


@pytest.mark.parametrize("name", ["teacher", "teacher_compiled", *DEFAULT_RECIPES])
def test_a_plain_session_gives_the_same_logits(
    models: dict[str, Path], tiny_rows: list[Feature], name: str
) -> None:
    plain = logits_of(
        onnxruntime.InferenceSession(str(models[name]), providers=["CPUExecutionProvider"]), tiny_rows
    )
    # Other fusions round floats in another way, which may move a value over the edge between two steps.
    tolerance = 0.02 if name in RECIPES else 1e-4
    np.testing.assert_allclose(
        logits_of(quantlib.open_session(models[name], threads=1), tiny_rows), plain, atol=tolerance, rtol=0
    )
    assert np.ptp(plain) > 1, "the tolerance is small beside what rows differ by"


def code_of_the_page() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_code_of_the_page(models: dict[str, Path], tiny_teacher: Path) -> None:
    block = code_of_the_page()[0]
    for written, path in {
        "my-checkpoint": tiny_teacher,
        "runs/SST-2/ts_teacher_bert/model_quant_2.onnx": models["quant_2"],
    }.items():
        assert written in block
        block = block.replace(written, path.as_posix())
    names: dict[str, Any] = {}
    exec(block, names)
    assert np.isfinite(names["logits"]).all()
    assert set(names["labels"]) <= set(names["task"].labels)
    assert len(names["labels"]) == len(names["texts"])


def test_the_code_of_the_page_for_openvino(tiny_onnx: Path, tiny_rows: list[Feature], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    compiled = compile_onnx(tiny_onnx, tmp_path / "compiled.onnx", operators="standard").path
    block = code_of_the_page()[1]
    written = "runs/SST-2/ts_teacher_bert/model_quant_1@openvino.onnx"
    assert written in block
    ((_, feed),) = batches(tiny_rows[:4], 8)
    session = quantlib.open_session(tiny_onnx, threads=1)
    feed = quantlib.feed_for(session, feed)
    names: dict[str, Any] = {"feed": feed}
    exec(block.replace(written, compiled.as_posix()), names)
    expected = session.run(["logits"], feed)[0]
    np.testing.assert_allclose(names["logits"], expected, atol=1e-4, rtol=0)
