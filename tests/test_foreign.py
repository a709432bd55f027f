"""Files that PyTorch's exporter by TorchScript wrote, as optimum writes them too."""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from exact import exact_session
from onnx import TensorProto, helper, numpy_helper

from quantlib.compression import pruning
from quantlib.compression.calibration import collect, derive
from quantlib.compression.quantize import quantize_onnx, tensors_to_calibrate
from quantlib.compression.recipes import RECIPES
from quantlib.compression.smoothing import search_smoothing, smooth_onnx
from quantlib.data.features import CalibrationReader, Feature, Feed
from quantlib.data.tasks import Task
from quantlib.experiment import ExperimentOptions
from quantlib.experiment.build import build
from quantlib.machine.engines import load_model
from quantlib.machine.sessions import feed_for, open_session
from quantlib.measuring.accuracy import run_logits
from quantlib.onnx_model.compile import Compiled, compile_onnx, normalize_onnx, parity
from quantlib.onnx_model.coverage import coverage
from quantlib.onnx_model.interface import interface_of
from quantlib.onnx_model.layers import find_embeddings, find_linears, load_ir
from quantlib.onnx_model.model import op_counts
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_file

FLOAT_MIN = float(np.finfo(np.float32).min)
# (how the model computes attention, opset); scaled_dot_product_attention is written from 14 on.
FORMS = (("eager", 11), ("sdpa", 14), ("eager", 17), ("sdpa", 20))
IDS = [f"{attention}-{opset}" for attention, opset in FORMS]
# Its positions are computed without two casts, its token types are a constant row.
FEWER = {"roberta": Counter({"Cast": 2, "Gather": 1})}


def export(checkpoint: Path, path: Path, attention: str, opset: int, *, token_types: bool = True) -> Path:
    """A checkpoint as TorchScript's exporter writes it, with names of inputs and axes."""
    import torch
    import transformers

    with tiny.quiet_transformers():
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            checkpoint, attn_implementation=attention
        )
    model.config.return_dict = False
    names = ["input_ids", "attention_mask", *["token_type_ids"] * token_types]
    feed = {name: torch.ones(2, 16, dtype=torch.int64) for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, on its age, on tracing and on old opsets
        torch.onnx.export(
            model.eval(),
            (),
            path,
            kwargs=feed,
            dynamo=False,
            opset_version=opset,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "rows", 1: "tokens"} for name in names} | {"logits": {0: "rows"}},
        )
    return path


@pytest.fixture(scope="module")
def own(exported: tiny.Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """quantlib's export, compiled."""
    return compile_onnx(exported.model, tmp_path_factory.mktemp("own") / "compiled.onnx", threads=1).path


@pytest.fixture(scope="module")
def foreign(
    exported: tiny.Exported, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], tuple[Path, Compiled]]:
    """By form: the file, and what compiling made of it."""
    directory = tmp_path_factory.mktemp("foreign")
    made = {}
    for attention, opset in FORMS:
        path = directory / f"{attention}_{opset}.onnx"
        export(exported.checkpoint, path, attention, opset, token_types=exported.kind in ("bert", "electra"))
        compiled = compile_onnx(path, path.with_name(f"compiled_{path.name}"), threads=1)
        made[attention, opset] = path, compiled
    return made


def random_feed(rows: int, tokens: int, seed: int = 0) -> Feed:
    """Padding in front, behind and inside; one real token at least in every row."""
    draw = np.random.default_rng(seed)
    mask = draw.integers(0, 2, (rows, tokens))
    mask[np.arange(rows), draw.integers(0, tokens, rows)] = 1
    mask[0] = 1
    ids = draw.integers(3, 90, (rows, tokens))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run(path: Path, feed: Feed) -> np.ndarray:
    session = open_session(path, threads=1)
    return np.asarray(session.run(["logits"], feed_for(session, feed))[0])


