"""Rows from the hub's GLUE data set, whose labels are numbers in the order of `Task.labels`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quantlib.data.hub import hub_package
from quantlib.data.tasks.splits import Example
from quantlib.data.tasks.task import Task
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

DATASET = "nyu-mll/glue"

# What `datasets` gives: rows by name of the part.
Parts = Mapping[str, Iterable[Mapping[str, Any]]]


def load_parts(task_name: str, config: str) -> Parts:
    """The parts of a configuration of the data set.

    Raises:
        InputError: the package datasets is missing, or the hub does not give them.
    """
    datasets, hub_errors = hub_package(f"{task_name} from the hub", "or give GLUE's files with --data-dir")
    try:
        parts: Parts = datasets.load_dataset(DATASET, config)
    except hub_errors as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{task_name}: cannot load {DATASET} from the hub ({reason}); "
            "GLUE's files can be given with --data-dir instead"
        ) from error
    return parts


def hub_examples(
    task: Task, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], source: str, split: str
) -> list[Example]:
    """The rows of a part.

    Args:
        task: what they are rows of.
        rows: the rows as `datasets` gives them.
        columns: the names of their texts.
        source: where they come from, for messages.
        split: the first word of each `guid`.

    Raises:
        InputError: a row that does not fit the task, or no row.
    """
    examples = []
    for number, row in enumerate(rows, start=1):
        where = f"{source} row {number}"
        label = row["label"]
        if task.labels:
            if label not in range(len(task.labels)):
                raise InputError(f"{where}: label {quoted(label)}; expected 0 to {len(task.labels) - 1}")
            label = task.labels[label]
        examples.append(task.example(f"{split}-{number}", [row[name] for name in columns], label, where))
    if not examples:
        raise InputError(f"{source}: no rows")
    return examples
