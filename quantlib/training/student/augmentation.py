"""More rows to learn from: TinyBERT's word replacement (Jiao et al. 2020, algorithm 1), seeded and cached."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantlib.data.features import Feature, features_hash, load_tokenizer
from quantlib.support.cache import Cache, code_key, versions_key
from quantlib.support.errors import InputError
from quantlib.support.files import sha256_tree, write_text
from quantlib.training.checkpoints import loading_errors, quiet_transformers

if TYPE_CHECKING:
    import torch

_BATCH_SIZE = 64
_FILE = "rows.jsonl"


@dataclass(frozen=True)
class AugmentationOptions:
    """How rows are varied; off by default.

    copies: N_a, changed copies of each row; 0 for none. probability: p_t, that a word is replaced.
    candidates: K, the number of words to draw a replacement from.

    Raises:
        InputError: a value out of range.
    """

    copies: int = 0
    probability: float = 0.4
    candidates: int = 15

    def __post_init__(self) -> None:
        if self.copies < 0:
            raise InputError(f"augmentation copies {self.copies} is out of range; it must be at least 0")
        if not 0 < self.probability <= 1:
            raise InputError(f"augmentation probability {self.probability} must be within (0, 1]")
        if self.candidates < 1:
            raise InputError(f"augmentation candidates {self.candidates} must be at least 1")


def augmented(
    features: Sequence[Feature],
    checkpoint: Path,
    options: AugmentationOptions,
    seed: int,
    cache: Cache | None = None,
) -> list[Feature]:
    """`options.copies` copies of each row, with words replaced by likely or similar ones.

    Only words of a single token are replaced: letters, and no "##" piece after them. The label stays. If the
    checkpoint has a masked-language head, candidates are the words it finds most likely when the word is
    masked, else the word's nearest neighbours by the cosine of word embeddings.

    Args:
        features: rows that were tokenized for the checkpoint.
        checkpoint: a BERT directory with a WordPiece tokenizer.
        options: see `AugmentationOptions`.
        seed: of the random draws.
        cache: where the copies are kept as JSON lines; None keeps none.

    Returns:
        The first row's copies, then the second's, ...; a copy may equal its row if no word was drawn.
    """
    if not options.copies:
        return []
    if cache is None:
        return list(_copies(features, checkpoint, options, seed))

    def make(directory: Path) -> None:
        copies = _copies(features, checkpoint, options, seed)
        write_text(directory / _FILE, "".join(_json_line(row) for row in copies))

    key = {
        "rows": features_hash(features),
        "labels": [row.label for row in features],
        "checkpoint": sha256_tree(checkpoint),
        "options": asdict(options),
        "seed": seed,
        "versions": versions_key("torch", "transformers", "tokenizers", "numpy"),
        "code": code_key(make),
    }
    return _read_rows(cache.get("augmented", key, make).path / _FILE)


def _json_line(row: Feature) -> str:
    fields = {"input_ids": row.input_ids.tolist(), "token_type_ids": row.token_type_ids.tolist()}
    return json.dumps(fields | {"label": row.label}) + "\n"


def _read_rows(path: Path) -> list[Feature]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    features = []
    for row in rows:
        ids, types = (np.array(row[name], np.int64) for name in ("input_ids", "token_type_ids"))
        label = tuple(row["label"]) if isinstance(row["label"], list) else row["label"]
        features.append(Feature(ids, types, label))
    return features


def _copies(
    features: Sequence[Feature], checkpoint: Path, options: AugmentationOptions, seed: int
) -> Iterator[Feature]:
    is_word = word_tokens(load_tokenizer(checkpoint).get_vocab())
    candidates = _candidates(features, checkpoint, is_word, options.candidates)
    for number, (row, choices) in enumerate(zip(features, candidates, strict=True)):
        for copy in range(options.copies):
            rng, ids = random.Random(f"{seed} {number} {copy}"), row.input_ids.copy()
            for position, words in choices.items():
                if rng.random() < options.probability:
                    ids[position] = rng.choice(words)
            yield Feature(ids, row.token_type_ids, row.label)


def word_tokens(vocabulary: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    """Whether each token id is a word or the start of one: letters only, no special token, no "##" piece."""
    is_word = np.zeros(1 + max(vocabulary.values()), dtype=bool)
    is_word[[number for token, number in vocabulary.items() if token.isalpha()]] = True
    return is_word


def word_positions(ids: npt.NDArray[np.int64], is_word: npt.NDArray[np.bool_], pieces: set[int]) -> list[int]:
    """The positions of a row that hold a word of a single token."""
    following = [*ids[1:].tolist(), -1]
    return [
        position
        for position, (token, next_token) in enumerate(zip(ids.tolist(), following, strict=True))
        if is_word[token] and next_token not in pieces
    ]


def _candidates(
    features: Sequence[Feature], checkpoint: Path, is_word: npt.NDArray[np.bool_], count: int
) -> list[dict[int, list[int]]]:
    """For each row, the candidates at the position of each of its words."""
    vocabulary = load_tokenizer(checkpoint).get_vocab()
    pieces = {number for token, number in vocabulary.items() if token.startswith("##")}
    positions = [word_positions(row.input_ids, is_word, pieces) for row in features]
    model = _masked_language_model(checkpoint)
    if model is not None and "[MASK]" in vocabulary:
        mask = vocabulary["[MASK]"]
        return [
            likely_words(model, row, row_positions, is_word, mask, count)
            for row, row_positions in zip(features, positions, strict=True)
        ]
    pairs = list(zip(features, positions, strict=True))
    used = sorted(
        {int(row.input_ids[position]) for row, row_positions in pairs for position in row_positions}
    )
    nearest = nearest_words(_word_embeddings(checkpoint), used, is_word, count)
    return [
        {position: nearest[int(row.input_ids[position])] for position in row_positions}
        for row, row_positions in pairs
    ]


def likely_words(
    model: Any, row: Feature, positions: Sequence[int], is_word: npt.NDArray[np.bool_], mask: int, count: int
) -> dict[int, list[int]]:
    """For each position, the `count` words that a masked-language model finds most likely there."""
    import torch

    allowed = torch.from_numpy(is_word)
    likely: dict[int, list[int]] = {}
    for start in range(0, len(positions), _BATCH_SIZE):
        batch = torch.tensor(positions[start : start + _BATCH_SIZE])
        ids = torch.from_numpy(row.input_ids).repeat(len(batch), 1)
        ids[torch.arange(len(batch)), batch] = mask
        types = torch.from_numpy(row.token_type_ids).expand_as(ids)
        with torch.no_grad():
            logits = model(input_ids=ids, token_type_ids=types).logits[torch.arange(len(batch)), batch]
        logits = logits[:, : len(allowed)].masked_fill(~allowed, -torch.inf)
        best = logits.topk(min(count, int(allowed.sum())), dim=1).indices
        likely |= dict(zip(batch.tolist(), best.tolist(), strict=True))
    return likely


def nearest_words(
    embeddings: torch.Tensor, used: Sequence[int], is_word: npt.NDArray[np.bool_], count: int
) -> dict[int, list[int]]:
    """The `count` words nearest to each of `used` by the cosine of their embeddings, itself left out.

    Args:
        embeddings: (tokens, width).
        used: token ids of words.
        is_word: see `word_tokens`.
        count: at most the number of other words.
    """
    import torch

    table = torch.nn.functional.normalize(embeddings[: len(is_word)].float(), dim=1)
    not_word = torch.from_numpy(~is_word)
    nearest: dict[int, list[int]] = {}
    count = min(count, int(is_word.sum()) - 1)
    for start in range(0, len(used), _BATCH_SIZE):
        batch = torch.tensor(used[start : start + _BATCH_SIZE])
        cosines = (table[batch] @ table.T).masked_fill(not_word, -torch.inf)
        cosines[torch.arange(len(batch)), batch] = -torch.inf
        nearest |= dict(zip(batch.tolist(), cosines.topk(count, dim=1).indices.tolist(), strict=True))
    return nearest


def _masked_language_model(checkpoint: Path) -> Any:
    """The checkpoint's masked-language model; None if it has no such head."""
    import torch
    import transformers

    with quiet_transformers(), loading_errors(checkpoint):
        model, info = transformers.AutoModelForMaskedLM.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    return None if info["missing_keys"] else model.eval()


def _word_embeddings(checkpoint: Path) -> torch.Tensor:
    import torch
    import transformers

    with quiet_transformers(), loading_errors(checkpoint):
        model = transformers.AutoModel.from_pretrained(
            checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    table: torch.Tensor = model.get_input_embeddings().weight.detach()
    return table
