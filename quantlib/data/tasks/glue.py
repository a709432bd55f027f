"""GLUE's tasks: from its TSV files, or from the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantlib.data.tables.delimited import is_quoted_tsv, read_tsv
from quantlib.data.tasks.hub import DATASET, hub_examples, load_parts
from quantlib.data.tasks.splits import Example, Splits, split_train
from quantlib.data.tasks.task import Task
from quantlib.data.text import quoted, read_errors, read_lines, read_text
from quantlib.support.errors import InputError


@dataclass(frozen=True)
class Glue:
    """A reader of one of GLUE's tasks.

    hub_config: its configuration of the hub's GLUE data set. hub_columns: the names of its texts there, if
    they are not the task's `text_columns`. fixed_columns: the names of all columns, in order, where the files
    have no header. files: pairs of a train and an evaluation file, the usual one first.
    """

    hub_config: str
    hub_columns: tuple[str, ...] = ()
    fixed_columns: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = (("train.tsv", "dev.tsv"),)

    def read(self, task: Task, data_dir: Path | None, *, need_train: bool) -> Splits:
        """Rows of files in `data_dir`, or in a folder there with the task's name; without it the hub's."""
        if data_dir is None:
            parts = load_parts(task.name, self.hub_config)
            columns, source = self.hub_columns or task.text_columns, f"{DATASET} {self.hub_config}"
            train = hub_examples(task, parts["train"], columns, f"{source} train", "train")
            evaluation = hub_examples(task, parts["validation"], columns, f"{source} validation", "dev")
            return split_train(train, evaluation, source)
        with read_errors(data_dir):
            train_file, evaluation_file = self._find_files(task, data_dir, need_train)
        evaluation = self._read_tsv(task, evaluation_file, "dev")
        if train_file is None:
            return Splits(train=(), calibration=(), validation=(), evaluation=tuple(evaluation))
        return split_train(self._read_tsv(task, train_file, "train"), evaluation, str(train_file))

    def _find_files(self, task: Task, data_dir: Path, need_train: bool) -> tuple[Path | None, Path]:
        """The train and the evaluation file, both of one pair: files of two releases never mix."""
        if not data_dir.is_dir():
            reason = "not a directory" if data_dir.exists() else "no such directory"
            raise InputError(f"data directory {data_dir}: {reason}")
        folders = (data_dir, data_dir / task.name)
        pairs = [(folder / a, folder / b) for folder in folders for a, b in self.files]
        for train, evaluation in pairs:
            if train.is_file() and evaluation.is_file():
                return train, evaluation
        looked_for = " or ".join(f"{a.relative_to(data_dir)} + {b.relative_to(data_dir)}" for a, b in pairs)
        for train, evaluation in pairs:
            if evaluation.is_file() and not need_train:
                return None, evaluation
            if evaluation.is_file() or train.is_file():
                missing = train if evaluation.is_file() else evaluation
                raise InputError(f"{task.name}: no file {missing}; looked for {looked_for}")
        raise InputError(f"{task.name}: none of its files in {data_dir}; looked for {looked_for}")

    def _read_tsv(self, task: Task, path: Path, split: str) -> list[Example]:
        if not self.fixed_columns and is_quoted_tsv(read_text(path)):
            return _quoted_rows(task, path, split)
        lines = read_lines(path)
        if not lines:
            raise InputError(f"{path}: no rows, the file is empty")
        columns = self.fixed_columns or tuple(lines[0].split("\t"))
        needed = (*task.text_columns, task.label_column)
        for name in needed:
            if name not in columns:
                raise InputError(f"{path} line 1: no column {quoted(name)} in the header {quoted(lines[0])}")
        positions = [columns.index(name) for name in needed]
        first_line = 1 if self.fixed_columns else 2
        examples = []
        for number, line in enumerate(lines[first_line - 1 :], start=1):
            where = f"{path} line {number + first_line - 1}"
            cells = line.split("\t")
            if len(cells) != len(columns):
                raise InputError(
                    f"{where}: {len(cells)} columns, expected {len(columns)} "
                    f"({', '.join(columns)}): {quoted(line)}"
                )
            *texts, label = (cells[position] for position in positions)
            examples.append(task.example(f"{split}-{number}", texts, label, where))
        if not examples:
            raise InputError(f"{path}: no rows after the header")
        return examples


def _quoted_rows(task: Task, path: Path, split: str) -> list[Example]:
    """The rows of a rewritten file with quoted cells; in GLUE's own files a quote is part of the text."""
    table = read_tsv(path, quotes=True)
    cells = [table.column(name) for name in (*task.text_columns, task.label_column)]
    return [
        task.example(f"{split}-{row + 1}", [str(text) for text in texts], str(label), table.where(row))
        for row, (*texts, label) in enumerate(zip(*cells, strict=True))
    ]
