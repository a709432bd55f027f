"""Hostile files of every form: a sample of those of bench/hostile, and each failure that they once showed."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from bench.hostile.formats import FORMATS, ROOT
from bench.hostile.trying import GOOD, Format, Seeds, WrongResult, try_many, try_one
from quantlib.data.features import encode_batch, load_tokenizer
from quantlib.data.tables import read_table
from quantlib.gate.baseline import read_record
from quantlib.gate.judge import judge
from quantlib.gate.limits import LimitTable
from quantlib.measuring.latency.states import History, read_history, write_history
from quantlib.onnx_model.compile import compile_onnx
from quantlib.onnx_model.interface import interface_of
from quantlib.onnx_model.layers import load_ir
from quantlib.onnx_model.model import Model
from quantlib.report.results import read_results
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_json_text, parse_toml_text, read_bytes
from quantlib.training.checkpoints import check_classifier, load_classifier, read_config
from quantlib.training.student.saved import DamagedError, TrainingState, load_state, save_state

# In these, what is damaged is lost and made again: nobody has to be told.
OWN_FILES = ("job of a sweep", "cache entry", "resume file", "history of states")
SLOW = ("onnx", "tokenizer.json", "vocabulary", "config.json", "modules.json", "safetensors", "quantlib.toml")


@pytest.fixture(scope="session")
def seeds(
    tiny_teacher: Path, tiny_onnx: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Seeds:
    directory = tmp_path_factory.mktemp("seeds")
    shutil.copyfile(tiny_onnx, directory / "model.onnx")
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "config.json"):
        shutil.copyfile(tiny_teacher / name, directory / name)
    baseline = ROOT / "bench" / "baseline" / "BBC-News.json"
    return Seeds(tiny_teacher, directory / "model.onnx", tiny_run / "SST-2", baseline)


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_files_are_read_or_refused(name: str, seeds: Seeds) -> None:
    count = 20 if name in SLOW else 40
    outcomes = [try_one(name, FORMATS[name], seeds, number) for number in range(count)]
    assert [outcome for outcome in outcomes if outcome.result not in GOOD] == []
    seen = Counter(outcome.result for outcome in outcomes)
    assert seen["read"], "each form of damage is refused, so that nothing was tried behind the reader"
    assert bool(seen["refused"]) != (name in OWN_FILES)


# That the harness sees what it looks for.


def _nothing(seeds: Seeds, directory: Path, draw: object) -> None:
    pass


def _raises(error: BaseException) -> Callable[[Seeds, Path, int], None]:
    def read(seeds: Seeds, directory: Path, number: int) -> None:
        raise error

    return read


def _ends(seeds: Seeds, directory: Path, number: int) -> None:
    if number == 1:
        os._exit(3)


def _fills(seeds: Seeds, directory: Path, number: int) -> None:
    np.ones(2**33, np.uint8)


@pytest.mark.parametrize(
    ("read", "results"),
    [
        (_raises(KeyError("x")), ["traceback"] * 3),
        (_raises(WrongResult("x")), ["wrong"] * 3),
        (_raises(InputError("x: cannot be read")), ["refused"] * 3),
        (_raises(InputError("x" * 1900)), ["refused"] * 3),
        (_fills, ["memory"] * 3),
        (_ends, ["read", "died", "read"]),
    ],
    ids=["traceback", "wrong", "refused", "long", "memory", "died"],
)
def test_what_may_not_happen_is_seen(
    read: Callable[[Seeds, Path, int], None], results: list[str], seeds: Seeds
) -> None:
    outcomes = try_many("x", Format(_nothing, read), seeds, range(3))
    assert [outcome.result for outcome in outcomes] == results


# What such files have shown.


def test_a_refusal_is_one_line_that_a_terminal_can_show() -> None:
    error = InputError("a\nb\x1b[31m \u202e\u2028c é")
    assert str(error) == r"a b\x1b[31m \u202e c é"
    long = str(InputError("x" * 10**6 + "the end"))
    assert len(long) < 2000
    assert long.endswith("the end")


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_json_text, "[" * 10**5),
        (parse_json_text, "[" * 200 + "]" * 200),
        (parse_json_text, "9" * 5000),
        (parse_json_text, r'{"a": "\ud800"}'),
        (parse_json_text, r'{"\ud800": 1}'),
        (parse_toml_text, "a = " + "[" * 10**5),
        (parse_toml_text, "[" + ".".join("a" * 5000) + "]"),
        (parse_toml_text, "a = " + "9" * 5000),
    ],
)
def test_what_python_cannot_read_or_write_again_is_a_value_error(
    parse: Callable[[str], Any], text: str
) -> None:
    with pytest.raises(ValueError, match=r"nested too deeply|limit|surrogate"):
        parse(text)


def test_a_pipe_a_device_and_a_file_that_is_too_large_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="a pipe or a device, not a file"):
        read_table(tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="a pipe or a device, not a file"):
        read_table(tmp_path / "rows.jsonl")
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(InputError, match="a pipe or a device, not a file"):
        read_config(tmp_path)
    with (tmp_path / "rows.tsv").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match="1,099,511,627,776 bytes, more than"):
        read_table(tmp_path / "rows.tsv")
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)


def external_model(directory: Path, tiny_onnx: Path, location: str, **entries: str) -> Path:
    """The tiny model in a directory, its first weight in another file."""
    directory.mkdir(exist_ok=True)
    model = onnx.load(tiny_onnx)
    tensor = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2)
    data = numpy_helper.to_array(tensor).tobytes()
    for place in (directory / "weights.bin", directory.parent / "outside.bin"):
        place.write_bytes(data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(model, directory / "model.onnx")
    return directory / "model.onnx"


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../outside.bin", "is not in the model's directory"),
        ("folder/../../outside.bin", "is not in the model's directory"),
        ("{parent}/outside.bin", "is not in the model's directory"),
        ("linked/outside.bin", "is not in the model's directory"),
        ("", "is not in the model's directory"),
        ("link.bin", "is no file, or a link to one"),
        ("folder", "is no file, or a link to one"),
        ("/dev/zero", "is not in the model's directory"),
        ("nothing.bin", "is missing"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_external_data_cannot_lie_elsewhere(
    location: str, words: str, tiny_onnx: Path, tmp_path: Path
) -> None:
    path = external_model(tmp_path / "model", tiny_onnx, location.format(parent=tmp_path))
    (path.parent / "folder").mkdir()
    (path.parent / "linked").symlink_to(tmp_path)
    (path.parent / "link.bin").symlink_to("../outside.bin")
    for read in (interface_of, load_ir):
        with pytest.raises(InputError, match=words):
            read(path)


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-1"}, {"length": "2147483648"}, {"offset": "x"}, {"length": ""}, {"offset": str(2**63)}],
    ids=str,
)
def test_external_data_lies_within_its_file(entries: dict[str, str], tiny_onnx: Path, tmp_path: Path) -> None:
    path = external_model(tmp_path / "model", tiny_onnx, "weights.bin", **entries)
    with pytest.raises(InputError, match=r"is not within them|must be whole numbers"):
        interface_of(path)


def test_external_data_beside_a_model_is_read(tiny_onnx: Path, tmp_path: Path) -> None:
    path = external_model(tmp_path / "model", tiny_onnx, "./weights.bin")
    assert interface_of(path).logits == 2
    assert Model(path).external_names == ("weights.bin",)
    assert len(load_ir(path).graph) == len(load_ir(tiny_onnx).graph)


def test_a_vocabulary_without_unknown_words_is_told(tiny_teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_teacher, tmp_path, dirs_exist_ok=True)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["[UNK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"the tokenizer cannot read the rows: .*UNK"):
        encode_batch(load_tokenizer(tmp_path), [("unheard", None)])


@pytest.mark.parametrize(
    "change",
    [{"pad_token_id": "x"}, {"__class__": True}, {"hidden_act": "nothing"}, {"type_vocab_size": None}],
    ids=str,
)
def test_a_config_that_transformers_does_not_take(
    change: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_teacher, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError):
        load_classifier(tmp_path)


def test_a_wrong_bit_in_a_resume_file_is_seen(tmp_path: Path) -> None:
    """PyTorch reads on from such a file, with another weight."""
    path = tmp_path / "training.pt"
    weights = {"a": torch.full((100,), 0.5)}
    save_state(path, "job", TrainingState(weights=weights))
    data = bytearray(path.read_bytes())
    data[data.index(weights["a"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(data)
    kept = torch.load(io.BytesIO(data[32:]), weights_only=True)["weights"]["a"]  # behind a SHA-256
    assert not torch.equal(kept, weights["a"])
    with pytest.raises(DamagedError):
        load_state(path, "job")


def test_another_digit_in_a_history_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    history = History([1.25, 2.5], {"model": [(1.25, 0.5)]})
    write_history(path, history)
    assert read_history(path) == history
    path.write_text(path.read_text().replace("1.25", "1.75"))
    assert read_history(path) == History()


def test_a_pipe_in_a_cache_entry_is_not_waited_for(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = cache.get("kind", {}, lambda directory: (directory / "x").write_text("x")).path
    (entry / "entry.json").unlink()
    os.mkfifo(entry / "entry.json")
    again = cache.get("kind", {}, lambda directory: (directory / "x").write_text("x"))
    assert not again.hit
    assert (again.path / "x").read_text() == "x"


def test_nodes_in_another_order_are_sorted(tiny_onnx: Path, tmp_path: Path) -> None:
    """ONNX Runtime takes such a file; the rewrites need the order that ONNX asks for."""
    model = onnx.load(tiny_onnx)
    nodes = list(reversed(model.graph.node))
    copies = onnx.GraphProto()
    copies.node.extend(nodes)
    del model.graph.node[:]
    model.graph.node.extend(copies.node)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    compiled, again = (compile_onnx(p, tmp_path / f"{i}.onnx") for i, p in enumerate((tiny_onnx, path)))
    assert again.done == compiled.done
    assert not again.left


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_a_graph_that_fills_memory_or_has_no_names_is_refused(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    size = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "size")
    model.graph.initializer.append(size)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["size"], ["large"]))
    with pytest.raises(InputError, match=r"fills a tensor of \[1048576, 1048576\] numbers"):
        interface_of(saved(model, tmp_path / "model.onnx"))
    data = tiny_onnx.read_bytes().replace(b"classifier/Gemm", b"classif\xfeer/Gemm"[:15])
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(InputError, match=r"is not UTF-8"):
        load_ir(tmp_path / "model.onnx")


def test_a_model_whose_logits_are_not_finite_is_told(tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    bias = next(t for t in model.graph.initializer if t.name == "classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([np.nan, 0], np.float32), bias.name))
    with pytest.raises(InputError, match="the model's own logits are NaN or infinite"):
        compile_onnx(saved(model, tmp_path / "model.onnx"), tmp_path / "compiled.onnx")


def test_a_line_break_in_a_baseline_stays_out_of_the_verdict(seeds: Seeds) -> None:
    record = read_record(seeds.baseline)
    other = replace(record, machine={**record.machine, "cpu_model": "line\nbreak"})
    (note, *_) = judge(record, other, LimitTable(), across_machines=True).findings
    assert "line break" in note.text


def test_results_without_the_primary_metric_are_refused(seeds: Seeds, tmp_path: Path) -> None:
    results = json.loads((seeds.run / "results.json").read_text())
    metric = next(iter(results["teacher"]))
    variant = list(results)[-1]
    del results[variant][metric]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=f"{variant}: '{metric}' is missing"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    "change", [{"architectures": [[]]}, {"model_type": []}, {"hidden_dropout_prob": np.nan}]
)
def test_a_config_with_values_of_other_types(
    change: dict[str, Any], tiny_teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_teacher, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=r"config\.json: "):
        check_classifier(tmp_path)
