"""Rows to token ids, token ids to batches: for evaluation, for calibration, for timing.

A feature holds real tokens only. Padding belongs to a batch, where it is as short as the batch allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from quantlib.data.metrics import OutputMode
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_json
from quantlib.support.parsing import parse_json_text, read_utf8

if TYPE_CHECKING:
    from quantlib.data.tasks import Task

IntArray = npt.NDArray[np.int64]
Feed = dict[str, IntArray]

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
LOGITS, EMBEDDING = "logits", "sentence_embedding"
"""What the output of a classifier is called, and that of a model that embeds texts."""
OUTPUT_MODES: tuple[OutputMode, ...] = get_args(OutputMode)


class LabelledText(Protocol):
    """A row: one or two texts, and a label or None (`quantlib.data.tasks.Example` is one)."""

    @property
    def guid(self) -> str: ...  # noqa: D102
    @property
    def text_a(self) -> str: ...  # noqa: D102
    @property
    def text_b(self) -> str | None: ...  # noqa: D102
    @property
    def label(self) -> str | float | tuple[str, ...] | None: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Feature:
    """One tokenized row, without padding.

    input_ids, token_type_ids: int64, (tokens,). label: class index, the score for regression, rising class
    indices for multi_label, the score of its pair for embedding; None where rows have no labels.
    """

    input_ids: IntArray
    token_type_ids: IntArray
    label: int | float | tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.input_ids)


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of a checkpoint directory, as a `tokenizers.Tokenizer` (which needs no torch).

    Reads tokenizer.json, or a BERT vocabulary (vocab.txt) with the settings of tokenizer_config.json.

    Raises:
        InputError: neither is there, or a file is damaged.
    """
    from tokenizers import Tokenizer

    tokenizer_json, vocabulary = model_dir / "tokenizer.json", model_dir / "vocab.txt"
    if tokenizer_json.is_file():
        try:
            return Tokenizer.from_str(read_utf8(tokenizer_json))
        except Exception as error:  # the Rust side raises bare Exception for a damaged file
            raise InputError(f"{tokenizer_json}: not a tokenizer file: {error}") from error
    if vocabulary.is_file():
        return _wordpiece(vocabulary, model_dir / "tokenizer_config.json")
    raise InputError(f"{model_dir}: no tokenizer; expected tokenizer.json or vocab.txt beside the weights")


def _wordpiece(vocabulary: Path, config_path: Path) -> Any:
    """BERT's tokenizer from its vocabulary; the settings and their defaults are those of transformers."""
    from tokenizers import BertWordPieceTokenizer

    try:
        config = parse_json_text(read_utf8(config_path)) if config_path.is_file() else {}
        settings = {
            "lowercase": bool(config.get("do_lower_case", True)),
            "strip_accents": config.get("strip_accents"),
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
        }
    except OSError as error:
        raise InputError(f"cannot read {config_path}: {error.strerror or error}") from error
    except (ValueError, AttributeError) as error:
        raise InputError(f"{config_path}: not a JSON object: {error}") from error
    try:
        return BertWordPieceTokenizer(vocab=str(vocabulary), **settings)._tokenizer
    except Exception as error:  # the Rust side raises bare Exception for a damaged file
        raise InputError(f"{vocabulary}: not a BERT vocabulary: {error}") from error


def convert_examples_to_features(
    examples: Sequence[LabelledText],
    label_list: Sequence[str],
    max_seq_length: int,
    tokenizer: Any,
    output_mode: str,
) -> list[Feature]:
    """Tokenize rows; texts longer than `max_seq_length` tokens are cut, the longer one of a pair first.

    Args:
        examples: rows with `text_a`, `text_b` (or None), `label` and `guid`.
        label_list: the labels in the order of the model's logits; ignored for regression.
        max_seq_length: the largest number of tokens, special tokens included; at least 8.
        tokenizer: a `tokenizers.Tokenizer` or a tokenizer of transformers.
        output_mode: one of `OUTPUT_MODES`. A label of None stays None.

    Raises:
        InputError: an unknown output mode, a label outside the list, or too short a length.
    """
    if output_mode not in OUTPUT_MODES:
        raise InputError(f"unknown output mode {output_mode!r}; known: {', '.join(OUTPUT_MODES)}")
    if max_seq_length < 8:
        raise InputError(f"sequence length {max_seq_length} is too short; at least 8 tokens are needed")
    index = {label: number for number, label in enumerate(label_list)}
    labels = [_label(example, index, output_mode) for example in examples]
    encoded = _encode(tokenizer, [(e.text_a, e.text_b) for e in examples], max_seq_length)
    return [_feature(row, label) for row, label in zip(encoded, labels, strict=True)]


