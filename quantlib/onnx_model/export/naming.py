"""Names that a person can read, and nothing of the machine that wrote the file."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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
        if len(used_by) == 1 and used_by[0].op_type == "MatMul":
            new[tensor.name] = _unique(f"{used_by[0].name.rpartition('/')[0]}.weight", taken)
        else:
            new[tensor.name] = _unique("constant", taken)
    return new


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
