"""What a block reads of this machine's files, by what they hold: checkpoints, rows, recipe files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantlib.compression.variants import STUDENT, TEACHER, at_engine, split_engine
from quantlib.experiment import given_models
from quantlib.experiment.files import BESIDE
from quantlib.experiment.options import ExperimentOptions
from quantlib.experiment.work import is_onnx
from quantlib.onnx_model.model import Model
from quantlib.support.artifacts import Artifact, pack
from quantlib.support.options import options_of
from quantlib.training.student.students import INITS, parse_student_config

_KIND = "inputs"
# Options that name a place for results, or nothing that is read.
_NOT_READ = ("output_dir", "cache_dir", "max_drop_base")


@dataclass(frozen=True)
class Input:
    """Files that an option names.

    option: its field. index: which of its values; None for an option with one. text: the value, or the part
    of it that is a path. directory: where the files are on this machine. inner: the file that is named, in
    that directory; empty for the directory.
    """

    option: str
    index: int | None
    text: str
    directory: Path
    inner: str
    artifact: Artifact


@dataclass(frozen=True)
class Packer:
    """Finds the files that options name; each is read once.

    packed: what was read so far, by directory and names.
    """

    packed: dict[tuple[Path, tuple[str, ...]], Artifact] = field(default_factory=dict)

    def inputs_of(self, options: ExperimentOptions) -> tuple[Input, ...]:
        """The files that the options name; hub ids are looked up, and become files too.

        Raises:
            InputError: there are no such files.
        """
        inputs = []
        for item in options_of(ExperimentOptions):
            value = getattr(options, item.name)
            if not item.may_be_path or item.name in _NOT_READ or value is None:
                continue
            for index, text in enumerate(value if item.many else [value]):
                files = _files(item.name, str(text), options)
                if files is not None:
                    directory, inner, names = files
                    artifact = self._pack(directory, names)
                    index_of = index if item.many else None
                    inputs.append(Input(item.name, index_of, str(text), directory, inner, artifact))
        init = parse_student_config(options.student_config).init
        if options.trains_student and init not in INITS:
            directory = given_models.resolve(init, STUDENT)
            artifact = self._pack(directory, _all_files(directory))
            inputs.append(Input("student_config", None, init, directory, "", artifact))
        return tuple(inputs)

    def _pack(self, directory: Path, names: tuple[str, ...]) -> Artifact:
        if (directory, names) not in self.packed:
            self.packed[directory, names] = pack(_KIND, directory, names)
        return self.packed[directory, names]


def hashes(inputs: Sequence[Input]) -> dict[str, str]:
    """{option, with the index of a value: SHA-256 of what it names}."""
    return {
        entry.option if entry.index is None else f"{entry.option}.{entry.index}": entry.artifact.sha256
        for entry in inputs
    }


def moved(options: ExperimentOptions, inputs: Sequence[Input], root: Path) -> ExperimentOptions:
    """The options with the files in a cache in the place of those that they name."""
    changes: dict[str, Any] = {}
    for entry in inputs:
        place = place_of(entry, root)
        before = changes.get(entry.option, getattr(options, entry.option))
        if entry.option == "student_config":
            changes[entry.option] = before.replace(f"init={entry.text}", f"init={place}")
        elif entry.index is None:
            changes[entry.option] = type(before)(place)
        else:
            changes[entry.option] = (*before[: entry.index], place, *before[entry.index + 1 :])
    return replace(options, cache_dir=root, **changes)


def place_of(entry: Input, root: Path) -> str:
    """What stands in a cache for what an option names; the engine behind a recipe file stays."""
    place = str(entry.artifact.path(root) / entry.inner)
    engine = split_engine(entry.text)[1] if entry.option == "recipes" else None
    return place if engine is None else at_engine(place, engine)


def plain(options: ExperimentOptions, inputs: Sequence[Input]) -> Mapping[str, Any]:
    """What decides the models of a block and their scores, as JSON knows it: no path, nothing of timing."""
    left_out = {*_NOT_READ, "num_runs", "warmup_runs", "timing_seconds", "batch_size", "stock_sessions"}
    left_out |= {entry.option for entry in inputs}
    return {
        item.name: _plain(getattr(options, item.name))
        for item in options_of(ExperimentOptions)
        if item.name not in left_out
    } | {"inputs": hashes(inputs)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _files(name: str, text: str, options: ExperimentOptions) -> tuple[Path, str, tuple[str, ...]] | None:
    """(directory, the file in it, all files) that a value names; None if it names no file."""
    if name in ("teacher", "students"):
        model = given_models.resolve(text, TEACHER if name == "teacher" else STUDENT)
        if is_onnx(model):
            beside = [name for name in BESIDE if (model.parent / name).is_file()]
            return model.parent, model.name, (model.name, *beside, *Model(model).external_names)
        return model, "", _all_files(model)
    path = Path(split_engine(text)[0] if name == "recipes" else text).expanduser()
    if name == "data_dir":
        return path, "", _glue_files(path, options.task_name)
    if name == "recipes" and path.suffix != ".toml":
        return None
    if path.is_dir():
        return path, "", _all_files(path)
    if path.is_file():
        return path.parent, path.name, (path.name,)
    return None  # rows of the hub, a name of the table, or what will be said to be missing


def _all_files(directory: Path) -> tuple[str, ...]:
    names = (path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file())
    return tuple(name.as_posix() for name in names)


def _glue_files(directory: Path, task: str) -> tuple[str, ...]:
    """The files of one of GLUE's tasks, in the folder of its name or beside each other."""
    folder = directory / task if (directory / task).is_dir() else directory
    return tuple(path.relative_to(directory).as_posix() for path in sorted(folder.glob("*.t[sx][vt]")))
