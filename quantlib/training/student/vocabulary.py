"""While a student is trained, its table of words has only those that occur in what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantlib.data.features import Feature

_PADDING = 0  # the id that `features.pad` fills with


@contextmanager
def only_words_of(student: Any, features: Sequence[Feature]) -> Iterator[None]:
    """Within the block the student knows the words of `features` alone; after it, all of them again.

    A word that never occurs has no gradient, but is clipped and stepped like all others: in a MiniLM's half
    the table has 11.7 of 17.1 million weights, and where rows are short, it took most of a step's time. What
    is learned is the same up to rounding, save that words which do not occur are no longer decayed.

    Args:
        student: a BERT classifier of transformers.
        features: all rows that it may be given within the block.
    """
    import torch

    embeddings = student.bert.embeddings
    full: Any = embeddings.word_embeddings
    occurring = {_PADDING}.union(*(row.input_ids.tolist() for row in features))
    words = torch.tensor(sorted(occurring), device=full.weight.device)
    place = torch.full((full.num_embeddings,), -1, device=words.device)  # -1 is out of range, so an error
    place[words] = torch.arange(len(words), device=words.device)
    padding = None if full.padding_idx is None else int(place[full.padding_idx])
    if padding == -1:  # it never occurs: no gradient to keep from it
        padding = None
    weight = full.weight.detach()[words]
    used = torch.nn.Embedding(len(words), full.embedding_dim, padding, _weight=weight)
    used.register_forward_pre_hook(lambda _module, ids: (place[ids[0]],))
    embeddings.word_embeddings = used
    try:
        yield
    finally:
        embeddings.word_embeddings = full
        with torch.no_grad():
            full.weight[words] = used.weight
