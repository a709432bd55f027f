"""The table of recipes: a row each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quantlib.compression.recipes.recipe import ActivationType, Format, Recipe, WeightType

_TEXTBOOK = "the library's defaults, calibrated on padded rows: loses accuracy, shown so that a user sees why"

_DISK4 = "from 4 bits on disk, rounded by second order; the embeddings of words in 4 bits"
_IN_4_BITS: dict[str, Any] = {"embeddings": "int4", "rounding": "second_order", "storage": "int4"}


def _static(name: str, summary: str, method: str = "MinMax", **changes: Any) -> Recipe:
    """A static recipe on integer operators, U8S8 and per channel if not said otherwise."""
    fields: dict[str, Any] = {"format": "QOperator", "activation_type": "QUInt8"} | changes
    return Recipe(name, f"static, {summary}", "static", calibration_method=method, **fields)


def _dynamic(name: str, summary: str, activation_type: ActivationType = "QUInt8", **changes: Any) -> Recipe:
    return Recipe(name, f"dynamic, {summary}", "dynamic", "QOperator", activation_type, **changes)


def _weight_only(name: str, weight_type: WeightType, bits: int) -> Recipe:
    summary = f"weights in {bits} bits, blocks of 128; activations in float: as slow as FP32, or slower"
    return Recipe(name, summary, "weight_only", "QOperator", "Float", weight_type, block_size=128)


def _defaults(name: str, format_: Format, activation_type: ActivationType) -> Recipe:
    return Recipe(
        name,
        f"static, {format_}, {'S8S8' if activation_type == 'QInt8' else 'U8S8'}, MinMax; library defaults",
        "static",
        format_,
        activation_type,
        calibration_method="MinMax",
        per_channel=False,
        quantizer="onnxruntime",
        pad_calibration=True,
        report_only=_TEXTBOOK,
    )


_TABLE = (
    _static("quant_1", "QDQ, S8S8, MinMax", format="QDQ", activation_type="QInt8"),
    _static("quant_2", "QOperator, U8S8, MinMax"),
    _static("static_u8s8_smooth", "U8S8, MinMax after SmoothQuant", smooth=True),
    _static("static_u8s8_percentile", "U8S8, the middle 99.99 % of the values", "Percentile:99.99"),
    _static("static_u8s8_entropy", "U8S8, smallest KL divergence", "Entropy"),
    _static("static_u8s8_mse", "U8S8, smallest squared error", "MSE"),
    _static(
        "static_mixed",
        "as static_u8s8_smooth; FFN output, pooler and classifier with 16-bit activations",
        smooth=True,
        nodes=(("ffn_out", "int16"), ("pooler", "int16"), ("classifier", "int16")),
    ),
    _static("static_u16s8", "16-bit activations in two 8-bit terms", activation_type="QUInt16"),
    _static(
        "static_u8s7_smooth",
        "as static_u8s8_smooth with 7-bit weights, for CPUs without VNNI",
        smooth=True,
        reduce_range=True,
    ),
    _static(
        "static_u8s8_embed4",
        "as static_u8s8_smooth; the embeddings of words in 4 bits",
        smooth=True,
        embeddings="int4",
    ),
    _dynamic("dynamic_u8s8", "U8S8"),
    _dynamic("dynamic_per_tensor", "U8S8, a weight scale for each tensor", per_channel=False),
    _dynamic("dynamic_u8s8_embed4", "U8S8; the embeddings of words in 4 bits", embeddings="int4"),
    _static("static_u8s8_disk4", f"U8S8 {_DISK4}", **_IN_4_BITS),
    _dynamic("dynamic_u8s8_disk4", f"U8S8 {_DISK4}", **_IN_4_BITS),
    _dynamic("dynamic_u16s8", "16-bit activations in two 8-bit terms", "QUInt16"),
    _weight_only("weight_only_int8", "QInt8", 8),
    _weight_only("weight_only_int4", "QInt4", 4),
    replace(
        _weight_only("weight_only_int4", "QInt4", 4),
        name="weight_only_int4_second_order",
        summary="as weight_only_int4, rounded by second order on calibration rows",
        rounding="second_order",
    ),
    _defaults("quant_1_defaults", "QDQ", "QInt8"),
    _defaults("quant_2_defaults", "QOperator", "QUInt8"),
)

_NNCF: dict[str, Any] = {"quantizer": "nncf", "report_only": "what NNCF makes by itself, to compare with"}

# What other tools make, to stand in the same table; `all` does not mean them.
_PEERS = (
    Recipe("nncf_int8", "static, NNCF's own int8", "static", "QDQ", "QUInt8", **_NNCF),
    Recipe(
        "nncf_int8_minmax",
        "static, NNCF's own int8 with the ranges of the extremes",
        "static",
        "QDQ",
        "QUInt8",
        calibration_method="MinMax",
        **_NNCF,
    ),
    _dynamic(
        "stock_dynamic",
        "ONNX Runtime's own tool on the plain export, in a session with its defaults",
        quantizer="onnxruntime",
        stock_session=True,
        report_only="what ONNX Runtime makes by itself, to compare with",
    ),
)

PEERS: dict[str, Recipe] = {recipe.name: recipe for recipe in _PEERS}

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _TABLE}

# The recipes worth showing when the user names none.
DEFAULT_RECIPES = ("quant_1", "quant_2", "static_u8s8_smooth", "static_u8s8_embed4", "dynamic_u8s8")
