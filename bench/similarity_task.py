"""Write a sentence-pair regression in GLUE's STS-B format, from embedded texts: no data set is downloaded.

    python bench/similarity_task.py OUT_DIR
    python quantization_experiments.py --task STS-B --data-dir OUT_DIR --no-student

Pairs are made of sentences of BBC News; their score, 0 to 5, is the cosine of two embeddings of the packaged
MiniLM. It is no human judgement and no substitute for STS-B's: a teacher learns it as it would learn any
scores, and it shows what int8 costs a regression.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from typer import Argument, Option

from quantlib.cli.app import new_app, run_app
from quantlib.data import features, tasks
from quantlib.machine.sessions import default_threads
from quantlib.support.directories import atomic_files
from quantlib.support.errors import InputError
from quantlib.support.files import make_dir
from quantlib.support.progress import Steps
from quantlib.training import checkpoints

SEED = 20191206
TRAIN_PAIRS = 6000
DEV_PAIRS = 1000
DEV_SHARE = 1 / 7  # of the articles, as dev pairs are of all pairs

# The columns of GLUE's own file. Here filename holds the kind of the pair, sources are the articles' guids.
COLUMNS: tuple[str, ...] = ("index", "genre", "filename", "year", "old_index", "source1", "source2")
COLUMNS += ("sentence1", "sentence2", "score")

# A closing quote belongs to the sentence before it. Most of what an abbreviation cuts off is too short to be
# kept.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"']))\s+(?=[\"'A-Z])")
_WORDS = range(6, 41)
_TEXTS_AT_ONCE = 64
_MAX_TOKENS = 128


@dataclass(frozen=True)
class Sentence:
    """A sentence, the article it stands in, its place there, and the article's class."""

    text: str
    article: str
    place: int
    label: str


@dataclass(frozen=True)
class Pair:
    """Two different texts, the kind of draw they come from, and the articles they come from."""

    kind: str
    sentence1: str
    sentence2: str
    source1: str
    source2: str

    @property
    def texts(self) -> tuple[str, str]:
        return self.sentence1, self.sentence2


# The second text and its article; None where there is none for this sentence.
Draw = Callable[["Pool", Sentence, random.Random], "tuple[str, str] | None"]


class Pool:
    """The sentences that pairs are drawn from, by article and by class."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.all = list(sentences)
        self.by_article: dict[str, list[Sentence]] = {}
        self.by_label: dict[str, list[Sentence]] = {}
        for sentence in sentences:
            self.by_article.setdefault(sentence.article, []).append(sentence)
            self.by_label.setdefault(sentence.label, []).append(sentence)


def read_sentences(articles: Sequence[tasks.Example]) -> dict[str, list[Sentence]]:
    """The sentences of each article, by its guid, each text once in all.

    The first one is left out: the headline runs into it.
    """
    texts_used: set[str] = set()
    sentences: dict[str, list[Sentence]] = {}
    for article in articles:
        article_sentences = []
        for place, text in enumerate(_SENTENCE_END.split(article.text_a)[1:], start=1):
            # U+FFFD stands where a byte of the corpus could not be read.
            if len(text.split()) in _WORDS and text not in texts_used and "\ufffd" not in text:
                texts_used.add(text)
                article_sentences.append(Sentence(text, article.guid, place, str(article.label)))
        sentences[article.guid] = article_sentences
    return sentences


# Kinds of pairs, from far to near


def _anything(pool: Pool, _: Sentence, draw: random.Random) -> tuple[str, str]:
    other = draw.choice(pool.all)
    return other.text, other.article


def _same_class(pool: Pool, first: Sentence, draw: random.Random) -> tuple[str, str]:
    other = draw.choice(pool.by_label[first.label])
    return other.text, other.article


def _same_article(pool: Pool, first: Sentence, draw: random.Random) -> tuple[str, str]:
    other = draw.choice(pool.by_article[first.article])
    return other.text, other.article


def _neighbours(pool: Pool, first: Sentence, _: random.Random) -> tuple[str, str] | None:
    for other in pool.by_article[first.article]:
        if other.place == first.place + 1:
            return other.text, other.article
    return None


def _replaced(pool: Pool, first: Sentence, draw: random.Random) -> tuple[str, str]:
    """Some words are another sentence's at the same place."""
    others, share = draw.choice(pool.all).text.split(), draw.uniform(0.1, 0.7)
    words = first.text.split()
    changed = [
        others[i] if i < len(others) and draw.random() < share else word for i, word in enumerate(words)
    ]
    return " ".join(changed), first.article


