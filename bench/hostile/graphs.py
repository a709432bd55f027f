"""Hostile ONNX files: graphs that are damaged as graphs, not only as bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from .damage import damaged_bytes

Change = Callable[[onnx.ModelProto, Path, random.Random], None]
_SIZES = (0, -1, 1, 2, 2**15, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))
_OPERATORS = (
    "Add", "MatMul", "Gemm", "Reshape", "Transpose", "Gather", "Softmax", "Identity", "If", "Loop", "Expand",
    "ConstantOfShape", "LayerNormalization", "Attention", "Nothing", "", "QuantizeLinear", "Tile", "Range",
)  # fmt: skip


def hostile_model(good: Path, out: Path, draw: random.Random) -> None:
    """Write a hostile version of a model; data that it points to lies beside it."""
    data = good.read_bytes()
    kind = draw.random()
    if kind < 0.2:
        out.write_bytes(damaged_bytes(data, draw))
        return
    model = onnx.load_from_string(data)
    try:
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            draw.choice(CHANGES)(model, out.parent, draw)
        out.write_bytes(model.SerializeToString())
    except (ValueError, DecodeError):  # a name that protobuf does not write, graphs that are too deep
        out.write_bytes(damaged_bytes(data, draw))


def _node(model: onnx.ModelProto, draw: random.Random) -> onnx.NodeProto:
    node: onnx.NodeProto = draw.choice(model.graph.node) if model.graph.node else model.graph.node.add()
    return node


def _tensor(model: onnx.ModelProto, draw: random.Random) -> onnx.TensorProto:
    tensors = model.graph.initializer
    tensor: onnx.TensorProto = draw.choice(tensors) if tensors else tensors.add()
    return tensor


def _name(model: onnx.ModelProto, draw: random.Random) -> str:
    """The name of some tensor of the graph, or of none."""
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return draw.choice((*names, "", "nothing", "input_ids", "x" * 1000)) if names else "nothing"


def point_outside(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """External data that is not where it should be."""
    outside = directory.parent / f"{directory.name}-outside.bin"
    tensor = _tensor(model, draw)
    size = len(tensor.raw_data) or 4096
    outside.write_bytes(tensor.raw_data or bytes(size))
    link, folder, linked = directory / "link.bin", directory / "folder", directory / "linked"
    for path, target in ((link, outside), (linked, directory.parent)):
        if not path.is_symlink():
            path.symlink_to(target)
    folder.mkdir(exist_ok=True)
    (directory / "short.bin").write_bytes(b"abc")
    (directory / "right.bin").write_bytes(outside.read_bytes())
    location = draw.choice(
        (
            str(outside), f"../{outside.name}", f"folder/../../{outside.name}", "link.bin",
            f"linked/{outside.name}",
            "short.bin", "right.bin", "nothing.bin", "folder", "", ".", "..", "/dev/zero", "/etc/passwd",
            "/proc/self/mem", "a\0b", "x" * 5000, "~/x", f"//{outside}", "right.bin/", "./right.bin",
            "\\..\\x",
        )
    )  # fmt: skip
    entries = {"location": location}
    if draw.random() < 0.6:
        entries["offset"] = draw.choice(("0", "-1", "1", str(2**31), str(2**63), "x", "4096", ""))
        entries["length"] = draw.choice((str(size), "0", "-1", str(2**31), str(2**40), "x", "1", ""))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def make_cycle(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """A node that reads what comes of it."""
    node, later = _node(model, draw), _node(model, draw)
    if node.input and later.output:
        node.input[draw.randrange(len(node.input))] = later.output[0]


def claim_dims(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Dimensions that a tensor does not have."""
    tensor = _tensor(model, draw)
    dims = list(tensor.dims) or [1]
    for _ in range(draw.randint(1, 2)):
        dims[draw.randrange(len(dims))] = draw.choice(_SIZES)
    if draw.random() < 0.3:
        dims = draw.choices(_SIZES, k=draw.choice((0, 1, 2, 3, 60)))
    del tensor.dims[:]
    tensor.dims.extend(dims)


