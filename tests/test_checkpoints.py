from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from quantlib.data.features import load_tokenizer
from quantlib.data.tasks import TASKS
from quantlib.support.errors import InputError
from quantlib.training import checkpoints
from quantlib.training.checkpoints import (
    check_classifier,
    check_for_task,
    check_sequence_length,
    hub_commit,
    load_classifier,
    longest_sequence,
    packaged_minilm,
    quiet_transformers,
    read_config,
    reorder_logits,
    resolve,
)

SST2, RTE, STSB = TASKS["SST-2"], TASKS["RTE"], TASKS["STS-B"]


@pytest.fixture
def checkpoint(tiny_teacher: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be spoiled."""
    return shutil.copytree(tiny_teacher, tmp_path / "checkpoint")


def message(function: Callable[..., Any], *arguments: Any) -> str:
    """The message of the error, which has to be one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# Where a checkpoint is


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    assert resolve(str(tmp_path / "mine"), "teacher") == tmp_path / "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/mine", "teacher") == tmp_path / "mine"


@pytest.mark.parametrize(
    "name", ["./nowhere", "../nowhere", "/nowhere", "a/b/c", "~nobody-of-that-name/x", "a b"]
)
def test_what_can_be_no_hub_id_is_a_missing_directory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_from_hub", lambda *_: pytest.fail("asked the hub"))
    assert message(resolve, name, "student") == f"student {name}: no such directory"


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("")
    text = message(resolve, str(tmp_path / "model.onnx"), "teacher")
    assert text.startswith(f"teacher {tmp_path / 'model.onnx'}: is a file; a checkpoint is a directory")


def test_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = {}

    def snapshot_download(name: str, **options: Any) -> str:
        downloads[name] = options
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve("someone/bert-sst2", "teacher") == tmp_path
    assert downloads["someone/bert-sst2"]["revision"] is None
    assert "*.safetensors" in downloads["someone/bert-sst2"]["allow_patterns"]
    assert not any(".py" in pattern for pattern in downloads["someone/bert-sst2"]["allow_patterns"]), (
        "no code"
    )


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "0f" * 20])
def test_a_revision_is_what_follows_the_id(
    revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, *, revision, **_: downloads.append((name, revision)) or str(tmp_path),
    )
    assert resolve(f"some/one@{revision}", "student") == tmp_path
    assert downloads == [("some/one", revision)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"some/one@{revision}").mkdir(parents=True)
    assert resolve(f"some/one@{revision}", "student") == Path(f"some/one@{revision}"), "a directory is first"


