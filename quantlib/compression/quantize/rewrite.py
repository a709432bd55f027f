"""Quantize layers in a graph, each to the precision that the recipe gives it; all other nodes stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quantlib.compression import packing
from quantlib.compression.calibration import Gram, add_grams
from quantlib.compression.grid import (
    FloatArray,
    activation_grid,
    block_scales,
    pack_blocks,
    quantize_row_blocks,
    quantize_rows,
    round_weight,
    steps_of_blocks,
    weight_scale,
)
from quantlib.compression.quantize.expansion import expanded_weight
from quantlib.compression.quantize.nodes import NodeWriter
from quantlib.compression.recipes.recipe import Recipe
from quantlib.compression.rounding import round_second_order
from quantlib.onnx_model.layers import Embedding, Linear, find_embeddings, find_linears, names
from quantlib.support.errors import naming

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT = "com.microsoft"
# Bits and block size of a layer that is "weight_only" by exception.
_WEIGHT_ONLY = (8, 128)
# Numbers in a row of a 4-bit embedding table that share a scale.
_EMBEDDING_BLOCK = 64
# The second 8-bit term of a 16-bit activation holds the rounding error of the first, up to half a step either
# way: with 1/254 of the first step it reaches -127..127 around the zero point.
_SECOND_TERM = np.float32(1 / 254)
_FLOAT_ACTIVATIONS = 1  # MatMulNBits' accuracy_level: float32

# Attributes of a fused attention about its heads.
_HEADS = ("num_heads", "mask_filter_value", "scale")

# A quantized activation: values, scale, zero point.
Term = tuple["ir.Value", "ir.Value", "ir.Value"]


def rewrite(
    model: ir.Model,
    recipe: Recipe,
    ranges: Mapping[str, tuple[float, float]],
    grams: Mapping[str, Gram],
) -> int:
    """Quantize a model in place; return the number of quantized layers.

    Args:
        model: the FP32 model.
        recipe: one whose quantizer is quantlib.
        ranges: {activation: (low, high)} of the inputs of its products; used by static recipes.
        grams: {activation: Gram matrix} of the same; used by recipes with second-order rounding.

    Raises:
        InputError: the recipe names a node that the model does not have, or a Gram matrix does not fit.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model.graph.opset_imports.setdefault(MICROSOFT, 1)
    linears, embeddings = find_linears(model), find_embeddings(model)
    precisions = recipe.precisions(names(model))
    quantized = [linear for linear in linears if precisions.get(linear.name) != "float"]
    second_order = recipe.rounding == "second_order"
    writer = _Writer(model.graph, recipe, ranges, _grams_of_weights(quantized, grams) if second_order else {})
    words = max((len(embedding.table) for embedding in embeddings), default=0)
    for embedding in embeddings:
        if recipe.embeddings == "float" or precisions.get(embedding.name) == "float":
            continue
        # The other tables are small, and their errors affect every row: 8 bits.
        entries, width = embedding.table.shape
        if recipe.embeddings == "int4" and entries == words and width % 2 == 0:
            writer.embedding_in_blocks(embedding)
        else:
            writer.embedding(embedding)
    for linear in quantized:
        writer.linear(linear, precisions.get(linear.name))
    RemoveUnusedNodesPass()(model)
    return writer.quantized


def _grams_of_weights(linears: Sequence[Linear], grams: Mapping[str, Gram]) -> dict[str, Gram]:
    """The Gram matrix of all that is multiplied by a weight; layers that share one are rounded as one."""
    inputs: dict[str, list[str]] = {}
    for linear in linears:
        inputs.setdefault(_stem(linear), []).append(str(linear.input.name))
    return {
        stem: grams[names[0]] if len(names) == 1 else add_grams([grams[name] for name in names])
        for stem, names in inputs.items()
    }