def claim_shape(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Shapes of inputs, outputs or values that they do not have."""
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    value = draw.choice(values) if values else model.graph.input.add()
    kind = draw.randrange(4)
    if kind == 0:
        value.ClearField("type")
    elif kind == 1:
        value.type.tensor_type.elem_type = draw.choice((0, 1, 2, 7, 8, 10, 16, 23, 99))
    else:
        sizes = draw.choices((*_SIZES, "rows", "", "é"), k=draw.choice((0, 1, 2, 2, 3)))
        value.CopyFrom(
            helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type or 7, list(sizes))
        )


def change_type(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """A tensor of another type, or with its numbers in another field."""
    tensor = _tensor(model, draw)
    kind = draw.randrange(4)
    if kind == 0:
        tensor.data_type = draw.choice((0, 2, 3, 6, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 99, -1))
    elif kind == 1:
        tensor.raw_data = tensor.raw_data[: draw.randrange(len(tensor.raw_data) + 1)]
    elif kind == 2:
        tensor.float_data.extend([1.0, float("nan")])
    elif tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        array = numpy_helper.to_array(tensor).copy()
        array.flat[:: draw.choice((1, 7, 1000))] = draw.choice((float("nan"), float("inf"), 1e38, 0.0))
        tensor.raw_data = array.tobytes()


def rename(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Names of nodes and tensors that are empty, there twice, very long or no text."""
    name = draw.choice(("", "x", "../../x", "a\nb", "x" * 100_000, "\0", "é", "\x1b[31m", _name(model, draw)))
    kind = draw.randrange(5)
    if kind == 0:
        _node(model, draw).name = name
    elif kind == 1:
        for node in model.graph.node:
            node.name = name
    elif kind == 2:
        _tensor(model, draw).name = name
    elif kind == 3:
        node = _node(model, draw)
        if node.output:
            node.output[0] = name
    else:
        values = draw.choice((model.graph.input, model.graph.output))
        if values:
            draw.choice(values).name = name


def rename_alike(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """All tensors but inputs and outputs renamed, which changes nothing."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    new: dict[str, str] = {}

    def of(name: str) -> str:
        return name if name in kept or not name else new.setdefault(name, f"t{len(new)}")

    for node in model.graph.node:
        node.input[:] = [of(name) for name in node.input]
        node.output[:] = [of(name) for name in node.output]
        node.name = draw.choice(("", node.name))
    for named in (*model.graph.initializer, *model.graph.value_info):
        named.name = of(named.name)


def remove(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Initializers, nodes, inputs, outputs or attributes that are missing."""
    graph = model.graph
    parts = draw.choice((graph.initializer, graph.node, graph.input, graph.output, graph.value_info))
    node = _node(model, draw)
    if draw.random() < 0.5:
        parts = draw.choice((node.attribute, node.input, node.output))
    if len(parts):
        start = draw.randrange(len(parts))
        del parts[start : None if draw.random() < 0.2 else start + 1]


def double(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Parts that are there twice."""
    graph = model.graph
    parts = draw.choice((graph.initializer, graph.node, graph.input, graph.output))
    if len(parts):
        parts.add().CopyFrom(draw.choice(list(parts)))


def rewire(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """A node of another operator, with other inputs or outputs."""
    node = _node(model, draw)
    kind = draw.randrange(4)
    if kind == 0:
        node.op_type = draw.choice(_OPERATORS)
    elif kind == 1:
        node.domain = draw.choice(("com.microsoft", "x", "ai.onnx", "", "ai.onnx.ml"))
    elif kind == 2 and node.input:
        node.input[draw.randrange(len(node.input))] = _name(model, draw)
    else:
        node.input.append(_name(model, draw))


def set_attribute(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """An attribute of another type or value."""
    node = _node(model, draw)
    value = draw.choice((-1, 99, 2**62, 0.5, "x", [1, 2], [-99], float("nan"), [0.5], ["a"]))
    names = [attribute.name for attribute in node.attribute] or ["axis", "perm", "transB", "alpha", "to"]
    name = draw.choice(names)
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    attributes = [*kept, helper.make_attribute(name, value)]
    del node.attribute[:]
    node.attribute.extend(attributes)
    if draw.random() < 0.2:
        node.attribute[-1].type = draw.choice((0, 1, 2, 3, 4, 5, 6))


def grow(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """A small file that asks for a large tensor."""
    size = draw.choice((2**20, 2**31, 2**33, 2**40))
    shape = numpy_helper.from_array(np.array([size], np.int64), "hostile_size")
    model.graph.initializer.append(shape)
    made = draw.choice(("ConstantOfShape", "Expand"))
    inputs = ["hostile_size"] if made == "ConstantOfShape" else [_tensor(model, draw).name, "hostile_size"]
    model.graph.node.insert(0, helper.make_node(made, inputs, ["hostile_large"], name="hostile"))
    if draw.random() < 0.5 and model.graph.output:
        model.graph.output.add().CopyFrom(helper.make_tensor_value_info("hostile_large", 1, None))


def nest(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Graphs in graphs, or functions that call each other."""
    if draw.random() < 0.3:
        for name, called in (("f", "g"), ("g", draw.choice(("f", "f", "h")))):
            function = model.functions.add(name=name, domain="x")
            function.input.append("a")
            function.output.append("b")
            function.node.add().CopyFrom(helper.make_node(called, ["a"], ["b"], domain="x"))
        node = _node(model, draw)
        node.op_type, node.domain = "f", "x"
        model.opset_import.add(domain="x", version=1)
        return
    depth = draw.choice((1, 5, 20, 28, 31, 60, 200))
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(depth):
        outer = helper.make_graph([], "outer", [], [helper.make_tensor_value_info("y", 1, [1])])
        node = outer.node.add(op_type=draw.choice(("If", "Loop")), output=["y"], input=["condition"])
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.CopyFrom(inner)
        inner = outer
    node = _node(model, draw)
    node.op_type = draw.choice(("If", node.op_type))
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)


def change_header(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Versions, producer and metadata that are not those of the graph."""
    kind = draw.randrange(6)
    if kind == 0:
        version = draw.choice((0, -1, 1, 6, 7, 11, 12, 13, 20, 21, 99, 2**40))
        if model.opset_import:
            draw.choice(model.opset_import).version = version
    elif kind == 1:
        del model.opset_import[:]
    elif kind == 2:
        model.ir_version = draw.choice((0, -1, 1, 3, 99, 2**40))
    elif kind == 3:
        model.producer_name = draw.choice(("quantlib", "pytorch", "", "x" * 10_000))
    elif kind == 4:
        model.metadata_props.add(
            key=draw.choice(("quantlib.compiled", "x", "")), value=draw.choice(("1", "\0"))
        )
    else:
        model.opset_import.add(domain=draw.choice(("com.microsoft", "x", "")), version=1)


def reorder(model: onnx.ModelProto, directory: Path, draw: random.Random) -> None:
    """Nodes in another order."""
    nodes = list(model.graph.node)
    draw.shuffle(nodes) if draw.random() < 0.5 else nodes.reverse()
    copies = onnx.GraphProto()
    copies.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(copies.node)


CHANGES: tuple[Change, ...] = (
    point_outside, point_outside, point_outside, make_cycle, claim_dims, claim_dims, claim_shape, change_type,
    change_type, rename, rename_alike, remove, remove, double, rewire, rewire, set_attribute, grow, nest,
    change_header, reorder,
)  # fmt: skip
