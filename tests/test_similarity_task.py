"""bench/similarity_task.py, on articles of made-up words and an encoder of random weights."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import tiny

from bench import similarity_task
from bench.similarity_task import KINDS, draw_pairs, make_task, read_sentences
from quantlib.data.tasks import Example, get_task, read_splits
from quantlib.support.errors import InputError


def articles(count: int = 24) -> list[Example]:
    """Articles of a headline and eight sentences, of two classes."""
    draw = random.Random(0)
    examples = []
    for i in range(count):
        texts = [" ".join(draw.choices(tiny.WORDS, k=draw.randint(7, 12))).capitalize() for _ in range(9)]
        examples.append(Example(f"tech-{i:03}", ". ".join(texts) + ".", None, ("tech", "sports")[i % 2]))
    return examples


def rows(path: Path) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


@pytest.fixture(scope="module")
def written(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("similarity")
    make_task(directory, articles(), tiny_teacher, train_pairs=80, dev_pairs=20)
    return directory


def test_the_files_are_those_of_the_task(written: Path) -> None:
    splits = read_splits(get_task("STS-B"), written)
    assert len(splits.evaluation) == 20
    assert sum(map(len, splits.parts().values())) == 100
    scores = [float(row["score"]) for row in rows(written / "dev.tsv")]
    assert [row.label for row in splits.evaluation] == scores
    assert len(set(scores)) > 10


def test_no_article_and_no_row_is_there_twice(written: Path) -> None:
    train, dev = rows(written / "train.tsv"), rows(written / "dev.tsv")
    sources = [{row[name] for row in part for name in ("source1", "source2")} for part in (train, dev)]
    assert not sources[0] & sources[1]
    texts = [frozenset({row["sentence1"], row["sentence2"]}) for row in train + dev]
    assert len(set(texts)) == 100
    assert all(len(pair) == 2 for pair in texts)


def test_the_same_files_come_again(written: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    make_task(tmp_path, articles(), tiny_teacher, train_pairs=80, dev_pairs=20)
    for name in ("train.tsv", "dev.tsv"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_every_kind_of_pair_is_drawn() -> None:
    sentences = [sentence for group in read_sentences(articles()).values() for sentence in group]
    pairs = draw_pairs(sentences, 300, "seed")
    assert {pair.kind for pair in pairs} == set(KINDS)
    neighbours = [pair for pair in pairs if pair.kind == "neighbours"]
    places = {sentence.text: sentence.place for sentence in sentences}
    assert {abs(places[pair.sentence1] - places[pair.sentence2]) for pair in neighbours} == {1}


def test_a_text_of_two_articles_counts_once_and_the_headline_never() -> None:
    text = "Headline One two three. Four five six seven eight nine. Too short."
    sentences_of = read_sentences([Example("a", text, None, "tech"), Example("b", text, None, "tech")])
    assert [sentence.text for sentence in sentences_of["a"]] == ["Four five six seven eight nine."]
    assert sentences_of["b"] == []


def test_a_score_is_the_cosine_of_0_to_5(tiny_teacher: Path) -> None:
    same, other = similarity_task.embed(tiny_teacher, ["bright calm clever", "poor sad sour weak"])
    np.testing.assert_allclose([np.linalg.norm(same), np.linalg.norm(other)], 1, rtol=1e-6)
    cosine = max(0.0, float(same @ other))
    scores = similarity_task.scores(np.stack([same, same, same]), np.stack([same, other, -same]))
    assert scores == pytest.approx([5, 5 * cosine, 0], abs=0.0006)


def test_padding_does_not_change_an_embedding(tiny_teacher: Path) -> None:
    short, long = "bright calm clever", "poor sad sour weak " * 5
    unpadded, padded = (similarity_task.embed(tiny_teacher, texts)[0] for texts in ([short], [short, long]))
    np.testing.assert_allclose(unpadded, padded, atol=1e-6)


def test_too_few_sentences_leave_nothing(tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 sentences give 0 different pairs, not 20"):
        make_task(tmp_path, articles(2), tiny_teacher, train_pairs=10, dev_pairs=20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["OUT", "--dev-pairs", "0"], ["OUT", "--no-such-option"]])
def test_bad_usage_is_one_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert similarity_task.cli(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
