"""Distil a student from a teacher, as TinyBERT does (Jiao et al. 2020).

`run` calls the others in order: `students` makes a student of a shape with its first weights, `mapping`
assigns layers of the teacher to its layers, `augmentation` varies the rows, `targets` runs the teacher,
`trainee` and `losses` give losses and scores, `vocabulary` drops unused rows of the embedding table during
training, `phases` trains, `saved` writes checkpoints of the training, `report` shows its progress.
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
