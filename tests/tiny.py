"""The rows and checkpoints of the tests: words made up here, weights drawn here, nothing downloaded."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from exact import exact_session

from quantlib.data.features import Feature, batches, convert_examples_to_features, load_tokenizer
from quantlib.data.tasks import Example, Splits, Task, read_splits
from quantlib.data.tasks.splits import split_train
from quantlib.experiment import ExperimentOptions
from quantlib.machine.sessions import feed_for, open_session
from quantlib.training.checkpoints import quiet_transformers

if TYPE_CHECKING:
    import onnx


def words(text: str) -> list[str]:
    return text.split()


GOOD = words("bright calm clever fine fresh glad gold good great happy kind lively neat nice proud rich warm")
BAD = words("bitter bland broken cheap cold cruel dark dull empty false grim harsh messy poor sad sour weak")
OTHER = words(
    "a actor and book camera city day door end film first garden hour house in is it last light man music "
    "night of on one our people place play road room scene school second song story street summer table the "
    "their this time to town tree very was water window winter with woman word year"
)
PIECES = ["##s", "##ly", "##ing", "##er", "##x"]
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = [*GOOD, *BAD, *OTHER]
VOCABULARY = [*BERT_TOKENS, *WORDS, *PIECES]

ARCHITECTURES = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
}
# Those of `test_architectures`; the other tests, of which many run on each, are enough with the four above.
MORE_ARCHITECTURES = {
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
    "albert": "AlbertForSequenceClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
}
_ROBERTA_IDS = ("roberta", "xlm-roberta", "camembert", "mpnet")  # padding is 1, positions start at 2
# What sets a tiny model apart from BERT's settings.
_SETTINGS: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "albert": {"embedding_size": 16},
    # As in the published checkpoints of DeBERTa-v3, with fewer buckets.
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
        "pooler_dropout": 0,
        "pooler_hidden_act": "gelu",
    },
    # A window of 4 tokens to either side, so that short rows show it. The ids are those of `BERT_TOKENS`.
    "modernbert": {
        "local_attention": 8,
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}


@dataclass(frozen=True)
class Exported:
    """A checkpoint of an architecture, its ONNX model, and 48 rows tokenized for it."""

    kind: str
    checkpoint: Path
    model: Path
    rows: list[Feature]


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """(sentence, label): label 1 has good words in it, 0 has bad ones."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.randrange(2)
        words = draw.choices(OTHER, k=draw.randint(2, 14)) + draw.choices((BAD, GOOD)[label], k=2)
        draw.shuffle(words)
        rows.append((" ".join(words), str(label)))
    return rows


