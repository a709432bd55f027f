"""A user's own task: a `description` of files and columns; `read` makes a task and its rows of it."""

from quantlib.data.tasks.own.columns import label_column, name_of, text_columns, texts_of
from quantlib.data.tasks.own.description import KINDS, QUOTES, OwnTask
from quantlib.data.tasks.own.read import OwnRows, read_own_task, unlabelled_rows

__all__ = [
    "KINDS", "QUOTES", "OwnRows", "OwnTask", "label_column", "name_of", "read_own_task", "text_columns",
    "texts_of", "unlabelled_rows",
]  # fmt: skip
