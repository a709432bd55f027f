"""The table of tasks."""

from __future__ import annotations

from quantlib.data.tasks.bbc import BbcNews
from quantlib.data.tasks.glue import Glue
from quantlib.data.tasks.task import Task
from quantlib.data.text import quoted
from quantlib.support.errors import InputError

# Label order and columns: the data cards of GLUE (Wang et al. 2018) and the headers of its files.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="CoLA",
            output_mode="classification",
            labels=("0", "1"),
            metrics=("mcc",),
            source=Glue("cola", fixed_columns=("source", "label", "star", "sentence")),
        ),
        Task(
            name="SST-2",
            output_mode="classification",
            labels=("0", "1"),
            metrics=("accuracy",),
            source=Glue("sst2"),
        ),
        Task(
            name="MRPC",
            output_mode="classification",
            labels=("0", "1"),  # 1 is a paraphrase, the positive class of F1
            metrics=("f1", "accuracy"),
            source=Glue(
                "mrpc",
                hub_columns=("sentence1", "sentence2"),
                files=(("train.tsv", "dev.tsv"), ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt")),
            ),
            text_columns=("#1 String", "#2 String"),
            label_column="Quality",
        ),
        Task(
            name="RTE",
            output_mode="classification",
            labels=("entailment", "not_entailment"),
            metrics=("accuracy",),
            source=Glue("rte"),
            text_columns=("sentence1", "sentence2"),
        ),
        Task(
            name="STS-B",
            output_mode="regression",
            labels=(),
            metrics=("pearson", "spearman"),
            source=Glue("stsb"),
            text_columns=("sentence1", "sentence2"),
            label_column="score",
            score_range=(0.0, 5.0),
        ),
        Task(
            name="BBC-News",
            output_mode="classification",
            labels=("business", "entertainment", "politics", "sports", "tech"),
            metrics=("accuracy",),
            source=BbcNews(),
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name, whatever its case and punctuation ("sst2", "STS-B", "bbc_news").

    Raises:
        InputError: there is no such task; the message lists the known ones.
    """
    for task in TASKS.values():
        if _letters(task.name) == _letters(name):
            return task
    raise InputError(f"unknown task {quoted(name)}; known: {', '.join(TASKS)}")


def _letters(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())
