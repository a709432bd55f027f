"""The table of recipes. A recipe is data: everything that turns an FP32 model into one int8 variant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from quantlib.compression.calibration.methods import KNOWN, parse_method
from quantlib.compression.variants import check_recipe_name
from quantlib.onnx_model import layers
from quantlib.support.errors import InputError

Mode = Literal["static", "dynamic", "weight_only"]
Format = Literal["QDQ", "QOperator"]
ActivationType = Literal["QInt8", "QUInt8", "QUInt16", "Float"]
WeightType = Literal["QInt8", "QUInt8", "QInt4"]
Quantizer = Literal["quantlib", "onnxruntime"]
Embeddings = Literal["per_row", "int4", "float"]
Precision = Literal["int16", "weight_only", "float"]

# The fields that take one of a few words.
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "format": get_args(Format),
    "activation_type": get_args(ActivationType),
    "weight_type": get_args(WeightType),
    "quantizer": get_args(Quantizer),
    "embeddings": get_args(Embeddings),
}
PRECISIONS: tuple[str, ...] = get_args(Precision)
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Recipe:
    """One way to quantize a model.

    name: the key of its results, as `check_recipe_name` allows it; stable, since baselines refer to it.
    mode: "static" (activation ranges from calibration), "dynamic" (ranges at run time) or "weight_only"
        (activations stay in float).
    format: "QDQ" (QuantizeLinear/DequantizeLinear pairs around float operators) or "QOperator" (operators on
        integers).
    activation_type: 8-bit signed or unsigned; "QUInt16" is two unsigned 8-bit terms, the second of which
        holds what the first one rounded off; "Float" for weight-only.
    weight_type: 8-bit signed or unsigned, or "QInt4" (weight-only).
    calibration_method: how ranges are derived (as `parse_method` reads it); static only.
    per_channel: one weight scale for each output channel, instead of one for each tensor.
    quantizer: "quantlib" rewrites the products with a weight and the embeddings, and nothing else;
        "onnxruntime" is the runtime's own tool.
    op_types: the operator types that "onnxruntime" is to quantize; None is every type it knows.
    embeddings: tables in 8 bits with a scale for each row, the largest one (of words) in 4 bits with a scale
        for each 64 numbers and the others in 8, or all in float; quantlib only.
    smooth: the model is smoothed first (`quantlib.compression.smoothing`); quantlib only.
    reduce_range: weights in 7 bits, so that sums of two u8·s8 products fit into 16 bits: for CPUs without
        VNNI.
    block_size: weights along the input that share a scale; weight-only.
    nodes: exceptions, as pairs of a key and a precision. A key is a node's name, a group ("layer.4.ffn_out")
        or a role ("ffn_out"), the narrower one first; a precision is "int16" (as QUInt16), "weight_only"
        (8 bits in blocks of 128, activations in float) or "float". An embedding has no activation: only
        "float" makes a difference there. quantlib only.
    pad_calibration: calibrate on rows padded to the full length, as the textbook does, instead of on real
        tokens only.
    report_only: why the variant is shown but not to be shipped; empty for one that may be.
    """

    name: str
    summary: str
    mode: Mode
    format: Format
    activation_type: ActivationType
    weight_type: WeightType = "QInt8"
    calibration_method: str | None = None
    per_channel: bool = True
    quantizer: Quantizer = "quantlib"
    op_types: tuple[str, ...] | None = None
    embeddings: Embeddings = "per_row"
    smooth: bool = False
    reduce_range: bool = False
    block_size: int | None = None
    nodes: tuple[tuple[str, Precision], ...] = ()
    pad_calibration: bool = False
    report_only: str = ""

    def __post_init__(self) -> None:
        check_recipe_name(self.name)
        for field, known in CHOICES.items():
            self._known(field, getattr(self, field), known)
        for key, precision in self.nodes:
            self._known(f"the precision of {key}", precision, PRECISIONS)
        if self.calibration_method is not None:
            try:
                parse_method(self.calibration_method)
            except InputError as error:
                raise InputError(f"recipe {self.name}: {error}") from error
        for wrong, message in self._contradictions():
            if wrong:
                raise InputError(f"recipe {self.name}: {message}")

    def _known(self, field: str, value: object, known: tuple[str, ...]) -> None:
        if value not in known:
            raise InputError(f"recipe {self.name}: {field} {value!r} is unknown; known: {', '.join(known)}")

    def _contradictions(self) -> Iterable[tuple[bool, str]]:
        """(whether it holds, what is wrong then)."""
        static, own = self.mode == "static", self.quantizer == "quantlib"
        weights = self.mode == "weight_only"
        types = (self.activation_type, self.weight_type)
        keys = [key for key, _ in self.nodes]
        sixteen = any(precision == "int16" for _, precision in self.nodes)
        return (
            (
                static and self.calibration_method is None,
                f"a static recipe needs a calibration method; known: {KNOWN}",
            ),
            (
                not static and self.calibration_method is not None,
                f"a {self.mode} recipe takes no calibration method",
            ),
            (
                self.mode == "dynamic"
                and (self.format != "QOperator" or self.activation_type not in ("QUInt8", "QUInt16")),
                "dynamic quantization is QOperator with QUInt8 or QUInt16 activations",
            ),
            (
                weights and (self.format != "QOperator" or self.activation_type != "Float" or not own),
                "weight-only quantization is quantlib's, QOperator with Float activations",
            ),
            (not weights and self.activation_type == "Float", "Float activations are for weight_only"),
            (
                weights != (self.block_size is not None),
                "weight_only, and nothing else, needs a block_size",
            ),
            (
                self.block_size is not None and self.block_size not in BLOCK_SIZES,
                f"block_size {self.block_size} is unknown; known: {', '.join(map(str, BLOCK_SIZES))}",
            ),
            (not weights and self.weight_type == "QInt4", "QInt4 weights are for weight_only"),
            (
                types == ("QInt8", "QUInt8"),
                "S8 activations with U8 weights are nothing that ONNX Runtime can run",
            ),
            (
                own and self.weight_type == "QUInt8",
                "quantlib's weights are symmetric: QInt8 or QInt4",
            ),
            (
                self.activation_type == "QUInt16" and (not own or self.format != "QOperator"),
                "QUInt16 activations are quantlib's, QOperator",
            ),
            (self.format == "QDQ" and sixteen, "int16 nodes are QOperator"),
            (weights and sixteen, "int16 nodes are for static and dynamic"),
            (len(set(keys)) < len(keys), "nodes: a key is given twice"),
            (
                not own and (self.smooth or bool(self.nodes) or self.embeddings != "per_row"),
                "smooth, nodes and embeddings are quantlib's; the quantizer is onnxruntime",
            ),
            (self.smooth and weights, "a weight_only recipe has no activations to smooth"),
            (own and self.op_types is not None, "op_types are for the quantizer onnxruntime"),
            (self.op_types == (), "op_types is empty; nothing would be quantized"),
            (weights and self.reduce_range, "weight_only multiplies in float; reduce_range is for int8"),
            (
                weights and not self.per_channel,
                "weight_only has a scale for each block; leave out per_channel",
            ),
            (self.pad_calibration and not static, f"a {self.mode} recipe is not calibrated"),
        )

    def precisions(self, names: Iterable[str]) -> dict[str, Precision]:
        """{node: its precision} of the nodes that are exceptions, the narrowest key deciding.

        Args:
            names: the nodes that could be quantized: products with a weight, and embeddings.

        Raises:
            InputError: a key fits none of them.
        """
        names = list(names)
        given = dict(self.nodes)
        for key in given:
            if not any(key in _keys(name) for name in names):
                raise InputError(
                    f"recipe {self.name}: the model has no node, group or role {key!r} to quantize; "
                    f"it has, for example, {names[0]}"
                    if names
                    else f"recipe {self.name}: nothing to quantize"
                )
        found = {name: self.precision(name) for name in names}
        return {name: precision for name, precision in found.items() if precision is not None}

    @property
    def fits_any_depth(self) -> bool:
        """Whether no exception is tied to one model's nodes or numbered layers."""
        return all(key in layers.ROLES for key, _ in self.nodes)

    def precision(self, name: str) -> Precision | None:
        """The precision of one node; None if it is no exception."""
        given = dict(self.nodes)
        return next((given[key] for key in _keys(name) if key in given), None)