def test_its_neurons_and_heads_can_be_pruned(
    foreign: dict[tuple[str, int], tuple[Path, Compiled]], exported: tiny.Exported, tmp_path: Path
) -> None:
    own = pruning.blocks_of(exported.model)
    for number, (path, _) in enumerate(foreign.values()):
        normal = tmp_path / f"{number}.onnx"
        assert normalize_onnx(path, normal, threads=1)
        assert pruning.blocks_of(normal) == own
        assert not normalize_onnx(normal, tmp_path / "again.onnx")
    assert not normalize_onnx(exported.model, tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


@pytest.mark.parametrize("own", [False, True], ids=["another exporter's", "quantlib's own"])
def test_a_run_prunes_a_file(
    own: bool, tiny_options: ExperimentOptions, tiny_teacher: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    path = folder / "model.onnx"
    if own:
        shutil.copy(tiny_onnx, path)
    else:
        export(tiny_teacher, path, "eager", 14)
    cache = tmp_path / "cache"
    options = replace(
        tiny_options, teacher=str(path), no_student=True, recipes=("prune50_quant_2",), cache_dir=cache
    )
    made = {variant.name: variant for variant in build(options).variants}
    assert made["teacher"].model.sha256 == sha256_file(path)
    assert made["prune50_quant_2"].model.size_bytes < made["teacher"].model.size_bytes
    assert coverage(made["prune50_quant_2"].model).share == 1.0
    (entry,) = cache.glob("compiled/*/graph.json")
    assert json.loads(entry.read_text()) == {"changed": not own}
    assert (entry.parent / "model.onnx").exists() != own, "what has the form already is not copied"


@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_operators_are_those_of_quantlibs_export(
    exported: tiny.Exported,
    own: Path,
    foreign: dict[tuple[str, int], tuple[Path, Compiled]],
    form: tuple[str, int],
) -> None:
    _, compiled = foreign[form]
    assert compiled.left == ()
    assert compiled.done["attention"] == 2
    assert compiled.done["row_attention"] == 1
    assert op_counts(compiled.path) + FEWER.get(exported.kind, Counter()) == op_counts(own)
    (opset,) = (entry.version for entry in onnx.load(compiled.path).opset_import if not entry.domain)
    assert opset == max(17, form[1])


@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_layers_are_those_of_quantlibs_export(
    own: Path, foreign: dict[tuple[str, int], tuple[Path, Compiled]], form: tuple[str, int]
) -> None:
    want, got = (find_linears(load_ir(path)) for path in (own, foreign[form][1].path))
    assert [(layer.name, layer.weight_name) for layer in got] == [(w.name, w.weight_name) for w in want]
    for expected, layer in zip(want, got, strict=True):
        np.testing.assert_array_equal(layer.weight, expected.weight)
    for path in (own, foreign[form][1].path):
        (fused,) = (node for node in onnx.load(path).graph.node if node.op_type == "Attention")
        attributes = {a.name: helper.get_attribute_value(a) for a in fused.attribute}
        assert attributes == {"num_heads": 2, "mask_filter_value": FLOAT_MIN}


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 9), (3, 16), (5, 48)])
def test_logits_are_those_of_the_file_and_of_quantlibs_export(
    exported: tiny.Exported,
    own: Path,
    foreign: dict[tuple[str, int], tuple[Path, Compiled]],
    rows: int,
    tokens: int,
) -> None:
    feed = random_feed(rows, tokens)
    want = run(own, feed)
    for path, compiled in foreign.values():
        np.testing.assert_allclose(run(compiled.path, feed), run(path, feed), atol=1e-4)
        np.testing.assert_allclose(run(compiled.path, feed), want, atol=1e-4)


def quantized(model: Path, recipe: str, rows: list[Feature], path: Path) -> Path:
    chosen = RECIPES[recipe]
    if chosen.smooth:
        factors = search_smoothing(model, CalibrationReader(rows, 8), threads=1)
        model = smooth_onnx(model, path.with_suffix(".smooth.onnx"), factors)
    if chosen.mode != "static":
        return quantize_onnx(model, path, chosen)
    statistics = collect(model, CalibrationReader(rows, 8), tensors_to_calibrate(model, chosen))
    return quantize_onnx(model, path, chosen, derive(statistics, chosen.calibration_method or ""))


