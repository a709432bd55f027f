"""A model for a while as two files, its graph and its weights, so that the weights are mapped and not read.

A model in one file is in memory several times when it is read, changed, written and loaded: as the file's
bytes, as what protobuf makes of them, and as the weights that ONNX Runtime copies from there. From a file of
external data, onnx_ir and ONNX Runtime map what they need, and a changed model is a graph of some kilobytes
beside the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quantlib.onnx_model.model import LARGEST_KEPT, check_external_data, check_graph, reading_onnx
from quantlib.support.directories import temporary_dir
from quantlib.support.errors import InputError
from quantlib.support.files import place_errors

WEIGHTS = "weights.bin"
_PAGE = 4096  # bytes: tensors that are mapped begin at one


@contextmanager
def mapped(onnx_path: Path) -> Iterator[Path]:
    """A copy of a model for the time of the block, alone in a directory, its weights in a file beside it.

    Whoever writes a model into that directory may refer to these weights too. An error that names the copy is
    raised with the name of the model.

    Raises:
        InputError: the model or its external data cannot be read, or there is no room for the copy.
    """
    with temporary_dir() as scratch:
        copy = scratch / "model.onnx"
        _write(onnx_path, copy)
        try:
            yield copy
        except InputError as error:
            raise InputError(str(error).replace(str(copy), str(onnx_path))) from error


def _write(onnx_path: Path, copy: Path) -> None:
    import onnx
    from onnx.external_data_helper import load_external_data_for_model, set_external_data

    with reading_onnx(onnx_path, onnx.checker.ValidationError, OSError):
        proto = onnx.load(onnx_path, load_external_data=False)
        check_external_data(proto, onnx_path)
        check_graph(proto.graph, onnx_path)
        load_external_data_for_model(proto, str(onnx_path.parent))
    end = 0
    for tensor in proto.graph.initializer:
        if tensor.HasField("raw_data") and tensor.ByteSize() > LARGEST_KEPT:
            start = -(-end // _PAGE) * _PAGE
            end = start + len(tensor.raw_data)
            set_external_data(tensor, WEIGHTS, offset=start)
    with place_errors(copy):
        onnx.save(proto, copy)  # and the numbers of tensors that are external now to their places
