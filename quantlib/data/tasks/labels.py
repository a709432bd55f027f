"""Labels by their names: those of rows, and those of a checkpoint's logits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantlib.data.metrics import OutputMode
from quantlib.data.tables.table import listed
from quantlib.data.text import quoted
from quantlib.support.errors import InputError


@dataclass(frozen=True)
class ModelLabels:
    """What a checkpoint says of its logits.

    source: the file that says so, for messages. count: of logits; the width of embeddings. names: of the
    logits, in their order; empty where there are none. kind: the kind of task it was trained for, None if not
    said.
    """

    source: str
    count: int
    names: tuple[str, ...] = ()
    kind: OutputMode | None = None

    def __post_init__(self) -> None:
        if self.names and len(self.names) != self.count:
            raise InputError(f"{self.source}: {len(self.names)} names of labels for {self.count} logits")

    @property
    def are_generic(self) -> bool:
        """Whether the names say nothing: LABEL_0, LABEL_1, ..., or none at all."""
        return self.names in ((), tuple(f"LABEL_{place}" for place in range(self.count)))

    def words(self) -> str:
        """The names as a message lists them."""
        return listed(self.names) if self.names else f"{self.count} logits without names"


class LabelMismatch(InputError):
    """Labels of the rows that the checkpoint does not have by name. labels: all labels of the rows."""

    def __init__(self, message: str, labels: Sequence[str]) -> None:
        super().__init__(message)
        self.labels = tuple(labels)


def check_kind(name: str, kind: OutputMode, model: ModelLabels) -> None:
    """Check that a model embeds texts if the task is of embeddings, and only then.

    Args:
        name: the task's. kind: the task's.
        model: what it says of its output.

    Raises:
        InputError: it does not.
    """
    if kind == "embedding" and model.kind != "embedding":
        raise InputError(
            f"{model.source}: not an embedding model; {name}, of kind embedding, needs one in the layout of "
            "sentence-transformers, or an ONNX file whose output is sentence_embedding"
        )
    if kind != "embedding" and model.kind == "embedding":
        raise InputError(f"{model.source}: an embedding model; {name} is of kind {kind}")


def label_order(labels: Sequence[str], names: Mapping[str, str], model: ModelLabels) -> list[int]:
    """The index of the logit of each label, by name.

    Case, spaces, hyphens and underscores do not count where the names stay distinct without them. Labels that
    are class numbers fit generic names.

    Args:
        labels: the words in the rows.
        names: what a checkpoint calls them, {label: name}, where it is another word.
        model: the names of its logits.

    Raises:
        LabelMismatch: a label that the checkpoint does not have.
        InputError: two labels that are the same label of the checkpoint.
    """
    places = _logit_by_name(model)
    order = []
    for label in labels:
        wanted = names.get(label, label)
        place = places.get(wanted, places.get(_folded(wanted)))
        if place is None:
            raise LabelMismatch(_no_such_label(label, wanted, labels, model), labels)
        order.append(place)
    (place, count), *_ = Counter(order).most_common(1) or [(0, 0)]
    if count > 1:
        same = [label for label, other in zip(labels, order, strict=True) if other == place]
        raise InputError(f"{model.source}: labels {listed(same)} are one and the same label there")
    return order


def _logit_by_name(model: ModelLabels) -> dict[str, int]:
    """{name: logit}, exact and folded names alike; folded ones that fit two logits are left out."""
    if model.are_generic:
        generic = {f"LABEL_{logit}": logit for logit in range(model.count)}
        return generic | {str(logit): logit for logit in range(model.count)}
    folded: dict[str, list[int]] = {}
    for logit, name in enumerate(model.names):
        folded.setdefault(_folded(name), []).append(logit)
    unambiguous = {name: logits[0] for name, logits in folded.items() if len(logits) == 1}
    return unambiguous | {name: logit for logit, name in enumerate(model.names)}


def _folded(name: str) -> str:
    return "_".join(re.split(r"[\s_-]+", name.strip().casefold()))


def _no_such_label(label: str, wanted: str, labels: Sequence[str], model: ModelLabels) -> str:
    first = model.names[0] if model.names else "LABEL_0"
    as_mapped = "" if wanted == label else f" (mapped to {quoted(wanted)})"
    return (
        f"label {quoted(label)}{as_mapped} is not one of the checkpoint's, {model.words()} ({model.source}); "
        f"the rows have {listed(labels)}; map them by name: [task.labels] with lines like "
        f'"{label[:40]}" = "{first}", or --labels "{label[:40]}={first}"'
    )
