from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

from quantlib.data.features import Feed
from quantlib.machine.sessions import feed_for, open_session
from quantlib.onnx_model import export
from quantlib.onnx_model.export import ParityError, check_parity, export_bert_to_onnx
from quantlib.onnx_model.export.naming import name_nodes, strip_notes
from quantlib.onnx_model.export.opset import declare_opset
from quantlib.support.errors import InputError
from quantlib.training.architectures import accepted
from quantlib.training.checkpoints import load_classifier

ROOT = Path(__file__).parents[1]


def random_feed(batch: int, length: int, *, padded: bool = True, seed: int = 0) -> Feed:
    """Random words, types and lengths."""
    draw = np.random.default_rng(seed)
    mask = np.ones((batch, length), dtype=np.int64)
    if padded:
        mask = (np.arange(length) < draw.integers(1, length + 1, (batch, 1))).astype(np.int64)
    return {
        "input_ids": draw.integers(5, len(tiny.VOCABULARY), (batch, length)) * mask,
        "attention_mask": mask,
        "token_type_ids": draw.integers(0, 2, (batch, length)) * mask,
    }


def torch_logits(model: Any, feed: Feed) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(**accepted(model, {k: torch.from_numpy(v) for k, v in feed.items()})).logits.numpy()


def onnx_logits(path: Path, feed: Feed) -> np.ndarray:
    session = open_session(path)
    return session.run(None, feed_for(session, feed))[0]


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Any:
    return load_classifier(tiny_teacher)


@pytest.fixture(scope="module")
def traced(model: Any) -> onnx.ModelProto:
    """The output of PyTorch's exporter for `tiny_teacher`, before anything is renamed or stripped."""
    return export._to_onnx(model, 64)


# Parity


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize(
    ("batch", "length"), [(1, 1), (1, 2), (1, 64), (2, 16), (5, 3), (7, 64), (32, 33), (1, 17), (2, 2)]
)
def test_logits_are_those_of_pytorch(
    tiny_onnx: Path, model: Any, batch: int, length: int, padded: bool
) -> None:
    feed = random_feed(batch, length, padded=padded)
    expected = torch_logits(model, feed)
    np.testing.assert_allclose(onnx_logits(tiny_onnx, feed), expected, atol=1e-5)
    assert batch == 1 or np.ptp(expected) > 0.1, "rows differ, so this says something"


def test_padding_changes_nothing(tiny_onnx: Path) -> None:
    feed = random_feed(3, 10, padded=False)
    longer = {name: np.pad(array, ((0, 0), (0, 20))) for name, array in feed.items()}
    longer["input_ids"][:, 10:] = 17
    np.testing.assert_allclose(onnx_logits(tiny_onnx, longer), onnx_logits(tiny_onnx, feed), atol=1e-5)


def test_every_input_counts(tiny_onnx: Path) -> None:
    feed = random_feed(4, 12)
    for name in feed:
        other = dict(feed)
        other[name] = 1 - feed[name] if name != "input_ids" else feed[name][::-1]
        assert np.abs(onnx_logits(tiny_onnx, other) - onnx_logits(tiny_onnx, feed)).max() > 1e-2, name


def tamper(how: str) -> Callable[[onnx.ModelProto, int], None]:
    def change(proto: onnx.ModelProto, opset: int) -> None:
        declare_opset(proto, opset)
        weights = {tensor.name: tensor for tensor in proto.graph.initializer}
        if how == "frozen_types":
            for node in proto.graph.node:
                if "token_type_embeddings" in node.name:
                    node.input[1] = "zero_types"
                    zeros = onnx.helper.make_node("Sub", ["token_type_ids", "token_type_ids"], ["zero_types"])
                    proto.graph.node.insert(0, zeros)
                    return
            return
        name = "bert.encoder.layer.1.output.dense.weight"
        value = numpy_helper.to_array(weights[name]).copy()
        value[0, 0] = np.nan if how == "nan" else value[0, 0] + 0.05
        weights[name].CopyFrom(numpy_helper.from_array(value, name))

    return change


@pytest.mark.parametrize("how", ["weight", "nan", "frozen_types"])
def test_a_graph_that_computes_something_else_is_refused(
    how: str, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "declare_opset", tamper(how))
    with pytest.raises(ParityError, match=r"^model.onnx: logits differ from PyTorch by .* at batch \d"):
        export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", seq_len=64)
    assert list(tmp_path.iterdir()) == [], "no model is left"


