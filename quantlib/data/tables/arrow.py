"""Parquet files, and directories written by `datasets.Dataset.save_to_disk`; pyarrow reads both."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from quantlib.data.tables.table import Cell, Table, Unusable, check_names, usable
from quantlib.data.text import LARGEST_TABLE, quoted, read_errors
from quantlib.support.errors import InputError
from quantlib.support.parsing import parse_json_text, read_bytes

T = TypeVar("T")

Classes = Mapping[str, Sequence[str]]
"""The names of the classes whose numbers a column holds, by column."""

# With these bytes a writer ends an Arrow stream; a file that was cut off between two batches lacks them.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

# Names that datasets gives its files and splits.
_FILE_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


def _need_pyarrow(path: Path) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: to read it needs pyarrow: pip install 'bert-quantlib[parquet]'")


def read_parquet(path: Path) -> Table:
    """The rows of a Parquet file; names of classes are those that `datasets` left in its metadata.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    _need_pyarrow(path)
    import pyarrow as pa
    from pyarrow import parquet

    with _arrow_errors(path, "a Parquet file"):
        data = parquet.ParquetFile(pa.BufferReader(_bytes(path))).read()
        metadata = (data.schema.metadata or {}).get(b"huggingface", b"{}")
        info = _object(metadata, f"{path}: what the package datasets left in it").get("info")
        features = info.get("features") if isinstance(info, dict) else None
        return arrow_table(data, str(path), class_names(features))


def read_saved(directory: Path) -> Table:
    """The rows of a directory written by `datasets.Dataset.save_to_disk`.

    Raises:
        InputError: it is no such directory, holds several splits, or is damaged.
    """
    _need_pyarrow(directory)
    import pyarrow as pa

    with read_errors(directory):
        if (directory / "dataset_dict.json").is_file():
            names = _members(_json_file(directory / "dataset_dict.json").get("splits"), str)
            splits = [str(directory / name) for name in names if _FILE_NAME.fullmatch(name)]
            choices = " or ".join(splits) or "the directory of one"
            raise InputError(f"{directory}: a DatasetDict, which holds several splits; give {choices}")
        if not (directory / "state.json").is_file():
            raise InputError(
                f"{directory}: no state.json; a directory must be one that Dataset.save_to_disk wrote"
            )
    files = _data_files(directory)
    features = _json_file(directory / "dataset_info.json").get("features")
    parts = []
    for path in files:
        with _arrow_errors(path, "an Arrow stream"):
            stream = _bytes(path)
            if not stream.endswith(_END_OF_STREAM):
                raise InputError(f"{path}: damaged, the end of the Arrow stream is missing")
            part = pa.ipc.open_stream(pa.BufferReader(stream)).read_all()
            # Nothing else keeps Python from reading text beyond its buffer.
            part.validate(full=True)
            parts.append(part)
    with _arrow_errors(directory, "Arrow files with the same columns"):
        return arrow_table(pa.concat_tables(parts), str(directory), class_names(features))


def arrow_table(data: Any, source: str, classes: Classes) -> Table:
    """The rows of a `pyarrow.Table`.

    Args:
        data: the table.
        source: where it comes from, for messages.
        classes: names for numbers; -1 is a missing label, as `datasets` has it.

    Raises:
        InputError: no rows or columns, a name that is empty or there twice, or text that is not UTF-8.
    """
    if not data.num_rows or not data.num_columns:
        raise InputError(f"{source}: no {'columns' if data.num_rows else 'rows'}")
    check_names(data.column_names, source)
    cells = {}
    for name, column in zip(data.column_names, data.columns, strict=True):
        cells[name] = _cells(column, f"{source}: column {quoted(name)}")
        if name in classes:
            cells[name] = [_named(cell, classes[name]) for cell in cells[name]]
    return Table(source, tuple(data.column_names), cells, range(1, data.num_rows + 1), "row")


def class_names(features: object) -> Classes:
    """The names of the classes of each column that has some, also of a list's members.

    Args:
        features: as the package `datasets` writes them to JSON, by column: for classes
            {"names": [...], "_type": "ClassLabel"}.
    """
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        elif isinstance(feature, list) and len(feature) == 1:  # as datasets wrote lists before version 4
            feature = feature[0]
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(name, str) for name in names):
                found[column] = names
    return found


def _cells(column: Any, what: str) -> list[Cell | Unusable]:
    if not _is_usable(column.type):
        unusable = Unusable(str(column.type))
        return [unusable if valid else None for valid in column.is_valid().to_pylist()]
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what}: damaged, its text is not UTF-8 (byte 0x{error.object[error.start]:02x})"
        ) from error
    return [usable(value, str(column.type)) for value in values]


def _is_usable(kind: Any) -> bool:
    from pyarrow import types

    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return _is_scalar(kind.value_type if any(is_list(kind) for is_list in lists) else kind)


def _is_scalar(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return any(is_kind(kind) for is_kind in (*texts, *numbers))


def _named(cell: Cell | Unusable, names: Sequence[str]) -> Cell | Unusable:
    if isinstance(cell, list):
        members = [_named(member, names) for member in cell]
        wrong = [member for member in members if isinstance(member, Unusable)]
        return wrong[0] if wrong else usable(members, "a nested list")
    if type(cell) is not int:
        return cell
    if cell == -1:
        return None
    return (
        names[cell]
        if 0 <= cell < len(names)
        else Unusable(f"class {cell}, which is none of its {len(names)}")
    )


def _data_files(directory: Path) -> list[Path]:
    """The Arrow files that state.json names, in order."""
    path = directory / "state.json"
    entries = _members(_json_file(path).get("_data_files"), dict)
    names = [str(entry.get("filename")) for entry in entries]
    if not names or not all(_FILE_NAME.fullmatch(name) for name in names):
        raise InputError(f"{path}: damaged, _data_files must name Arrow files in the same directory")
    return [directory / name for name in names]


def _members(value: object, kind: type[T]) -> list[T]:
    """The members of a list that are of that type; none if it is no list."""
    return [member for member in value if isinstance(member, kind)] if isinstance(value, list) else []


def _json_file(path: Path) -> dict[str, Any]:
    return _object(_bytes(path), str(path))


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json_text(data)
    except ValueError as error:
        raise InputError(f"{where}: damaged, not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: damaged, not a JSON object: {quoted(value)}")
    return value


def _bytes(path: Path) -> bytes:
    with read_errors(path):
        return read_bytes(path, LARGEST_TABLE)


@contextmanager
def _arrow_errors(path: Path, what: str) -> Iterator[None]:
    """Turn what pyarrow says of damaged files into an `InputError`; what: what `path` should be."""
    import pyarrow as pa

    try:
        yield
    # OSError is what pyarrow raises for damaged pages and messages, though the file is in memory already.
    # UnicodeDecodeError: the name of a column.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged, or not {what}: {reason[:200]}") from error