def _dropped(_: Pool, first: Sentence, draw: random.Random) -> tuple[str, str] | None:
    """Some words are left out."""
    share = draw.uniform(0.1, 0.7)
    words = [word for word in first.text.split() if draw.random() >= share]
    return (" ".join(words), first.article) if words else None


def _truncated(_: Pool, first: Sentence, draw: random.Random) -> tuple[str, str]:
    """The first words only."""
    words = first.text.split()
    return " ".join(words[: draw.randint(2, len(words) - 1)]), first.article


def _swapped(_: Pool, first: Sentence, draw: random.Random) -> tuple[str, str]:
    """The same words in another order."""
    words = first.text.split()
    for _turn in range(draw.randint(1, len(words))):
        i, j = draw.sample(range(len(words)), 2)
        words[i], words[j] = words[j], words[i]
    return " ".join(words), first.article


# Shares are chosen so that every whole score has its rows.
KINDS: Mapping[str, tuple[float, Draw]] = {
    "random": (0.08, _anything),
    "same-class": (0.14, _same_class),
    "same-article": (0.18, _same_article),
    "neighbours": (0.18, _neighbours),
    "replaced": (0.16, _replaced),
    "truncated": (0.12, _truncated),
    "dropped": (0.10, _dropped),
    "swapped": (0.04, _swapped),
}


def draw_pairs(sentences: Sequence[Sentence], count: int, seed: str) -> list[Pair]:
    """`count` pairs of different texts, no two pairs of the same texts in either order.

    Raises:
        InputError: these sentences do not give as many.
    """
    draw, pool = random.Random(seed), Pool(sentences)
    kinds, shares = list(KINDS), [share for share, _ in KINDS.values()]
    pairs: dict[frozenset[str], Pair] = {}
    for _attempt in range(20 * count if sentences else 0):
        first, (kind,) = draw.choice(pool.all), draw.choices(kinds, shares)
        second = KINDS[kind][1](pool, first, draw)
        texts = frozenset({first.text, second[0]} if second else ())
        if second is None or len(texts) < 2 or texts in pairs:
            continue
        sides = [(first.text, first.article), second]
        draw.shuffle(sides)
        pairs[texts] = Pair(kind, sides[0][0], sides[1][0], sides[0][1], sides[1][1])
        if len(pairs) == count:
            return list(pairs.values())
    raise InputError(f"{len(sentences)} sentences give {len(pairs)} different pairs, not {count}")


# Scores


