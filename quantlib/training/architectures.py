"""The table of architectures: what differs between the encoders whose classifiers can be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Architecture:
    """An encoder with a classifier, as transformers builds and names it. The defaults are BERT's.

    model_type, classifier: its names in config.json, the type and the class. shape_keys: what config.json
    calls the number of layers, the width, the FFN's width and the number of heads. position_offset: position
    embeddings that no token uses. takes_token_types: whether `token_type_ids` are an input. can_be_distilled:
    whether a student can be made of it. runs_in_parts: whether `forward` runs it layer by layer.
    layers_are_shared: whether the same weights are used for many layers.

    Names of modules. layers: the list of encoder layers. query, key, value, attention_output, ffn_in,
    ffn_out: linear layers within a layer; of a layer that holds several (ALBERT), a number stands for each.
    qkv: one that is query, key and value. pooler: the layer before the last one, without the encoder's name.
    head: the last linear layer. embedding_projection: between embeddings and layers of another width.
    position_bias: the table of what attention scores get by the distance of query and key.
    """

    model_type: str
    classifier: str
    layers: str
    pooler: str = "pooler"
    head: str = "classifier"
    embedding_projection: str | None = None
    position_bias: str | None = None
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    ffn_in: str = "intermediate.dense"
    ffn_out: str = "output.dense"
    qkv: str | None = None
    shape_keys: tuple[str, str, str, str] = (
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    )  # fmt: skip
    position_offset: int = 0
    takes_token_types: bool = True
    can_be_distilled: bool = False
    runs_in_parts: bool = False
    layers_are_shared: bool = False


ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        Architecture(
            "bert",
            "BertForSequenceClassification",
            "bert.encoder.layer",
            can_be_distilled=True,
            runs_in_parts=True,
        ),
        Architecture(
            "distilbert",
            "DistilBertForSequenceClassification",
            "distilbert.transformer.layer",
            pooler="pre_classifier",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attention_output="attention.out_lin",
            ffn_in="ffn.lin1",
            ffn_out="ffn.lin2",
            shape_keys=("n_layers", "dim", "hidden_dim", "n_heads"),
            takes_token_types=False,
        ),
        Architecture(
            "electra",
            "ElectraForSequenceClassification",
            "electra.encoder.layer",
            pooler="classifier.dense",
            head="classifier.out_proj",
            embedding_projection="embeddings_project",
        ),
        *(
            Architecture(  # one architecture under three names; the encoder of each is called roberta
                model_type,
                classifier,
                "roberta.encoder.layer",
                pooler="classifier.dense",
                head="classifier.out_proj",
                position_offset=2,  # positions are counted from pad_token_id + 1
            )
            for model_type, classifier in (
                ("roberta", "RobertaForSequenceClassification"),
                ("xlm-roberta", "XLMRobertaForSequenceClassification"),
                ("camembert", "CamembertForSequenceClassification"),
            )
        ),
        Architecture(
            "mpnet",
            "MPNetForSequenceClassification",
            "mpnet.encoder.layer",
            pooler="classifier.dense",
            head="classifier.out_proj",
            query="attention.attn.q",
            key="attention.attn.k",
            value="attention.attn.v",
            attention_output="attention.attn.o",
            position_bias="relative_attention_bias",
            position_offset=2,
            takes_token_types=False,
        ),
        Architecture(
            "albert",
            "AlbertForSequenceClassification",
            "albert.encoder.albert_layer_groups",
            embedding_projection="embedding_hidden_mapping_in",
            query="albert_layers.0.attention.query",
            key="albert_layers.0.attention.key",
            value="albert_layers.0.attention.value",
            attention_output="albert_layers.0.attention.dense",
            ffn_in="albert_layers.0.ffn",
            ffn_out="albert_layers.0.ffn_output",
            layers_are_shared=True,
        ),
        Architecture(
            "deberta-v2",
            "DebertaV2ForSequenceClassification",
            "deberta.encoder.layer",
            query="attention.self.query_proj",
            key="attention.self.key_proj",
            value="attention.self.value_proj",
            embedding_projection="embed_proj",
        ),
        Architecture(
            "modernbert",
            "ModernBertForSequenceClassification",
            "model.layers",
            pooler="head.dense",
            qkv="attn.Wqkv",
            attention_output="attn.Wo",
            ffn_in="mlp.Wi",
            ffn_out="mlp.Wo",
            takes_token_types=False,
        ),
    )
}


def of_model(model: Any) -> Architecture:
    """The architecture of a loaded model of transformers."""
    return ARCHITECTURES[model.config.model_type]


def accepted(model: Any, feed: dict[str, _Value]) -> dict[str, _Value]:
    """The part of a feed that the model's architecture takes."""
    if of_model(model).takes_token_types:
        return feed
    return {name: value for name, value in feed.items() if name != "token_type_ids"}
