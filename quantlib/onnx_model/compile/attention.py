"""Fuse attention into one node: com.microsoft Attention with one weight for query, key and value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.onnx_model.compile.mask import NotPaddingError, padding_value
from quantlib.onnx_model.compile.naming import MICROSOFT, module
from quantlib.onnx_model.layers import constant, dimensions, is_bias, is_matrix

if TYPE_CHECKING:
    import onnx_ir as ir

_HEADS_FIRST, _KEYS = [0, 2, 1, 3], [0, 2, 3, 1]


def fuse_attention(model: ir.Model) -> tuple[int, list[str]]:
    """Fuse each attention into one node, in place.

    The node takes X, one weight (in, 3 * hidden) and one bias (3 * hidden,) for query, key and value, and the
    mask as `mask_index`, int32 (batch, sequence), 1 for a real token: only in this form can it be quantized
    as QAttention. All nodes share the mask's one Cast. What else is added to the scores (a bias by relative
    position) is its `attention_bias`, (1 or batch, 1 or heads, sequence, sequence).

    Returns:
        How many were fused, and a sentence for each that was not.
    """
    from onnxscript.rewriter import pattern

    mask = next((value for value in model.graph.inputs if value.name == "attention_mask"), None)
    fusion = _Fusion(mask, None if mask is None else _as_integers(model.graph, mask))
    rules = (fusion.pattern, fusion.biased_pattern)
    fused = sum(
        pattern.RewriteRule(rule, fusion.rewrite, fusion.check).apply_to_model(model) for rule in rules
    )
    left = [
        f"{module(node.outputs[0])}: attention is not fused: {_reason(node, fusion.refused)}"
        for node in model.graph
        if node.op_type == "Softmax"
    ]
    return fused, left


def _reason(softmax: ir.Node, refused: Mapping[str, str]) -> str:
    if softmax.outputs[0].is_graph_output():
        return f"its weights are an output of the model, {softmax.outputs[0].name}"
    return refused.get(str(softmax.name), "it is not softmax(q·k * scale + mask)·v of one input")


def _as_integers(graph: ir.Graph, mask: ir.Value) -> ir.Value:
    """The mask as int32 for the fused nodes; the Cast is removed later if none uses it."""
    import onnx_ir as ir

    cast = ir.node("Cast", [mask], {"to": ir.DataType.INT32}, name="attention_mask/Cast")
    output = cast.outputs[0]
    output.name, output.shape = "attention_mask/Cast:0", mask.shape
    output.type = ir.TensorType(ir.DataType.INT32)
    graph.insert_before(graph[0], cast)
    return output


@dataclass(eq=False)
class _Fusion:
    """The rewrite rule. The arguments of its methods are the values that the pattern names.

    refused: {name of a Softmax: why its attention was not fused}. paddings: for each mask the number it adds
    to padding, or why it is no padding mask. joined: constants side by side, by what they were joined from:
    layers that share their weights share these too.
    """

    attention_mask: ir.Value | None
    mask_index: ir.Value | None
    refused: dict[str, str] = field(default_factory=dict)
    paddings: dict[ir.Value, float | NotPaddingError] = field(default_factory=dict)
    joined: dict[tuple[ir.Value, ...], ir.Value] = field(default_factory=dict)

    def pattern(
        self,
        op: Any,
        x: Any,
        q: Any,
        q_bias: Any,
        k: Any,
        k_bias: Any,
        v: Any,
        v_bias: Any,
        scale: Any,
        mask: Any,
    ) -> Any:
        """The nodes that the exporter writes for one attention."""

        def weights(scores: Any) -> Any:
            return op.Add(op.Mul(scores, scale, _outputs=["scaled"]), mask)

        return _written_out(op, x, ((q, q_bias), (k, k_bias), (v, v_bias)), weights)

    def biased_pattern(
        self,
        op: Any,
        x: Any,
        q: Any,
        q_bias: Any,
        k: Any,
        k_bias: Any,
        v: Any,
        v_bias: Any,
        scale: Any,
        bias: Any,
        mask: Any,
    ) -> Any:
        """Those of an attention with a bias, as MPNet has it; its scores are divided."""

        def weights(scores: Any) -> Any:
            return op.Add(op.Add(op.Div(scores, scale, _outputs=["scaled"]), bias), mask)

        return _written_out(op, x, ((q, q_bias), (k, k_bias), (v, v_bias)), weights)

    def check(self, _context: Any, weights: Any, bias: Any = None, **values: Any) -> bool:
        """Whether this attention can be fused; if not, the reason is noted."""
        reason = _form(**values) or _bias_reason(bias, values["heads"]) or self._mask_reason(values["mask"])
        if reason:
            self.refused[str(weights.producer().name)] = reason
        return not reason

    def rewrite(
        self,
        op: Any,
        x: Any,
        heads: Any,
        scale: Any,
        scaled: Any,
        mask: Any,
        joined: Any,
        bias: Any = None,
        **values: Any,
    ) -> Any:
        """The fused node."""
        name = f"{module(joined)}.qkv"
        _, _, count, size = heads.shape
        # The number for padding is the one that the model itself adds. Exports have float's smallest, which
        # absorbs every score, so that a row of padding only averages all positions evenly; with the
        # operator's default, -10000, the scores would still matter.
        attributes = {"num_heads": count, "mask_filter_value": self.paddings[mask]}
        factor = float(np.asarray(constant(scale)).item())
        if scaled.producer().op_type == "Div":
            factor = 1 / factor
        if not math.isclose(factor, 1 / math.sqrt(size), rel_tol=1e-6):
            attributes["scale"] = factor
        weight = self._join(op, f"{name}.weight", [values[part] for part in "qkv"], axis=1)
        qkv_bias = self._join(op, f"{name}.bias", [values[f"{part}_bias"] for part in "qkv"], axis=0)
        inputs = [x, weight, qkv_bias, self.mask_index]
        if bias is not None:
            inputs += [None, _for_one_row(bias)]
        fused = op.Attention(*inputs, **attributes, _domain=MICROSOFT)
        fused.producer().name = f"{name}/Attention"
        return fused

    def _join(self, op: Any, name: str, values: Sequence[ir.Value], axis: int) -> Any:
        """Constants side by side, as one initializer."""
        import onnx_ir as ir

        key = tuple(values)
        if key not in self.joined:
            arrays = [np.asarray(constant(value)) for value in values]
            self.joined[key] = op.initializer(ir.tensor(np.concatenate(arrays, axis=axis), name=name))
        return self.joined[key]

    def _mask_reason(self, mask: ir.Value) -> str:
        if self.attention_mask is None:
            return "the model has no input attention_mask"
        if mask not in self.paddings:
            try:
                self.paddings[mask] = padding_value(mask, self.attention_mask)
            except NotPaddingError as error:
                self.paddings[mask] = error
        padding = self.paddings[mask]
        return str(padding) if isinstance(padding, NotPaddingError) else ""


def _written_out(op: Any, x: Any, products: Sequence[tuple[Any, Any]], shifted: Callable[[Any], Any]) -> Any:
    """softmax(shifted(q·k))·v, with its heads split and joined. products: weight and bias of q, k and v."""
    from onnxscript.rewriter.pattern import ANY_VALUE, OrValue

    query, key, value = (
        op.Reshape(op.Add(op.MatMul(x, weight), bias), ANY_VALUE, _outputs=[name])
        for (weight, bias), name in zip(products, ("heads", "key_heads", "value_heads"), strict=True)
    )
    scores = op.MatMul(op.Transpose(query, perm=_HEADS_FIRST), op.Transpose(key, perm=_KEYS))
    weights = op.Softmax(shifted(scores), axis=-1, _outputs=["weights"])
    # Exports of scaled_dot_product_attention guard against rows of padding only.
    guarded = OrValue([op.Where(op.IsNaN(weights), [0.0], weights), weights])
    averaged = op.MatMul(guarded, op.Transpose(value, perm=_HEADS_FIRST))
    return op.Reshape(op.Transpose(averaged, perm=_HEADS_FIRST), ANY_VALUE, _outputs=["joined"])


def _bias_reason(bias: ir.Value | None, heads: ir.Value) -> str:
    """Why a bias cannot be the fused node's; "" if it can, or if there is none."""
    if bias is None:
        return ""
    count = None if heads.shape is None else heads.shape[2]
    if bias.shape is None or len(bias.shape) != 4 or bias.shape[1] not in (1, count):
        return "its bias is not (batch, heads, sequence, sequence)"
    return ""


def _for_one_row(bias: ir.Value) -> ir.Value:
    """A bias that is alike for all rows of a batch, before it was repeated for each: (1, ...)."""
    repeated = bias.producer()
    source = repeated.inputs[0] if repeated is not None and repeated.op_type == "Expand" else None
    if source is None or source.shape is None or bias.shape is None:
        return bias
    return source if [1, *bias.shape[1:]] == list(source.shape) else bias


def _form(*, heads: ir.Value, scale: ir.Value, **values: ir.Value) -> str:
    """Why shapes or constants do not fit the fused node; "" if they do."""
    if not all(is_matrix(values[name]) for name in "qkv"):
        return "a weight of query, key or value is not constant"
    widths = [dimensions(values[name]) for name in "qkv"]
    if len(set(widths)) > 1:
        return "query, key and value differ in width"
    if not all(is_bias(values[f"{name}_bias"], widths[0][1]) for name in "qkv"):
        return "a bias of query, key or value is not constant"
    factor = constant(scale)
    if factor is None or factor.size != 1:
        return "its scale is not a constant number"
    if heads.shape is None or len(heads.shape) != 4 or not all(isinstance(n, int) for n in heads.shape[2:]):
        return "the number of its heads is not known"
    return ""
