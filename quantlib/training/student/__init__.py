"""Make a student from a teacher, as TinyBERT does (Jiao et al. 2020): it learns what the teacher computes.

`students` gives a student its shape and first weights, `mapping` says which layer it learns from,
`augmentation` varies the rows, `targets` runs the teacher, `losses` compares, `trainee` makes losses and
scores of a student, `vocabulary` leaves out words that it never reads, `phases` trains, `saved` keeps where
training stands, `report` tells it, `run` is the straight line through them.
"""

from quantlib.training.student.augmentation import AugmentationOptions
from quantlib.training.student.options import DistillationOptions, PhaseOptions
from quantlib.training.student.run import distil
from quantlib.training.student.students import PRESETS, StudentConfig, parse_student_config

__all__ = [
    "PRESETS",
    "AugmentationOptions",
    "DistillationOptions",
    "PhaseOptions",
    "StudentConfig",
    "distil",
    "parse_student_config",
]
