"""A recipe: everything that turns an FP32 model into one quantized variant, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from quantlib.compression.calibration.methods import KNOWN, parse_method
from quantlib.compression.variants import check_recipe_name
from quantlib.onnx_model import layers
from quantlib.support.errors import InputError, naming

Mode = Literal["static", "dynamic", "weight_only"]
Format = Literal["QDQ", "QOperator"]
ActivationType = Literal["QInt8", "QUInt8", "QUInt16", "Float"]
WeightType = Literal["QInt8", "QUInt8", "QInt4"]
Quantizer = Literal["quantlib", "onnxruntime", "nncf"]
Embeddings = Literal["per_row", "int4", "float"]
Rounding = Literal["nearest", "second_order"]
Storage = Literal["as_computed", "int4"]
Precision = Literal["int16", "weight_only", "float"]

# The fields that take one of a few words.
CHOICES: dict[str, tuple[str, ...]] = {
    "mode": get_args(Mode),
    "format": get_args(Format),
    "activation_type": get_args(ActivationType),
    "weight_type": get_args(WeightType),
    "quantizer": get_args(Quantizer),
    "embeddings": get_args(Embeddings),
    "rounding": get_args(Rounding),
    "storage": get_args(Storage),
}
PRECISIONS: tuple[str, ...] = get_args(Precision)
BLOCK_SIZES = (16, 32, 64, 128, 256)
# Names of blocks with heads hold this word.
_ATTENTION = ".attention"
_FOR_PEOPLE = ("name", "summary", "report_only")
# How a model is run decides nothing of its file.
_NOT_OF_THE_FILE = (*_FOR_PEOPLE, "stock_session")


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
        "onnxruntime" is the runtime's own tool, "nncf" OpenVINO's, which calibrates by itself: with its
        defaults, or with the method "MinMax" if that is named.
    op_types: the operator types that "onnxruntime" is to quantize; None is every type it knows.
    embeddings: tables in 8 bits with a scale for each row, the largest one (of words) in 4 bits with a scale
        for each 64 numbers and the others in 8, or all in float; quantlib only.
    rounding: of the weights of products, "nearest", or "second_order" on calibration rows
        (`quantlib.compression.rounding`); quantlib only.
    storage: of the weights of products in the file, "as_computed", or "int4": in 4 bits, from which the
        runtime computes the int8 weights when it loads the model (`quantlib.compression.packing`); not for
        weight_only, which has 4 bits of its own; quantlib only.
    smooth: the model is smoothed first (`quantlib.compression.smoothing`); quantlib only.
    reduce_range: weights in 7 bits, so that sums of two u8·s8 products fit into 16 bits: for CPUs without
        VNNI.
    block_size: weights along the input that share a scale; weight-only.
    nodes: exceptions, as pairs of a key and a precision. A key is a node's name, a group ("layer.4.ffn_out")
        or a role ("ffn_out"), the narrower one first; a precision is "int16" (as QUInt16), "weight_only"
        (8 bits in blocks of 128, activations in float) or "float". An embedding has no activation: only
        "float" makes a difference there. quantlib only.
    prune: the share of the neurons of the feed-forward blocks that is removed first; each block loses as many
        as costs the logits least.
    widths: instead of `prune`, how many neurons each block keeps, as pairs of its name ("layer.4.ffn") and a
        number; blocks that are not named keep all.
    heads: how many heads each attention keeps, as pairs of its name ("layer.4.attention") and a number;
        beside `widths`, or alone.
    pad_calibration: calibrate on rows padded to the full length, as the textbook does, instead of on real
        tokens only.
    report_only: why the variant is shown but not to be shipped; empty for one that may be.
    stock_session: it is timed in a session with the engine's own defaults.
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
    rounding: Rounding = "nearest"
    storage: Storage = "as_computed"
    smooth: bool = False
    reduce_range: bool = False
    block_size: int | None = None
    nodes: tuple[tuple[str, Precision], ...] = ()
    prune: float = 0.0
    widths: tuple[tuple[str, int], ...] = ()
    heads: tuple[tuple[str, int], ...] = ()
    pad_calibration: bool = False
    report_only: str = ""
    stock_session: bool = False

    def __post_init__(self) -> None:
        check_recipe_name(self.name)
        for field, known in CHOICES.items():
            self._known(field, getattr(self, field), known)
        for key, precision in self.nodes:
            self._known(f"the precision of {key}", precision, PRECISIONS)
        if self.calibration_method is not None:
            with naming(f"recipe {self.name}"):
                parse_method(self.calibration_method)
        for wrong, message in self._contradictions():
            if wrong:
                raise InputError(f"recipe {self.name}: {message}")

    def _known(self, field: str, value: object, known: tuple[str, ...]) -> None:
        if value not in known:
            raise InputError(f"recipe {self.name}: {field} {value!r} is unknown; known: {', '.join(known)}")

    def _contradictions(self) -> Iterable[tuple[bool, str]]:
        """(whether it holds, what is wrong then)."""
        static, ours = self.mode == "static", self.quantizer == "quantlib"
        nncf = self.quantizer == "nncf"
        weights = self.mode == "weight_only"
        types = (self.activation_type, self.weight_type)
        keys = [key for key, _ in self.nodes]
        sixteen = any(precision == "int16" for _, precision in self.nodes)
        return (
            (
                static and not nncf and self.calibration_method is None,
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
                weights and (self.format != "QOperator" or self.activation_type != "Float" or not ours),
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
                ours and self.weight_type == "QUInt8",
                "quantlib's weights are symmetric: QInt8 or QInt4",
            ),
            (
                self.activation_type == "QUInt16" and (not ours or self.format != "QOperator"),
                "QUInt16 activations are quantlib's, QOperator",
            ),
            (self.format == "QDQ" and sixteen, "int16 nodes are QOperator"),
            (weights and sixteen, "int16 nodes are for static and dynamic"),
            (len(set(keys)) < len(keys), "nodes: a key is given twice"),
            (
                nncf
                and (
                    (self.mode, self.format, *types) != ("static", "QDQ", "QUInt8", "QInt8")
                    or not self.per_channel
                    or self.reduce_range
                    or self.prunes
                    or self.pad_calibration
                    or self.calibration_method not in (None, "MinMax")
                ),
                "nncf makes static QDQ models, U8S8 and per channel, with its own ranges or MinMax",
            ),
            (
                not ours and (self.smooth or bool(self.nodes) or self.embeddings != "per_row"),
                f"smooth, nodes and embeddings are quantlib's; the quantizer is {self.quantizer}",
            ),
            (
                not ours and self.rounding != "nearest",
                f"second_order rounding is quantlib's; the quantizer is {self.quantizer}",
            ),
            (
                self.storage == "int4" and (not ours or weights or not self.per_channel),
                "int4 storage is for quantlib's int8 weights with a scale for each channel",
            ),
            (self.smooth and weights, "a weight_only recipe has no activations to smooth"),
            (
                self.quantizer != "onnxruntime" and self.op_types is not None,
                "op_types are for the quantizer onnxruntime",
            ),
            (self.op_types == (), "op_types is empty; nothing would be quantized"),
            (weights and self.reduce_range, "weight_only multiplies in float; reduce_range is for int8"),
            (
                weights and not self.per_channel,
                "weight_only has a scale for each block; leave out per_channel",
            ),
            (self.pad_calibration and not static, f"a {self.mode} recipe is not calibrated"),
            (not 0 <= self.prune < 1, f"prune {self.prune:g} is out of range; it is a share, 0 to below 1"),
            (bool(self.prune and self.widths), "prune and widths exclude each other"),
            (bool(self.prune and self.heads), "prune and heads exclude each other"),
            (len(dict(self.widths)) < len(self.widths), "widths: a block is given twice"),
            (len(dict(self.heads)) < len(self.heads), "heads: an attention is given twice"),
            *(
                (
                    kept < 1,
                    f"{field}: {key} is {kept}; {what} keeps at least 1 {unit}, without any a layer would be "
                    "pruned to nothing",
                )
                for field, what, unit in (("widths", "a block", "neuron"), ("heads", "an attention", "head"))
                for key, kept in getattr(self, field)
            ),
            *(
                (
                    _ATTENTION in key,
                    f"widths: {key} is an attention; widths are numbers of neurons, those of an attention's "
                    "heads stand in heads",
                )
                for key, _ in self.widths
            ),
            *(
                (
                    _ATTENTION not in key,
                    f"heads: {key} is no attention; names are those of attentions, such as "
                    '"layer.4.attention"',
                )
                for key, _ in self.heads
            ),
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
        precisions = {name: self.precision(name) for name in names}
        return {name: precision for name, precision in precisions.items() if precision is not None}

    def file_key(self) -> dict[str, Any]:
        """What decides the model file, for cache keys: every field but those that are for people."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_OF_THE_FILE}

    @property
    def prunes(self) -> bool:
        """Whether neurons or heads are removed before anything is quantized."""
        return bool(self.prune or self.kept)

    @property
    def kept(self) -> dict[str, int]:
        """How many neurons or heads each block keeps, where the recipe says so."""
        return dict(self.widths + self.heads)

    def keeping(self, kept: Mapping[str, int]) -> Recipe:
        """This recipe with the numbers of neurons and heads that blocks keep, instead of a share."""
        heads = tuple((name, number) for name, number in kept.items() if _ATTENTION in name)
        widths = tuple((name, number) for name, number in kept.items() if _ATTENTION not in name)
        return replace(self, prune=0.0, widths=widths, heads=heads)

    @property
    def fits_any_depth(self) -> bool:
        """Whether nothing is tied to one model's nodes or numbered layers."""
        return not self.kept and all(key in layers.ROLES for key, _ in self.nodes)

    def precision(self, name: str) -> Precision | None:
        """The precision of one node; None if it is no exception."""
        given = dict(self.nodes)
        return next((given[key] for key in _keys(name) if key in given), None)


def _keys(name: str) -> tuple[str, str, str]:
    """What may stand for a node in `Recipe.nodes`, the narrowest first."""
    return name, layers.group(name), layers.role(name)
