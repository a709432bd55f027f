"""Compute once the products that depend on no input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quantlib.onnx_model.compile.mask import has_branches, session_of
from quantlib.onnx_model.layers import initializer

if TYPE_CHECKING:
    import onnx_ir as ir


def fold_products(model: ir.Model) -> int:
    """Replace products of constants, and what else is computed from them alone, by the result, in place.

    In a DeBERTa these are the keys and queries of relative positions: (2 * buckets, hidden) twice a layer,
    which the file then holds. As products with a weight they would be quantized, at a loss and for nothing.

    Returns:
        How many nodes went.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph, before = model.graph, len(model.graph)
    known = set(graph.initializers.values())
    inside: set[ir.Node] = set()
    products: dict[ir.Value, None] = {}  # in graph order
    for node in graph:
        if not node.inputs or any(value is not None and value not in known for value in node.inputs):
            continue
        if has_branches(node):
            continue
        inside.add(node)
        known.update(node.outputs)
        if node.op_type == "MatMul" or any(value in products for value in node.inputs if value is not None):
            products |= dict.fromkeys(node.outputs)
    wanted = [value for value in products if any(use.node not in inside for use in value.uses())]
    if not wanted:
        return 0
    for value, array in zip(wanted, session_of(graph, [], wanted).run(None, {}), strict=True):
        name = str(value.name)
        value.name = f"{name}/computed"
        value.replace_all_uses_with(initializer(graph, name, np.asarray(array)))
    RemoveUnusedNodesPass()(model)
    return before - len(graph)
