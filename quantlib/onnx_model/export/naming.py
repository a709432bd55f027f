"""Names that a person can read, and nothing of the machine that wrote the file."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import numpy as np

from quantlib.onnx_model.model import PRODUCER

if TYPE_CHECKING:
    import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"


def name_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, every node, tensor and weight named after the module it comes from; changed in place.

    A node becomes "bert.encoder.layer.0.attention.self.query/MatMul", the tensor it computes the same with
    ":0", its weight "bert.encoder.layer.0.attention.self.query.weight"; inputs and outputs keep their names.
    """
    graph = proto.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    new = {tensor.name: tensor.name.removeprefix("model.") for tensor in graph.initializer}
    taken = dict.fromkeys(new.values(), 1)
    for node in graph.node:
        node.name = _unique(f"{_module(node)}/{node.op_type}".lstrip("/"), taken)
        new |= {name: f"{node.name}:{i}" for i, name in enumerate(node.output)}
    new |= _constants(graph, taken)
    new = {old: name for old, name in new.items() if old and old not in fixed}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = new.get(name, name)
    for holder in (*graph.initializer, *graph.value_info):
        holder.name = new.get(holder.name, holder.name)
    return proto


def strip_notes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without the exporter's notes, which hold stack traces and paths; changed in place."""
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    proto.producer_name, proto.producer_version = PRODUCER, ""
    return proto


def _constants(graph: onnx.GraphProto, taken: dict[str, int]) -> dict[str, str]:
    """New names of the exporter's own constants ("val_64"): transposed weights after the node they feed."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            users.setdefault(name, []).append(node)
    new = {}
    for tensor in graph.initializer:
        if not re.fullmatch(r"val_\d+", tensor.name):
            continue
        used_by = users.get(tensor.name, [])
        modules = {node.name.rpartition("/")[0] for node in used_by if node.op_type == "MatMul"}
        if len(modules) == 1 and all(node.op_type == "MatMul" for node in used_by):
            new[tensor.name] = _unique(f"{modules.pop()}.weight", taken)
        else:
            new[tensor.name] = _unique("constant", taken)
    return new


def fold_transposes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with weights that are transposed when it runs stored so; changed in place.

    The exporter stores a weight as its product needs it, except a large one that several products use.
    """
    import onnx

    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]
    new = {node.output[0]: node.input[0] for node in turned}
    others = {name for node in graph.node if node not in turned for name in node.input}
    for source in dict.fromkeys(new.values()):
        array = onnx.numpy_helper.to_array(weights[source]).T
        name = f"{source}_transposed" if source in others else source
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        if source in others:
            graph.initializer.append(tensor)
        else:
            weights[source].CopyFrom(tensor)
        new = {output: name if weight == source else weight for output, weight in new.items()}
    outdated = {name for node in turned for name in (node.input[0], node.output[0])}
    for info in [info for info in graph.value_info if info.name in outdated]:
        graph.value_info.remove(info)
    for node in turned:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
    return proto


def merge_equal_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with one of each set of equal weights, under its first name; changed in place.

    The exporter writes a transposed weight anew for each use.
    """
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names: dict[str, str] = {}
    for tensor in proto.graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(tensor.raw_data).digest())
        if len(tensor.dims) == 2 and tensor.HasField("raw_data"):
            names[tensor.name] = first.setdefault(key, tensor.name)
    kept = [tensor for tensor in proto.graph.initializer if names.get(tensor.name) in (None, tensor.name)]
    for node in proto.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


def _module(node: onnx.NodeProto) -> str:
    """The module a node was traced in: "bert.encoder.layer.0.attention.self.query"."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = re.findall(r"'([^']*)'", entry.value)
            modules = [scope for scope in scopes[:-1] if scope and not scope.startswith("_")]
            if modules:
                return str(modules[-1].removeprefix("model."))
    return ""


def _unique(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"
