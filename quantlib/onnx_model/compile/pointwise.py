"""GELU and LayerNormalization as one node each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantlib.onnx_model.compile.naming import MICROSOFT, module
from quantlib.onnx_model.layers import constant, find_linears, is_bias, role

if TYPE_CHECKING:
    import onnx_ir as ir

_GELUS = frozenset({"Gelu", "FastGelu"})
# The first opset with LayerNormalization; below it the export writes the formula out.
_WITH_LAYER_NORMALIZATION = 17


def fuse_gelu(model: ir.Model) -> tuple[int, list[str]]:
    """Fuse GELU by erf into com.microsoft Gelu and GELU by tanh into FastGelu, in place.

    Not into BiasGelu: the bias stays with its product, since an 8-bit product includes its bias. After a
    product in FP32, ONNX Runtime fuses bias and GELU itself when it loads the model.

    Returns:
        How many were fused, and a sentence for each FFN with another activation.
    """
    from onnxscript.rewriter import pattern
    from onnxscript.rewriter.ort_fusions import erfgelu

    rules = pattern.RewriteRuleSet(erfgelu.rules.rules, commute=True)
    fused: int = rules.apply_to_model(model)
    fused += pattern.RewriteRule(_tanh_gelu, _fast_gelu).apply_to_model(model)
    for node in model.graph:
        if node.op_type in _GELUS and node.domain == MICROSOFT:
            node.name = f"{module(node.outputs[0])}/{node.op_type}"
    left = []
    for linear in find_linears(model):
        following = sorted({node.op_type for node in _behind(linear.last)})
        if role(linear.name) == "ffn_in" and not set(following) <= _GELUS:
            left.append(f"{linear.name}: {', '.join(following)} behind it is not GELU: not fused")
    return fused, left


def _behind(node: ir.Node) -> list[ir.Node]:
    """The activation behind a product; of a gated one, what reads the part that is not the gate (GeGLU)."""
    users = [use.node for use in node.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Split":
        users = [use.node for use in users[0].outputs[0].uses()]
    return users


def _tanh_gelu(op: Any, x: Any) -> Any:
    """GELU by tanh, x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))), as the exporter writes it."""
    cubic = op.Add(x, op.Mul(op.Pow(x, 3.0), 0.044715))
    return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(op.Mul(cubic, math.sqrt(2 / math.pi))), 1.0))


def _fast_gelu(op: Any, x: Any) -> Any:
    return op.FastGelu(x, _domain=MICROSOFT)


def fuse_layer_normalization(model: ir.Model) -> tuple[int, list[str]]:
    """Replace the formula of LayerNormalization by the operator, in place; the model then needs opset 17.

    No other operator of a BERT changed its meaning between opsets 13 and 17, so the rest stays as it is.

    Returns:
        How many were fused, and a sentence for each remaining Sqrt: its formula was not recognised.
    """
    from onnxscript.rewriter import pattern

    rule = pattern.RewriteRule(_formula, _layer_normalization, _is_layer_normalization)
    fused: int = rule.apply_to_model(model)
    if fused:
        imports = model.graph.opset_imports
        imports[""] = max(imports[""], _WITH_LAYER_NORMALIZATION)
    left = [
        f"{node.name}: Sqrt is not part of a LayerNormalization as it is known: not fused"
        for node in model.graph
        if node.op_type == "Sqrt"
    ]
    return fused, left


def _formula(op: Any, x: Any, weight: Any, bias: Any, epsilon: Any) -> Any:
    """LayerNormalization as `quantlib.onnx_model.export` writes it out."""
    centred = op.Sub(x, op.ReduceMean(x, axes=[-1]))
    variance = op.ReduceMean(op.Pow(centred, 2.0), axes=[-1])
    normalized = op.Div(centred, op.Sqrt(op.Add(variance, epsilon)))
    return op.Add(op.Mul(normalized, weight), bias, _outputs=["shifted"])


def _is_layer_normalization(_context: Any, weight: Any, bias: Any, epsilon: Any, **_: Any) -> bool:
    scale, epsilon_value = constant(weight), constant(epsilon)
    if scale is None or epsilon_value is None or scale.ndim != 1:
        return False
    return is_bias(bias, len(scale)) and epsilon_value.size == 1


def _layer_normalization(op: Any, x: Any, weight: Any, bias: Any, epsilon: Any, shifted: Any) -> Any:
    number = float(np.asarray(constant(epsilon)).item())
    fused = op.LayerNormalization(x, weight, bias, axis=-1, epsilon=number, stash_type=1)
    fused.producer().name = f"{module(shifted)}/LayerNormalization"
    return fused