def test_the_commit_of_a_snapshot(
    fake_hub: Callable[[str, Path], str], tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub's own client finds it, in a cache that is made here."""
    commit = fake_hub("some/one", tiny_teacher)
    for name in ("some/one", "some/one@main", f"some/one@{commit}"):
        checkpoint = resolve(name, "teacher")
        assert hub_commit(checkpoint) == commit
        assert check_for_task(checkpoint, SST2) == [0, 1]
    assert hub_commit(tiny_teacher) is None
    monkeypatch.chdir(checkpoint)
    assert hub_commit(Path()) == commit
    text = message(resolve, "some/one@other", "teacher")
    assert text.startswith("teacher some/one@other: no such directory, and the hub did not give it: ")


def hub_errors() -> list[Exception]:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    return [
        LocalEntryNotFoundError("cannot reach the hub\nsecond line"),
        HFValidationError("not an id"),
        OfflineModeIsEnabled("offline mode"),
        ConnectionError("refused"),
        TimeoutError(),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_hub_that_gives_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    error = hub_errors()[number]

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    text = message(resolve, "some/one", "teacher")
    reason = (str(error) or "TimeoutError").splitlines()[0]
    assert text == f"teacher some/one: no such directory, and the hub did not give it: {reason}"


def test_without_the_package_there_is_no_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "bert-quantlib[demo]" in message(packaged_minilm)


# What is in it


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_text(text)

    return change


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: tiny.edit_config(directory, **changes)


def no_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (directory / name).unlink()


def larger_vocabulary(directory: Path) -> None:
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    # One more token, far away: it is the largest id that counts.
    tokenizer["model"]["vocab"]["extra"] = 5000
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("config.json"), "config.json: missing; a checkpoint directory holds config.json, weights"),
        (write("config.json", "{"), "config.json: not JSON"),
        (write("config.json", "[]"), "config.json: expected a JSON object"),
        (config(architectures=["BertModel"]), "architecture BertModel is not supported; supported: Bert"),
        (config(architectures=None), "architecture none is not supported"),
        (config(architectures=[]), "architecture none is not supported"),
        (config(architectures="BertModel"), "architecture 'BertModel' is not supported"),
        (config(vocab_size="many"), "vocab_size must be a whole number above 0, not 'many'"),
        (config(max_position_embeddings=None, vocab_size=1.5), "vocab_size must be a whole number above 0"),
        (config(num_hidden_layers=True), "num_hidden_layers must be a whole number above 0, not True"),
        (config(num_attention_heads=0), "num_attention_heads must be a whole number above 0, not 0"),
        (
            config(position_embedding_type="relative_key"),
            "position_embedding_type 'relative_key' is not supported; supported: 'absolute'",
        ),
        (config(num_hidden_layers=None), "config.json: num_hidden_layers is missing; BertForSequenceClass"),
        (config(hidden_size=None), "config.json: hidden_size is missing; BertForSequenceClassification"),
        (config(num_attention_heads=None), "config.json: num_attention_heads is missing; Bert"),
        (config(max_position_embeddings=None), "config.json: max_position_embeddings is missing; Bert"),
        (config(vocab_size=None), "config.json: vocab_size is missing; BertForSequenceClassification needs"),
        (remove("model.safetensors"), "no weights; expected model.safetensors or model.safetensors.index"),
        (no_tokenizer, "no tokenizer; expected tokenizer.json or vocab.txt"),
        (write("tokenizer.json", "{"), "not a tokenizer file"),
        (larger_vocabulary, "the tokenizer has 5001 tokens, the model embeds"),
        (config(vocab_size=50), "tokens, the model embeds 50; they do not belong together"),
    ],
    ids=[
        "no_config", "config_not_json", "config_no_object", "no_classifier", "no_architecture",
        "empty_architectures", "architecture_no_list", "vocab_size_text", "vocab_size_float", "layers_bool",
        "heads_zero", "relative_positions", "no_layers", "no_width", "no_heads", "no_positions",
        "no_vocabulary", "no_weights", "no_tokenizer", "tokenizer_damaged", "tokenizer_too_large",
        "embeddings_too_few",
    ],
)  # fmt: skip
def test_what_is_missing_is_one_line(checkpoint: Path, spoil: Callable[[Path], None], words: str) -> None:
    assert check_classifier(checkpoint)["architectures"] == ["BertForSequenceClassification"]
    spoil(checkpoint)
    text = message(check_classifier, checkpoint)
    assert text.startswith(str(checkpoint))
    assert words in text
    assert message(load_classifier, checkpoint) == text, "loading checks the same"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
def test_other_weight_files_count_too(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    check_classifier(checkpoint)


def test_a_file_that_may_not_be_read_is_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("quantlib.support.parsing._open", refuse)
    for function in (read_config, check_classifier, load_classifier):
        assert message(function, checkpoint) == f"cannot read {checkpoint / 'config.json'}: Permission denied"
    (checkpoint / "tokenizer.json").unlink()
    text = message(load_tokenizer, checkpoint)
    assert text == f"cannot read {checkpoint / 'tokenizer_config.json'}: Permission denied"


def test_positions(checkpoint: Path) -> None:
    assert longest_sequence(read_config(checkpoint)) == 64
    assert longest_sequence({"model_type": "roberta", "max_position_embeddings": 514}) == 512
    check_sequence_length(checkpoint, 64)
    for length in (7, 65):
        text = message(check_sequence_length, checkpoint, length)
        assert f"sequence length {length} is out of range for {checkpoint}; it must be within 8..64" in text


# Labels


def test_another_number_of_labels(checkpoint: Path) -> None:
    text = message(check_for_task, checkpoint, TASKS["BBC-News"])
    assert text == f"{checkpoint / 'config.json'}: the checkpoint has 2 labels, BBC-News has 5"
    assert "has 2 labels, STS-B has 1" in message(check_for_task, checkpoint, STSB)
    tiny.edit_config(checkpoint, id2label={"0": "a", "1": "b", "2": "c"})
    assert "has 3 labels, RTE has 2" in message(check_for_task, checkpoint, RTE)
    tiny.edit_config(checkpoint, id2label={"0": "LABEL_0"})
    assert check_for_task(checkpoint, STSB) == [0]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (None, [0, 1]),
        ({"0": "LABEL_0", "1": "LABEL_1"}, [0, 1]),
        ({"0": "entailment", "1": "not_entailment"}, [0, 1]),
        ({"0": "not_entailment", "1": "entailment"}, [1, 0]),
        ({"1": "entailment", "0": "not_entailment"}, [1, 0]),
        ({"0": "Not Entailment", "1": "ENTAILMENT"}, [1, 0]),
        ({"0": "no", "1": "yes"}, [0, 1]),
    ],
    ids=["none", "generic", "same", "reversed", "reversed_keys_too", "other_spelling", "other_words"],
)
def test_the_order_of_labels(checkpoint: Path, names: dict[str, str] | None, order: list[int]) -> None:
    tiny.edit_config(checkpoint, id2label=names)
    assert check_for_task(checkpoint, RTE) == order


