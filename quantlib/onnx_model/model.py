"""A model file as a value: its path, its hash, and its graph, each read once."""

from __future__ import annotations

import errno
import itertools
import math
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from quantlib.machine.sessions import shorten
from quantlib.support.errors import InputError
from quantlib.support.files import copy_file, sha256_file, sha256_json

if TYPE_CHECKING:
    import onnx

# Who wrote a file, as files by quantlib say it.
PRODUCER = "quantlib"
LARGEST_KEPT = 1 << 16
"""Tensors of more bytes are weights; of smaller ones (shapes, zero points) the numbers are needed."""
_MOST_ELEMENTS = 1 << 28  # 1 GiB of float32


@dataclass(frozen=True)
class Model:
    """An ONNX file that stays as it is while the value is in use.

    path: the file. known_sha256: its SHA-256 where somebody has just computed it.
    """

    path: Path
    known_sha256: str = ""

    @classmethod
    def of(cls, model: Model | Path) -> Model:
        """A model given as a value or as a path."""
        return model if isinstance(model, Model) else cls(model)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file's bytes and of the external data that it names, in hexadecimal.

        Raises:
            InputError: external data is missing, or the file is not ONNX.
        """
        own = self.known_sha256 or sha256_file(self.path)
        data = self._external_files
        return sha256_json([own, *map(sha256_file, data)]) if data else own

    @cached_property
    def skeleton(self) -> onnx.ModelProto:
        """The graph without the numbers of its weights, so that many models can be kept.

        Shared by all readers: whoever changes it takes a copy.

        Raises:
            InputError: the file is missing or not ONNX, or its external data is not in its directory.
        """
        import onnx

        with reading_onnx(self.path):
            proto = onnx.load(self.path, load_external_data=False)
        check_external_data(proto, self.path)
        check_graph(proto.graph, self.path)
        for tensor in proto.graph.initializer:
            if tensor.ByteSize() > LARGEST_KEPT:
                _drop_numbers(tensor)
        kept = onnx.ModelProto()  # the parsed file's memory is freed as a whole
        kept.CopyFrom(proto)
        return kept

    @cached_property
    def size_bytes(self) -> int:
        """The bytes of the file and of the external data files it names, each once.

        Raises:
            InputError: the file or its external data is missing, or the file is not ONNX.
        """
        return sum(file.stat().st_size for file in (self.path, *self._external_files))

    @property
    def external_names(self) -> tuple[str, ...]:
        """The files of external data that it names, relative to its directory.

        Raises:
            InputError: one is missing, or the file is not ONNX.
        """
        return tuple(file.relative_to(self.path.parent).as_posix() for file in self._external_files)

    @cached_property
    def _external_files(self) -> tuple[Path, ...]:
        """The files of external data that it names."""
        locations = {_entries(tensor)["location"] for tensor in _external_tensors(self.skeleton)}
        return tuple(self.path.parent / location for location in sorted(locations))

    @property
    def op_counts(self) -> Counter[str]:
        """How many nodes of each operator type there are."""
        return Counter(node.op_type for node in self.skeleton.graph.node)


def size_bytes(onnx_path: Path) -> int:
    """The bytes of a model file, external data included; see `Model.size_bytes`."""
    return Model(onnx_path).size_bytes


def op_counts(onnx_path: Path) -> Counter[str]:
    """How many nodes of each operator type a model file has."""
    return Model(onnx_path).op_counts


def copy_model(onnx_path: Path, out_path: Path) -> None:
    """Copy a model; weights in external data files move into the copy.

    Raises:
        InputError: the file or its external data cannot be read, or it is not ONNX.
    """
    import onnx

    if not any(True for _ in _external_tensors(Model(onnx_path).skeleton)):
        copy_file(onnx_path, out_path)
        return
    with reading_onnx(onnx_path, onnx.checker.ValidationError, OSError):
        model = onnx.load(onnx_path)
    onnx.save(model, out_path)


@contextmanager
def reading_onnx(onnx_path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong in reading a model file into an `InputError` that names it.

    Args:
        onnx_path: the file; it has to be there.
        errors: what the reader raises for a damaged file, besides protobuf's own error.
    """
    from google.protobuf.message import DecodeError

    if not onnx_path.is_file():
        raise InputError(f"{onnx_path}: no such ONNX model")
    try:
        yield
    except (DecodeError, *errors) as error:
        raise InputError(f"{onnx_path}: not an ONNX file: {shorten(str(error))}") from error