@pytest.mark.parametrize("recipe", ["dynamic_u8s8", "quant_1", "static_mixed"])
def test_quantized_products_are_those_of_quantlibs_export(
    exported: tiny.Exported,
    own: Path,
    foreign: dict[tuple[str, int], tuple[Path, Compiled]],
    recipe: str,
    tmp_path: Path,
) -> None:
    """static_mixed chooses layers by their names."""
    want = quantized(own, recipe, exported.rows, tmp_path / "own.onnx")
    session, feed = exact_session(want), random_feed(3, 16)
    logits = session.run(["logits"], feed_for(session, feed))[0]
    fewer = {"Cast", "Gather", "Mul"} if exported.kind == "roberta" else set()  # no lookup of token types
    for (attention, opset), (_, compiled) in foreign.items():
        path = quantized(compiled.path, recipe, exported.rows, tmp_path / f"{attention}_{opset}.onnx")
        assert {op for op, _ in (op_counts(path) - op_counts(want)).items()} == set()
        assert {op for op, _ in (op_counts(want) - op_counts(path)).items()} == fewer
        if not fewer:
            session = exact_session(path)
            got = session.run(["logits"], feed_for(session, feed))[0]
            np.testing.assert_allclose(got, logits, atol=1e-4)


# What else files of others may be like

Change = Callable[[onnx.GraphProto], None]