def _keys(name: str) -> tuple[str, str, str]:
    """What may stand for a node in `Recipe.nodes`, the narrowest first."""
    return name, layers.group(name), layers.role(name)


_TEXTBOOK = "the library's defaults, calibrated on padded rows: loses accuracy, shown so that a user sees why"


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
    _dynamic("dynamic_u16s8", "16-bit activations in two 8-bit terms", "QUInt16"),
    _weight_only("weight_only_int8", "QInt8", 8),
    _weight_only("weight_only_int4", "QInt4", 4),
    _defaults("quant_1_defaults", "QDQ", "QInt8"),
    _defaults("quant_2_defaults", "QOperator", "QUInt8"),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _TABLE}

# The recipes worth showing when the user names none.
DEFAULT_RECIPES = ("quant_1", "quant_2", "static_u8s8_smooth", "static_u8s8_embed4", "dynamic_u8s8")


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, as both command lines take it."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def get_recipes(names: tuple[str, ...]) -> tuple[Recipe, ...]:
    """The recipes of these names, in their order; `all` stands for the whole table.

    A name that ends in .toml is a recipe file, as `quantlib.compression.recipe_file` reads it.

    Raises:
        InputError: an unknown name, one given twice, or a file that is no recipe.
    """
    from quantlib.compression.recipe_file import read_recipe

    if names == ("all",):
        return tuple(RECIPES.values())
    found: dict[str, Recipe] = {}
    for name in names:
        if name == "all":
            raise InputError("'all' stands alone: it names every recipe")
        if name.endswith(".toml"):
            recipe = read_recipe(Path(name))
            if recipe.name in RECIPES:
                raise InputError(f"{name}: the name {recipe.name!r} is taken by the table; choose another")
        elif name in RECIPES:
            recipe = RECIPES[name]
        else:
            raise InputError(
                f"unknown recipe {name!r}; known: all, {', '.join(RECIPES)}, or a file that ends in .toml"
            )
        if recipe.name in found:
            raise InputError(f"recipe {recipe.name!r} is given twice")
        found[recipe.name] = recipe
    return tuple(found.values())