def _drop_numbers(tensor: onnx.TensorProto) -> None:
    """Leave a tensor its name, type, dimensions, and the place of its external data."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)


def check_external_data(model: onnx.ModelProto, onnx_path: Path) -> None:
    """Check that external data lies in files of the model's own directory, and that these are long enough.

    Whoever gives a model away could else let it read any file of whoever takes it.

    Args:
        model: the parsed file.
        onnx_path: the file.

    Raises:
        InputError: a path that is absolute or leads out of the directory, a link, a file that is missing or
            too short, or an entry that is no number.
    """
    for tensor in _external_tensors(model):
        entries = _entries(tensor)
        location = entries.get("location", "")
        file = onnx_path.parent / location
        what = f"{onnx_path}: its external data file {location[:200]!r}"
        parts = PurePath(location).parts
        if not parts or "\0" in location or PurePath(location).is_absolute() or ".." in parts:
            raise InputError(f"{what} is not in the model's directory; it must be")
        try:
            regular, size = stat.S_ISREG(file.lstat().st_mode), file.lstat().st_size
        except OSError as error:
            reason = "is missing" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
            raise InputError(f"{what} {reason}") from error
        if not regular:
            raise InputError(f"{what} is no file, or a link to one; copy the file there")
        if not file.resolve().is_relative_to(onnx_path.parent.resolve()):
            raise InputError(f"{what} is not in the model's directory; it must be")
        try:
            offset, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
        except ValueError as error:
            raise InputError(f"{what}: offset and length must be whole numbers") from error
        if offset < 0 or length < 0 or offset + length > size:
            raise InputError(f"{what} has {size} bytes; the tensor {tensor.name[:200]!r} is not within them")


def check_graph(graph: onnx.GraphProto, onnx_path: Path) -> None:
    """Check that names are text, and that no node fills a tensor of a constant size that no model needs.

    An engine makes such a tensor when it loads the file, whatever memory there is.

    Raises:
        InputError: a name is not UTF-8, or there is such a node.
    """
    from onnx import TensorProto, numpy_helper

    named = itertools.chain(graph.node, graph.initializer, graph.input, graph.output, graph.value_info)
    names = itertools.chain(
        (each.name for each in named), *((*n.input, *n.output, n.op_type) for n in graph.node)
    )
    for name in names:
        if not isinstance(name, str):  # protobuf gives bytes that are no text as bytes
            raise InputError(f"{onnx_path}: damaged, the name {name[:80]!r} is not UTF-8")
    places = {"ConstantOfShape": 0, "Expand": 1}
    wanted = {
        node.input[places[node.op_type]]
        for node in graph.node
        if len(node.input) > places.get(node.op_type, 9)
    }
    for tensor in graph.initializer:
        sizes_given = tensor.name in wanted and tensor.data_type == TensorProto.INT64
        if sizes_given and tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() < LARGEST_KEPT:
            try:
                sizes = numpy_helper.to_array(tensor).tolist()
            except ValueError as error:
                raise InputError(
                    f"{onnx_path}: the tensor {tensor.name[:200]!r} is damaged: {error}"
                ) from error
            if math.prod(map(abs, sizes if isinstance(sizes, list) else [sizes])) > _MOST_ELEMENTS:
                raise InputError(
                    f"{onnx_path}: a node fills a tensor of {sizes} numbers; no model of text does"
                )


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    """What a tensor says of its external data."""
    return {entry.key: entry.value for entry in tensor.external_data}


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    import onnx

    bodies = [_graph_tensors(model.graph)]
    bodies += [_node_tensors(function.node) for function in model.functions]
    for tensor in itertools.chain.from_iterable(bodies):
        if onnx.external_data_helper.uses_external_data(tensor):
            yield tensor


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """The tensors in nodes' attributes, subgraphs (If, Loop) included."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in [attribute.g, *attribute.graphs]:
            yield from _graph_tensors(graph)