def test_parity_is_the_largest_difference(tiny_onnx: Path, model: Any) -> None:
    assert 0 <= check_parity(model, tiny_onnx, 64) < 1e-5
    assert check_parity(model, tiny_onnx, 8) < 1e-5


# Interface and names


def test_inputs_and_outputs(tiny_onnx: Path) -> None:
    session = open_session(tiny_onnx)
    inputs = [(node.name, node.type, node.shape) for node in session.get_inputs()]
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert inputs == [(name, "tensor(int64)", ["batch", "sequence"]) for name in names]
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("logits", "tensor(float)", ["batch", 2])


def test_names_are_those_of_the_checkpoint(tiny_onnx: Path, model: Any) -> None:
    graph = onnx.load(tiny_onnx).graph
    nodes = [node.name for node in graph.node]
    assert "bert.encoder.layer.0.attention.self.query/MatMul" in nodes
    assert "bert.encoder.layer.1.output.LayerNorm/LayerNormalization" in nodes
    assert "classifier/Gemm" in nodes
    assert Counter(nodes).most_common(1)[0][1] == 1
    outputs = [name for node in graph.node for name in node.output]
    initializers = [tensor.name for tensor in graph.initializer]
    assert Counter([*outputs, *initializers]).most_common(1)[0][1] == 1
    weights = dict(model.named_parameters())
    assert set(weights) <= set(initializers), "every weight of the checkpoint, under its own name"
    for tensor in graph.initializer:
        if tensor.name in weights:
            value, expected = numpy_helper.to_array(tensor), weights[tensor.name].detach().numpy()
            same = np.array_equal(value, expected) or np.array_equal(value, expected.T)
            assert same, tensor.name


def test_the_graph_is_clean(tiny_onnx: Path) -> None:
    model = onnx.load(tiny_onnx)
    counts = Counter(node.op_type for node in model.graph.node)
    # Two layers: query, key, value, scores, context, output, up, down; five LayerNorms with the embeddings'.
    assert (counts["MatMul"], counts["Gemm"], counts["LayerNormalization"]) == (16, 2, 5)
    assert (counts["Softmax"], counts["Erf"], counts["Dropout"], counts["Identity"]) == (2, 2, 0, 0)
    assert {entry.domain for entry in model.opset_import} == {""}


def test_names_of_tied_weights_do_not_clash(traced: onnx.ModelProto) -> None:
    proto = copy_of(traced)
    kept = "model.bert.encoder.layer.0.attention.self.query.weight"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), kept))
    names = Counter(tensor.name for tensor in name_nodes(proto).graph.initializer)
    assert names.most_common(1)[0][1] == 1


# Nothing of this machine


def secrets(*paths: Path) -> list[bytes]:
    words = [ROOT, Path.home(), sys.prefix, socket.gethostname(), "site-packages", ".py", "Traceback", *paths]
    return [str(word).encode() for word in words if len(str(word)) > 2]


def test_the_file_holds_nothing_of_this_machine(
    tiny_onnx: Path, tiny_teacher: Path, traced: onnx.ModelProto
) -> None:
    data = tiny_onnx.read_bytes()
    for word in secrets(tiny_onnx.parent, tiny_teacher):
        assert word not in data, word
    assert b".py" in traced.SerializeToString(), "which the exporter does put there"


def test_all_notes_are_stripped(traced: onnx.ModelProto) -> None:
    assert b"pkg.torch" in traced.SerializeToString()
    assert b"pkg.torch" not in strip_notes(copy_of(traced)).SerializeToString()


def test_the_same_bytes_in_another_process(tiny_teacher: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    code = "import sys; from quantlib import export_bert_to_onnx as e; e(sys.argv[1], sys.argv[2], 64)"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tiny_teacher), str(tmp_path / "again.onnx")],
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "", ""), "it says nothing"
    assert (tmp_path / "again.onnx").read_bytes() == tiny_onnx.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]


# Operator sets