class _Writer(NodeWriter):
    """Adds nodes to a graph. What several layers share (a quantized input, a weight) is added once."""

    def __init__(
        self,
        graph: ir.Graph,
        recipe: Recipe,
        ranges: Mapping[str, tuple[float, float]],
        grams: Mapping[str, Gram],
    ) -> None:
        super().__init__(graph)
        self.recipe, self.ranges, self.grams = recipe, ranges, grams
        self.first_terms: dict[str, Term] = {}
        self.second_terms: dict[str, Term] = {}
        self.weights: dict[str, tuple[ir.Value, ir.Value]] = {}
        self.quantized = 0

    def linear(self, linear: Linear, precision: str | None) -> None:
        """Replace a product and its bias by quantized nodes."""
        self.before = linear.node
        attention = linear.node if linear.node.op_type == "Attention" else None
        two_terms = precision == "int16" or self.recipe.activation_type == "QUInt16"
        if precision == "weight_only" or self.recipe.mode == "weight_only":
            result = self.weight_only(linear, precision)
        elif self.recipe.format == "QDQ":
            result = self.qdq(linear)
        elif attention is not None and not two_terms and _bias_free(attention):
            result, attention = self.attention(linear), None
        else:
            result = self.integer(linear, two_terms)
        if attention is not None:
            result = self.heads(attention, linear.width // 3, result)
        self.replace(linear.last.outputs[0], result)

    def attention(self, linear: Linear) -> ir.Value:
        """QAttention: queries, keys and values by one integer product, in one node with the attention."""
        values, step, zero = self.first_term(linear.input)
        weight, scale = self.weight(linear)
        weight_zero = self.constant(f"{_stem(linear)}_zero_point", np.zeros(self.scales(linear), np.int8))
        mask = linear.node.inputs[3] if len(linear.node.inputs) > 3 else None
        inputs = [values, weight, linear.bias, step, scale, mask, zero, weight_zero]
        kept = {name: linear.node.attributes[name] for name in _HEADS if name in linear.node.attributes}
        return self.node("QAttention", inputs, linear.name, MICROSOFT, **kept)

    def heads(self, attention: ir.Node, width: int, product: ir.Value) -> ir.Value:
        """Attention of queries, keys and values side by side, (batch, sequence, 3 * width)."""
        name = str(attention.name)
        sizes = self.constant(f"thirds_of_{3 * width}", np.full(3, width, np.int64))
        parts = self.nodes("Split", [product, sizes], f"{name}/Split", outputs=3, axis=2)
        mask, bias = (attention.inputs[i] if len(attention.inputs) > i else None for i in (3, 5))
        kept = {name: attention.attributes[name] for name in _HEADS if name in attention.attributes}
        return self.node("MultiHeadAttention", [*parts, None, mask, bias], f"{name}/heads", MICROSOFT, **kept)

    def embedding(self, embedding: Embedding) -> None:
        """Look up 8-bit rows and their scales, and multiply them."""
        import onnx_ir as ir

        self.before = embedding.node
        name, table, indices = embedding.name, embedding.table_name, embedding.node.inputs[1]
        values, scales = quantize_rows(embedding.table)
        rows = self.node("Gather", [self.constant(f"{table}_rows_quantized", values), indices], name)
        scale = self.constant(f"{table}_rows_scale", scales)
        scale = self.node("Gather", [scale, indices], f"{name}/scale/Gather")
        numbers = self.node("Cast", [rows], f"{name}/Cast", to=ir.DataType.FLOAT)
        self.replace(embedding.node.outputs[0], self.node("Mul", [numbers, scale], f"{name}/Mul"))

    def embedding_in_blocks(self, embedding: Embedding) -> None:
        """Look up and scale 4-bit rows in one node."""
        self.before = embedding.node
        table, block = embedding.table_name, _EMBEDDING_BLOCK
        name = f"{table}_4_bit_blocks_of_{block}"
        values, scales, zeros = quantize_row_blocks(embedding.table, block_size=block)
        inputs = [self.constant(name, values), embedding.node.inputs[1]]
        inputs += [self.constant(f"{name}_scale", scales), self.constant(f"{name}_zero_point", zeros)]
        attributes = {"bits": 4, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        rows = self.node("GatherBlockQuantized", inputs, embedding.name, MICROSOFT, **attributes)
        self.replace(embedding.node.outputs[0], rows)

    def integer(self, linear: Linear, two_terms: bool) -> ir.Value:
        """An integer product for each term of the activation, their sum in float, and the bias."""
        weight, scale = self.weight(linear)
        terms = [self.first_term(linear.input)]
        if two_terms:
            terms.append(self.second_term(linear.input))
        products = []
        for i, (values, step, zero) in enumerate(terms):
            name = linear.name if i == 0 else f"{linear.name}/second_term"
            inputs = [values, weight, step, scale, zero, None, linear.bias if i == 0 else None]
            products.append(self.node("MatMulIntegerToFloat", inputs, name, MICROSOFT))
        return self.node("Add", products, f"{linear.name}/sum") if two_terms else products[0]

    def qdq(self, linear: Linear) -> ir.Value:
        """QuantizeLinear and DequantizeLinear on the activation, DequantizeLinear on the weight."""
        activation = self.first_term(linear.input)
        rounded = self.node("DequantizeLinear", list(activation), f"{linear.name}/DequantizeLinear")
        values, scale = self.weight(linear)
        zero = self.constant(f"{_stem(linear)}_zero_point", np.zeros(self.scales(linear), np.int8))
        name = f"{linear.name}/weight/DequantizeLinear"
        weight = self.node("DequantizeLinear", [values, scale, zero], name, axis=1)
        return self.biased(linear, self.node("MatMul", [rounded, weight], linear.name))

    def weight_only(self, linear: Linear, precision: str | None) -> ir.Value:
        """8 or 4-bit weights in blocks, multiplied in float."""
        bits, block_size = _WEIGHT_ONLY
        if precision != "weight_only" and self.recipe.block_size is not None:
            bits, block_size = 4 if self.recipe.weight_type == "QInt4" else 8, self.recipe.block_size
        name = f"{_stem(linear)}_{bits}_bit_blocks_of_{block_size}"
        depth, width = linear.weight.shape
        if name not in self.graph.initializers:
            scales = block_scales(linear.weight, bits=bits, block_size=block_size)
            levels = self.levels(linear, steps_of_blocks(scales, block_size, depth), bits)
            self.constant(name, pack_blocks(levels, bits=bits, block_size=block_size))
            self.constant(f"{name}_scale", scales)
        weight = [self.graph.initializers[each] for each in (name, f"{name}_scale")]
        inputs = [linear.input, *weight]
        attributes = {"K": depth, "N": width, "bits": bits, "block_size": block_size}
        attributes["accuracy_level"] = _FLOAT_ACTIVATIONS
        return self.biased(linear, self.node("MatMulNBits", inputs, linear.name, MICROSOFT, **attributes))

    def weight(self, linear: Linear) -> tuple[ir.Value, ir.Value]:
        """The 8-bit weight and its scales."""
        stem = _stem(linear)
        if stem not in self.weights:
            bits = 7 if self.recipe.reduce_range else 8
            if self.recipe.storage == "int4":
                self.weights[stem] = self.stored_in_4_bits(linear, bits)
            else:
                scale = weight_scale(linear.weight, per_channel=self.recipe.per_channel, bits=bits)
                values = self.constant(f"{stem}_quantized", self.levels(linear, scale, bits))
                self.weights[stem] = values, self.constant(f"{stem}_scale", scale)
        return self.weights[stem]

    def stored_in_4_bits(self, linear: Linear, bits: int) -> tuple[ir.Value, ir.Value]:
        """An 8-bit weight that is computed from 4 bits, once, when the model is loaded; and its scales."""
        stem = _stem(linear)
        gram = self.grams.get(stem)
        importance = None if gram is None else np.diagonal(gram.products)
        with naming(linear.name):
            factors = packing.choose_factors(linear.weight, importance, bits=bits)
        levels = self.levels(linear, factors.steps(len(linear.weight)), packing.BITS)
        weight = expanded_weight(self, f"{stem}_in_4_bits", levels, factors)
        return weight, self.constant(f"{stem}_scale", factors.scale)

    def levels(self, linear: Linear, scale: FloatArray, bits: int) -> npt.NDArray[np.int8]:
        """A weight on its grid, as the recipe rounds it, int8 (in, out)."""
        if self.recipe.rounding == "nearest":
            return round_weight(linear.weight, scale, bits=bits)
        with naming(linear.name):
            return round_second_order(linear.weight, scale, self.grams[_stem(linear)], bits=bits)

    def scales(self, linear: Linear) -> tuple[int, ...]:
        """The shape of a weight's scales."""
        return linear.weight.shape[1:] if self.recipe.per_channel else ()

    def first_term(self, value: ir.Value) -> Term:
        """An activation in 8 bits."""
        name = str(value.name)
        if name not in self.first_terms:
            self.first_terms[name] = self._quantized(value, name)
        return self.first_terms[name]

    def _quantized(self, value: ir.Value, name: str) -> Term:
        if self.recipe.mode == "dynamic":
            values, step, zero = self.nodes(
                "DynamicQuantizeLinear", [value], f"{name}/DynamicQuantizeLinear", outputs=3
            )
            return values, step, zero
        grid = activation_grid(*self.ranges[name], signed=self.recipe.activation_type == "QInt8")
        step, zero = (
            self.constant(f"{name}_scale", grid.scale),
            self.constant(f"{name}_zero_point", grid.zero_point),
        )
        return self.node("QuantizeLinear", [value, step, zero], f"{name}/QuantizeLinear"), step, zero

    def second_term(self, value: ir.Value) -> Term:
        """The rounding error of an activation's first term, in 8 bits."""
        name = str(value.name)
        if name not in self.second_terms:
            first = self.first_term(value)
            rounded = self.node("DequantizeLinear", list(first), f"{name}/DequantizeLinear")
            rest = self.node("Sub", [value, rounded], f"{name}/rest")
            share = self.constant("second_term_share", _SECOND_TERM)
            step = self.node("Mul", [first[1], share], f"{name}/second_scale")
            zero = self.constant("second_term_zero_point", np.uint8(128))
            values = self.node("QuantizeLinear", [rest, step, zero], f"{name}/second/QuantizeLinear")
            self.second_terms[name] = (values, step, zero)
        return self.second_terms[name]

    def biased(self, linear: Linear, product: ir.Value) -> ir.Value:
        """The product, with the bias added if there is one."""
        if linear.bias is None:
            return product
        return self.node("Add", [product, linear.bias], f"{linear.name}/bias")

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Replace all uses of `old` by `new`, which takes over its name."""
        new.shape, new.type = old.shape, old.type
        self.quantized += 1
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, f"{old.name}/float"


def _bias_free(attention: ir.Node) -> bool:
    """Whether only a mask is added to the scores; QAttention has no input for a bias."""
    return len(attention.inputs) < 6 or attention.inputs[5] is None


def _stem(linear: Linear) -> str:
    """Prefix of the names of a weight's constants; a matrix may be used both as it is and transposed."""
    return f"{linear.weight_name}_transposed" if linear.transposed else linear.weight_name