def write_sst2(directory: Path, train: int = 120, dev: int = 40) -> Path:
    """SST-2 in GLUE's format, in a folder of that name; returns `directory`."""
    folder = directory / "SST-2"
    folder.mkdir(parents=True)
    for name, count, seed in (("train", train, 1), ("dev", dev, 2)):
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in sentences(count, seed))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def write_tokenizer(directory: Path, kind: str = "bert") -> None:
    """tokenizer.json, and for the BERT family vocab.txt beside it."""
    from tokenizers import BertWordPieceTokenizer, Tokenizer, models, pre_tokenizers, processors

    if kind in _ROBERTA_IDS:
        vocabulary = {token: i for i, token in enumerate([*ROBERTA_TOKENS, *WORDS, *PIECES])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        tokenizer.save(str(directory / "tokenizer.json"))
        return
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    BertWordPieceTokenizer(vocab=str(directory / "vocab.txt")).save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_checkpoint(directory: Path, kind: str = "bert", *, seed: int = 0, **changes: Any) -> Path:
    """A classifier with random weights: 2 layers, 32 wide, 64 positions; two labels if not said otherwise.

    Weights are drawn ten times as wide as usual, so that logits depend on every token.
    """
    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "initializer_range": 0.2,
        "max_position_embeddings": 66 if kind in _ROBERTA_IDS else 64,
    }
    if kind != "distilbert":
        settings |= {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
    settings |= _SETTINGS.get(kind, {})
    config = transformers.AutoConfig.for_model(kind, **(settings | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, (ARCHITECTURES | MORE_ARCHITECTURES)[kind])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases would be zero, LayerNorms one: equal ones are merged on export
                parameter.add_(torch.randn_like(parameter) / 10)
    with quiet_transformers():
        model.save_pretrained(directory)
    write_tokenizer(directory, kind)
    return directory


def write_embedding_model(
    directory: Path, checkpoint: Path, pooling: str = "mean_tokens", *, normalized: bool = True
) -> Path:
    """A model in sentence-transformers' layout with the encoder of a classifier.

    pooling: what its switch is called there: cls_token, mean_tokens or max_tokens.
    """
    shutil.copytree(checkpoint, directory, dirs_exist_ok=True)
    kind = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
    encoder = {"bert": "BertModel", "distilbert": "DistilBertModel", "electra": "ElectraModel"}
    edit_config(directory, architectures=[encoder.get(kind, "RobertaModel")], id2label=None, label2id=None)

    def take_encoder(weights: dict[str, Any]) -> None:
        whole = dict(weights)
        weights.clear()
        prefix, head = f"{kind}.", f"{kind}.pooler."
        kept = [name for name in whole if name.startswith(prefix) and not name.startswith(head)]
        weights.update({name.removeprefix(prefix): whole[name] for name in kept})

    edit_weights(directory, take_encoder)
    parts = ["Transformer", "Pooling", *(["Normalize"] if normalized else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{part}" if i else "",
            "type": f"sentence_transformers.models.{part}",
        }
        for i, part in enumerate(parts)
    ]
    (directory / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (directory / "1_Pooling").mkdir()
    switches = {
        f"pooling_mode_{mode}": mode == pooling
        for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    }
    config = {"word_embedding_dimension": 32, **switches}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def run_options(teacher: Path, glue_dir: Path) -> ExperimentOptions:
    """A run on the rows of `write_sst2` that times as little as can be."""
    return ExperimentOptions(
        task="SST-2",
        data_dir=glue_dir,
        teacher=str(teacher),
        seq_len=32,
        threads=1,
        calibration_samples=16,
        warmup_runs=0,
        num_runs=3,
        timing_seconds=0.0,
    )


def structure(model: Any) -> str:
    """A SHA-256 of what decides a model's trace but for its weights: its modules, shapes, which are equal."""
    numbers: dict[bytes, int] = {}
    config = model.config.to_dict()
    for name in ("id2label", "label2id", "_name_or_path", "problem_type"):
        config.pop(name, None)
    digest = hashlib.sha256(f"{model!r} {sorted(config.items(), key=str)}".encode())
    for name, weight in model.state_dict().items():
        number = numbers.setdefault(weight.contiguous().numpy().tobytes(), len(numbers))
        digest.update(f"{name} {weight.shape} {weight.dtype} {number}".encode())
    return digest.hexdigest()


def weights_of(model: Any) -> dict[str, npt.NDArray[Any]]:
    """Each weight of a model of PyTorch, and the transposed one of each matrix, by name."""
    weights: dict[str, npt.NDArray[Any]] = {}
    for name, weight in model.state_dict().items():
        weights[name] = weight.numpy().copy()
        if weight.ndim == 2:
            weights[f"{name} transposed"] = np.ascontiguousarray(weights[name].T)
    return weights


def with_weights(
    proto: onnx.ModelProto, traced: Mapping[str, npt.NDArray[Any]], model: Any
) -> onnx.ModelProto:
    """The trace of a model of the same structure, `traced` its weights, with the weights of this one."""
    from onnx import numpy_helper

    names = {(array.shape, array.tobytes()): name for name, array in traced.items()}
    own = weights_of(model)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        name = names.get((array.shape, array.tobytes()))
        if array.dtype == np.float32 and array.ndim and name is not None:
            tensor.CopyFrom(numpy_helper.from_array(own[name], tensor.name))
    return proto


def traced(
    made_once: Callable[[str, Callable[[Path], object]], Path],
) -> Callable[..., onnx.ModelProto]:
    """PyTorch's exporter for models whose structure is traced once; `made_once` keeps directories by name."""
    import onnx

    from quantlib.onnx_model import export

    trace = export._to_onnx

    def to_onnx(model: Any, longest: int, output: str = "logits") -> onnx.ModelProto:
        def make(directory: Path) -> None:
            with same_operators():
                made = trace(model, longest, output).SerializeToString(deterministic=True)
            (directory / "trace.onnx").write_bytes(made)
            weights: dict[str, Any] = weights_of(model)
            np.savez(directory / "weights.npz", **weights)

        directory = made_once(f"trace-{structure(model)}-{longest}", make)
        with np.load(directory / "weights.npz") as weights:
            return with_weights(onnx.load(directory / "trace.onnx"), weights, model)

    return to_onnx


@contextmanager
def same_operators() -> Iterator[None]:
    """Let PyTorch's exporter read its ONNX operators once, which takes half a second, not for each model."""
    registry, from_torchlib = _operators()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(from_torchlib))
        yield


@cache
def _operators() -> tuple[Any, Callable[..., Any]]:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return ONNXRegistry, cache(ONNXRegistry.from_torchlib)


def examples(count: int, seed: int = 3) -> list[Example]:
    """Rows like those of `write_sst2`."""
    return [Example(f"row-{i}", text, None, label) for i, (text, label) in enumerate(sentences(count, seed))]


TOPICS = ("praise", "blame", "nothing new")


@dataclass(frozen=True)
class Rows:
    """A source of given rows: the first 40 are for evaluation."""

    rows: tuple[tuple[str, str | tuple[str, ...] | None], ...]

    def read(self, task: Task, data_dir: Path | None, *, need_train: bool) -> Splits:
        examples = [
            task.example(f"row-{i}", [text], label, f"row {i}") for i, (text, label) in enumerate(self.rows)
        ]
        return split_train(examples[40:], examples[:40], "rows of the test")


def topics(count: int, seed: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(sentence, labels) for `TOPICS`: each of the first two if words say so, the last if none does."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        labels = [topic for topic in TOPICS[:2] if draw.random() < 0.5]
        kinds = {"praise": GOOD, "blame": BAD}
        words = draw.choices(OTHER, k=draw.randint(2, 10))
        words += [word for topic in labels for word in draw.choices(kinds[topic], k=2)]
        draw.shuffle(words)
        rows.append((" ".join(words), tuple(labels) or TOPICS[2:]))
    return tuple(rows)


def topics_task(count: int = 160) -> Task:
    """A task of sets of labels."""
    return Task("Topics", "multi_label", TOPICS, ("micro_f1", "exact_match"), Rows(topics(count, 5)))


def unlabelled_task(count: int = 160, **changes: Any) -> Task:
    """The sentences of `sentences` without their labels."""
    rows = Rows(tuple((text, None) for text, _ in sentences(count, 6)))
    settings: dict[str, Any] = {"output_mode": "classification", "labels": ("0", "1"), "source": rows}
    return Task("Bare", metrics=("agreement",), labelled=False, **(settings | changes))


def task_features(task: Task, checkpoint: Path, part: str = "train") -> list[Feature]:
    """The rows of a part of a task, tokenized for a checkpoint."""
    rows = read_splits(task).parts()[part]
    return convert_examples_to_features(rows, task.labels, 32, load_tokenizer(checkpoint), task.output_mode)


def features(checkpoint: Path, count: int, length: int = 32) -> list[Feature]:
    """The same rows, tokenized for a checkpoint."""
    tokenizer = load_tokenizer(checkpoint)
    return convert_examples_to_features(examples(count), ("0", "1"), length, tokenizer, "classification")


def edit_config(directory: Path, **changes: Any) -> None:
    """Change config.json; a value of None removes the key."""
    path = directory / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the dictionary of NumPy arrays in model.safetensors."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def save_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any] | None = None,
    *,
    width: int = 4,
    outputs: Sequence[str] = ("y",),
    shapes: Mapping[str, Sequence[str | int]] | None = None,
) -> Path:
    """A model of these nodes, from x, float32 (rows, tokens, width), to float32 outputs.

    shapes: of float32 tensors in between.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shape: list[str | int] = ["rows", "tokens", width]
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
        value_info=[
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
            for name, dims in (shapes or {}).items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def logits(
    path: Path, rows: Sequence[Feature], batch_size: int = 8, *, exact: bool = True, **options: Any
) -> npt.NDArray[np.float32]:
    """What a model with two labels gives for rows in length-bucketed batches: (rows, 2).

    exact: in an `exact_session`, alike on every CPU; else in the session that a user gets.
    """
    session = exact_session(path, **options) if exact else open_session(path, threads=1, **options)
    values = np.empty((len(rows), 2), np.float32)
    for index, feed in batches(rows, batch_size):
        values[index] = session.run(None, feed_for(session, feed))[0]
    return values