@pytest.mark.parametrize("opset", range(13, 19))
def test_every_opset_agrees(opset: int, tiny_teacher: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    path = export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", seq_len=64, opset=opset)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    counts = Counter(node.op_type for node in proto.graph.node)
    assert counts["LayerNormalization"] == (5 if opset >= 17 else 0)
    feed = random_feed(6, 40)
    np.testing.assert_allclose(onnx_logits(path, feed), onnx_logits(tiny_onnx, feed), atol=1e-5)
    if opset == 17:
        assert path.read_bytes() == tiny_onnx.read_bytes()


@pytest.mark.parametrize("opset", [-1, 0, 11, 12])
def test_an_old_opset_is_refused_with_the_reason(opset: int, tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^opset {opset} .* 13..18: per-channel QuantizeLinear came with"):
        export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", opset=opset)


def test_a_future_opset_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="opset 19 is out of range"):
        export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", opset=19)


def test_weights_that_no_file_can_hold_are_refused(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_LARGEST_FILE", 10_000)
    with pytest.raises(InputError, match=r"its weights take 0\.\d GB in float32; an ONNX file in one piece"):
        export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", seq_len=32)
    assert not list(tmp_path.iterdir())


def test_an_operator_that_an_opset_lacks_is_one_line(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantlib.onnx_model.export.opset._replace", lambda *_: None)
    with pytest.raises(InputError, match=r"^opset 13 cannot express this model: ") as caught:
        export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", seq_len=64, opset=13)
    assert "\n" not in str(caught.value)


# What cannot be exported


@pytest.mark.parametrize("seq_len", [0, 7, 65, 128])
def test_a_length_beyond_the_positions_is_refused(seq_len: int, tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"sequence length {seq_len} is out of range .* within 8..64"):
        export_bert_to_onnx(tiny_teacher, tmp_path / "model.onnx", seq_len=seq_len)


def test_a_place_that_cannot_be_written(tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        export_bert_to_onnx(tiny_teacher, tmp_path / "file" / "model.onnx", seq_len=64)


def test_nothing_is_left_changed(tiny_teacher: Path, tmp_path: Path, model: Any) -> None:
    before = logging.root.manager.disable, list(warnings.filters)
    with pytest.raises(ZeroDivisionError), export._silence():
        logging.getLogger("anything").warning("not shown")
        raise ZeroDivisionError
    assert (logging.root.manager.disable, list(warnings.filters)) == before


# Other labels, other architectures


def test_logits_in_the_order_of_the_task(tiny_teacher: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    from quantlib.data.tasks import TASKS
    from quantlib.training.checkpoints import check_for_task

    checkpoint = shutil.copytree(tiny_teacher, tmp_path / "turned")
    tiny.edit_config(checkpoint, id2label={"0": "not_entailment", "1": "entailment"})
    order = check_for_task(checkpoint, TASKS["RTE"])
    path = export_bert_to_onnx(checkpoint, tmp_path / "m.onnx", seq_len=64, logit_order=order)
    feed = random_feed(6, 20)
    np.testing.assert_allclose(onnx_logits(path, feed), onnx_logits(tiny_onnx, feed)[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("opset", [13, 17])
def test_every_architecture_is_exported_with_parity(
    opset: int, exported: tiny.Exported, tmp_path: Path
) -> None:
    model = load_classifier(exported.checkpoint)
    path = export_bert_to_onnx(exported.checkpoint, tmp_path / "model.onnx", seq_len=64, opset=opset)
    for batch, length in ((1, 1), (5, 64), (3, 9)):
        feed = random_feed(batch, length)
        if exported.kind == "roberta":  # it has a single token type
            feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        np.testing.assert_allclose(onnx_logits(path, feed), torch_logits(model, feed), atol=1e-5)
    assert not [word for word in secrets(tmp_path) if word in path.read_bytes()]
    assert any(node.name.startswith(f"{exported.kind}.") for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("words", ["city film", "unknownword", "good " * 90])
def test_real_rows_of_a_roberta(words: str, tmp_path: Path) -> None:
    """Its padding id is 1 and positions are counted from it; ours is 0, and the longest row still fits."""
    from quantlib.data.features import convert_examples_to_features, load_tokenizer, pad
    from quantlib.data.tasks import Example

    checkpoint = tiny.write_checkpoint(tmp_path / "roberta", "roberta")
    rows = convert_examples_to_features(
        [Example("a", words, "sad town", "0"), Example("b", "a", None, "1")],
        ("0", "1"),
        64,
        load_tokenizer(checkpoint),
        "classification",
    )
    model = load_classifier(checkpoint)
    together = torch_logits(model, pad(rows, 64))
    expected = np.concatenate([torch_logits(model, pad([row], len(row))) for row in rows])
    np.testing.assert_allclose(together, expected, atol=1e-5)
