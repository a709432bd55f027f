"""Tasks: `table` has a row for each, `task` says what a row is, `splits` parts rows, readers read them.

A reader is what a row names as its `source`: `glue` (files, or the hub by `hub`) and `bbc` (a package).
"""

from quantlib.data.tasks.splits import SPLIT_SEED, Example, Label, Splits, data_hash
from quantlib.data.tasks.table import TASKS, get_task
from quantlib.data.tasks.task import Source, Task, read_splits

__all__ = [
    "SPLIT_SEED",
    "TASKS",
    "Example",
    "Label",
    "Source",
    "Splits",
    "Task",
    "data_hash",
    "get_task",
    "read_splits",
]