def further_windows(
    examples: Sequence[LabelledText], features: Sequence[Feature], max_seq_length: int, tokenizer: Any
) -> list[list[Feature]]:
    """What truncation cut off of each row, as rows of up to `max_seq_length` tokens; none for pairs.

    A window has its row's label, which may be wrong for it: nobody labelled that text. The last window is
    dropped if it would fill less than a quarter.

    Args:
        examples: rows, as `convert_examples_to_features` takes them.
        features: what it made of them.
        max_seq_length: the largest number of tokens, special tokens included.
        tokenizer: the tokenizer that made them.
    """
    encoded = _encode(tokenizer, [(e.text_a, e.text_b) for e in examples], max_seq_length)
    return [
        [
            _feature(window, feature.label)
            for window in (row.overflowing if example.text_b is None else ())
            if len(window.ids) >= max_seq_length / 4
        ]
        for example, feature, row in zip(examples, features, encoded, strict=True)
    ]


def _feature(encoding: Any, label: int | float | tuple[int, ...] | None) -> Feature:
    ids, types = (np.asarray(numbers, dtype=np.int64) for numbers in (encoding.ids, encoding.type_ids))
    return Feature(ids, types, label)


def _label(
    example: LabelledText, index: Mapping[str, int], output_mode: str
) -> int | float | tuple[int, ...] | None:
    label = example.label
    if label is None:
        return None
    if output_mode == "multi_label":
        if not isinstance(label, tuple):
            raise InputError(f"row {example.guid}: label {label!r} is not a tuple of labels")
        return tuple(sorted({_class_index(example, name, index) for name in label}))
    if isinstance(label, tuple):
        raise InputError(f"row {example.guid}: {label!r} are several labels; {output_mode} has one")
    if output_mode == "classification":
        return _class_index(example, label, index)
    try:
        return float(label)
    except ValueError:
        raise InputError(f"row {example.guid}: score {label!r} is not a number") from None


def _class_index(example: LabelledText, label: str | float, index: Mapping[str, int]) -> int:
    try:
        return index[str(label)]
    except KeyError:
        raise InputError(f"row {example.guid}: label {label!r} is not one of {', '.join(index)}") from None


def _encode(tokenizer: Any, texts: list[tuple[str, str | None]], max_seq_length: int) -> list[Any]:
    """An `Encoding` of tokenizers for each text."""
    from tokenizers import Tokenizer

    rust = getattr(tokenizer, "backend_tokenizer", tokenizer)  # transformers wraps the same object
    if not hasattr(rust, "to_str"):
        raise InputError(
            f"a {type(tokenizer).__name__} cannot be used; a tokenizers.Tokenizer or a fast tokenizer can"
        )
    truncating = Tokenizer.from_str(rust.to_str())  # the caller's tokenizer keeps its own settings
    truncating.enable_truncation(max_seq_length, strategy="longest_first")
    truncating.no_padding()
    return encode_batch(truncating, texts)


def encode_batch(tokenizer: Any, texts: Sequence[tuple[str, str | None]]) -> list[Any]:
    """An `Encoding` for each text or pair of texts, by a `tokenizers.Tokenizer` with its present settings.

    Raises:
        InputError: the tokenizer cannot read a text.
    """
    try:
        encoded: list[Any] = tokenizer.encode_batch([a if b is None else (a, b) for a, b in texts])
    except Exception as error:  # the Rust side raises bare Exception for a vocabulary without [UNK]
        raise InputError(f"the tokenizer cannot read the rows: {error}") from error
    return encoded


def labels_array(features: Sequence[Feature], task: Task) -> npt.NDArray[Any] | None:
    """The labels of all rows of a task; None where it has none.

    Returns:
        For classification int64 class indices (examples,), for regression float32 scores (examples,), for
        multi_label 0 and 1 in int8 (examples, labels): a byte each, since there may be thousands of labels;
        for embedding the float32 scores of the pairs, (examples / 2,).

    Raises:
        ValueError: rows without labels, of a task that has some.
    """
    if not task.labelled:
        return None
    labels = [feature.label for feature in judged_rows(features, task)]
    if any(label is None for label in labels):
        raise ValueError(f"{task.name} has labels, but not all of these rows have one")
    if task.output_mode != "multi_label":
        return np.array(labels, dtype=np.int64 if task.output_mode == "classification" else np.float32)
    return indicators(cast(list[tuple[int, ...]], labels), task.num_labels)