def embed(
    encoder_dir: Path, texts: Sequence[str], advance: Callable[[int], None] = lambda _: None
) -> npt.NDArray[np.float32]:
    """Mean-pooled embeddings of length 1: float32, (texts, hidden size)."""
    import torch
    import transformers

    torch.set_num_threads(default_threads())
    torch.use_deterministic_algorithms(True)
    with checkpoints.quiet_transformers():
        model = transformers.AutoModel.from_pretrained(
            encoder_dir, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        ).eval()
    rows = [tasks.Example(f"text-{i}", text, None, 0.0) for i, text in enumerate(texts)]
    tokenizer = features.load_tokenizer(encoder_dir)
    tokens = features.convert_examples_to_features(rows, (), _MAX_TOKENS, tokenizer, "regression")
    vectors: npt.NDArray[np.float32] = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        for index, feed in features.batches(tokens, _TEXTS_AT_ONCE):
            hidden = model(**{name: torch.from_numpy(array) for name, array in feed.items()})
            mask = torch.from_numpy(feed["attention_mask"]).unsqueeze(-1)
            mean = (hidden.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
            vectors[index] = torch.nn.functional.normalize(mean, dim=1).numpy()
            advance(len(index))
    return vectors


def scores(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> list[float]:
    """5 times the cosine of each pair of embeddings, (pairs, hidden size) each, cut to 0..5; 3 digits."""
    cosines = np.einsum("ij,ij->i", first.astype(np.float64), second.astype(np.float64))
    return [round(5 * float(cosine), 3) for cosine in np.clip(cosines, 0, 1)]


# Files


def make_task(
    out_dir: Path,
    articles: Sequence[tasks.Example],
    encoder_dir: Path,
    train_pairs: int = TRAIN_PAIRS,
    dev_pairs: int = DEV_PAIRS,
    steps: Steps | None = None,
) -> None:
    """Write train.tsv and dev.tsv into `out_dir`, both or neither; no article is in both.

    Raises:
        InputError: too few articles, or a place that cannot be written.
    """
    steps = steps or Steps()
    make_dir(out_dir)
    with steps.step("draw pairs") as step:
        names = [article.guid for article in articles]
        random.Random(SEED).shuffle(names)
        sentences_of, cut = read_sentences(articles), round(len(names) * DEV_SHARE)
        parts = {
            name: draw_pairs(
                [sentence for guid in guids for sentence in sentences_of[guid]], count, f"{SEED} {name}"
            )
            for name, guids, count in (
                ("train", names[cut:], train_pairs),
                ("dev", names[:cut], dev_pairs),
            )
        }
        step.note = f"{cut} of {len(names)} articles are for dev"
    texts = sorted({text for pairs in parts.values() for pair in pairs for text in pair.texts})
    with steps.step("embed texts", total=len(texts)) as step:
        vectors, place = embed(encoder_dir, texts, step.advance), {text: i for i, text in enumerate(texts)}
        step.note = f"{len(texts)} texts"
    with steps.step("write files") as step, atomic_files(out_dir) as scratch:
        for name, pairs in parts.items():
            sides = zip(*(pair.texts for pair in pairs), strict=True)
            first, second = (vectors[[place[text] for text in side]] for side in sides)
            lines = _lines(pairs, scores(first, second))
            (scratch / f"{name}.tsv").write_text("".join(lines), encoding="utf-8", newline="")
        step.note = str(out_dir)


def _lines(pairs: Sequence[Pair], values: Sequence[float]) -> Iterator[str]:
    yield "\t".join(COLUMNS) + "\n"
    for index, (pair, score) in enumerate(zip(pairs, values, strict=True)):
        cells = [index, "main-news", pair.kind, "none", index, pair.source1, pair.source2, *pair.texts]
        yield "\t".join(map(str, [*cells, f"{score:.3f}"])) + "\n"


# The command

app = new_app()


@app.command()
def main(
    out_dir: Annotated[Path, Argument(help="Where train.tsv and dev.tsv are written.")],
    train_pairs: Annotated[int, Option(help="Rows of train.tsv.", min=1)] = TRAIN_PAIRS,
    dev_pairs: Annotated[int, Option(help="Rows of dev.tsv.", min=1)] = DEV_PAIRS,
) -> None:
    """Write a sentence-pair regression in GLUE's STS-B format: BBC News, scored by the packaged MiniLM."""
    from rich.console import Console

    encoder = checkpoints.packaged_minilm()
    parts = tasks.read_splits(tasks.get_task("BBC-News")).parts()
    articles = [article for part in parts.values() for article in part]
    make_task(out_dir, articles, encoder, train_pairs, dev_pairs, Steps(Console()))


def cli(arguments: list[str] | None = None) -> int:
    """Run the command; what the user got wrong is one line on stderr and exit code 2."""
    return run_app(app, arguments)


if __name__ == "__main__":
    sys.exit(cli())
