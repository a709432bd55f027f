"""Word replacement: what is replaced, by what, and that it is reproducible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from quantlib.data.features import Feature
from quantlib.data.tasks import TASKS
from quantlib.support.cache import Cache
from quantlib.support.errors import InputError
from quantlib.training.checkpoints import load_classifier, quiet_transformers
from quantlib.training.student import AugmentationOptions, DistillationOptions, PhaseOptions, distil
from quantlib.training.student import augmentation as augmenting
from quantlib.training.student.augmentation import augmented, nearest_words, word_positions, word_tokens

OPTIONS = AugmentationOptions(copies=3, candidates=4)
VOCABULARY = {token: number for number, token in enumerate(tiny.VOCABULARY)}
WORDS = word_tokens(VOCABULARY)
PIECES = {VOCABULARY[piece] for piece in tiny.PIECES}


def same(first: list[Feature], second: list[Feature]) -> bool:
    return [(r.input_ids.tolist(), r.token_type_ids.tolist(), r.label) for r in first] == [
        (r.input_ids.tolist(), r.token_type_ids.tolist(), r.label) for r in second
    ]


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with a masked-language head."""
    import torch
    import transformers

    directory = tiny.write_checkpoint(tmp_path_factory.mktemp("masked") / "bert")
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(load_classifier(directory).config)
    with quiet_transformers():
        model.save_pretrained(directory)
    return directory


def test_words_are_what_letters_alone_make() -> None:
    words = {token for token, number in VOCABULARY.items() if WORDS[number]}
    assert words == set(tiny.WORDS)
    ids = [VOCABULARY[token] for token in ("[CLS]", "good", "##ly", "film", "[UNK]", "sad", "[SEP]")]
    assert word_positions(np.array(ids), WORDS, PIECES) == [3, 5]


