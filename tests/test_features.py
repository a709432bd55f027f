from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import BertWordPieceTokenizer, Tokenizer

from quantlib.data.features import (
    INPUT_NAMES,
    CalibrationReader,
    Feature,
    Feed,
    batches,
    convert_examples_to_features,
    features_hash,
    fixed_shape_feeds,
    further_windows,
    labels_array,
    load_tokenizer,
    pad,
)
from quantlib.data.tasks import TASKS, Example, Task
from quantlib.support.errors import InputError

CLS, SEP = (tiny.VOCABULARY.index(token) for token in ("[CLS]", "[SEP]"))


def rows_of(lengths: list[int]) -> list[Feature]:
    """Rows of these lengths; all tokens of row i are 10 + i, so that a row is known by its tokens."""
    rows = []
    for i, length in enumerate(lengths):
        types = np.array([0] * (length - length // 2) + [1] * (length // 2), dtype=np.int64)
        rows.append(Feature(np.full(length, 10 + i, dtype=np.int64), types, i % 2))
    return rows


def real_rows(feed: Feed) -> list[tuple[int, int]]:
    """(row, its number of tokens) for each row of a feed, after checking that all else is padding."""
    assert set(feed) == set(INPUT_NAMES)
    assert {array.dtype for array in feed.values()} == {np.dtype(np.int64)}
    assert len({array.shape for array in feed.values()}) == 1
    numbers_and_lengths = []
    for ids, mask, types in zip(*(feed[name] for name in INPUT_NAMES), strict=True):
        count = int(mask.sum())
        assert mask.tolist() == [1] * count + [0] * (len(mask) - count)
        assert len(set(ids[:count].tolist())) == 1
        assert not ids[count:].any()
        assert not types[count:].any()
        numbers_and_lengths.append((int(ids[0]) - 10, count))
    return numbers_and_lengths


lengths = st.lists(st.integers(1, 20), max_size=40)
some_lengths = st.lists(st.integers(1, 20), min_size=1, max_size=40)
sizes = st.integers(1, 9)


# Batches


@given(lengths, sizes)
def test_every_row_is_in_one_batch(lengths: list[int], size: int) -> None:
    rows = rows_of(lengths)
    indices: list[int] = []
    for index, feed in batches(rows, size):
        assert len(index) <= size
        assert index.dtype == np.int64
        assert real_rows(feed) == [(i, lengths[i]) for i in index]
        assert feed["input_ids"].shape[1] == max(lengths[i] for i in index), "no column of padding alone"
        indices += index.tolist()
    assert sorted(indices) == list(range(len(rows)))
    assert [lengths[i] for i in indices] == sorted(lengths)


@given(some_lengths, st.integers(1, 25))
def test_pad_cuts_or_fills(lengths: list[int], length: int) -> None:
    feed = pad(rows_of(lengths), length)
    assert feed["input_ids"].shape == (len(lengths), length)
    assert real_rows(feed) == [(i, min(n, length)) for i, n in enumerate(lengths)]


def test_pad_keeps_token_types() -> None:
    (row,) = rows_of([4])
    assert pad([row], 6)["token_type_ids"].tolist() == [[0, 0, 1, 1, 0, 0]]


@given(some_lengths, sizes, st.integers(1, 25), st.integers(0, 12))
def test_fixed_shapes_take_rows_in_turn(lengths: list[int], size: int, length: int, count: int) -> None:
    feeds = list(fixed_shape_feeds(rows_of(lengths), size, length, count))
    assert [feed["input_ids"].shape for feed in feeds] == [(size, length)] * count
    order = [row for feed in feeds for row, _ in real_rows(feed)]
    assert order == [i % len(lengths) for i in range(size * count)]


def test_fixed_shapes_need_a_row() -> None:
    with pytest.raises(InputError, match="no rows to time"):
        next(fixed_shape_feeds([], 1, 8, 1))


def test_labels() -> None:
    classes = labels_array(rows_of([2, 2, 2]), TASKS["SST-2"])
    assert classes is not None
    assert (classes.dtype, classes.tolist()) == (np.int64, [0, 1, 0])
    scores = labels_array([replace(rows_of([2])[0], label=2.5)], TASKS["STS-B"])
    assert scores is not None
    assert (scores.dtype, scores.tolist()) == (np.float32, [2.5])


def test_labels_of_sets() -> None:
    task = Task("X", "multi_label", ("a", "b", "c"), ("micro_f1",), TASKS["SST-2"].source)
    rows = [replace(row, label=label) for row, label in zip(rows_of([2, 2]), [(0, 2), ()], strict=True)]
    sets = labels_array(rows, task)
    assert sets is not None
    assert (sets.dtype, sets.tolist()) == (np.int8, [[1, 0, 1], [0, 0, 0]])


def test_rows_without_labels() -> None:
    rows = [replace(row, label=None) for row in rows_of([2, 3])]
    unlabelled = replace(TASKS["SST-2"], labelled=False, metrics=("agreement",))
    assert labels_array(rows, unlabelled) is None
    with pytest.raises(ValueError, match="SST-2 has labels, but not all of these rows have one"):
        labels_array([*rows_of([2]), *rows], TASKS["SST-2"])


@given(some_lengths)
def test_the_hash_is_of_tokens_in_their_order(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    other_labels = [Feature(row.input_ids, row.token_type_ids, 1 - row.label) for row in rows]
    assert features_hash(other_labels) == features_hash(rows)
    if len(rows) > 1:
        assert features_hash(rows[::-1]) != features_hash(rows)
    assert features_hash(rows[1:]) != features_hash(rows)


# The calibration reader


def drained(reader: CalibrationReader) -> list[Feed]:
    feeds = []
    while (feed := reader.get_next()) is not None:
        feeds.append(feed)
    return feeds


@given(some_lengths, sizes)
def test_calibration_feeds_each_row_once_without_padding(lengths: list[int], size: int) -> None:
    reader = CalibrationReader(rows_of(lengths), size)
    feeds = drained(reader)
    assert all(feed["attention_mask"].all() for feed in feeds)
    assert all(len(feed["input_ids"]) <= size for feed in feeds)
    assert sorted(row for feed in feeds for row in real_rows(feed)) == list(enumerate(lengths))
    assert len(feeds) == len(reader)


@given(some_lengths, sizes, st.integers(1, 25))
def test_calibration_can_be_padded_to_a_fixed_length(lengths: list[int], size: int, length: int) -> None:
    feeds = drained(CalibrationReader(rows_of(lengths), size, pad_to=length))
    assert {feed["input_ids"].shape[1] for feed in feeds} == {length}
    order = [row for feed in feeds for row in real_rows(feed)]
    assert order == [(i, min(n, length)) for i, n in enumerate(lengths)]


@given(some_lengths, sizes, st.integers(0, 50))
def test_the_reader_rewinds(lengths: list[int], size: int, feeds_before: int) -> None:
    reader = CalibrationReader(rows_of(lengths), size)
    for _ in range(feeds_before):
        reader.get_next()
    reader.rewind()
    again = [real_rows(feed) for feed in drained(reader)]
    assert reader.get_next() is None
    assert again == [real_rows(feed) for feed in reader], "iterating does not need a rewind"
    assert reader.get_next() is None, "and does not rewind"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(([],), "no calibration rows"), ((rows_of([3]), 0), "calibration batch size 0 is out of range")],
    ids=["no_rows", "batch_size"],
)
def test_a_reader_that_cannot_be(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        CalibrationReader(*arguments)


# Tokenizing


@pytest.fixture(scope="module")
def vocabulary_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with vocab.txt and tokenizer.json."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(vocabulary_dir: Path) -> Tokenizer:
    return load_tokenizer(vocabulary_dir)


def features_of(tokenizer: Any, *texts: str | tuple[str, str], length: int = 16) -> list[Feature]:
    rows = [
        Example(f"r-{i}", *((text, None) if isinstance(text, str) else text), label="1")
        for i, text in enumerate(texts)
    ]
    return convert_examples_to_features(rows, ("0", "1"), length, tokenizer, "classification")


def same(left: list[Feature], right: list[Feature]) -> bool:
    def plain(rows: list[Feature]) -> list[tuple[list[int], list[int], float]]:
        return [(row.input_ids.tolist(), row.token_type_ids.tolist(), row.label) for row in rows]

    return plain(left) == plain(right)


TEXTS = (
    "The Good actor",
    "GREAT films, happier people",
    "unknownword",
    "wärm Garden",
    "",
    "a  \t great\u00a0night",
    "城市 city",
    ("is it good", "it is great"),
    ("a day", "warm"),
    ("the " * 30, "great " * 3),
    ("great " * 3, "the " * 30),
    ("the " * 30, "city " * 30),
)


def test_tokens_and_types(tokenizer: Tokenizer) -> None:
    (row,) = features_of(tokenizer, ("good actors", "sad"))
    tokens = [tiny.VOCABULARY[i] for i in row.input_ids]
    assert tokens == ["[CLS]", "good", "actor", "##s", "[SEP]", "sad", "[SEP]"]
    assert row.token_type_ids.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert (len(row), row.label) == (7, 1)


def test_the_longer_text_of_a_pair_is_cut_first(tokenizer: Tokenizer) -> None:
    long, short = "the " * 30, "great day here"
    for pair in ((long, short), (short, long)):
        (row,) = features_of(tokenizer, pair, length=12)
        assert len(row) == 12
        first, second = (row.token_type_ids == 0).sum() - 2, (row.token_type_ids == 1).sum() - 1
        assert sorted([first, second]) == [3, 6], "the short one keeps its three tokens"
    (row,) = features_of(tokenizer, (long, long), length=13)
    assert (row.token_type_ids == 0).sum() - 2 == (row.token_type_ids == 1).sum() - 1 == 5


@pytest.mark.parametrize("length", [8, 11, 64])
def test_no_row_is_longer_than_asked_for(tokenizer: Tokenizer, length: int) -> None:
    for row in features_of(tokenizer, *TEXTS, length=length):
        assert len(row) <= length
        assert row.input_ids[0] == CLS
        assert row.input_ids[-1] == SEP


@given(st.integers(0, 60), st.integers(8, 20))
@settings(deadline=None)
def test_windows_go_on_where_a_row_was_cut(tokenizer: Tokenizer, count: int, length: int) -> None:
    words = (["the", "good", "day", "film", "is"] * 12)[:count]
    row = Example("r", " ".join(words), None, "1")
    kept = convert_examples_to_features([row], ("0", "1"), length, tokenizer, "classification")
    (windows,) = further_windows([row], kept, length, tokenizer)
    texts = [part.input_ids[1:-1].tolist() for part in (*kept, *windows)]
    all_tokens = tokenizer.encode(row.text_a, add_special_tokens=False).ids
    dropped = len(all_tokens) - sum(map(len, texts))
    assert [token for text in texts for token in text] == all_tokens[: len(all_tokens) - dropped], (
        "nothing twice, nothing left out"
    )
    assert 0 <= dropped < length / 4 - 1 or not windows
    for window in windows:
        assert (window.input_ids[0], window.input_ids[-1], window.label) == (CLS, SEP, 1)
        assert length / 4 <= len(window) <= length
        assert not window.token_type_ids.any()


def test_a_pair_has_no_windows(tokenizer: Tokenizer) -> None:
    row = Example("r", "the " * 50, "good " * 50, "1")
    kept = convert_examples_to_features([row], ("0", "1"), 16, tokenizer, "classification")
    assert further_windows([row], kept, 16, tokenizer) == [[]]


@pytest.fixture(scope="module")
def bert_tokenizer() -> Any:
    from transformers import BertTokenizer

    return BertTokenizer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_a_vocabulary_alone_is_tokenized_as_transformers_does(
    tmp_path: Path, vocabulary_dir: Path, bert_tokenizer: Any, settings: dict[str, bool]
) -> None:
    (tmp_path / "vocab.txt").write_bytes((vocabulary_dir / "vocab.txt").read_bytes())
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    features = features_of(load_tokenizer(tmp_path), *TEXTS)
    transformers_tokenizer = bert_tokenizer(vocab=str(tmp_path / "vocab.txt"), **settings)
    for text, row in zip(TEXTS, features, strict=True):
        pair = (text, None) if isinstance(text, str) else text
        expected = transformers_tokenizer(*pair, truncation="longest_first", max_length=16)
        assert row.input_ids.tolist() == expected["input_ids"]
        assert row.token_type_ids.tolist() == expected["token_type_ids"]


def test_a_tokenizer_of_transformers_gives_the_same(
    vocabulary_dir: Path, tokenizer: Tokenizer, bert_tokenizer: Any
) -> None:
    transformers_tokenizer = bert_tokenizer(vocab=str(vocabulary_dir / "vocab.txt"))
    assert same(features_of(transformers_tokenizer, *TEXTS), features_of(tokenizer, *TEXTS))
    wrapped = BertWordPieceTokenizer(vocab=str(vocabulary_dir / "vocab.txt"))
    assert same(features_of(wrapped, *TEXTS), features_of(tokenizer, *TEXTS))


def test_the_callers_tokenizer_keeps_its_settings(vocabulary_dir: Path) -> None:
    own_tokenizer = load_tokenizer(vocabulary_dir)
    own_tokenizer.enable_truncation(5)
    own_tokenizer.enable_padding(length=40)
    assert [len(row) for row in features_of(own_tokenizer, "the " * 30)] == [16]
    assert own_tokenizer.truncation["max_length"] == 5
    assert own_tokenizer.padding["length"] == 40


def test_scores_of_a_regression(tokenizer: Tokenizer) -> None:
    rows = [Example("dev-1", "a", "b", 2.5), Example("dev-2", "a", "b", "3")]
    features = convert_examples_to_features(rows, (), 8, tokenizer, "regression")
    assert [row.label for row in features] == [2.5, 3.0]
    with pytest.raises(InputError, match="row dev-3: score 'high' is not a number"):
        convert_examples_to_features([Example("dev-3", "a", None, "high")], (), 8, tokenizer, "regression")


def test_the_label_list_decides_the_index(tokenizer: Tokenizer) -> None:
    row = Example("dev-7", "a", None, "no")
    for labels, index in ((("yes", "no"), 1), (("no", "yes"), 0)):
        (feature,) = convert_examples_to_features([row], labels, 8, tokenizer, "classification")
        assert feature.label == index
    with pytest.raises(InputError, match=r"^row dev-7: label 'no' is not one of entailment, neutral$"):
        convert_examples_to_features([row], ("entailment", "neutral"), 8, tokenizer, "classification")


def test_no_rows_no_features(tokenizer: Tokenizer) -> None:
    assert convert_examples_to_features([], ("0",), 8, tokenizer, "classification") == []


def test_what_cannot_be_converted(tokenizer: Tokenizer) -> None:
    row = [Example("r", "a", None, "1")]
    with pytest.raises(InputError, match="unknown output mode 'ranking'; known: classification, regression"):
        convert_examples_to_features(row, ("1",), 8, tokenizer, "ranking")
    with pytest.raises(InputError, match="sequence length 7 is too short"):
        convert_examples_to_features(row, ("1",), 7, tokenizer, "classification")
    with pytest.raises(InputError, match="a str cannot be used"):
        convert_examples_to_features(row, ("1",), 8, "bert-base-uncased", "classification")


def spoil(directory: Path, how: str) -> None:
    tiny.write_tokenizer(directory)
    tokenizer_json, vocabulary = directory / "tokenizer.json", directory / "vocab.txt"
    if how == "json_garbage":
        tokenizer_json.write_text("{")
    elif how == "json_of_something_else":
        tokenizer_json.write_text('{"model": {"type": "Unheard"}}')
    elif how == "json_not_text":
        tokenizer_json.write_bytes(b"\xff\xfe\x00")
    else:
        tokenizer_json.unlink()
    if how == "nothing":
        vocabulary.unlink()
    elif how == "no_special_tokens":
        vocabulary.write_text("good\nbad\n")
    elif how == "vocabulary_not_text":
        vocabulary.write_bytes(b"\xff\xfe\x00\n")
    elif how == "config_garbage":
        (directory / "tokenizer_config.json").write_text("{")
    elif how == "config_list":
        (directory / "tokenizer_config.json").write_text("[]")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nothing", "no tokenizer; expected tokenizer.json or vocab.txt"),
        ("json_garbage", "tokenizer.json: not a tokenizer file"),
        ("json_of_something_else", "tokenizer.json: not a tokenizer file"),
        ("json_not_text", "tokenizer.json: not a tokenizer file"),
        ("no_special_tokens", "vocab.txt: not a BERT vocabulary: sep_token not found"),
        ("vocabulary_not_text", "vocab.txt: not a BERT vocabulary"),
        ("config_garbage", "tokenizer_config.json: not a JSON object"),
        ("config_list", "tokenizer_config.json: not a JSON object"),
    ],
)
def test_a_damaged_tokenizer_is_one_line_naming_it(tmp_path: Path, how: str, words: str) -> None:
    spoil(tmp_path, how)
    with pytest.raises(InputError, match=words) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