def judged_rows(features: Sequence[Feature], task: Task) -> Sequence[Feature]:
    """The row of each label: every row, but of scored pairs, which are two rows, the first one."""
    return features[::2] if task.output_mode == "embedding" and task.labelled else features


def indicators(label_sets: Sequence[Sequence[int]], num_labels: int) -> npt.NDArray[np.int8]:
    """Sets of label indices as 0 and 1: int8, (rows, labels)."""
    array = np.zeros((len(label_sets), num_labels), dtype=np.int8)
    for row, labels in enumerate(label_sets):
        array[row, list(labels)] = 1
    return array


def features_hash(features: Sequence[Feature]) -> str:
    """The SHA-256 of all token ids and types, in order, in hexadecimal; labels do not count."""
    return sha256_json([[row.input_ids.tolist(), row.token_type_ids.tolist()] for row in features])


def pad(rows: Sequence[Feature], length: int) -> Feed:
    """One batch, padded (or cut) to `length`: three int64 arrays of shape (rows, length).

    Padding is on the right and has id 0: the attention mask hides it, so the id cannot matter.
    """
    feed = {name: np.zeros((len(rows), length), dtype=np.int64) for name in INPUT_NAMES}
    for i, row in enumerate(rows):
        n = min(len(row), length)
        feed["input_ids"][i, :n] = row.input_ids[:n]
        feed["token_type_ids"][i, :n] = row.token_type_ids[:n]
        feed["attention_mask"][i, :n] = 1
    return feed


def batches(features: Sequence[Feature], batch_size: int) -> Iterator[tuple[IntArray, Feed]]:
    """Length-bucketed batches: rows sorted by length, each batch padded to its longest row only.

    Yields the indices of the rows, int64 (rows,), and the feed. Each row comes once.
    """
    for index in by_length([len(feature) for feature in features], batch_size):
        rows = [features[i] for i in index]
        yield index, pad(rows, len(rows[-1]))


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[IntArray]:
    """The indices of rows, each once, in batches from the shortest rows to the longest: int64 (rows,)."""
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def fixed_shape_feeds(
    features: Sequence[Feature], batch_size: int, seq_len: int, count: int
) -> Iterator[Feed]:
    """`count` feeds of exactly (batch_size, seq_len): rows in order, padded or cut, starting over at the end.

    Raises:
        InputError: there is no row.
    """
    if not features:
        raise InputError("no rows to time: the evaluation split is empty")
    for i in range(count):
        rows = [features[j % len(features)] for j in range(i * batch_size, (i + 1) * batch_size)]
        yield pad(rows, seq_len)


class CalibrationReader:
    """Feeds for calibration, each row once; a `CalibrationDataReader` of onnxruntime by its methods.

    By default rows of equal length share a batch, so that no padding is fed: on padded batches the ranges
    also cover what the model computes at padded positions, which cost a 6-layer BERT 12 points on SST-2.
    With `pad_to` every batch is padded (or cut) to that length instead.

    Args:
        features: the rows; at least one.
        batch_size: rows in a batch, at most.
        pad_to: a fixed length in tokens, or None for real tokens only.
    """

    def __init__(self, features: Sequence[Feature], batch_size: int = 1, pad_to: int | None = None) -> None:
        if not features:
            raise InputError("no calibration rows: the calibration set is empty")
        if batch_size < 1:
            raise InputError(f"calibration batch size {batch_size} is out of range; it must be at least 1")
        self._batches = list(_calibration_batches(features, batch_size, pad_to))
        self._rows = features
        self._pad_to = pad_to
        self._next = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Feed]:
        """All feeds from the first one, independent of `get_next`."""
        return (self._feed(index) for index in self._batches)

    def get_next(self) -> Feed | None:
        """The next feed, or None after the last one."""
        if self._next >= len(self):
            return None
        self._next += 1
        return self._feed(self._batches[self._next - 1])

    def rewind(self) -> None:
        """Start again at the first row."""
        self._next = 0

    def _feed(self, index: list[int]) -> Feed:
        rows = [self._rows[i] for i in index]
        return pad(rows, self._pad_to or len(rows[0]))


def _calibration_batches(
    features: Sequence[Feature], batch_size: int, pad_to: int | None
) -> Iterable[list[int]]:
    """Row indices of each batch: consecutive rows where they are padded, rows of one length where not."""
    if pad_to is not None:
        groups = [list(range(len(features)))]
    else:
        by_length: dict[int, list[int]] = {}
        for i, feature in enumerate(features):
            by_length.setdefault(len(feature), []).append(i)
        groups = list(by_length.values())
    for group in groups:
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
