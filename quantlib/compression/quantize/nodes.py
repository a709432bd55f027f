"""New nodes and constants of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.onnx_model.layers import initializer

if TYPE_CHECKING:
    import onnx_ir as ir


class NodeWriter:
    """Adds nodes to a graph before one of its nodes, `before`; a constant is added once for each name."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.before: ir.Node | None = None

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, domain: str = "", **attributes: Any
    ) -> ir.Value:
        """A new node's only output."""
        (output,) = self.nodes(op_type, inputs, name, domain, **attributes)
        return output

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """The outputs of a new node, inserted before the layer that is being replaced."""
        import onnx_ir as ir

        assert self.before is not None
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs, name=name)
        for i, output in enumerate(node.outputs):
            output.name = f"{name}/quantized:{i}"  # the plain name is that of the FP32 model's tensor
        self.graph.insert_before(self.before, node)
        return node.outputs

    def constant(self, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
        """An initializer, one for each name, since layers may share a weight.

        The name says how the array was made from the initializer named in it.
        """
        if name not in self.graph.initializers:
            initializer(self.graph, name, array)
        return self.graph.initializers[name]
