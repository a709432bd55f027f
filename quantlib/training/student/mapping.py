"""Which layer of the teacher each layer of the student learns from: g(m) of TinyBERT (Jiao et al. 2020)."""

from __future__ import annotations

from quantlib.support.errors import InputError

MAPPINGS = ("uniform", "last")


def layer_mapping(student_layers: int, teacher_layers: int, kind: str = "uniform") -> tuple[int, ...]:
    """The teacher's layer for each of the student's, both counted from 1; 0, the embeddings, comes first.

    Args:
        student_layers: M, at least 1.
        teacher_layers: N, at least M.
        kind: "uniform", g(m) = m·N/M, the nearest whole layer where M does not divide N, a half upwards;
            "last", the last M layers; or a list for layers 1 to M such as "2,4,6".

    Raises:
        InputError: more layers than the teacher has, or a list that is not one for these layers.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise InputError(
            f"a student of {student_layers} layers cannot learn from a teacher of {teacher_layers}; "
            f"it must have 1 to {teacher_layers}"
        )
    if kind == "uniform":
        # floor(m·N/M + 1/2) in integers: Python's round would round a half to the even layer.
        return tuple(
            (2 * m * teacher_layers + student_layers) // (2 * student_layers)
            for m in range(student_layers + 1)
        )
    if kind == "last":
        return (0, *range(teacher_layers - student_layers + 1, teacher_layers + 1))
    return (0, *_parse_layers(kind, student_layers, teacher_layers))


def _parse_layers(text: str, student_layers: int, teacher_layers: int) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"unknown layer mapping {text!r}; known: {', '.join(MAPPINGS)}, or a list as 2,4,6")
    layers = [int(part) for part in parts]
    if (
        len(layers) != student_layers
        or sorted(set(layers)) != layers
        or not 1 <= layers[0] <= layers[-1] <= teacher_layers
    ):
        raise InputError(
            f"layer mapping {text!r}: it must name {student_layers} layers of 1..{teacher_layers} in rising "
            "order, one for each layer of the student"
        )
    return layers
