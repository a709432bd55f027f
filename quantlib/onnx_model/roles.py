"""What a layer is, told by the name of its node: its role, its group, and words for a person."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Where a layer stands in the network, in the order in which data flows through one.
ROLES = (
    "embeddings", "projection", "qkv", "attention_output", "ffn_in", "ffn_out", "pooler", "classifier",
    "other",
)  # fmt: skip

# Nodes are named after the modules they come from: BERT, RoBERTa and ELECTRA share names, DistilBERT has its
# own. The first pattern that is found decides.
_ROLE_PATTERNS = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("projection", r"\bembeddings_project\b"),  # ELECTRA's, from the tables' width to the layers'
        ("embeddings", r"embedding"),
        ("qkv", r"\.(query|key|value|key_value|qkv|[qkv]_lin)\b"),
        ("attention_output", r"attention\.(output\.dense|out_lin)\b"),
        ("ffn_in", r"\.(intermediate\.dense|lin1)\b"),
        ("ffn_out", r"layer\.\d+\.(output\.dense|ffn\.lin2)\b"),
        ("pooler", r"\b(pooler\b|pre_classifier\b|classifier\.dense\b)"),
        ("classifier", r"\bclassifier\b"),
    )
)
_LAYER = re.compile(r"\blayer\.(\d+)\.")
_WORDS = {
    "projection": "embeddings projection",
    "qkv": "QKV",
    "attention_output": "attention output",
    "ffn_in": "FFN input",
    "ffn_out": "FFN output",
}
_QKV_WORDS = {
    "query": "query",
    "key": "key",
    "value": "value",
    "key_value": "key and value",
    "q_lin": "query",
    "k_lin": "key",
    "v_lin": "value",
}


def role(name: str) -> str:
    """The role of a node, one of `ROLES`, told by its name."""
    return next((role for role, pattern in _ROLE_PATTERNS if pattern.search(name)), "other")


def group(name: str) -> str:
    """Layers that are judged together: "layer.4.ffn_out", "embeddings", "pooler"; a node's name tells."""
    layer = _LAYER.search(name)
    kind = role(name)
    if kind == "other":
        return name
    return f"layer.{layer[1]}.{kind}" if layer else kind


def label(name: str) -> str:
    """A node in words, for a table: "layer 4 FFN output", "layer 4 query", "pooler"."""
    layer = _LAYER.search(name)
    kind = role(name)
    if kind == "qkv" and (part := re.search(r"\.(query|key|value|key_value|[qkv]_lin)\b", name)):
        words = _QKV_WORDS[part[1]]
    elif kind == "embeddings" and (part := re.search(r"(\w+)_embeddings\b", name)):
        words = f"{part[1].replace('_', ' ')} embeddings"
    else:
        words = _WORDS.get(kind, kind if kind != "other" else name)
    return f"layer {layer[1]} {words}" if layer else words


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """{group: the names of its nodes}, both in the order given."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(group(name), []).append(name)
    return found
