"""Compile an exported graph for inference: the same logits from fewer and faster nodes.

What is done and why, in order:

- A graph of another exporter is brought into the form of `quantlib.onnx_model.export`, which the fusions know
  (`quantlib.onnx_model.compile.normalize`).
- Products that depend on no input are computed once (`quantlib.onnx_model.compile.folding`).
- Attention and its mask become com.microsoft Attention, which ONNX Runtime computes for all heads at once and
  can quantize whole (`quantlib.onnx_model.compile.attention`); that the mask is one of padding is shown first
  (`quantlib.onnx_model.compile.mask`).
- GELU and LayerNormalization become one node each (`quantlib.onnx_model.compile.pointwise`). A residual sum
  and the LayerNormalization after it stay apart: SkipLayerNormalization is slower on the CPUs that were
  measured, for which reason `quantlib.machine.sessions` keeps ONNX Runtime from making one.
- The last layer is computed for the row that the classifier reads (`quantlib.onnx_model.compile.row`).

For an engine that knows ONNX's own operators only, attention and GELU stay in parts, which such engines fuse
themselves; their mask becomes a plain one, and the last attention asks for one row too
(`quantlib.onnx_model.compile.parts`).

A rewrite that does not recognise its part of the graph leaves it alone and says so. The result is compared
with the original before it is written (`quantlib.onnx_model.compile.parity`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from quantlib.machine.engines import Operators
from quantlib.onnx_model.compile.naming import number_nodes
from quantlib.onnx_model.layers import load_ir
from quantlib.onnx_model.model import PRODUCER
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["MARK", "Compiled", "Operators", "compile_onnx", "is_compiled", "normalize_onnx"]

MARK = "quantlib.compiled"


@dataclass(frozen=True)
class Compiled:
    """A compiled model, and what was done to it.

    done: how often each rewrite was done. "folded_products" counts the nodes that depended on no input,
    "attention", "gelu" and "layer_normalization" the new nodes, "mask" the masks that were made plain, "row"
    the nodes that now work on one row, "merged_constants" initializers that equalled another; "row_attention"
    is 1 if the last attention asks for one row. left: a sentence for each part that was not recognised and
    stays as it was. nodes_before, nodes_after: of the graph. difference: the largest of a logit in the parity
    check.
    """

    path: Path
    done: dict[str, int]
    left: tuple[str, ...]
    nodes_before: int
    nodes_after: int
    difference: float


def compile_onnx(
    onnx_path: Path,
    out_path: Path,
    *,
    last_attention: Literal["row", "whole"] = "row",
    operators: Operators = "microsoft",
    threads: int | None = None,
) -> Compiled:
    """Compile a classifier of quantlib's export or of another's; the model itself is left alone.

    Nodes keep their names, as far as they stay, and so do tensors; those that PyTorch's exporter by
    TorchScript named by paths get the names that quantlib's export gives. New nodes are named after their
    module: "bert.encoder.layer.0.attention.self.qkv/Attention", with its weight "....qkv.weight".

    Args:
        onnx_path: opset 11 to 20; of any architecture in `quantlib.training.architectures`.
        out_path: the file to write. It declares at least opset 17 if LayerNormalization was fused, or if
            another exporter wrote the model.
        last_attention: "row" lets the last attention ask for one row, as products for query and for key and
            value; "whole" leaves it one node, like the others. "row" is as fast at 1x32; at 1x128 and 8x128
            it is 1.01 to 1.03 times as fast in FP32 and 1.02 to 1.05 times in 8 bits, where the scores of
            all rows cost more than the products (a MiniLM of 6 layers and BERT-base, 2 threads).
        operators: "microsoft" also fuses attention and GELU into operators of ONNX Runtime's own; "standard"
            leaves them in parts.
        threads: of the parity check's sessions; the physical cores by default.

    Raises:
        InputError: the file is missing, no ONNX model, compiled already, of an opset that cannot be raised,
            or cannot be run; an unknown `last_attention` or `operators`.
        RuntimeError: the compiled graph computes something else. Nothing is written then.
    """
    from quantlib.onnx_model.compile.parity import check_parity

    if last_attention not in ("row", "whole"):
        raise InputError(f"last_attention must be 'row' or 'whole', not {last_attention!r}")
    if operators not in get_args(Operators):
        raise InputError(f"operators must be one of {', '.join(get_args(Operators))}, not {operators!r}")
    model = load_ir(onnx_path)
    if is_compiled(model):
        raise InputError(f"{onnx_path}: this model is compiled already; a run takes it with --no-compile")
    before = len(model.graph)
    rewrite = _rewrite if operators == "microsoft" else _rewrite_in_parts
    done, left = rewrite(model, last_attention == "row")
    model.metadata_props[MARK] = "1"
    with atomic_file(out_path) as scratch:
        import onnx_ir as ir

        ir.save(model, scratch)
        difference = check_parity(model, onnx_path, scratch, threads)
    return Compiled(out_path, done, tuple(left), before, len(model.graph), difference)


def normalize_onnx(onnx_path: Path, out_path: Path, *, threads: int | None = None) -> bool:
    """Bring a graph of another exporter into the form of quantlib's own, and do no more.

    Nodes and tensors get the names of that form, by which layers are known: what is to be pruned needs it.

    Args:
        onnx_path: as for `compile_onnx`.
        out_path: the file to write.
        threads: of the parity check's sessions; the physical cores by default.

    Returns:
        Whether it was written: not if the graph has that form, was compiled, or cannot be run to see its
        shapes.

    Raises:
        InputError, RuntimeError: as `compile_onnx`.
    """
    from quantlib.onnx_model.compile.normalize import normalize
    from quantlib.onnx_model.compile.parity import check_parity

    model = load_ir(onnx_path)
    if model.producer_name == PRODUCER or is_compiled(model) or normalize(model):
        return False
    model.producer_name, model.producer_version = PRODUCER, ""
    with atomic_file(out_path) as scratch:
        import onnx_ir as ir

        ir.save(model, scratch)
        check_parity(model, onnx_path, scratch, threads)
    return True


def is_compiled(model: ir.Model) -> bool:
    """Whether `compile_onnx` wrote this model."""
    return MARK in model.metadata_props


def _rewrite(model: ir.Model, row_attention: bool) -> tuple[dict[str, int], list[str]]:
    """All rewrites in place: how often each was done, and what was left."""
    import onnx_ir.passes.common as passes

    from quantlib.onnx_model.compile.attention import fuse_attention
    from quantlib.onnx_model.compile.folding import fold_products
    from quantlib.onnx_model.compile.normalize import normalize
    from quantlib.onnx_model.compile.pointwise import fuse_gelu, fuse_layer_normalization
    from quantlib.onnx_model.compile.row import attend_from_row, cut_to_row

    left = normalize(model)
    done = {"folded_products": fold_products(model)}
    for name, rewrite in {
        "attention": fuse_attention,
        "gelu": fuse_gelu,
        "layer_normalization": fuse_layer_normalization,
        "row": cut_to_row,
    }.items():
        done[name], sentences = rewrite(model)
        left += sentences
    passes.RemoveUnusedNodesPass()(model)
    done["row_attention"] = attend_from_row(model) if row_attention else 0
    _tidy(model, done)
    return done, left


def _rewrite_in_parts(model: ir.Model, row_attention: bool) -> tuple[dict[str, int], list[str]]:
    """The rewrites that need no operators but ONNX's own, in place."""
    from quantlib.onnx_model.compile.folding import fold_products
    from quantlib.onnx_model.compile.normalize import normalize
    from quantlib.onnx_model.compile.parts import attend_from_row_in_parts, own_gelus, simplify_masks
    from quantlib.onnx_model.compile.pointwise import fuse_layer_normalization
    from quantlib.onnx_model.compile.row import cut_to_row

    left = normalize(model)
    own_gelus(model)
    done = {"folded_products": fold_products(model), "attention": 0, "gelu": 0}
    for name, rewrite in {
        "mask": simplify_masks,
        "layer_normalization": fuse_layer_normalization,
        "row": cut_to_row,
    }.items():
        done[name], sentences = rewrite(model)
        left += sentences
    done["row_attention"] = attend_from_row_in_parts(model) if row_attention else 0
    _tidy(model, done)
    return done, left


def _tidy(model: ir.Model, done: dict[str, int]) -> None:
    """Leave nothing that is not used, or there twice, in place; `done` says how many constants were."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)
    constants = len(model.graph.initializers)
    passes.DeduplicateHashedInitializersPass()(model)
    done["merged_constants"] = constants - len(model.graph.initializers)
    passes.RemoveUnusedOpsetsPass()(model)
    number_nodes(model.graph)
    passes.ClearMetadataAndDocStringPass()(model)  # the rewriter's own notes, and the exporter's stack traces
