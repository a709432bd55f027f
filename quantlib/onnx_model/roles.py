"""What a layer is, told by the name of its node: its role, its group, and words for a person."""

from __future__ import annotations

import re
from collections.abc import Iterable

from quantlib.training.architectures import ARCHITECTURES

# Where a layer stands in the network, in the order in which data flows through one.
ROLES = (
    "embeddings", "projection", "position_bias", "qkv", "attention_output", "ffn_in", "ffn_out", "pooler",
    "classifier", "other",
)  # fmt: skip

_ROWS = tuple(ARCHITECTURES.values())


def _names(names: Iterable[str | None]) -> str:
    """A pattern for each of these names, once; a number between dots stands for any."""
    escaped = (re.escape(name) for name in dict.fromkeys(names) if name)
    return "|".join(re.sub(r"(?<=\.)\d+(?=\\\.)", r"\\d+", name) for name in escaped)


_LAYERS = _names(row.layers.rpartition(".")[2] for row in _ROWS)
_LAYER = re.compile(rf"\b(?:{_LAYERS})\.(\d+)\.")


def _in_layer(names: Iterable[str]) -> str:
    return rf"\b(?:{_LAYERS})\.\d+\.(?:{_names(names)})\b"


# What compiling makes of queries, keys and values is named beside them.
_FUSED = {"query": "query", "key_value": "key and value", "qkv": "QKV"}
_QKV = [name for row in _ROWS for name in (row.query, row.key, row.value, row.qkv) if name]
_QKV += [f"{row.query.rpartition('.')[0]}.{fused}" for row in _ROWS for fused in _FUSED]
_QKV_WORDS = _FUSED | {
    getattr(row, word).rpartition(".")[2]: word for row in _ROWS for word in ("query", "key", "value")
}
_QKV_WORDS |= {row.qkv.rpartition(".")[2]: "QKV" for row in _ROWS if row.qkv}
_QKV_PART = re.compile(rf"\.({_names(_QKV_WORDS)})\b")

# Nodes are named after the modules they come from. The first pattern that matches decides.
_ROLE_PATTERNS = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("projection", rf"\b(?:{_names(row.embedding_projection for row in _ROWS)})\b"),
        ("position_bias", rf"\b(?:{_names(row.position_bias for row in _ROWS)})\b"),
        ("embeddings", r"embedding"),
        ("qkv", _in_layer(_QKV)),
        ("attention_output", _in_layer(row.attention_output for row in _ROWS)),
        ("ffn_in", _in_layer(row.ffn_in for row in _ROWS)),
        ("ffn_out", _in_layer(row.ffn_out for row in _ROWS)),
        ("pooler", rf"\b(?:{_names(row.pooler for row in _ROWS)})\b"),
        ("classifier", rf"\b(?:{_names(row.head for row in _ROWS)})\b"),
    )
)
_WORDS = {
    "projection": "embeddings projection",
    "position_bias": "position bias",
    "attention_output": "attention output",
    "ffn_in": "FFN input",
    "ffn_out": "FFN output",
}


def role(name: str) -> str:
    """The role of a node, one of `ROLES`, told by its name."""
    return next((role for role, pattern in _ROLE_PATTERNS if pattern.search(name)), "other")


def layer_number(name: str) -> int | None:
    """The number of the encoder layer that a node is in; None outside of them."""
    layer = _LAYER.search(name)
    return int(layer[1]) if layer else None


def group(name: str) -> str:
    """Layers that are judged together: "layer.4.ffn_out", "embeddings", "pooler"; a node's name tells."""
    layer, kind = layer_number(name), role(name)
    if kind == "other":
        return name
    return kind if layer is None else f"layer.{layer}.{kind}"


def label(name: str) -> str:
    """A node in words, for a table: "layer 4 FFN output", "layer 4 query", "pooler"."""
    layer, kind = layer_number(name), role(name)
    if kind == "qkv" and (part := _QKV_PART.search(name)):
        words = _QKV_WORDS[part[1]]
    elif kind == "embeddings" and (part := re.search(r"(\w+)_embeddings\b", name)):
        words = f"{part[1].replace('_', ' ')} embeddings"
    else:
        words = _WORDS.get(kind, kind if kind != "other" else name)
    return words if layer is None else f"layer {layer} {words}"


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """{group: the names of its nodes}, both in the order given."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(group(name), []).append(name)
    return found
