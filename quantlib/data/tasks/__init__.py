"""Tasks: `table` has a row for each, `task` says what a row is, `splits` splits the rows, readers read them.

A reader is the `source` of a task in the table: `glue` (files, or the hub by `hub`) and `bbc` (a package).
`own` reads a user's task, which a description makes a `Task` of.
"""

from quantlib.data.tasks.labels import LabelMismatch, ModelLabels, label_order
from quantlib.data.tasks.own import KINDS, QUOTES, OwnRows, OwnTask, name_of, read_own_task
from quantlib.data.tasks.splits import SPLIT_SEED, Example, Label, Splits, data_hash
from quantlib.data.tasks.table import TASKS, get_task
from quantlib.data.tasks.task import Source, Task, read_splits

__all__ = [
    "KINDS",
    "QUOTES",
    "SPLIT_SEED",
    "TASKS",
    "Example",
    "Label",
    "LabelMismatch",
    "ModelLabels",
    "OwnRows",
    "OwnTask",
    "Source",
    "Splits",
    "Task",
    "data_hash",
    "get_task",
    "label_order",
    "name_of",
    "read_own_task",
    "read_splits",
]
