"""From what the user names to the reader of its form."""

from __future__ import annotations

from pathlib import Path

from quantlib.data.tables.arrow import read_parquet, read_saved
from quantlib.data.tables.delimited import read_csv, read_lines_of_text, read_tsv
from quantlib.data.tables.hub import FORM, PREFIX, read_hub
from quantlib.data.tables.jsonl import read_jsonl
from quantlib.data.tables.table import Table
from quantlib.data.text import quoted, read_errors
from quantlib.support.errors import InputError

_DELIMITED = {".csv": read_csv, ".tsv": read_tsv}
_OTHERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".parquet": read_parquet, ".txt": read_lines_of_text}
_KNOWN = f"{', '.join([*_DELIMITED, *_OTHERS])}, a directory of Dataset.save_to_disk, {FORM}"


def read_table(source: str | Path, *, quotes: bool | None = None) -> Table:
    """Read a user's rows; their order stays.

    In CSV and TSV every cell is text. JSON Lines, Parquet, saved data sets and the hub have text, numbers,
    booleans, None, and lists of these; the numbers of a `ClassLabel` become its names.

    Args:
        source: a file whose suffix tells its form (.csv, .tsv, .jsonl, .ndjson, .parquet; .txt: a text on
            each line, in a column "text"), a directory written by `datasets.Dataset.save_to_disk`, or
            hf://ORG/NAME[/CONFIG][@REVISION][:SPLIT].
        quotes: whether cells of a CSV or TSV file may be quoted; None for yes in CSV, and in TSV for what
            the file itself shows (see `read_tsv`).

    Raises:
        InputError: an unknown form; a file that is missing, damaged or not UTF-8; a wrong row; no rows.
    """
    text = str(source)
    if text.splitlines() != [text]:
        raise InputError(f"{quoted(text)}: no table has such a name; known: {_KNOWN}")
    path = Path(source)
    suffix = path.suffix.lower()
    is_hub = text.startswith(PREFIX)
    with read_errors(path):
        is_directory = not is_hub and path.is_dir()
        missing = not is_hub and not path.exists()
    if missing:
        raise InputError(f"{path}: no such file or directory")
    if suffix in _DELIMITED and not is_hub and not is_directory:
        return _DELIMITED[suffix](path, quotes)
    if quotes is not None:
        raise InputError(f"{source}: quotes are a matter of {' and '.join(_DELIMITED)} files only")
    if is_hub:
        return read_hub(text)
    if is_directory:
        return read_saved(path)
    if suffix in _OTHERS:
        return _OTHERS[suffix](path)
    raise InputError(f"{path}: unknown form {quoted(path.suffix)}; known: {_KNOWN}")