@pytest.mark.parametrize("kind", ["neighbours", "head"])
def test_words_are_replaced_and_nothing_else(
    kind: str, tiny_teacher: Path, tiny_rows: list[Feature], masked_model: Path
) -> None:
    checkpoint = tiny_teacher if kind == "neighbours" else masked_model
    assert (augmenting._masked_language_model(checkpoint) is not None) == (kind == "head")
    rows = tiny_rows[:6]
    copies = augmented(rows, checkpoint, OPTIONS, seed=1)
    assert len(copies) == 18
    changed = total = 0
    for number, copy in enumerate(copies):
        row = rows[number // 3]
        assert copy.label == row.label
        assert copy.token_type_ids.tolist() == row.token_type_ids.tolist()
        places = word_positions(row.input_ids, WORDS, PIECES)
        rest = [place for place in range(len(row)) if place not in places]
        assert copy.input_ids[rest].tolist() == row.input_ids[rest].tolist()
        assert WORDS[copy.input_ids[places]].all()
        changed += int((copy.input_ids != row.input_ids).sum())
        total += len(places)
    # A masked word may be its own best guess, a neighbour is another word.
    assert 0.2 < changed / total < 0.6, "about 0.4 of the words"
    assert same(copies, augmented(rows, checkpoint, OPTIONS, seed=1)), "the same again"
    assert not same(copies, augmented(rows, checkpoint, OPTIONS, seed=2))


def test_a_masked_word_gets_the_words_that_the_head_finds_likely(
    masked_model: Path, tiny_rows: list[Feature]
) -> None:
    import torch
    import transformers

    model: Any = transformers.BertForMaskedLM
    model = model.from_pretrained(masked_model, local_files_only=True).eval()
    row, place = tiny_rows[0], 2
    ids = torch.from_numpy(row.input_ids.copy())[None]
    ids[0, place] = VOCABULARY["[MASK]"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, place].numpy()
    expected = sorted(np.flatnonzero(WORDS), key=lambda number: -logits[number])[:5]
    likely = augmenting.likely_words(model, row, [1, place], WORDS, VOCABULARY["[MASK]"], 5)
    assert likely[place] == expected


@given(st.integers(2, 12), st.integers(1, 20), st.integers(0, 1000))
def test_neighbours_against_numpy(tokens: int, count: int, seed: int) -> None:
    import torch

    draw = np.random.default_rng(seed)
    table = draw.normal(size=(tokens, 5)).astype(np.float32)
    words = draw.random(tokens) < 0.7
    words[:2] = True
    used = np.flatnonzero(words).tolist()
    nearest = nearest_words(torch.from_numpy(table), used, words, count)
    for word in used:
        others = [other for other in used if other != word]
        cosines = {
            o: table[o] @ table[word] / np.linalg.norm(table[o]) / np.linalg.norm(table[word]) for o in others
        }
        assert nearest[word] == sorted(others, key=lambda o: -cosines[o])[:count]


def test_copies_are_kept(
    tiny_teacher: Path, tiny_rows: list[Feature], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    rows = [replace(tiny_rows[0], label=0.25), *tiny_rows[1:4]]
    first = augmented(rows, tiny_teacher, OPTIONS, 1, cache)
    (path,) = tmp_path.rglob("rows.jsonl")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    assert same(first, augmented(rows, tiny_teacher, OPTIONS, 1, cache)), "a damaged file is made anew"
    assert path.read_text() == text
    make_copies = augmenting._copies
    monkeypatch.setattr(augmenting, "_copies", lambda *_: pytest.fail("made again"))
    assert same(first, augmented(rows, tiny_teacher, OPTIONS, 1, cache))
    monkeypatch.setattr(augmenting, "_copies", make_copies)
    augmented(rows, tiny_teacher, OPTIONS, 2, cache)
    augmented(rows[:3], tiny_teacher, OPTIONS, 1, cache)
    augmented(rows, tiny_teacher, replace(OPTIONS, probability=0.5), 1, cache)
    assert len(list(tmp_path.rglob("rows.jsonl"))) == 4


def test_copies_are_kept_under_their_code_and_versions(
    tiny_teacher: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    augmented(tiny_rows[:2], tiny_teacher, OPTIONS, 1, Cache(tmp_path))
    (record,) = tmp_path.rglob("entry.json")
    key = json.loads(record.read_text())["key"]
    assert {"torch", "transformers", "tokenizers", "numpy"} == set(key["versions"])
    assert {"training.student.augmentation:likely_words", "data.features"} <= set(key["code"])


def test_off_by_default(tiny_teacher: Path, tiny_rows: list[Feature], tmp_path: Path) -> None:
    assert augmented(tiny_rows, tiny_teacher, DistillationOptions().augmentation, 1, Cache(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_student_learns_from_copies_too(
    tiny_teacher: Path, tiny_rows: list[Feature], tmp_path: Path
) -> None:
    """Of the rows that are trained on: 43 of 48, four times, in batches of 16, and none of those held out."""
    options = DistillationOptions(
        transformer=PhaseOptions(0, 1e-3), prediction=PhaseOptions(1, 1e-3), augmentation=OPTIONS, threads=1
    )
    progress: list[tuple[int, int]] = []
    distil(
        tiny_teacher,
        TASKS["SST-2"],
        tiny_rows,
        tmp_path / "out",
        options,
        lambda done, total, _: progress.append((done, total)),
        cache=Cache(tmp_path / "cache"),
    )
    steps = -(-43 * 4 // 16)
    assert progress[-1] == (steps, steps)
    assert len(list((tmp_path / "cache").rglob("rows.jsonl"))) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"copies": -1}, "augmentation copies -1 is out of range"),
        ({"probability": 0.0}, r"augmentation probability 0.0 must be within \(0, 1\]"),
        ({"candidates": 0}, "augmentation candidates 0 must be at least 1"),
    ],
    ids=str,
)
def test_options_are_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        AugmentationOptions(**changes)
