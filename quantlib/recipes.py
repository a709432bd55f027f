"""The table of recipes. A recipe is data: everything that turns an FP32 model into one int8 variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from quantlib.calibration.methods import KNOWN, parse_method
from quantlib.errors import InputError

Mode = Literal["static", "dynamic"]
Format = Literal["QDQ", "QOperator"]
IntType = Literal["QInt8", "QUInt8"]

_KINDS = {
    "mode": Mode,
    "format": Format,
    "activation_type": IntType,
    "weight_type": IntType,
}


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a model with ONNX Runtime.

    name: the key of its results; stable, since baselines refer to it.
    mode: "static" (activation ranges from calibration) or "dynamic" (ranges at run time).
    format: "QDQ" (QuantizeLinear/DequantizeLinear pairs) or "QOperator" (operators on integers).
    activation_type, weight_type: 8-bit signed or unsigned.
    calibration_method: how ranges are derived (as `parse_method` reads it); static only.
    per_channel: one weight scale for each output channel, instead of one for each tensor.
    op_types: the operator types to quantize; None is the library's default, every type it knows.
    pad_calibration: calibrate on rows padded to the full length, as the textbook does, instead of on real
        tokens only.
    report_only: why the variant is shown but not to be shipped; empty for one that may be.
    """

    name: str
    summary: str
    mode: Mode
    format: Format
    activation_type: IntType
    weight_type: IntType
    calibration_method: str | None = None
    per_channel: bool = False
    op_types: tuple[str, ...] | None = None
    pad_calibration: bool = False
    report_only: str = ""

    def __post_init__(self) -> None:
        for field, kind in _KINDS.items():
            value, known = getattr(self, field), get_args(kind)
            if value not in known:
                raise InputError(
                    f"recipe {self.name}: {field} {value!r} is unknown; known: {', '.join(known)}"
                )
        if self.mode == "static" and self.calibration_method is None:
            raise InputError(
                f"recipe {self.name}: a static recipe needs a calibration method; known: {KNOWN}"
            )
        if self.mode == "dynamic" and self.calibration_method is not None:
            raise InputError(f"recipe {self.name}: a dynamic recipe takes no calibration method")
        if self.calibration_method is not None:
            try:
                parse_method(self.calibration_method)
            except InputError as error:
                raise InputError(f"recipe {self.name}: {error}") from error
        if self.mode == "dynamic" and (self.format != "QOperator" or self.activation_type != "QUInt8"):
            raise InputError(f"recipe {self.name}: dynamic quantization is QOperator with QUInt8 activations")
        if (self.activation_type, self.weight_type) == ("QInt8", "QUInt8"):
            raise InputError(
                f"recipe {self.name}: S8 activations with U8 weights are nothing that ONNX Runtime can run"
            )
        if self.op_types is not None and not self.op_types:
            raise InputError(f"recipe {self.name}: op_types is empty; nothing would be quantized")
        if self.pad_calibration and self.mode == "dynamic":
            raise InputError(f"recipe {self.name}: a dynamic recipe is not calibrated")


# What quantizing buys in a BERT: the matrix products (time) and the embeddings (size). Softmax, residual
# sums, GELU and LayerNorm lose accuracy in 8 bits and win no time.
WORTH_QUANTIZING = ("MatMul", "Gemm", "Gather")

_TEXTBOOK = "the library's defaults, calibrated on padded rows: loses accuracy, shown so that a user sees why"


def _static_u8s8(word: str, method: str) -> Recipe:
    """`quant_2` with ranges by another method."""
    return Recipe(
        name=f"static_u8s8_{word}",
        summary=f"static, QOperator, U8S8, {method}; the nodes of quant_2, per channel, real tokens",
        mode="static",
        format="QOperator",
        activation_type="QUInt8",
        weight_type="QInt8",
        calibration_method=method,
        per_channel=True,
        op_types=WORTH_QUANTIZING,
    )


_TABLE = (
    Recipe(
        name="quant_1",
        summary="static, QDQ, S8S8, MinMax; matrix products and embeddings, per channel, real tokens",
        mode="static",
        format="QDQ",
        activation_type="QInt8",
        weight_type="QInt8",
        calibration_method="MinMax",
        per_channel=True,
        op_types=WORTH_QUANTIZING,
    ),
    Recipe(
        name="quant_2",
        summary="static, QOperator, U8S8, MinMax; matrix products and embeddings, per channel, real tokens",
        mode="static",
        format="QOperator",
        activation_type="QUInt8",
        weight_type="QInt8",
        calibration_method="MinMax",
        per_channel=True,
        op_types=WORTH_QUANTIZING,
    ),
    Recipe(
        name="dynamic_u8s8",
        summary="dynamic, QOperator, U8S8; matrix products and embeddings, per channel",
        mode="dynamic",
        format="QOperator",
        activation_type="QUInt8",
        weight_type="QInt8",
        per_channel=True,
        op_types=WORTH_QUANTIZING,
    ),
    Recipe(
        name="quant_1_defaults",
        summary="static, QDQ, S8S8, MinMax; library defaults",
        mode="static",
        format="QDQ",
        activation_type="QInt8",
        weight_type="QInt8",
        calibration_method="MinMax",
        pad_calibration=True,
        report_only=_TEXTBOOK,
    ),
    Recipe(
        name="quant_2_defaults",
        summary="static, QOperator, U8S8, MinMax; library defaults",
        mode="static",
        format="QOperator",
        activation_type="QUInt8",
        weight_type="QInt8",
        calibration_method="MinMax",
        pad_calibration=True,
        report_only=_TEXTBOOK,
    ),
    _static_u8s8("percentile", "Percentile:99.99"),
    _static_u8s8("entropy", "Entropy"),
    _static_u8s8("mse", "MSE"),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _TABLE}

# The recipes worth showing when the user names none.
DEFAULT_RECIPES = ("quant_1", "quant_2", "dynamic_u8s8")


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, as both command lines take it."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def get_recipes(names: tuple[str, ...]) -> tuple[Recipe, ...]:
    """The recipes of these names, in their order; `all` stands for the whole table.

    Raises:
        InputError: an unknown name, or one given twice.
    """
    if names == ("all",):
        return tuple(RECIPES.values())
    for name in names:
        if name == "all":
            raise InputError("'all' stands alone: it names every recipe")
        if name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}; known: all, {', '.join(RECIPES)}")
        if names.count(name) > 1:
            raise InputError(f"recipe {name!r} is given twice")
    return tuple(RECIPES[name] for name in names)