def test_more_than_nine_labels_are_in_numeric_order(checkpoint: Path) -> None:
    names = {str(i): f"LABEL_{i}" for i in range(12)}
    tiny.edit_config(checkpoint, id2label=names)
    assert "has 12 labels" in message(check_for_task, checkpoint, RTE)


@pytest.mark.parametrize("names", [{"a": "x", "b": "y"}, ["x", "y"], {"0": "x", "2": "y"}], ids=str)
def test_label_names_that_are_none(checkpoint: Path, names: Any) -> None:
    tiny.edit_config(checkpoint, id2label=names)
    assert "config.json: id2label must name labels 0, 1, ..." in message(check_for_task, checkpoint, RTE)


# Weights


def nan_weight(directory: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["bert.encoder.layer.1.output.dense.weight"][3, 5] = np.nan

    tiny.edit_weights(directory, change)


def no_head(directory: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        del weights["classifier.weight"], weights["classifier.bias"]

    tiny.edit_weights(directory, change)


def narrow_head(directory: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["classifier.weight"] = weights["classifier.weight"][:, :16].copy()

    tiny.edit_weights(directory, change)


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def garbage_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"garbage" * 100)


def pickled_garbage(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"garbage" * 100)


def pickled_code(directory: Path) -> None:
    import torch

    (directory / "model.safetensors").unlink()
    torch.save({"classifier.weight": print}, directory / "pytorch_model.bin")


def lost_shard(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"classifier.weight": "model-00001-of-00001.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nan_weight, "the weight bert.encoder.layer.1.output.dense.weight holds NaN or infinite values"),
        (no_head, "the weights lack classifier.bias, which BertForSequenceClassification needs"),
        (narrow_head, "the checkpoint cannot be loaded"),
        (cut_weights, "the weights are damaged"),
        (garbage_weights, "the weights are damaged"),
        (pickled_garbage, ""),
        (pickled_code, ""),
        (lost_shard, "the checkpoint cannot be loaded"),
        (config(model_type="unheard"), "the checkpoint cannot be loaded"),
        (config(hidden_size=33), "the checkpoint cannot be loaded"),
    ],
    ids=lambda value: getattr(value, "__name__", "") if callable(value) else "",
)
def test_weights_that_cannot_be_used_are_one_line(
    checkpoint: Path, spoil: Callable[[Path], None], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(checkpoint)
    text = message(load_classifier, checkpoint)
    assert text.startswith(f"{checkpoint}: ")
    assert words in text
    assert capfd.readouterr() == ("", ""), "nothing beside the error"


def test_a_loaded_model_is_ready(tiny_teacher: Path) -> None:
    import torch

    model = load_classifier(tiny_teacher)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"


def test_half_precision_becomes_single(checkpoint: Path) -> None:
    import torch

    def change(weights: dict[str, Any]) -> None:
        for name in weights:
            weights[name] = weights[name].astype(np.float16)

    tiny.edit_weights(checkpoint, change)
    tiny.edit_config(checkpoint, dtype="float16")
    assert {parameter.dtype for parameter in load_classifier(checkpoint).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_reordered_logits(kind: str, tmp_path: Path) -> None:
    import torch

    model = load_classifier(tiny.write_checkpoint(tmp_path / kind, kind, num_labels=3))
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        before = model(ids).logits
        reorder_logits(model, [2, 0, 1])
        after = model(ids).logits
    # The rows lie elsewhere in the product, and a CPU's kernel may sum them in another order.
    torch.testing.assert_close(after, before[:, [2, 0, 1]], rtol=1e-5, atol=1e-5)


def test_transformers_is_quiet_and_as_it_was() -> None:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
    logging.disable_progress_bar()
    with pytest.raises(RuntimeError), quiet_transformers():
        raise RuntimeError
    assert not logging.is_progress_bar_enabled(), "what was off stays off"
    if bars:
        logging.enable_progress_bar()
