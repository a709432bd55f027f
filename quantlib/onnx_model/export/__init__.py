"""PyTorch to ONNX, with the parity check. One of the places that need torch."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantlib.data.features import EMBEDDING, INPUT_NAMES, LOGITS
from quantlib.onnx_model.export.layers import find_stack, repeat_layer, shortened
from quantlib.onnx_model.export.naming import fold_transposes, merge_equal_weights, name_nodes, strip_notes
from quantlib.onnx_model.export.opset import TRACED_OPSET, check_opset, declare_opset
from quantlib.onnx_model.export.parity import check_parity
from quantlib.onnx_model.parity import ParityError
from quantlib.support.errors import InputError
from quantlib.support.files import atomic_file
from quantlib.training import embedding
from quantlib.training.architectures import accepted, of_model
from quantlib.training.checkpoints import (
    check_sequence_length,
    load_classifier,
    longest_sequence,
    read_config,
    reorder_logits,
)

if TYPE_CHECKING:
    import onnx
    import torch

# Bytes of a file in one piece, which is a protobuf.
_LARGEST_FILE = 2**31

__all__ = ["ParityError", "check_opset", "check_parity", "export_bert_to_onnx"]


def export_bert_to_onnx(
    model_dir: str | Path,
    out_path: str | Path,
    seq_len: int = 128,
    opset: int = 17,
    *,
    logit_order: Sequence[int] | None = None,
    threads: int | None = None,
) -> Path:
    """Export a fine-tuned classifier or an embedding model to ONNX and check that it computes the same.

    The graph takes int64 `input_ids`, `attention_mask` and `token_type_ids`, each (batch, sequence) with
    both axes dynamic. That of a classifier gives float32 `logits`, (batch, labels); that of a model in
    sentence-transformers' layout (see `quantlib.training.embedding`) gives `sentence_embedding`,
    (batch, width), pooling included. Nodes are named after the modules of the checkpoint. The file holds
    nothing of the machine that wrote it.

    Args:
        model_dir: a checkpoint directory.
        out_path: the ONNX file to write.
        seq_len: the longest sequence that will be fed, in tokens; the parity check includes it.
        opset: version of the ONNX operator set.
        logit_order: the model's logit index of each wanted label, where the order differs; a classifier's.
        threads: of the parity check's session; the physical cores by default.

    Returns:
        out_path.

    Raises:
        InputError: an opset or sequence length that cannot be exported, or an unusable checkpoint, or one too
            large for an ONNX file in one piece.
        ParityError: the exported graph does not compute what PyTorch computes.
    """
    model_dir, out_path = Path(model_dir), Path(out_path)
    check_opset(opset)
    check_sequence_length(model_dir, seq_len)
    embeds = embedding.is_embedding_model(model_dir)
    if embeds and logit_order is not None:
        raise InputError(f"{model_dir}: an embedding model has no logits whose order could be changed")
    model = embedding.load_embedding_model(model_dir) if embeds else load_classifier(model_dir)
    _check_size(model, model_dir)
    output = EMBEDDING if embeds else LOGITS
    if logit_order is not None:
        reorder_logits(model, logit_order)
    proto = _whole_graph(model, longest_sequence(read_config(model_dir)), output)
    declare_opset(proto, opset)
    with atomic_file(out_path) as scratch:
        import onnx

        onnx.save(proto, scratch)
        check_parity(model, scratch, seq_len, threads, output)
    return out_path


def _check_size(model: Any, model_dir: Path) -> None:
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    if size >= _LARGEST_FILE:
        raise InputError(
            f"{model_dir}: its weights take {size / 1e9:.1f} GB in float32; an ONNX file in one piece ends "
            f"at {_LARGEST_FILE / 1e9:.1f} GB"
        )


def _whole_graph(model: Any, longest: int, output: str = LOGITS) -> onnx.ModelProto:
    """The named graph of a model; its layers are traced once where they are alike."""
    stack = find_stack(model)
    if stack is not None:
        with shortened(model, stack) as sample:
            # torch keeps traced weights for good, and with one of them all of the checkpoint's file mapped.
            proto = fold_transposes(strip_notes(name_nodes(_to_onnx(deepcopy(model), longest, output))))
        if repeat_layer(proto, stack, sample):
            return proto
    proto = fold_transposes(strip_notes(name_nodes(_to_onnx(model, longest, output))))
    return merge_equal_weights(proto) if of_model(model).layers_are_shared else proto


def _to_onnx(model: Any, longest: int, output: str = LOGITS) -> onnx.ModelProto:
    import torch

    class Exported(torch.nn.Module):
        """Positional inputs in the order of INPUT_NAMES; one output."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
        ) -> torch.Tensor:
            feed = dict(zip(INPUT_NAMES, (input_ids, attention_mask, token_type_ids), strict=True))
            value: torch.Tensor = self.model(**accepted(model, feed))[output]
            return value

    # A new module starts in training mode, whatever it wraps: dropout would be exported.
    wrapper = Exported(model).eval()
    example = tuple(torch.ones(2, 16, dtype=torch.int64) for _ in INPUT_NAMES)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=longest)}
    with _silence(), _no_collection():
        program = torch.onnx.export(
            wrapper,
            example,
            dynamo=True,
            opset_version=TRACED_OPSET,
            input_names=list(INPUT_NAMES),
            output_names=[output],
            dynamic_shapes=tuple(dict(axes) for _ in INPUT_NAMES),
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Tracing makes a million objects that stay: looking for garbage among them is a sixth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter reports its own deprecations and conversions; none is for the user. Errors still raise."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(previous)
