"""Which products of a model are quantized, and why the others are not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.onnx_model.model import Model
from quantlib.support.errors import InputError

if TYPE_CHECKING:
    import onnx

# Matrix products by operator type, with the inputs that are factors; any other input is a bias, a scale, a
# zero point or a mask. ONNX's operator reference, and ONNX Runtime's ContribOperators.md for com.microsoft.
_FLOAT_FACTORS = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "FusedMatMul": (0, 1),
    "Attention": (0, 1),
    "MultiHeadAttention": (0, 1),
}
# Both factors are multiplied as integers.
_INTEGER_FACTORS = {
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "DynamicQuantizeMatMul": (0, 1),
    "QAttention": (0, 1),
}
# The weight is stored in integers, the other factor stays in float.
_WEIGHT_ONLY_FACTORS = {"MatMulNBits": (0, 1)}
_FACTORS = _FLOAT_FACTORS | _INTEGER_FACTORS | _WEIGHT_ONLY_FACTORS
# Operators that pass on the values of their first input, in another order or type.
_PASS_ON = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})

TWO_ACTIVATIONS = "product of two activations: no weight to store in 8 bits"
KEPT = "kept in float by the recipe"
_FLOAT_WEIGHT = "weight stays float"
_HALF_DONE = "the {} factor is not quantized"
_NOT_COMPUTED = "quantized, but the engine computes it in {}"
# The types in which an engine multiplies integers.
_INTEGERS = frozenset({"i8", "u8"})


@dataclass(frozen=True)
class NotQuantized:
    """A matrix product in float.

    node: its name, or that of its first output if it has none. reason: why, in words.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How many of the nodes that multiply by a constant weight matrix are quantized.

    not_quantized: the other matrix products, in graph order, including those of two activations.
    """

    quantized: int
    not_quantized: tuple[NotQuantized, ...] = ()

    def __post_init__(self) -> None:
        if self.quantized < 0 or self.total < 1:
            raise ValueError(f"a share of {self.quantized} in {self.total} nodes does not exist")

    @property
    def in_float(self) -> tuple[str, ...]:
        """The names of the nodes with a weight that are not quantized."""
        return tuple(product.node for product in self.not_quantized if product.reason != TWO_ACTIVATIONS)

    @property
    def total(self) -> int:
        """All nodes with a weight."""
        return self.quantized + len(self.in_float)

    @property
    def share(self) -> float:
        """The quantized nodes as a fraction of all, 0 to 1."""
        return self.quantized / self.total


def coverage(
    model: Model | Path, kept: Collection[str] = (), computed: Mapping[str, str] | None = None
) -> Coverage:
    """Count the MatMul, Gemm and Attention nodes of a model that multiply by a weight, and those in integers.

    A weight is an initializer or a Constant, also behind Transpose, Reshape, Cast and the like, or behind
    QuantizeLinear and DequantizeLinear. Operators on integers (MatMulInteger, QLinearMatMul, QAttention, ...)
    count as quantized, and so does MatMulNBits, for its weights. In the QDQ format a float operator counts if
    both of its factors come from DequantizeLinear: only then does the runtime replace it by one on integers.
    A bias may stay in float.

    A product of two activations (attention scores, their product with the values) is not counted, quantized
    or not: it has no weight to store in 8 bits, recipes leave it in float on purpose, and its number does not
    say whether the weights were quantized. Subgraphs (If, Loop) are not searched; a BERT has none.

    Args:
        model: the model, or its path.
        kept: the names of nodes that the recipe keeps in float, which is then their reason.
        computed: {node: the type that it is computed in}, from an engine that tells; only what is computed in
            integers counts then.

    Raises:
        InputError: the file is missing or not ONNX, or no node multiplies by a weight.
    """
    model = Model.of(model)
    graph = _Graph(model.skeleton.graph, computed)
    weighted = [node for node in graph.nodes if graph.multiplies_by_weight(node)]
    if not weighted:
        raise InputError(
            f"{model.path}: no MatMul, Gemm or Attention multiplies by a weight; nothing to quantize"
        )
    in_float = [node for node in graph.nodes if _factors(node) and not graph.is_quantized(node)]
    return Coverage(
        sum(graph.is_quantized(node) for node in weighted),
        tuple(NotQuantized(_name(node), graph.why_float(node, kept)) for node in in_float),
    )


def has_integer_products(model: Model | Path) -> bool:
    """Whether any matrix product of a model multiplies integers by integers.

    Raises:
        InputError: the file is missing or not ONNX.
    """
    graph = _Graph(Model.of(model).skeleton.graph)
    return any(graph.is_quantized(node) and node.op_type not in _WEIGHT_ONLY_FACTORS for node in graph.nodes)


class _Graph:
    """A graph that can be walked from a tensor back to its sources."""

    def __init__(self, graph: onnx.GraphProto, computed: Mapping[str, str] | None = None) -> None:
        self._computed = computed
        self.nodes = list(graph.node)
        self._producer = {name: node for node in graph.node for name in node.output if name}
        self._constants = {tensor.name for tensor in graph.initializer}
        self._constants |= {tensor.values.name for tensor in graph.sparse_initializer}
        # What is computed from constants alone is one too: weights that are stored in 4 bits are.
        for node in graph.node:
            inputs = {name for name in node.input if name}
            if node.op_type == "Constant" or (inputs and inputs <= self._constants):
                self._constants.update(node.output)

    def multiplies_by_weight(self, node: onnx.NodeProto) -> bool:
        """Whether the node is a matrix product with a constant factor."""
        return any(self._is_constant(name) for name in _factors(node))

    def is_quantized(self, node: onnx.NodeProto) -> bool:
        """Whether the node is a matrix product on integers, or with a weight in integers."""
        if self._computed is not None and self._computed.get(_name(node), "") not in _INTEGERS:
            return False
        return self._is_written_in_integers(node)

    def _is_written_in_integers(self, node: onnx.NodeProto) -> bool:
        factors = _factors(node)
        return bool(factors) and (
            node.op_type not in _FLOAT_FACTORS or all(self._is_dequantized(name) for name in factors)
        )

    def why_float(self, node: onnx.NodeProto, kept: Collection[str]) -> str:
        """Why a matrix product is not quantized."""
        if not self.multiplies_by_weight(node):
            return TWO_ACTIVATIONS
        if _name(node) in kept:
            return KEPT
        if self._computed is not None and self._is_written_in_integers(node):
            return _NOT_COMPUTED.format(self._computed.get(_name(node), "another type"))
        first, second = (self._is_dequantized(name) for name in _factors(node))
        if first != second:
            return _HALF_DONE.format("second" if first else "first")
        return _FLOAT_WEIGHT

    def _sources(self, name: str) -> Iterator[tuple[str, str]]:
        """The tensor, then those it was passed on from, each with the type of the node that computed it."""
        while True:
            made_by = self._producer.get(name)
            kind = made_by.op_type if made_by is not None else ""
            yield name, kind
            if made_by is None or kind not in _PASS_ON | _QUANTIZERS:
                return
            name = made_by.input[0]

    def _is_constant(self, name: str) -> bool:
        return any(source in self._constants for source, _ in self._sources(name))

    def _is_dequantized(self, name: str) -> bool:
        first = next((kind for _, kind in self._sources(name) if kind not in _PASS_ON), "")
        return first == "DequantizeLinear"


def _factors(node: onnx.NodeProto) -> list[str]:
    places = _FACTORS.get(node.op_type, ())
    return [node.input[place] for place in places if place < len(node.input)]


def _name(node: onnx.NodeProto) -> str:
    return node.name or str(node.output[0])