@pytest.fixture(scope="module")
def plain(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT at opset 11."""
    return export(tiny_teacher, tmp_path_factory.mktemp("plain") / "model.onnx", "eager", 11)


def edited(model: Path, path: Path, change: Change) -> Path:
    proto = onnx.load(model)
    change(proto.graph)
    onnx.save(proto, path)
    return path


def integers_of_32_bits(graph: onnx.GraphProto) -> None:
    for value in graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32


def another_order(graph: onnx.GraphProto) -> None:
    inputs = list(graph.input)[::-1]
    del graph.input[:]
    graph.input.extend(inputs)


def axes_without_names(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.Clear()


@pytest.mark.parametrize("change", [integers_of_32_bits, another_order, axes_without_names])
def test_other_inputs(plain: Path, tiny_onnx: Path, tmp_path: Path, change: Change) -> None:
    model = edited(plain, tmp_path / "model.onnx", change)
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    own = compile_onnx(tiny_onnx, tmp_path / "own.onnx", threads=1)
    assert compiled.left == ()
    assert op_counts(compiled.path) == op_counts(own.path)
    feed = random_feed(3, 9)
    np.testing.assert_allclose(run(compiled.path, feed), run(plain, feed), atol=1e-4)


def test_the_form_of_older_versions(plain: Path, tmp_path: Path) -> None:
    """Scores are divided by the root of the width of a head, and padding is -10000."""

    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.float32(5), "five"))
        graph.initializer.append(numpy_helper.from_array(np.float32(-1e4), "padding"))
        for layer in (0, 1):
            (scale,) = (n for n in graph.node if n.name == f"/bert/encoder/layer.{layer}/attention/self/Mul")
            scale.op_type, scale.input[1] = "Div", "five"
        (masked,) = (n for n in graph.node if n.name == "/bert/Where_1")
        masked.input[2] = "padding"

    model = edited(plain, tmp_path / "model.onnx", change)
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    assert compiled.left == ()
    (fused,) = (node for node in onnx.load(compiled.path).graph.node if node.op_type == "Attention")
    attributes = {a.name: helper.get_attribute_value(a) for a in fused.attribute}
    assert attributes == {"num_heads": 2, "mask_filter_value": -1e4, "scale": pytest.approx(0.2)}
    feed = random_feed(3, 9)
    np.testing.assert_allclose(run(compiled.path, feed), run(model, feed), atol=1e-4)


def test_layers_are_told_by_their_biases_where_nodes_have_no_names(
    plain: Path, tiny_onnx: Path, tmp_path: Path
) -> None:
    """As PyTorch before 1.13 wrote them."""

    def change(graph: onnx.GraphProto) -> None:
        names = {name: str(i) for i, n in enumerate(graph.node) for name in n.output if name != "logits"}
        for i, n in enumerate(graph.node):
            n.name = f"{n.op_type}_{i}"
            n.input[:] = [names.get(name, name) for name in n.input]
            n.output[:] = [names.get(name, name) for name in n.output]

    model = edited(plain, tmp_path / "model.onnx", change)
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    own = compile_onnx(tiny_onnx, tmp_path / "own.onnx", threads=1)
    assert op_counts(compiled.path) == op_counts(own.path)
    want, got = (find_linears(load_ir(path)) for path in (own.path, compiled.path))
    assert [(layer.name, layer.weight_name) for layer in got] == [(w.name, w.weight_name) for w in want]


def test_token_types_that_are_no_input_are_a_constant_row(tiny_teacher: Path, tmp_path: Path) -> None:
    model = export(tiny_teacher, tmp_path / "model.onnx", "sdpa", 14, token_types=False)
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    assert compiled.left == ()
    assert [e.name for e in find_embeddings(load_ir(compiled.path))] == [
        "bert.embeddings.word_embeddings/Gather",
        "bert.embeddings.position_embeddings/Gather",
    ]
    feed = random_feed(3, 9)
    np.testing.assert_allclose(run(compiled.path, feed), run(model, feed), atol=1e-4)


def test_a_graph_whose_shapes_cannot_be_seen_keeps_its_form(plain: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for value in graph.input:
            value.type.tensor_type.ClearField("shape")

    model = edited(plain, tmp_path / "model.onnx", change)
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    assert compiled.done["attention"] == 0
    assert compiled.left[0] == (
        "the graph stays in the form of its exporter: its input input_ids is not of (rows, tokens), both free"
    )
    feed = random_feed(3, 9)
    np.testing.assert_allclose(run(compiled.path, feed), run(plain, feed), atol=1e-4)


def test_an_operator_that_no_converter_knows(plain: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node.append(
            helper.make_node("Upsample", ["attention_mask", "sizes"], ["unused"], mode="linear")
        )

    model = edited(plain, tmp_path / "model.onnx", change)
    with pytest.raises(InputError, match="opset 11 cannot be raised to 17 to compile"):
        compile_onnx(model, tmp_path / "compiled.onnx", threads=1)


def outputs(*added: tuple[str, list[str | int]], logits: str = "logits") -> Change:
    """The logits under a name, behind other outputs."""

    def change(graph: onnx.GraphProto) -> None:
        (output,) = graph.output
        (last,) = (node for node in graph.node if output.name in node.output)
        last.output[0] = output.name = logits
        del graph.output[:]
        graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in added
        )
        graph.output.append(output)

    return change


WEIGHTS = "/bert/encoder/layer.0/attention/self/Softmax_output_0"
STATES = "/bert/encoder/layer.0/output/LayerNorm/Add_1_output_0"
POOLED = "/bert/pooler/activation/Tanh_output_0"
ATTENTION = (WEIGHTS, ["rows", 2, "tokens", "tokens"])
HIDDEN = (STATES, ["rows", "tokens", 32])


@pytest.mark.parametrize("name", ["logits", "output.1"])
def test_logits_among_other_outputs(plain: Path, tmp_path: Path, name: str) -> None:
    """Hidden states and weights of attention stay outputs; an attention whose weights are one stays too."""
    model = edited(plain, tmp_path / "model.onnx", outputs(HIDDEN, ATTENTION, logits=name))
    assert interface_of(model).logits == 2
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    (sentence,) = compiled.left
    assert sentence.endswith(f"attention is not fused: its weights are an output of the model, {WEIGHTS}")
    assert compiled.done["attention"] == 1
    feed = random_feed(3, 9)
    want, got = (open_session(path, threads=1) for path in (model, compiled.path))
    for expected, value in zip(
        want.run([STATES, WEIGHTS, name], feed_for(want, feed)),
        got.run([STATES, WEIGHTS, name], feed_for(got, feed)),
        strict=True,
    ):
        np.testing.assert_allclose(value, expected, atol=1e-4)
    task = Task("Two", "classification", ("0", "1"), ("accuracy",), tiny.Rows(()))
    np.testing.assert_allclose(
        run_logits(load_model(compiled.path, threads=1), feed, task), run(plain, feed), atol=1e-4
    )


def test_outputs_among_which_the_logits_cannot_be_told(plain: Path, tmp_path: Path) -> None:
    change = outputs((POOLED, ["rows", 32]), logits="scores")
    model = edited(plain, tmp_path / "model.onnx", change)
    message = rf"its outputs are {POOLED}, scores; a classifier gives logits of \(rows, labels\)"
    with pytest.raises(InputError, match=message):
        interface_of(model)
    with pytest.raises(InputError, match=message):
        compile_onnx(model, tmp_path / "compiled.onnx", threads=1)


def test_inputs_without_names(plain: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].name = "input.1"

    with pytest.raises(InputError, match=r"its inputs are input\.1, .*torch\.onnx\.export names them"):
        interface_of(edited(plain, tmp_path / "model.onnx", change))


def test_positions_that_are_an_input_are_refused(plain: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        positions = helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["rows", "tokens"])
        graph.input.append(positions)

    with pytest.raises(InputError, match=r"its inputs are .*; export it without position_ids, so that"):
        interface_of(edited(plain, tmp_path / "model.onnx", change))


def test_ids_that_are_cast_are_drawn_from_the_whole_table(plain: Path, tmp_path: Path) -> None:
    def change(graph: onnx.GraphProto) -> None:
        integers_of_32_bits(graph)
        for name in ("input_ids", "token_type_ids"):
            for node in graph.node:
                if node.op_type == "Gather" and node.input[1] == name:
                    node.input[1] = f"{name}_wide"
            cast = helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.INT64)
            graph.node.insert(0, cast)

    model = edited(plain, tmp_path / "model.onnx", change)
    entries, longest = parity._limits(load_ir(model))
    assert entries == {"input_ids": len(tiny.VOCABULARY), "token_type_ids": 2}
    assert longest == 32, "half of the positions"
    assert compile_onnx(model, tmp_path / "compiled.onnx", threads=1).done["attention"] == 2


def test_weights_in_another_file(plain: Path, tmp_path: Path) -> None:
    """They move into the compiled file, which lies elsewhere."""
    model, compiled = tmp_path / "model.onnx", tmp_path / "elsewhere" / "compiled.onnx"
    compiled.parent.mkdir()
    proto = onnx.load(plain)
    onnx.save(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    compile_onnx(model, compiled, threads=1)
    feed = random_feed(3, 9)
    np.testing.assert_allclose(run(compiled, feed), run(plain, feed), atol=1e-4)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"weights\.bin"):
        compile_onnx(model, compiled, threads=1)


def test_weights_among_the_inputs(plain: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    """Files of IR version 3 list them there."""

    def change(graph: onnx.GraphProto) -> None:
        graph.input.extend(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            for tensor in graph.initializer
        )

    model = edited(plain, tmp_path / "model.onnx", change)
    assert interface_of(model).inputs == ("input_ids", "attention_mask", "token_type_ids")
    compiled = compile_onnx(model, tmp_path / "compiled.onnx", threads=1)
    assert op_counts(compiled.path) == op_counts(compile_onnx(tiny_onnx, tmp_path / "own.onnx").path)
