"""NNCF's own int8, as it makes it for OpenVINO by itself."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from quantlib.compression.recipes.recipe import Recipe
from quantlib.machine.engines import without_telemetry
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file

if TYPE_CHECKING:
    from quantlib.data.features import Feed

PACKAGE, EXTRA = "nncf", "nncf"


def nncf_versions() -> dict[str, str]:
    """What decides the files that NNCF makes.

    Raises:
        InputError: it is not installed.
    """
    need_nncf()
    return {name: version(name) for name in (PACKAGE, "onnx", "onnxruntime", "numpy")}


def quantize_with_nncf(
    onnx_path: Path,
    out_path: Path,
    recipe: Recipe,
    rows: Iterable[Feed],
    progress: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write what NNCF makes of an FP32 model with its defaults for transformers, as QDQ.

    Args:
        onnx_path: the model; no operators but ONNX's own.
        out_path: the file to write.
        recipe: one whose quantizer is "nncf"; its calibration method "MinMax" takes the extremes of all rows
            as ranges, in place of the mean of each row's.
        rows: feeds of a row each.
        progress: called with 1 after each row that is read.

    Raises:
        InputError: NNCF is not installed, or cannot quantize the model.
    """
    import onnx

    nncf = _module()
    model = onnx.load(onnx_path)
    names = [value.name for value in model.graph.input]
    feeds = [{name: feed[name] for name in names if name in feed} for feed in rows]

    def next_feed(feed: Feed) -> Feed:
        progress(1)
        return feed

    advanced = None
    if recipe.calibration_method is not None:
        estimators = importlib.import_module("nncf.quantization.range_estimator")
        ranges = estimators.RangeEstimatorParametersSet.MINMAX
        advanced = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges)
    with _quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(feeds, next_feed),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            advanced_parameters=advanced,
        )
    with atomic_file(out_path) as scratch:
        onnx.save(quantized, scratch)
    return out_path


def need_nncf() -> None:
    """Raise InputError, which says what to install, where NNCF is missing."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            f"the recipes of NNCF need the package {PACKAGE}: pip install 'bert-quantlib[{EXTRA}]'"
        )


def _module() -> ModuleType:
    need_nncf()
    without_telemetry()
    return importlib.import_module(PACKAGE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what NNCF says of its steps, with bars on stdout; the run shows its own."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
